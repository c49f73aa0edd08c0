"""Checkpoints of a training: one safetensors file, replaced atomically, nothing pickled."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from earec_core.errors import IntegrityError


def save(
    file: Path,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    progress: Mapping[str, Any],
    best: Mapping[str, Tensor],
) -> None:
    """Write everything that a resumed run needs."""
    tensors = {f"now/{name}": p.detach() for name, p in parameters.items()}
    tensors.update({f"best/{name}": t for name, t in best.items()})
    for name, parameter in parameters.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer/{name}/{key}"] = torch.as_tensor(value)
    file.parent.mkdir(parents=True, exist_ok=True)
    temp = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        plain = {name: t.cpu().contiguous() for name, t in tensors.items()}
        save_file(plain, temp, metadata={"progress": json.dumps(dict(progress))})
        with temp.open("rb") as handle:
            os.fsync(handle.fileno())
        temp.replace(file)
    finally:
        temp.unlink(missing_ok=True)


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
            prefix = f"optimizer/{name}/"
            state = {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
            if state:
                optimizer.state[parameter] = {
                    k: t.to(parameter.device) if k != "step" else t for k, t in state.items()
                }
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise IntegrityError(
            f"The checkpoint {file} cannot be read: {error}.", "Delete it to start this training again."
        ) from error
    best = {k.removeprefix("best/"): t for k, t in tensors.items() if k.startswith("best/")}
    return progress, {name: t.to(parameters[name].device) for name, t in best.items()}
