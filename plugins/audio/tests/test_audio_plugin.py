"""The audio plugin: sounds in any container, damaged ones, encoders of both kinds, tables of features."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import soundfile
import torch
from safetensors.numpy import save_file

from earec_audio import encoders
from earec_audio.modality import AudioConfig, AudioModality
from earec_audio.sound import Cut, windows
from earec_core import plugins
from earec_core.aligned.features import read_inputs
from earec_core.errors import DamagedInputError, EarecError, IntegrityError, UsageError
from earec_core.modality import Context, create
from earec_core.testing import ModalityConformance
from earec_core.types import Item

LASTFM = (Path(__file__).parents[3] / "../shared/data/lastfm-2k-audio").resolve()
LLM: Any = SimpleNamespace(word_embedding=torch.nn.Embedding(9, 32), d_llm=32, tokenizer=None)


def item(audio: Any = None, index: int = 0, **fields: Any) -> Item:
    fields = {**fields, "audio": audio} if audio is not None else fields
    return Item(index, f"i{index}", "t", fields)


def make(**config: Any) -> Any:
    return create("audio", config, Context("c"))


def tone(hertz: float, seconds: float = 2.0, rate: int = 16_000, volume: float = 0.5) -> np.ndarray:
    return volume * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def noise(seconds: float = 2.0, rate: int = 16_000, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, round(seconds * rate))


def chirp(seconds: float = 2.0, rate: int = 16_000, volume: float = 0.5) -> np.ndarray:
    t = np.arange(round(seconds * rate)) / rate
    return volume * np.sin(2 * np.pi * (200 * t + 800 * t * t))


def coded(samples: np.ndarray, rate: int = 16_000, kind: str = "WAV", subtype: str | None = None) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind, subtype=subtype)
    return buffer.getvalue()


def pitch(samples: np.ndarray, rate: int) -> float:
    """Hertz of the strongest frequency."""
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(np.fft.rfftfreq(len(samples), 1 / rate)[spectrum.argmax()])


# The plugin


def test_the_plugin_is_usable_and_stands_between_vision_and_behavior() -> None:
    spec = plugins.get("audio").spec
    assert (spec.order, spec.slot_token) == (25, "<audio>")


def test_declaring_it_imports_nothing_heavy() -> None:
    code = (
        "import sys, earec_audio.spec; print([m for m in ('torch','numpy','soundfile') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_every_field_is_described() -> None:
    fields = type(make().config).model_fields
    assert all(field.description for field in fields.values())


@pytest.mark.parametrize(
    "config",
    [
        {"position": 4},
        {"layer": 2},
        {"row": "feature_row"},
        {"ids": "ids.txt"},
        {"features": "a.npy", "row": "r", "ids": "ids.txt"},
        {"features": "a.npy", "encoder": "openai/whisper-tiny"},
        {"positions": 10, "max_seconds": 0.5},
        {"positions": 0},
        {"max_seconds": float("inf")},
    ],
)
def test_the_configuration_refuses_what_it_does_not_mean(config: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        make(**config)


# Decoding


def test_a_file_of_the_encoders_rate_is_read_as_soundfile_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.stack([noise(seed=0), noise(seed=1)], axis=1), 16_000)
    truth = soundfile.read(path, dtype="float32")[0].mean(1)
    raw = make().read(item(str(path)))
    assert (raw.shape, raw.dtype) == ((2, 16_000), np.float32)
    assert np.allclose(raw.reshape(-1), truth, atol=1e-6)
    values: list[Any] = [path.read_bytes(), {"bytes": path.read_bytes(), "path": "gone.wav"}]
    values += [[values[0]], {"bytes": None, "path": str(path)}]
    for value in values:
        assert np.array_equal(make().read(item(value)), raw)
        assert make().describe(item(value)).startswith("audio, 2.0 s")
    assert make().read(item({"bytes": None, "path": None})) is None


@pytest.mark.parametrize(
    ("kind", "subtype", "rate"),
    [
        ("WAV", "PCM_16", 44_100),
        ("WAV", "FLOAT", 8_000),
        ("FLAC", "PCM_24", 96_000),
        ("OGG", "VORBIS", 44_100),
        ("OGG", "OPUS", 48_000),
        ("MP3", "MPEG_LAYER_III", 22_050),
        ("AIFF", "PCM_16", 11_025),
    ],
)
def test_a_tone_keeps_its_pitch_and_level_in_any_container(kind: str, subtype: str, rate: int) -> None:
    stereo = np.stack([tone(440, 2, rate)] * 2, axis=1)
    raw = make().read(item(coded(stereo, rate, kind, subtype)))
    assert raw.shape[0] == 2
    assert raw.shape[1] == pytest.approx(16_000, rel=0.01)
    for window in raw:
        middle = window[1_000:-1_000]
        assert pitch(middle, 16_000) == pytest.approx(440, abs=2)
        assert middle.std() == pytest.approx(0.5 / np.sqrt(2), rel=0.03)


@pytest.mark.parametrize("rate", [16_000, 22_050, 44_100])
def test_windows_of_an_mp3_are_what_decoding_it_whole_gives(rate: int, tmp_path: Path) -> None:
    """A seek in an MP3 of a low rate damages the frames that follow it."""
    path = tmp_path / "a.mp3"
    path.write_bytes(coded(noise(20, rate) + tone(440, 20, rate), rate, "MP3"))
    whole = soundfile.read(path, dtype="float32")[0]
    cut = Cut(windows=4, most=8.0, least=0.1)
    for row, (start, length) in zip(
        windows(str(path), "a", rate, cut), cut.spans(len(whole), rate), strict=True
    ):
        assert length == 2 * rate
        assert np.allclose(row, whole[start : start + length].clip(-1, 1), atol=1e-4)


def test_an_mp3_that_ends_before_its_stated_length_is_read_to_its_end() -> None:
    data = coded(tone(440, 10, 44_100), 44_100, "MP3")
    half = data[: len(data) // 2]
    assert soundfile.info(io.BytesIO(half)).duration == 10
    raw = make().read(item(half))
    assert 3 < raw.size / 16_000 < 7
    for window in raw:
        assert pitch(window, 16_000) == pytest.approx(440, abs=2)
        assert window[500:-1_500].std() == pytest.approx(0.5 / np.sqrt(2), rel=0.03)


def test_resampling_does_not_fold_what_lies_above_the_new_rate() -> None:
    raw = make().read(item(coded(tone(15_000, 2, 44_100), 44_100)))
    assert np.abs(raw[:, 500:-500]).max() < 1e-3


def test_a_long_clip_is_cut_to_the_middle_of_each_stretch() -> None:
    """The value of each sample is its time, so that what was taken can be read off."""
    rate, seconds = 16_000, 100
    ramp = np.arange(rate * seconds) / (rate * seconds)
    raw = make(positions=4, max_seconds=8).read(item(coded(ramp, rate, "WAV", "FLOAT")))
    assert raw.shape == (4, 2 * rate)
    assert np.allclose(raw.mean(1) * seconds, [12.5, 37.5, 62.5, 87.5], atol=0.01)
    assert np.allclose((raw[:, -1] - raw[:, 0]) * seconds, 2, atol=0.01)


@pytest.mark.parametrize(
    ("seconds", "windows"), [(0.5, 1), (1.5, 1), (2.0, 2), (3.9, 3), (4.0, 4), (30.0, 4)]
)
def test_short_clips_have_fewer_windows(seconds: float, windows: int) -> None:
    raw = make().read(item(coded(noise(seconds))))
    assert raw.shape == (windows, round(seconds * 16_000) // windows)


def test_an_hour_is_not_read_into_memory(tmp_path: Path) -> None:
    rate, path = 8_000, tmp_path / "hour.wav"
    with soundfile.SoundFile(path, "w", rate, 1, "PCM_U8") as file:
        minute = tone(440, 60, rate)
        for _ in range(60):
            file.write(minute)
    decoded = []
    real = soundfile.SoundFile.read

    class Counting(soundfile.SoundFile):
        def read(self, *args: Any, **kwargs: Any) -> Any:
            block = real(self, *args, **kwargs)
            decoded.append(len(block))
            return block

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(soundfile, "SoundFile", Counting)
        raw = make().read(item(str(path)))
    assert 30 * rate <= sum(decoded) <= 40 * rate
    assert raw.shape == (4, 7.5 * 16_000)
    assert pitch(raw[2], 16_000) == pytest.approx(440, abs=2)


def test_samples_beyond_full_scale_are_clipped() -> None:
    raw = make().read(item(coded(tone(440, volume=1e30), subtype="FLOAT")))
    assert np.abs(raw).max() == 1


def test_no_field_is_no_sound() -> None:
    modality = make()
    assert modality.read(item()) is None
    assert modality.read(item("")) is None
    assert modality.read(item(b"")) is None
    assert modality.describe(item()) == ""
    assert make(field="preview").read(item("/nowhere.wav")) is None


@pytest.mark.parametrize(
    "kind",
    [
        "missing",
        "text",
        "empty",
        "header",
        "cut",
        "folder",
        "pipe",
        "long name",
        "raw",
        "number",
        "short",
        "no",
        "nan",
        "inf",
    ],
)
def test_what_cannot_be_read_is_damaged_and_named(kind: str, tmp_path: Path) -> None:
    path = tmp_path / ("broken.raw" if kind == "raw" else "broken.wav")
    value: Any = str(path)
    match kind:
        case "text" | "raw":
            path.write_text("not a sound")
        case "empty":
            path.touch()
        case "header":
            path.write_bytes(coded(noise())[:30])
        case "cut":
            whole = coded(noise(4), kind="FLAC")
            path.write_bytes(whole[: len(whole) // 2])
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "long name":
            value = str(path.with_name(f"{'x' * 300}{path.name}"))
        case "number":
            value = 7
        case "short":
            path.write_bytes(coded(noise(0.05)))
        case "no":
            path.write_bytes(coded(noise(0)))
        case "nan" | "inf":
            samples = noise()
            samples[20_000] = float(kind)
            path.write_bytes(coded(samples, subtype="FLOAT"))
    with pytest.raises(DamagedInputError, match="item i0") as raised:
        make().read(item(value))
    assert kind == "number" or path.name in str(raised.value)
    assert make().describe(item(value))


@pytest.mark.parametrize("seed", range(40))
def test_any_damage_inside_a_file_is_either_read_or_reported(seed: int) -> None:
    rng = np.random.default_rng(seed)
    kind = ("WAV", "FLAC", "OGG", "MP3", "AIFF", "W64", "CAF", "AU")[seed % 8]
    data = bytearray(coded(noise(0.3), kind=kind))
    for position in rng.integers(0, min(len(data), 300), 8):
        data[position] = rng.integers(0, 256)
    with suppress(DamagedInputError):
        raw = make().read(item(bytes(data)))
        assert np.isfinite(raw).all()
        assert raw.shape[0] <= 4
        assert raw.shape[1] * raw.shape[0] <= 30.1 * 16_000


def test_describe_says_how_long_it_is(tmp_path: Path) -> None:
    path = tmp_path / "clip.flac"
    soundfile.write(path, noise(12.3), 16_000)
    assert make().describe(item(str(path))) == "audio, 12.3 s, clip.flac"


# The speech embedding


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Any:
    context = Context("c", home=tmp_path_factory.mktemp("home"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_RETRIES", "0")
        try:
            return create("audio", {}, context).build_encoder(LLM)
        except EarecError as error:
            pytest.skip(f"the wheel openwakeword cannot be fetched: {error}")


def test_the_wheel_is_kept_in_earecs_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []

    def fetch(wheel: Any, folder: Path, note: Any) -> Path:
        asked.append(folder)
        raise EarecError("No network.", "Connect it.")

    monkeypatch.setattr(encoders, "fetch", fetch)
    with pytest.raises(EarecError, match="No network"):
        create("audio", {}, Context(home=tmp_path)).build_encoder(LLM)
    assert asked == [tmp_path / "downloads"]
    with pytest.raises(UsageError, match=r"no folder to keep it in.*Context\(home=FOLDER\)"):
        make().build_encoder(LLM)


@pytest.mark.real
def test_different_sounds_differ_more_than_one_sound_at_other_levels_and_rates(speech: Any) -> None:
    versions = {
        "tone": [coded(tone(440)), coded(tone(440, volume=0.15)), coded(tone(440, rate=44_100), 44_100)],
        "high tone": [coded(tone(1500)), coded(tone(1500, volume=0.15))],
        "noise": [coded(noise()), coded(noise(seed=1) * 0.3), coded(noise(rate=22_050, seed=2), 22_050)],
        "chirp": [coded(chirp()), coded(chirp(volume=0.15)), coded(chirp(rate=48_000), 48_000, "FLAC")],
    }
    names = [name for name, sounds in versions.items() for _ in sounds]
    raws = [make().read(item(data)) for sounds in versions.values() for data in sounds]
    pooled = speech(raws).h.mean(1)
    distances = torch.cdist(pooled, pooled)
    same = torch.tensor([[a == b for a in names] for b in names])
    for row, alike in zip(distances, same, strict=True):
        assert row[alike].max() < row[~alike].min()


@pytest.mark.real
def test_the_speech_embedding_is_frozen_deterministic_and_reads_each_clip_alone(speech: Any) -> None:
    modality = make(max_seconds=6)
    raws = [modality.read(item(coded(noise(seconds, seed=9)))) for seconds in (0.3, 3.5, 4.0, 20.0)]
    h, mask = speech(raws)
    assert not speech.training
    assert h.shape == (4, 4, speech.d_enc)
    assert mask.sum(1).tolist() == [1, 3, 4, 4]
    assert (h[~mask] == 0).all()
    assert torch.equal(speech(raws).h, h)
    assert torch.allclose(speech(raws[::-1]).h, h.flip(0), atol=1e-4)
    for raw, row, used in zip(raws, h, mask, strict=True):
        assert torch.allclose(speech([raw]).h[0], row[used], atol=1e-4)


@pytest.mark.real
def test_the_speech_embeddings_configuration_round_trips_and_pins_the_weights(speech: Any) -> None:
    config = make().resolved_config()
    assert type(config).model_validate(config.model_dump(mode="json")) == config
    assert config.revision.startswith("sha256:")
    with pytest.raises(IntegrityError, match="revision"):
        make(revision="sha256:0").build_encoder(LLM)


@pytest.mark.real
def test_projector_and_slot_agree(speech: Any) -> None:
    modality = make(tokens=2)
    raws = [modality.read(item(coded(noise(seconds)))) for seconds in (1, 9)]
    h, mask = modality.build_projector(speech.d_enc, 32)(speech(raws))
    assert h.shape == (2, modality.positions(), 32) == (2, 8, 32)
    assert mask.sum(1).tolist() == [2, 8]


# Encoders of transformers


def _saved(folder: Path, kind: str) -> Path:
    import transformers as tf

    torch.manual_seed(0)
    small = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 32}
    match kind:
        case "whisper":
            sizes = {"d_model": 16, "encoder_layers": 2, "decoder_layers": 1, "encoder_ffn_dim": 32}
            heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 32}
            tokens = {"vocab_size": 9, "decoder_start_token_id": 1, "pad_token_id": 0}
            ends = {"bos_token_id": 1, "eos_token_id": 2}
            config = tf.WhisperConfig(
                **sizes, **heads, **tokens, **ends, num_mel_bins=20, max_source_positions=200
            )
            model: Any = tf.WhisperForConditionalGeneration(config)
            extractor: Any = tf.WhisperFeatureExtractor(feature_size=20, chunk_length=4)
        case "clap" | "clap-fusion":
            text = {**small, "vocab_size": 9, "max_position_embeddings": 8}
            sound = {"patch_embeds_hidden_size": 8, "hidden_size": 32, "depths": [1, 1, 1]}
            sizes = {
                "num_attention_heads": [1, 2, 4],
                "num_hidden_layers": 3,
                "spec_size": 64,
                "window_size": 2,
            }
            mel = {"num_mel_bins": 16, "enable_fusion": kind == "clap-fusion"}
            model = tf.ClapModel(tf.ClapConfig(text_config=text, audio_config={**sound, **sizes, **mel}))
            rate = {"sampling_rate": 16_000, "hop_length": 160, "max_length_s": 2, "frequency_max": 8_000}
            cut = "fusion" if kind == "clap-fusion" else "rand_trunc"
            extractor = tf.ClapFeatureExtractor(feature_size=16, truncation=cut, **rate)
        case "ast":
            model = tf.ASTModel(tf.ASTConfig(**small, num_mel_bins=16, max_length=200))
            extractor = tf.ASTFeatureExtractor(num_mel_bins=16, max_length=200)
        case _:
            convolutions = {"conv_dim": (8, 8), "conv_stride": (20, 16), "conv_kernel": (20, 16)}
            groups = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
            config_class, model_class = {
                "wav2vec2": (tf.Wav2Vec2Config, tf.Wav2Vec2Model),
                "hubert": (tf.HubertConfig, tf.HubertModel),
            }[kind]
            model = model_class(config_class(**small, **convolutions, **groups))
            extractor = tf.Wav2Vec2FeatureExtractor(do_normalize=True)
    model.eval().save_pretrained(folder)
    extractor.save_pretrained(folder)
    return folder


class TestContract(ModalityConformance):
    """The conformance kit, with a small random wav2vec 2.0 in place of the encoder that is downloaded."""

    modality = "audio"

    @classmethod
    def examples(cls, folder: Path) -> tuple[AudioConfig, Sequence[Item]]:
        _, items = AudioModality.examples(folder)
        return AudioConfig(encoder=str(_saved(folder / "tower", "wav2vec2"))), items


def _transformers_own(folder: Path, kind: str, samples: np.ndarray, layer: int) -> torch.Tensor:
    """The mean of a hidden state over one window's time, from transformers directly."""
    from transformers import AutoFeatureExtractor, AutoModel

    model = AutoModel.from_pretrained(folder).eval()
    extractor = AutoFeatureExtractor.from_pretrained(folder)
    got = dict(extractor(samples, sampling_rate=16_000, return_tensors="pt"))
    got.pop("attention_mask", None)
    part = {"whisper": "encoder", "clap": "audio_model", "clap-fusion": "audio_model"}.get(kind)
    network = getattr(model, part) if part else model
    if kind == "clap-fusion":
        got["is_longer"] = torch.tensor([[False]])
    with torch.no_grad():
        out = network(**got, output_hidden_states=True)
    if layer == -1 and kind.startswith("clap"):
        return out.pooler_output[0]  # type: ignore[no-any-return]
    h = out.last_hidden_state[0] if layer == -1 else out.hidden_states[layer][0]
    if kind.startswith("clap"):
        return h.mean((1, 2))  # type: ignore[no-any-return]
    # Whisper: an embedding every 20 ms, and silence behind the sound.
    return h[: len(samples) // 320].mean(0) if kind == "whisper" else h.mean(0)  # type: ignore[no-any-return]


@pytest.mark.parametrize("layer", [-1, 1])
@pytest.mark.parametrize("kind", ["whisper", "clap", "clap-fusion", "ast", "wav2vec2", "hubert"])
def test_a_transformers_encoder_gives_what_transformers_gives(kind: str, layer: int, tmp_path: Path) -> None:
    folder = _saved(tmp_path / kind, kind)
    modality = make(encoder=str(folder), layer=layer, positions=2)
    raws = [modality.read(item(coded(sound))) for sound in (noise(3.2), chirp(1.6))]
    assert [raw.shape for raw in raws] == [(2, 25_600), (1, 25_600)]
    encoder = modality.build_encoder(LLM)
    assert not encoder.training
    assert not any(p.requires_grad for p in encoder.parameters())
    h, mask = encoder(raws)
    assert h.shape[2] == encoder.d_enc
    assert mask.tolist() == [[True, True], [True, False]]
    windows = [raws[0][0], raws[0][1], raws[1][0]]
    expected = torch.stack([_transformers_own(folder, kind, window, layer) for window in windows])
    assert torch.allclose(h[mask], expected, atol=1e-4)
    assert (h[~mask] == 0).all()
    assert torch.equal(encoder(raws).h, h)
    assert torch.allclose(encoder(raws[1:]).h[0], h[1, :1], atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "seconds"), [("clap", 3.8), ("clap-fusion", 3.8), ("ast", 3.8), ("whisper", 7.8)]
)
def test_a_window_longer_than_the_encoder_reads_goes_through_in_equal_parts(
    kind: str, seconds: float, tmp_path: Path
) -> None:
    folder = _saved(tmp_path / kind, kind)
    modality = make(encoder=str(folder), positions=1)
    raw = modality.read(item(coded(chirp(seconds))))
    expected = [_transformers_own(folder, kind, half, -1) for half in np.split(raw[0], 2)]
    h = modality.build_encoder(LLM)([raw]).h
    assert torch.allclose(h[0, 0], torch.stack(expected).mean(0), atol=1e-4)


