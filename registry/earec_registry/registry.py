"""The model registry: content-addressed files, immutable manifests, tags with a history."""

from __future__ import annotations

import builtins
import difflib
import errno
import json
import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import check
from .check import GcReport, Report
from .errors import DamagedError, InvalidError, LayoutError, NotFoundError, StorageError
from .files import copy_hashed, guard, hash_file, staging, sync_folder, write_new
from .manifest import HEX64, FileEntry, Manifest, build, check_paths
from .objects import Objects
from .refs import PIN, LogEntry, Problem, Refs, check_name, is_name, split_ref
from .views import Views

LAYOUT = 1
MARKER = "earec-registry.json"
MARKED = json.dumps({"format": "earec-registry", "layout": LAYOUT}).encode() + b"\n"
"""What stands in it."""
_FOLDERS = ("blobs/sha256", "manifests/sha256", "refs", "views", "tmp")
_ROOM = 16384
PREFIX = re.compile(r"[0-9a-f]{6,63}")
_LIST = "`earec registry list` shows what there is."
_READ_ONLY = {errno.EACCES, errno.EPERM, errno.EROFS}


@dataclass(frozen=True, slots=True)
class Entry:
    """One tag in a listing; `created` is when its model first got this name (UTC), None if not recorded."""

    name: str
    tag: str
    id: str
    kind: str
    created: str | None


@dataclass(frozen=True, slots=True)
class Listing:
    """Every tag that can be read, and what could not be."""

    entries: tuple[Entry, ...]
    problems: tuple[Problem, ...]


