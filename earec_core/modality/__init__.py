"""What the author of a modality imports: the contract, the projectors that most need, and `create` for tests.

A user's own table of vectors is in `earec_core.modality.tables`, an encoder that transformers loads in
`earec_core.modality.pretrained`.
"""

from earec_core.config import LoraSettings
from earec_core.errors import DamagedInputError
from earec_core.modality.contract import (
    Context,
    Encoded,
    Encoder,
    LanguageModel,
    Modality,
    PluginConfig,
    Projector,
    content_digest,
    pad,
)
from earec_core.modality.create import create
from earec_core.modality.projectors import IdentityProjector, MlpProjector
from earec_core.types import Item

__all__ = [
    "Context",
    "DamagedInputError",
    "Encoded",
    "Encoder",
    "IdentityProjector",
    "Item",
    "LanguageModel",
    "LoraSettings",
    "MlpProjector",
    "Modality",
    "PluginConfig",
    "Projector",
    "content_digest",
    "create",
    "pad",
]