def test_a_catalog_of_sounds_fills_slots_and_names_the_damaged(tmp_path: Path) -> None:
    folder = _saved(tmp_path / "w", "wav2vec2")
    sounds = [coded(noise(5)), coded(tone(300, 1.2)), b"not a sound", None, coded(noise(5))]
    items = [item(sound, index) for index, sound in enumerate(sounds)]
    inputs = [
        read_inputs("audio", make(encoder=str(folder)), items, LLM, cache=tmp_path / "cache") for _ in "ab"
    ]
    for found in inputs:
        assert [found.positions[row] for row in (0, 1, 4)] == [4, 1, 4]
        assert list(found.damaged) == ["i2"]
        assert 3 not in found
        assert torch.equal(found.encoded([0]).h, found.encoded([4]).h)
    assert torch.equal(inputs[0].encoded([0, 1]).h, inputs[1].encoded([0, 1]).h)


def test_a_transformers_encoder_is_pinned_by_its_files(tmp_path: Path) -> None:
    folder = _saved(tmp_path / "w", "wav2vec2")
    pinned = make(encoder=str(folder)).resolved_config().model_dump(mode="json")
    first = make(**pinned)
    assert first.fingerprint() != make().fingerprint()
    assert first.fingerprint() != make(**{**pinned, "layer": 1}).fingerprint()
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    with pytest.raises(IntegrityError, match="not the one"):
        make(**pinned).build_encoder(LLM)


