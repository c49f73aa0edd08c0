"""A model over a catalog, answering from memory; `earec serve` puts it behind HTTP."""

from earec_core.serve.limits import Limits
from earec_core.serve.service import Service

__all__ = ["Limits", "Service"]
