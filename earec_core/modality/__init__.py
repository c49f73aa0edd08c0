"""What the author of a modality imports: the contract, projectors, a user's own tables, pretrained encoders."""

from earec_core.modality.contract import (
    Context,
    Encoded,
    Encoder,
    LanguageModel,
    Modality,
    PluginConfig,
    Projector,
    PromptSlot,
    content_digest,
    pad,
)

__all__ = [
    "Context",
    "Encoded",
    "Encoder",
    "LanguageModel",
    "Modality",
    "PluginConfig",
    "Projector",
    "PromptSlot",
    "content_digest",
    "pad",
]
