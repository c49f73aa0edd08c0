"""Immutable files named by their digest: `blobs/sha256/<hex>` and `manifests/sha256/<hex>.json`.

Writers and `gc` need no lock. A writer first writes its reference in tmp/ (a pin: `gc` counts it like a
tag), then looks whether everything it refers to is there, then renames the pin to its place. `gc` first
renames away what nothing reaches, then looks at pins and tags once more, and only then removes or puts back.
Whichever of the two looks last sees what the other did.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path
from typing import Literal

from .errors import DamagedError
from .files import hash_file, size_of, sync_folder
from .manifest import HEX64, Manifest, parse

Kind = Literal["blobs", "manifests"]
KINDS: tuple[Kind, ...] = ("manifests", "blobs")


class Objects:
    """The blobs and manifests of the registry in the folder `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, kind: Kind) -> Path:
        """Where the objects of a kind lie."""
        return self.root / kind / "sha256"

    def path(self, kind: Kind, digest: str) -> Path:
        """Where an object lies if it is there."""
        return self.folder(kind) / (digest + (".json" if kind == "manifests" else ""))

    def find(self, kind: Kind, digest: str) -> Path | None:
        """Where an object lies, or None; brings back one that a killed `gc` had in its hands."""
        path = self.path(kind, digest)
        if not path.exists():
            for trash in (self.root / "tmp").glob(f"gc-*-{kind}-{digest}"):
                self.put_back(trash, kind, digest)
        return path if path.exists() else None

    def manifest_bytes(self, id_: str) -> bytes:
        """What is stored as the manifest of an id (64 hex digits), unchecked; DamagedError if there is nothing."""
        where = f"manifests/sha256/{id_}.json"
        path = self.find("manifests", id_)
        try:
            raw = path.read_bytes() if path else None
        except OSError as error:
            raise DamagedError(
                f"{where} cannot be read ({error}).", "Run `earec registry verify`."
            ) from error
        if raw is None:
            raise DamagedError(
                f"{where} is missing, though something refers to it.",
                "Run `earec registry verify` to see what, then add the model again or move the tag.",
            )
        return raw

    def read_manifest(self, id_: str) -> Manifest:
        """The manifest of an id (64 hex digits), its digest checked; raises DamagedError."""
        return parse(self.manifest_bytes(id_), id_, f"manifests/sha256/{id_}.json")

    def arriving(self, id_: str) -> Manifest | None:
        """The manifest of a model whose files are being fetched, staged beside the pin of whoever fetches it."""
        for path in (self.root / "tmp").glob(f"*/{id_}.json"):
            with suppress(FileNotFoundError, DamagedError):
                return parse(path.read_bytes(), id_, path.name)
        return None

    def all(self, kind: Kind) -> list[str]:
        """The digests of all objects of a kind, sorted; files of other names are passed over."""
        suffix = ".json" if kind == "manifests" else ""
        names = (
            e.name.removesuffix(suffix) for e in os.scandir(self.folder(kind)) if e.name.endswith(suffix)
        )
        return sorted(name for name in names if HEX64.fullmatch(name))

    def size(self) -> int:
        """How many bytes all objects have."""
        return sum(size_of(self.folder(kind)) for kind in KINDS)

    def publish(self, kind: Kind, digest: str, staged: Path) -> None:
        """Move a staged file, known to have `digest`, to its place; a whole one that is there stays.

        One that is there but damaged is replaced, so adding a model again mends it.
        """
        target = self.path(kind, digest)
        try:
            whole = self.touch(kind, digest) and hash_file(target) == digest
        except FileNotFoundError:  # gc was faster
            whole = False
        if not whole:
            staged.replace(target)

    def touch(self, kind: Kind, digest: str) -> bool:
        """Begin an object's grace time anew; False if the object is not there."""
        path = self.find(kind, digest)
        if path is None:
            return False
        try:
            os.utime(path)
        except FileNotFoundError:
            return self.find(kind, digest) is not None
        except OSError as error:
            # Somebody else's file in a shared registry, which only they can touch, or a read-only disk.
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
        return True

    def sync(self, kind: Kind) -> None:
        """Wait until the names of the published objects are on the disk."""
        sync_folder(self.folder(kind))

    def take(self, kind: Kind, digest: str, run: str) -> Path | None:
        """Rename an object away for the `gc` run named `run`; None if it is not there."""
        trash = self.root / "tmp" / f"gc-{run}-{kind}-{digest}"
        try:
            self.path(kind, digest).rename(trash)
        except FileNotFoundError:
            return None
        return trash

    def put_all_back(self) -> None:
        """Bring back whatever any `gc`, perhaps a killed one, has in its hands."""
        for kind in KINDS:
            for trash in (self.root / "tmp").glob(f"gc-*-{kind}-*"):
                digest = trash.name.rpartition("-")[2]
                if HEX64.fullmatch(digest):
                    self.put_back(trash, kind, digest)

    def put_back(self, trash: Path, kind: Kind, digest: str) -> None:
        """Undo `take`."""
        path = self.path(kind, digest)
        try:
            os.link(trash, path)
        except FileNotFoundError:
            return
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links
            with suppress(FileNotFoundError):
                trash.replace(path)
        trash.unlink(missing_ok=True)
