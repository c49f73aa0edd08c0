"""Plain directories of models, made when asked for: `views/<first 12 digits of the id>/`.

Beside each lies `<hex12>.json`, which says what `stat` gave for every file when its digest was last checked;
so using a view again costs a few `stat` calls, and an edited file is noticed even if its size is the same.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

from .errors import DamagedError, StorageError
from .files import copy_hashed, hash_file, staging, write_new
from .manifest import FileEntry, Manifest
from .objects import Objects
from .refs import Problem

# A view's file is a hard link to its blob from this size on. Smaller ones (configurations, cards: what people
# edit) are copies, so that an editor that writes in place cannot reach the blob.
LINK_FROM = 1 << 20


class Views:
    """The views of a registry, in its folder `root` or, where that can only be read, in another."""

    def __init__(self, root: Path, objects: Objects) -> None:
        self._root = root
        self._folder = root / "views"
        self._objects = objects

    def path(self, manifest: Manifest) -> Path:
        """Where a model's view is if there is one."""
        return self._folder / manifest.id[:12]

    def make(self, manifest: Manifest) -> Path:
        """The model's view, made or mended where necessary.

        Raises:
            DamagedError: a blob is missing or damaged.
            StorageError: the view is being replaced by others all the time.
        """
        view, stamp = self.path(manifest), self._stamp(manifest)
        if self._known_good(manifest):
            with suppress(OSError):  # a registry that can only be read has no `gc` either
                os.utime(stamp)  # `gc` sees that it is in use
            return view
        for _ in range(8):
            if not view.is_dir() or self._wrong(manifest):
                self._rebuild(manifest)
            facts = self._facts(manifest)
            if facts is not None:
                content = json.dumps({"id": manifest.id, "files": facts}).encode()
                with suppress(OSError), staging(self._root, "stamp") as stage:  # it only saves hashing again
                    write_new(stage / "stamp", content, 0o644)
                    (stage / "stamp").replace(stamp)
                return view
        raise StorageError(f"{view} is being replaced all the time.", "Run the same again.")

    def problems(self, manifest: Manifest) -> list[Problem]:
        """What is wrong with a model's view, every file hashed; empty if there is no view."""
        view = self.path(manifest)
        if not view.is_dir():
            return []
        fault = "view differs from the model; the model's next use rebuilds it"
        return [Problem(f"views/{view.name}/{path}", fault) for path in self._wrong(manifest)]

    def _stamp(self, manifest: Manifest) -> Path:
        return self._folder / f"{manifest.id[:12]}.json"

    def _known_good(self, manifest: Manifest) -> bool:
        """Whether the files are as they were when they were last hashed.

        A file that was as new as the stamp is not known: what changed it in that tick of the clock does not show.
        """
        file = self._stamp(manifest)
        try:
            stamp, stamped = json.loads(file.read_bytes()), file.stat().st_mtime_ns
        except (FileNotFoundError, ValueError):
            return False
        facts = self._facts(manifest)
        if facts is None or stamp != {"id": manifest.id, "files": facts}:
            return False
        return all(changed < stamped for _, changed, _ in facts.values())

    def _facts(self, manifest: Manifest) -> dict[str, list[int]] | None:
        """Size, time and inode of each file; None if a file is missing, too many or of another size."""
        view = self.path(manifest)
        if _present(view) != set(manifest.files):
            return None
        facts = {}
        for path, entry in manifest.files.items():
            try:
                stat = (view / path).lstat()
            except OSError:
                return None
            if stat.st_size != entry.size:
                return None
            facts[path] = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
        return facts

    def _wrong(self, manifest: Manifest) -> list[str]:
        view = self.path(manifest)
        wrong = _present(view) ^ set(manifest.files)
        wrong |= {
            path
            for path, entry in manifest.files.items()
            if path not in wrong and _differs(view / path, entry)
        }
        return sorted(wrong)

    def _rebuild(self, manifest: Manifest) -> None:
        view = self.path(manifest)
        with staging(self._root, "view") as stage:
            self._folder.mkdir(exist_ok=True)
            new = stage / "new"
            new.mkdir()
            for entry in manifest.files.values():
                target = new / entry.path
                target.parent.mkdir(parents=True, exist_ok=True)
                self._place(manifest, entry, target)
            # A folder cannot replace another in one step, so the old one goes into our stage first; if
            # somebody put theirs there in between, it is as good as ours.
            with suppress(FileNotFoundError):
                view.rename(stage / "old")
            try:
                new.rename(view)
            except OSError:
                if not view.is_dir():
                    raise

    def _place(self, manifest: Manifest, entry: FileEntry, target: Path) -> None:
        """Link or copy a file's blob to `target`."""
        blob = self._objects.find("blobs", entry.sha256)
        file = f"The file {entry.path!r} of the model {manifest.id[:12]} (blob {entry.sha256[:12]})"
        fix = "Run `earec registry verify` to see everything that is damaged, then add the model again."
        if blob is None:
            raise DamagedError(f"{file} is missing from the registry.", fix)
        if entry.size >= LINK_FROM:
            with suppress(OSError):  # no hard links here, or too many of this one
                os.link(blob, target)
        if target.exists():
            written = hash_file(target), target.stat().st_size
        else:
            written = copy_hashed(blob, target, sync=False)
        if written != (entry.sha256, entry.size):
            raise DamagedError(f"{file} is damaged: its digest is not its name.", fix)


def _differs(file: Path, entry: FileEntry) -> bool:
    try:
        return file.is_symlink() or file.stat().st_size != entry.size or hash_file(file) != entry.sha256
    except OSError:
        return True


def _present(view: Path) -> set[str]:
    """Paths of a view's files, and of links to folders, which no model has."""
    paths = set()
    for folder, folders, names in os.walk(view):
        links = [name for name in folders if Path(folder, name).is_symlink()]
        paths |= {Path(folder, name).relative_to(view).as_posix() for name in (*names, *links)}
    return paths
