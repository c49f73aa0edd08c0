"""What the plugin declares; imports nothing heavy."""

from earec_core.plugins.spec import ModalitySpec

SPEC = ModalitySpec(
    name="audio",
    api_version=(2, 0),
    summary="An item's sound, through a speech embedding, Whisper, CLAP or wav2vec2, or a table of its features.",
    config="earec_audio.modality:AudioConfig",
    factory="earec_audio.modality:AudioModality",
    slot_token="<audio>",  # noqa: S106 - a place in a prompt
    order=25,
    requires=("onnxruntime", "soundfile", "soxr"),
)
