"""What the plugin declares; imports nothing heavy."""

from earec_core.plugins.spec import ModalitySpec

SPEC = ModalitySpec(
    name="behavior",
    api_version=(2, 2),
    summary="An item's embedding in an existing recommender (SASRec by `earec behavior fit`, or your own).",
    config="earec_behavior.modality:BehaviorConfig",
    factory="earec_behavior.modality:BehaviorModality",
    slot_token="<behavior>",  # noqa: S106 - a place in a prompt
    order=30,
)
