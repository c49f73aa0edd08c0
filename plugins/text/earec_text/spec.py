"""What the plugin declares; imports nothing heavy."""

from earec_core.plugins.spec import ModalitySpec

SPEC = ModalitySpec(
    name="text",
    api_version=(2, 0),
    summary="An item's words (its description by default), through the LLM's own word embedding.",
    config="earec_text.modality:TextConfig",
    factory="earec_text.modality:TextModality",
    slot_token="<text>",  # noqa: S106 - a place in a prompt
    order=10,
)