def test_an_encoder_that_cannot_be_used_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"audio\.encoder"):
        make(encoder=str(tmp_path / "empty")).build_encoder(LLM)
    folder = _saved(tmp_path / "w", "wav2vec2")
    with pytest.raises(UsageError, match=r"audio\.layer=9"):
        make(encoder=str(folder), layer=9).build_encoder(LLM)


# Tables of features


def _table(rows: int = 7, width: int = 5) -> np.ndarray:
    values = np.random.default_rng(0).normal(3, 2, (rows, width)).astype(np.float32)
    values[:, 2] = 1.25
    return values


def test_features_are_the_tables_rows_standardised(tmp_path: Path) -> None:
    values, path = _table(), tmp_path / "a.npy"
    np.save(path, values)
    deviation = values.std(0)
    deviation[2] = 1
    truth = (values - values.mean(0)) / deviation
    modality = make(features=str(path), row="feature_row")
    rows = [3, 0, "6"]
    raws = [modality.read(item(feature_row=row)) for row in rows]
    assert np.allclose(np.stack(raws), truth[[3, 0, 6]], atol=1e-5)
    assert np.array_equal(make(features=str(path), standardise=False).read(item(index=4)), values[4])
    h, mask = modality.build_encoder(LLM)(raws)
    assert torch.equal(h[:, 0], torch.from_numpy(np.stack(raws)))
    assert mask.all()
    assert modality.positions() == 1
    assert modality.build_projector(5, 32)(modality.build_encoder(LLM)(raws)).h.shape == (3, 1, 32)
    assert modality.describe(item(feature_row=3)) == "audio features, row 3 of a.npy, d=5"


