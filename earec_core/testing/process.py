"""What a process shares with everything in it, and a plugin should leave as it was."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

ENVIRONMENT = dict(os.environ)
"""The environment as it was when this was imported, before any plugin was."""


def shared() -> dict[str, object]:
    """The state of the process, by what it is called in a sentence; equal values are equal states."""
    modules = {"torch": torch, "torch.nn": nn, "torch.nn.functional": functional}
    return {
        "the working directory": Path.cwd(),
        "the environment": dict(os.environ),
        "numpy's random state": str(np.random.get_state(legacy=False)),  # noqa: NPY002 - whoever uses it
        "torch's random state": torch.get_rng_state().numpy().tobytes(),
        "torch's default type": torch.get_default_dtype(),
        "torch's threads": torch.get_num_threads(),
        "torch's determinism": torch.are_deterministic_algorithms_enabled(),
        **{
            f"{name}.{entry}": id(value)
            for name, module in modules.items()
            for entry, value in vars(module).items()
        },
    }


def changes(before: dict[str, object]) -> Iterator[str]:
    """What is another now than it was then; what has come since is not looked at."""
    now = shared()
    return (name for name, value in before.items() if now.get(name) != value)
