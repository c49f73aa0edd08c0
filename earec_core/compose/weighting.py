"""Weights in a file: what `earec search` writes and `earec compose --weights @FILE` takes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from earec_core.config import Section, validate
from earec_core.errors import UsageError


class Weighting(Section):
    """A weighting, and how it came to be.

    Attributes:
        weights: lambda by modality.
        layer_weights: lambda by modality for layers that have their own, by layer.
        adapters: reference of the adapter that was weighed, by modality; others may be given.
        search: how the weights were found; goes to the composite's manifest.
    """

    weights: Mapping[str, float]
    layer_weights: Mapping[int, Mapping[str, float]] = {}
    adapters: Mapping[str, str] = {}
    search: Mapping[str, Any] = {}

    @classmethod
    def read(cls, file: Path) -> Weighting:
        """Read a file.

        Raises:
            UsageError: it cannot be read, or is no weighting.
        """
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            cause = error.strerror if isinstance(error, OSError) else "not JSON"
            raise UsageError(
                f"The weights in {file} cannot be read ({cause}).",
                "Name a file that `earec search` wrote, or give the weights: text=0.5,vision=0.5.",
            ) from None
        return validate(cls, values, f"file of weights {file}")