def test_the_same_table_in_any_format_gives_the_same_rows(tmp_path: Path) -> None:
    values, ids = _table(), [f"i{n}" for n in (4, 2, 0, 6, 1, 5, 3)]
    np.save(tmp_path / "a.npy", values)
    save_file({"features": values, "other": values[:1]}, tmp_path / "a.safetensors")
    (tmp_path / "ids.txt").write_text("\n".join(ids))
    (tmp_path / "ids.json").write_text(str(ids).replace("'", '"'))
    pl.DataFrame({"item_id": ids, "v": values.tolist()}).write_parquet(tmp_path / "list.parquet")
    columns = {f"c{n}": values[:, n] for n in range(5)}
    pl.DataFrame({"item_id": ids, **columns}).write_parquet(tmp_path / "columns.parquet")
    for name, listed in (
        ("a.npy", "ids.txt"),
        ("a.safetensors", "ids.json"),
        ("list.parquet", ""),
        ("columns.parquet", ""),
    ):
        named = str(tmp_path / listed) if listed else ""
        modality = make(features=str(tmp_path / name), ids=named, standardise=False)
        for row, name_of_item in enumerate(ids):
            got = modality.read(item(index=int(name_of_item[1:])))
            assert np.array_equal(got, values[row]), name
        assert modality.read(item(index=99)) is None


