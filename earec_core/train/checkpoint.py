"""Checkpoints of a training: one safetensors file, replaced atomically, nothing pickled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from earec_core.errors import EarecError, IntegrityError
from earec_core.files import replacing


def save(
    file: Path,
    parameters: Mapping[str, Tensor],
    states: Mapping[str, Mapping[str, Tensor]],
    progress: Mapping[str, Any],
    best: Mapping[str, Tensor],
) -> None:
    """Write everything that a resumed run needs.

    Args:
        states: the optimizer's, by the parameters' names.

    Raises:
        EarecError: some of it is not finite; the file is as it was.
    """
    tensors = {f"now/{name}": parameter.detach() for name, parameter in parameters.items()}
    tensors |= {f"best/{name}": tensor for name, tensor in best.items()}
    for name, state in states.items():
        tensors |= {f"optimizer/{name}/{key}": tensor for key, tensor in state.items()}
    unusable = not_finite(tensors)
    if unusable:
        raise EarecError(
            f"{unusable} holds NaN or infinity after step {progress.get('step', progress.get('epoch'))}.",
            "Lower the learning rate; the last checkpoint is kept.",
        )
    on_cpu = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(file) as temporary:
        save_file(on_cpu, temporary, metadata={"progress": json.dumps(dict(progress))})


def not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of a tensor that holds NaN or infinity; None where all are finite."""
    return next((name for name, tensor in tensors.items() if not tensor.isfinite().all()), None)


def load(
    file: Path, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """Restore parameters and optimizer in place, and give progress and best parameters; None without a checkpoint.

    Raises:
        IntegrityError: the file is damaged, of another run, or holds what is not finite.
    """
    if not file.exists():
        return None
    try:
        with safe_open(str(file), framework="pt") as stored:
            progress = json.loads(stored.metadata()["progress"])
            tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118 - not a mapping
        if unusable := not_finite(tensors):
            raise ValueError(f"{unusable} holds NaN or infinity")
        for name, parameter in parameters.items():
            parameter.data.copy_(tensors[f"now/{name}"])
            state = _below(f"optimizer/{name}/", tensors)
            optimizer.state[parameter] = {
                key: tensor if key == "step" else tensor.to(parameter.device) for key, tensor in state.items()
            }
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise IntegrityError(
            f"The checkpoint {file} cannot be read: {error}.", "Delete it to start this training again."
        ) from error
    return progress, _below("best/", tensors)


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with the prefix, by the rest of their names."""
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
