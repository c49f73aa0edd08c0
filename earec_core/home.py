"""Where EAREC keeps what it stores."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """`EAREC_HOME`, else `~/.earec`: backbones, cached features, runs, the registry."""
    return Path(os.environ.get("EAREC_HOME") or Path.home() / ".earec").expanduser().absolute()


def registry_root() -> Path:
    """`EAREC_REGISTRY`, else the registry under `home()`."""
    return Path(os.environ.get("EAREC_REGISTRY") or home() / "registry").expanduser().absolute()
