"""What a plugin's code is: so that what it made before an edit is not taken for what it makes now."""

from __future__ import annotations

import hashlib
import sys
from functools import cache
from pathlib import Path


@cache
def code_digest(cls: type) -> str:
    """SHA-256 of the source files that a class stands among: its package's and those below it, else its module's.

    Of a class without source files (typed into an interpreter) it is that of no files.
    """
    total = hashlib.sha256()
    for name, file in _sources(cls.__module__):
        total.update(f"{name} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


def _sources(module: str) -> list[tuple[str, Path]]:
    """The files, each with its name from the package's folder."""
    package = module.rpartition(".")[0]
    folders = [Path(path) for path in getattr(sys.modules.get(package), "__path__", ())]
    if folders:
        return sorted(
            (file.relative_to(folder).as_posix(), file) for folder in folders for file in folder.rglob("*.py")
        )
    file = getattr(sys.modules.get(module), "__file__", None)
    return [(Path(file).name, Path(file))] if file and Path(file).is_file() else []
