"""A registry, a way to store a small model, and ways to harm it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from earec_registry import Registry

BIG = 65


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setattr("earec_registry.views.LINK_FROM", BIG)
    return Registry.open(tmp_path / "registry")


@pytest.fixture
def store(tmp_path: Path, registry: Registry) -> Callable[..., str]:
    """Store a small model; its one file's text is `text`."""

    def add(text: str = "weights", name: str = "text/demo", tag: str = "latest", **said: Any) -> str:
        source = tmp_path / "source"
        source.mkdir(exist_ok=True)
        (source / "w").write_text(text)
        (source / "big").write_bytes(text.encode() * (BIG // len(text) + 1))
        files = {"sub/w.txt": source / "w", "big.bin": source / "big"}
        return registry.add({"kind": "adapter", **said}, files, name=name, tag=tag, why="test")

    return add


def snapshot(root: Path) -> dict[str, tuple[int, bytes]]:
    return {
        p.relative_to(root).as_posix(): (p.stat().st_ino, p.read_bytes())
        for p in root.rglob("*")
        if p.is_file()
    }


def age(root: Path, seconds: float = 7200) -> None:
    """Make everything stored look as if written long ago."""
    then = time.time() - seconds
    for path in [p for kind in ("blobs", "manifests", "views", "tmp") for p in (root / kind).rglob("*")]:
        os.utime(path, (then, then))


def flip(path: Path, at: int = 0) -> None:
    """Change one byte in place, keeping the size."""
    path.chmod(0o644)
    with path.open("r+b") as stream:
        stream.seek(at)
        byte = stream.read(1)[0]
        stream.seek(at)
        stream.write(bytes([byte ^ 1]))
