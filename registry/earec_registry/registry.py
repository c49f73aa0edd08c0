"""The model registry: content-addressed files, immutable manifests, tags with a history."""

from __future__ import annotations

import builtins
import difflib
import json
import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import check
from .check import GcReport, Report
from .errors import DamagedError, InvalidError, LayoutError, NotFoundError, StorageError
from .files import copy_hashed, guard, staging, sync_folder, write_new
from .manifest import HEX64, FileEntry, Manifest, build, check_paths
from .objects import Objects
from .refs import PIN, LogEntry, Problem, Refs, check_name, is_name
from .views import Views

LAYOUT = 1
MARKER = "earec-registry.json"
_FOLDERS = ("blobs/sha256", "manifests/sha256", "refs", "views", "tmp")
_ROOM = 16384
_PREFIX = re.compile(r"[0-9a-f]{6,63}")
_LIST = "`earec registry list` shows what there is."


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

    def __init__(self, root: Path, added: Callable[..., object] | None = None) -> None:
        self.root = root
        self.added = added
        self.objects = Objects(root)
        self.refs = Refs(root)
        self.views = Views(root, self.objects)

    @classmethod
    def open(cls, root: Path, *, create: bool = True, added: Callable[..., object] | None = None) -> Registry:
        """Open the registry in `root`, making it first if the folder is empty or not there.

        Args:
            added: called with `name` (`name:tag`), `digest` and `manifest` after each model that `add` stored.

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
                _check_layout(root, raw)
            for folder in _FOLDERS:
                (root / folder).mkdir(parents=True, exist_ok=True)
        return cls(root, added)

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
        name, colon, tag = ref.partition(":")
        if is_name(name) and (not colon or is_name(f"a/{tag}")) and "/" not in tag:
            id_ = self.refs.read(name, tag or "latest")
            if id_ is not None:
                return id_
        if _PREFIX.fullmatch(ref):
            ids = [id_ for id_ in self.objects.all("manifests") if id_.startswith(ref)]
            if len(ids) == 1:
                return ids[0]
            if ids:
                more = ", ..." if len(ids) > 4 else ""
                shown = ", ".join(id_[: len(ref) + 6] for id_ in ids[:4]) + more
                raise NotFoundError(
                    f"The id {ref} is the start of {len(ids)} models: {shown}.", "Give more digits."
                )
            raise NotFoundError(f"There is no model whose id starts with {ref}.", _LIST)
        raise self._unknown(ref, name)

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
            return self.views.make(manifest)

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
        write_new(staged, json.dumps({"format": "earec-registry", "layout": LAYOUT}).encode() + b"\n", 0o644)
        staged.replace(root / MARKER)
    finally:
        staged.unlink(missing_ok=True)
    sync_folder(root)


def _check_layout(root: Path, raw: bytes) -> None:
    try:
        data = json.loads(raw)
    except ValueError:
        data = None
    match data:
        case {"format": "earec-registry", "layout": int(layout)}:
            if layout != LAYOUT:
                raise LayoutError(
                    f"The registry {root} has layout {layout}; this earec reads layout {LAYOUT}.",
                    "Use the earec that made it, or give another folder as the registry.",
                )
        case _:
            raise LayoutError(
                f"{root / MARKER} is damaged.",
                f'If the folder is a registry, it holds {{"format": "earec-registry", "layout": {LAYOUT}}}.',
            )
