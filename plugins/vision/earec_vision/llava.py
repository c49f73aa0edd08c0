"""LLaVA's projector, out of one of its checkpoints (Liu et al. 2023, "mlp2x_gelu")."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from earec_core.errors import UsageError
from earec_core.modality import Encoded
from earec_core.modality.projectors import MlpProjector

# As transformers names its two linear maps, and as LLaVA's own code does.
_NAME = re.compile(r"(?:multi_modal_projector\.linear_([12])|mm_projector\.([02]))\.(weight|bias)$")
_PLACE = {"1": "hidden.0", "0": "hidden.0", "2": "out"}
_NEXT = "Give a directory or file of safetensors: --set vision.projector=..."


class LlavaProjector(MlpProjector):
    """Linear, GELU, linear, without a LayerNorm in front.

    Args:
        d_enc: width of the vision tower's tokens.
        d_llm: width of the LLM's word embeddings.
        weights: a checkpoint's, from `read`; None starts anew.

    Raises:
        UsageError: the weights are of another width.
    """

    def __init__(self, d_enc: int, d_llm: int, weights: dict[str, Tensor] | None = None) -> None:
        super().__init__(d_enc, d_llm, norm=False)
        self._pretrained = weights is not None
        if weights is None:
            return
        (d_out, d_in), wanted = weights["hidden.0.weight"].shape, self.state_dict()
        if (d_in, d_out) != (d_enc, d_llm):
            raise UsageError(
                f"LLaVA's projector maps {d_in} to {d_out}; encoder and LLM here have {d_enc} and {d_llm}.",
                "Use the vision tower and the LLM that it was trained with, or --set vision.projector=mlp.",
            )
        for name, weight in weights.items():
            if weight.shape != wanted[name].shape:
                raise UsageError(
                    f"{name} of LLaVA's projector is {list(weight.shape)}, not {list(wanted[name].shape)}.",
                    _NEXT,
                )
        self.load_state_dict(weights)

    def calibrate(self, x: Encoded, rms: float) -> None:
        if not self._pretrained:
            super().calibrate(x, rms)


def read(source: Path) -> tuple[dict[str, Tensor], str]:
    """The projector in a LLaVA checkpoint, and its digest `sha256:...`.

    Args:
        source: a safetensors file, or a directory with some.

    Raises:
        UsageError: there is none in it, or it is not safetensors.
    """
    files = sorted(source.glob("*.safetensors")) if source.is_dir() else [source]
    weights: dict[str, Tensor] = {}
    for file in files:
        try:
            with safe_open(str(file), framework="pt") as stored:
                for name in stored.keys():  # noqa: SIM118 - it is no mapping
                    if match := _NAME.search(name):
                        place = _PLACE[match[1] or match[2]]
                        weights[f"{place}.{match[3]}"] = stored.get_tensor(name).float()
        except (SafetensorError, OSError) as error:
            raise UsageError(f"{file} cannot be read as safetensors: {error}", _NEXT) from None
    if len(weights) != 4:
        raise UsageError(f"There is no two-layer projector of LLaVA in {source}.", _NEXT)
    if weights["hidden.0.weight"].ndim != 2:
        raise UsageError(f"The projector in {source} is no linear map.", _NEXT)
    if not all(weight.isfinite().all() for weight in weights.values()):
        raise UsageError(f"The projector in {source} holds NaN or infinite numbers.", _NEXT)
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return weights, f"sha256:{digest.hexdigest()}"