class Registry:
    """A registry in the folder `root`; get one with `Registry.open`.

    Any number of processes may use one registry at once, without locks. Every method that writes raises
    `StorageError` when the disk is full or the file system refuses, and then nothing is half-written.
    """

    def __init__(
        self,
        root: Path,
        added: Callable[..., object] | None = None,
        quota: int | None = None,
        scratch: Path | None = None,
    ) -> None:
        self.root = root
        self.added = added
        self.quota = quota
        self.scratch = scratch
        self.objects = Objects(root)
        self.refs = Refs(root)
        self.views = Views(root, self.objects)

    @classmethod
    def open(
        cls,
        root: Path,
        *,
        create: bool = True,
        added: Callable[..., object] | None = None,
        quota: int | None = None,
        scratch: Path | None = None,
    ) -> Registry:
        """Open the registry in `root`, making it first if the folder is empty or not there.

        Args:
            added: called with `name` (`name:tag`), `digest` and `manifest` after each model that `add` stored.
            quota: bytes that its objects may have; None: as many as the disk takes.
            scratch: a folder for the views that a registry in a folder that can only be read lacks.

        Raises:
            NotFoundError: there is none and `create` is false.
            LayoutError: the folder holds something else, or a layout version that is not readable here.
            StorageError: it cannot be made.
        """
        root = Path(root).absolute()
        with guard("open it", root):
            try:
                raw = (root / MARKER).read_bytes()
            except FileNotFoundError:
                raw = None
            except NotADirectoryError as error:
                raise LayoutError(
                    f"{root} is not a folder.", "Give another folder as the registry."
                ) from error
            if raw is None:
                if not create:
                    raise NotFoundError(
                        f"There is no registry in {root}.",
                        "Give its folder with --registry or EAREC_REGISTRY.",
                    )
                _create(root)
            else:
                check_layout(str(root / MARKER), raw)
            for folder in _FOLDERS:
                try:
                    (root / folder).mkdir(parents=True, exist_ok=True)
                except OSError as error:
                    if error.errno not in _READ_ONLY:
                        raise
        return cls(root, added, quota, scratch)

    def check_name(self, name: str, tag: str = "latest") -> None:
        """Refuse a name that `add` would refuse, before the work that makes the model.

        Raises:
            InvalidError: the name or tag cannot be stored, or is taken by a tag or a folder of names.
        """
        check_name(name, tag)
        self.refs.check_free(name, tag)

    def add(
        self,
        manifest: Mapping[str, Any],
        files: Mapping[str, Path],
        *,
        name: str,
        tag: str = "latest",
        why: str = "",
    ) -> str:
        """Store a model and point `name:tag` to it.

        Args:
            manifest: what the model is (kind, modality, base, shapes, parents, method, training, metrics);
                everything in it is part of the model's identity, so it must not hold times or places.
            files: path inside the model to local file; symbolic links are followed.
            name: lower-case name, may have parts separated by "/".
            tag: which tag of the name to move.
            why: a note for the log.

        Returns:
            The model's id, 64 hex digits. The same manifest and files give the same id, and nothing that is
            stored whole is written again; something stored that was damaged is mended.

        Raises:
            InvalidError: the name, tag, manifest, or a path or local file cannot be stored.
            NotFoundError: a parent is not in this registry.
        """
        check_name(name, tag)
        check_paths(files)
        build(manifest, ())  # a bad manifest is refused before anything is copied
        for path, source in files.items():
            if not Path(source).is_file():
                raise InvalidError(
                    f"{source}, to be stored as {path!r}, is not a file.", "Give a file that exists."
                )
        with guard(f"store {name}:{tag}", self.root):
            self.refs.check_free(name, tag)
            self._require_room_for(list(map(Path, files.values())))
            for _ in range(8):
                id_ = self._add(manifest, files, name, tag, why)
                if id_ is not None:
                    break
            else:
                raise StorageError(
                    f"What was being stored as {name}:{tag} was removed by others every time.",
                    "Let `earec registry gc` finish, with its default grace time, then run the same again.",
                )
        if self.added is not None:
            self.added(name=f"{name}:{tag}", digest=id_, manifest=manifest)
        return id_

    def resolve(self, ref: str) -> str:
        """The id meant by "name", "name:tag", an id, or the first 6 or more digits of exactly one id.

        Raises:
            NotFoundError: nothing or more than one model is meant.
            DamagedError: the tag's file cannot be read.
        """
        if HEX64.fullmatch(ref):
            if self.objects.find("manifests", ref):
                return ref
            raise NotFoundError(f"There is no model with the id {ref}.", _LIST)
        named = split_ref(ref)
        id_ = self.refs.read(*named) if named else None
        if id_ is not None:
            return id_
        if PREFIX.fullmatch(ref):
            return only_id(ref, self.objects.all("manifests"), _LIST)
        raise self._unknown(ref, ref.partition(":")[0])

    def manifest(self, ref: str) -> Manifest:
        """A model's manifest, its digest checked.

        Raises:
            NotFoundError: see `resolve`.
            DamagedError: it is missing or damaged.
        """
        return self.objects.read_manifest(self.resolve(ref))

    def materialize(self, ref: str) -> Path:
        """A plain directory with the model's files, for reading; gc may remove it once nothing needs it.

        Every file's digest is checked when the directory is made, and again whenever its size, time or inode
        is not what it was then; a directory that is not whole is made again.

        Raises:
            NotFoundError: see `resolve`.
            DamagedError: the manifest or a file of the model is missing or damaged.
        """
        manifest = self.manifest(ref)
        with guard(f"materialise {ref}", self.root):
            try:
                return self.views.make(manifest)
            except OSError as error:
                if self.scratch is None or error.errno not in _READ_ONLY:
                    raise
            return Views(self.scratch, self.objects).make(manifest)

    def list(self) -> Listing:
        """Every tag, sorted; what cannot be read is a problem beside the others, not an error."""
        refs, problems = self.refs.all()
        entries = []
        for ref in refs:
            try:
                kind = self.objects.read_manifest(ref.id).kind
            except DamagedError as error:
                problems.append(Problem(f"manifests/sha256/{ref.id}.json", error.problem, (str(ref),)))
                continue
            created = next((e.when for e in self.refs.log(ref.name) or () if e.new == ref.id), None)
            entries.append(Entry(ref.name, ref.tag, ref.id, kind, created))
        return Listing(tuple(entries), tuple(problems))

    def log(self, name: str) -> builtins.list[LogEntry]:
        """How the tags of `name` moved, oldest first.

        Raises:
            NotFoundError: there is no such name.
        """
        entries = self.refs.log(name) if is_name(name) else None
        if entries is None:
            raise self._unknown(name, name)
        return entries

    def tag(self, ref: str, name: str, tag: str, why: str = "") -> None:
        """Point `name:tag` to the model that `ref` means.

        Raises:
            InvalidError: the name or tag cannot be used.
            NotFoundError: see `resolve`.
            DamagedError: the model's manifest is missing or damaged.
        """
        check_name(name, tag)
        manifest = self.manifest(ref)
        with guard(f"tag {name}:{tag}", self.root), staging(self.root, "tag") as stage:
            self.refs.check_free(name, tag)
            if not self._point(manifest, name, tag, why, stage):
                raise DamagedError(
                    f"A file of the model {manifest.id[:12]} is missing.",
                    "Run `earec registry verify` to see which, then add the model again.",
                )

    def untag(self, name: str, tag: str = "latest") -> None:
        """Remove a tag; the model stays until `gc` finds that nothing reaches it, the log for good.

        Raises:
            NotFoundError: there is no such tag.
        """
        with guard(f"remove {name}:{tag}", self.root):
            if not is_name(name) or not is_name(f"a/{tag}") or "/" in tag:
                raise self._unknown(f"{name}:{tag}", name)
            try:
                self.refs.remove(name, tag)
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
                raise self._unknown(f"{name}:{tag}", name) from error

    @contextmanager
    def hold(self, id_: str) -> Iterator[None]:
        """Keep `gc` from a model and its parents for as long as the block lasts.

        Where nothing can be written there is no `gc` either.
        """
        with ExitStack() as stack:
            try:
                stage = stack.enter_context(staging(self.root, "hold"))
                self.refs.pin(stage / PIN, id_)
            except OSError as error:
                if error.errno not in _READ_ONLY:
                    raise
            yield

    def require_room(self, new: int) -> None:
        """Refuse `new` more bytes of objects where the quota has no room for them.

        Raises:
            StorageError: says how much is used and needed.
        """
        used = 0 if self.quota is None else self.objects.size()
        if self.quota is not None and new and used + new > self.quota:
            raise StorageError(
                f"The registry {self.root} has a quota of {_bytes(self.quota)}, of which {_bytes(used)} are used; "
                f"{_bytes(new)} more are needed.",
                "Remove models by `earec registry rm`, then `earec registry gc`, or raise EAREC_REGISTRY_QUOTA.",
            )

    def is_whole(self, ref: str) -> bool:
        """Whether the model is stored, its manifest and every file with their digests; parents are not looked at.

        For whoever is about to say that something is done already.
        """
        try:
            return check.is_whole(self.objects, self.manifest(ref))
        except (NotFoundError, DamagedError):
            return False

    def require(self, *refs: str) -> None:
        """Refuse models that could not be parents: of them and all their parents, every file must be there.

        For whoever is about to work for hours on what is stored in the end with these as its parents. Digests are
        not computed.

        Raises:
            NotFoundError: see `resolve`.
            DamagedError: a file is missing or of another size.
        """
        for ref in refs:
            problem = check.lacking(self.objects, self.resolve(ref))
            if problem is not None:
                raise DamagedError(
                    f"{ref!r} is not whole in the registry {self.root}: {problem}.",
                    "Run `earec registry verify` to see everything that is damaged, then make or add it again.",
                )

    def verify(self, ref: str | None = None) -> Report:
        """Hash everything stored, or one model with its parents, and say what is damaged or missing.

        Raises:
            NotFoundError: see `resolve`.
        """
        return check.verify(self.objects, self.refs, self.views, None if ref is None else self.resolve(ref))

    def gc(self, *, dry_run: bool = False, grace_s: float = 3600) -> GcReport:
        """Remove manifests and blobs that no tag reaches, and their views, and what killed writers left.

        Args:
            dry_run: only say what would go.
            grace_s: keep whatever was written or used in the last so many seconds; with less than
                a writer takes, it may have to store files again.

        Raises:
            DamagedError: something that it must trace cannot be read; nothing is removed then.
        """
        with guard("clean up", self.root):
            return check.gc(self.objects, self.refs, dry_run, grace_s)

    def _require_room_for(self, files: builtins.list[Path]) -> None:
        """Refuse files that the quota has no room for; they are only hashed where it may have none."""
        if self.quota is not None and self.objects.size() + sum(f.stat().st_size for f in files) > self.quota:
            sizes = {hash_file(file): file.stat().st_size for file in files}
            self.require_room(
                sum(size for digest, size in sizes.items() if not self.objects.find("blobs", digest))
            )

    def _add(
        self, manifest: Mapping[str, Any], files: Mapping[str, Path], name: str, tag: str, why: str
    ) -> str | None:
        """One attempt to add; None if `gc` removed something that it relied on."""
        with staging(self.root, "add") as stage:
            try:
                model = self._publish(stage, manifest, files)
                return model.id if self._point(model, name, tag, why, stage) else None
            except FileNotFoundError as error:
                if not str(error.filename).startswith(str(self.root)):
                    raise
                return None

    def _point(self, manifest: Manifest, name: str, tag: str, why: str, stage: Path) -> bool:
        """Point a tag to a model; False if something of the model is not there (any more)."""
        self.refs.pin(stage / PIN, manifest.id)
        if not self._keep(manifest):
            return False
        self.refs.move(name, tag, manifest.id, why, stage / PIN)
        return True

    def _publish(self, stage: Path, data: Mapping[str, Any], files: Mapping[str, Path]) -> Manifest:
        """Store a model's files and its manifest."""
        # All that needs room on the disk is written here first, and some more for the log and the folders'
        # growth, so that a full disk is noticed while there is nothing to take back.
        entries = [
            FileEntry(path, *copy_hashed(Path(files[path]), stage / str(number)))
            for number, path in enumerate(sorted(files))
        ]
        raw, manifest = build(data, entries)
        write_new(stage / "manifest", raw)
        write_new(stage / "room", bytes(_ROOM))
        for parent in manifest.parents:
            if not self.objects.find("manifests", parent.id) or not self._keep(
                self.objects.read_manifest(parent.id)
            ):
                raise NotFoundError(
                    f"The parent {parent.id} is not in the registry {self.root}, or not whole.",
                    "Add the parent first, or leave it out of the manifest's parents.",
                )
        for number, entry in enumerate(entries):
            self.objects.publish("blobs", entry.sha256, stage / str(number))
        self.objects.sync("blobs")
        self.objects.publish("manifests", manifest.id, stage / "manifest")
        self.objects.sync("manifests")
        (stage / "room").unlink()
        return manifest

    def _keep(self, manifest: Manifest) -> bool:
        """Touch a model and its parents; False if something is not there."""
        todo, seen = [manifest], {manifest.id}
        while todo:
            model = todo.pop()
            blobs = all(self.objects.touch("blobs", file.sha256) for file in model.files.values())
            if not blobs or not self.objects.touch("manifests", model.id):
                return False
            parents = {parent.id for parent in model.parents} - seen
            seen |= parents
            todo += map(self.objects.read_manifest, sorted(parents))
        return True

    def _unknown(self, ref: str, name: str) -> NotFoundError:
        refs, _ = self.refs.all()
        tags = [r.tag for r in refs if r.name == name]
        if tags and ref != name:
            return NotFoundError(
                f"{name!r} has no such tag as {ref.partition(':')[2]!r}.", f"It has: {', '.join(tags)}."
            )
        if tags:
            return NotFoundError(
                f"{name!r} has no tag 'latest'.", f"Give one of its tags: {', '.join(tags)}."
            )
        close = difflib.get_close_matches(name, sorted({r.name for r in refs}), n=3)
        hint = f"Did you mean {' or '.join(close)}? " if close else ""
        return NotFoundError(f"There is no model named {ref!r} in the registry {self.root}.", hint + _LIST)