def test_a_row_of_nan_is_an_item_without_sound_and_a_part_is_damage(tmp_path: Path) -> None:
    values = _table()
    values[1], values[2, 3], values[4, 0] = np.nan, np.nan, np.inf
    np.save(tmp_path / "a.npy", values)
    modality = make(features=str(tmp_path / "a.npy"))
    assert modality.read(item(index=1)) is None
    assert modality.describe(item(index=1)) == ""
    for index in (2, 4):
        with pytest.raises(DamagedInputError, match=f"item i{index}"):
            modality.read(item(index=index))
    whole = values[[0, 3, 5, 6]]
    assert modality.read(item(index=3))[0] == pytest.approx(
        (values[3, 0] - whole[:, 0].mean()) / whole[:, 0].std(), abs=1e-4
    )


@pytest.mark.parametrize("row", [-1, "x", 1.5, True, float("nan"), float("inf"), [1]])
def test_what_is_no_row_number_is_damaged(row: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", _table())
    modality = make(features=str(tmp_path / "a.npy"), row="feature_row")
    assert modality.read(item()) is None
    with pytest.raises(DamagedInputError, match="feature_row of item i0"):
        modality.read(item(feature_row=row))


def test_a_row_beyond_the_tables_end_is_never_another_row(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", _table())
    with pytest.raises(DamagedInputError, match=r"item i0 is row 7, but .*a\.npy has 7 rows"):
        make(features=str(tmp_path / "a.npy"), row="feature_row").read(item(feature_row=7))
    with pytest.raises(UsageError, match="7 rows, the catalog has more"):
        make(features=str(tmp_path / "a.npy")).read(item(index=8))


@pytest.mark.parametrize(
    "kind", ["absent", "text", "pickle", "one", "words", "empty", "npz", "ids", "twice", "suffix", "parquet"]
)
def test_a_table_that_cannot_be_used_is_a_usage_error(kind: str, tmp_path: Path) -> None:
    path, config = tmp_path / "a.npy", {}
    match kind:
        case "text":
            path.write_text("not a table")
        case "pickle":
            np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
        case "one":
            np.save(path, np.arange(3.0))
        case "words":
            np.save(path, np.array([["a", "b"]]))
        case "empty":
            np.save(path, np.zeros((0, 4)))
        case "npz":
            with path.open("wb") as file:
                np.savez(file, a=_table())
        case "ids" | "twice":
            np.save(path, _table())
            (tmp_path / "ids.txt").write_text("a\nb" if kind == "ids" else "a\n" * 7)
            config = {"ids": str(tmp_path / "ids.txt")}
        case "suffix":
            path = tmp_path / "a.pt"
            path.touch()
        case "parquet":
            path = tmp_path / "a.parquet"
            pl.DataFrame({"item_id": ["a"], "x": [[1.0]], "y": [[1.0]]}).write_parquet(path)
    with pytest.raises(UsageError):
        make(features=str(path), **config).read(item(index=0))


def test_a_table_is_pinned_by_its_content(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, _table())
    config = make(features=str(path)).resolved_config()
    pinned = make(**config.model_dump(mode="json"))
    assert pinned.resolved_config() == config
    assert pinned.fingerprint() == make(features=str(path)).fingerprint()
    assert pinned.fingerprint() != make(features=str(path), standardise=False).fingerprint()
    assert pinned.read(item()) is not None
    np.save(path, _table() + 1)
    with pytest.raises(IntegrityError, match="not the table"):
        make(**config.model_dump(mode="json")).read(item())


@pytest.mark.parametrize(("table", "width"), [("vggish.npy", 128), ("whisper.npy", 512)])
def test_real_features_tell_artists_of_one_kind(table: str, width: int) -> None:
    """Artists tagged `black metal` are nearer to each other than to those tagged `pop`."""
    if not LASTFM.is_dir():
        pytest.skip("the real data set ../shared/data/lastfm-2k-audio is not here")
    artists = pl.read_ndjson(LASTFM / "items.jsonl").to_dicts()
    modality = make(features=str(LASTFM / table), row="feature_row")
    rows = np.stack([modality.read(Item(n, "", None, artist)) for n, artist in enumerate(artists)])
    assert rows.shape == (len(artists), width) == (1254, width)
    stored = np.load(LASTFM / table)[[artist["feature_row"] for artist in artists]].astype(np.float64)
    spread = stored.std(0)
    varying = spread > 1e-6
    assert np.allclose(rows[:, varying], ((stored - stored.mean(0)) / spread)[:, varying], atol=1e-3)
    tags = [set((artist["text"] or "").split(",")) for artist in artists]
    metal = np.array(["black metal" in tag and "pop" not in tag for tag in tags])
    pop = np.array(["pop" in tag and "black metal" not in tag for tag in tags])
    directions = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    assert (directions[metal] @ directions[metal].T).mean() > (
        directions[metal] @ directions[pop].T
    ).mean() + 0.05
