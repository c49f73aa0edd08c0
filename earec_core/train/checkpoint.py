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

from earec_core.errors import IntegrityError
from earec_core.files import replacing


def save(
    file: Path,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    progress: Mapping[str, Any],
    best: Mapping[str, Tensor],
) -> None:
    """Write everything that a resumed run needs."""
    tensors = {f"now/{name}": parameter.detach() for name, parameter in parameters.items()}
    tensors |= {f"best/{name}": tensor for name, tensor in best.items()}
    for name, parameter in parameters.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer/{name}/{key}"] = torch.as_tensor(value)
    on_cpu = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(file) as temporary:
        save_file(on_cpu, temporary, metadata={"progress": json.dumps(dict(progress))})


def load(
    file: Path, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """Restore parameters and optimizer in place; None where there is no checkpoint.

    Raises:
        IntegrityError: the file is damaged or of another run.
    """
    if not file.exists():
        return None
    try:
        with safe_open(str(file), framework="pt") as stored:
            progress = json.loads(stored.metadata()["progress"])
            tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118 - not a mapping
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
    best = _below("best/", tensors)
    return progress, {name: tensor.to(parameters[name].device) for name, tensor in best.items()}


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with the prefix, by the rest of their names."""
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