def _create(root: Path) -> None:
    """Write the layout file; several processes may do so at once, all with the same bytes."""
    root.mkdir(parents=True, exist_ok=True)
    others = [p.name for p in root.iterdir() if not p.name.startswith(f".{MARKER}.")]
    if others and not (root / MARKER).exists():
        raise LayoutError(
            f"{root} is not empty and not a registry (it has {min(others)!r}).",
            "Give an empty or new folder as the registry.",
        )
    staged = root / f".{MARKER}.{uuid.uuid4().hex}"
    try:
        write_new(staged, MARKED, 0o644)
        staged.replace(root / MARKER)
    finally:
        staged.unlink(missing_ok=True)
    sync_folder(root)


def only_id(start: str, ids: Iterable[str], hint: str) -> str:
    """The one of the ids that starts so.

    Args:
        hint: what to do where there is none, a sentence.

    Raises:
        NotFoundError: none does, or more than one.
    """
    found = sorted(id_ for id_ in ids if id_.startswith(start))
    if not found:
        raise NotFoundError(f"There is no model whose id starts with {start}.", hint)
    if len(found) > 1:
        more = ", ..." if len(found) > 4 else ""
        shown = ", ".join(id_[: len(start) + 6] for id_ in found[:4]) + more
        raise NotFoundError(
            f"The id {start} is the start of {len(found)} models: {shown}.", "Give more digits."
        )
    return found[0]


def _bytes(number: int) -> str:
    """A number of bytes as a person says it: 1.25 GB."""
    size, unit = float(number), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{size:.4g} {unit}"


def check_layout(where: str, raw: bytes) -> None:
    """Refuse a registry that cannot be read here, by what stands in its marker, the file `where`.

    Raises:
        LayoutError: it is damaged, or of another layout.
    """
    try:
        data = json.loads(raw)
    except ValueError:
        data = None
    match data:
        case {"format": "earec-registry", "layout": int(layout)}:
            if layout != LAYOUT:
                raise LayoutError(
                    f"{where} says layout {layout}; this earec reads layout {LAYOUT}.",
                    "Use the earec that made it, or give another folder as the registry.",
                )
        case _:
            raise LayoutError(
                f"{where} is damaged.",
                f'If the folder is a registry, it holds {{"format": "earec-registry", "layout": {LAYOUT}}}.',
            )
