"""Models from one registry to another: blobs first, then manifests, then the tag, each where it is lacking.

The other side is a `Remote`: files below one location, laid out as a registry is. An object's name is its digest,
so what is there is not copied again, and whoever was killed goes on with what is missing.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Protocol

from .check import blob_fault
from .errors import DamagedError, InvalidError, LayoutError, NotFoundError
from .files import chunks, guard, staging, write_hashed, write_new
from .manifest import HEX64, FileEntry, Manifest, parse
from .objects import Objects
from .refs import LOG, PIN, check_name, log_entries, log_line, split_ref
from .registry import MARKED, MARKER, PREFIX, Registry, check_layout, only_id

Progress = Callable[[int, int, str], None]
"""Takes bytes done, bytes in all, and a few words."""


class Remote(Protocol):
    """Files below one location, by their path in it. Its methods say themselves, in a sentence, what failed."""

    @property
    def url(self) -> str:
        """The location, as it may be shown."""

    def files(self, folder: str) -> dict[str, int]:
        """Bytes of every file in a folder and those below it, by its path; none if it is not there."""

    def read(self, path: str) -> bytes | None:
        """What a small file holds; None if it is not there."""

    def chunks(self, path: str) -> Iterator[bytes]:
        """A file's bytes, piece by piece; FileNotFoundError if it is not there."""

    def put(self, path: str, chunks: Iterable[bytes]) -> None:
        """Write a file; it is there in full once all pieces came, and not at all if one could not."""

    def remove(self, path: str) -> None:
        """Remove a file."""


@dataclass
class Transfer:
    """What was copied.

    Attributes:
        id: the model's.
        name: what points to it on the receiving side, `NAME:TAG`.
        there: objects that the receiving side had, by their path in it.
        copied: those that it lacked.
        repaired: those that it had damaged.
        bytes: of the files copied and repaired.
    """

    id: str
    name: str
    there: list[str] = field(default_factory=list)
    copied: list[str] = field(default_factory=list)
    repaired: list[str] = field(default_factory=list)
    bytes: int = 0


def fetch(
    registry: Registry,
    remote: Remote,
    ref: str,
    *,
    called: str | None = None,
    why: str = "",
    progress: Progress = lambda *_: None,
) -> Transfer:
    """Copy a model with its parents from `remote` into `registry`, and point a tag to it.

    Everything that arrives is checked by its digest before it gets its name; what is damaged here is mended.

    Args:
        ref: the model there: name, `name:tag`, id, or the first 6 or more digits of one.
        called: what it is called here, `NAME` or `NAME:TAG`; None: as there.
        why: a note for the log.

    Raises:
        NotFoundError: no registry or no such model is there.
        InvalidError: it cannot be called so, or an id is given and no name.
        DamagedError: something there is missing or damaged; it is not kept.
        StorageError: the disk is full, or the quota has no room.
    """
    name, tag = target_name(ref, called)
    registry.check_name(name, tag)
    marker = remote.read(MARKER)
    if marker is None:
        raise NotFoundError(
            f"There is no registry in {remote.url}.", "Check the location, or push a model to it."
        )
    check_layout(f"{remote.url}/{MARKER}", marker)
    done = Transfer(_resolve(remote, ref), f"{name}:{tag}")
    with guard(f"store {name}:{tag}", registry.root), staging(registry.root, "fetch") as stage:
        family, raw = _fetch_manifests(registry.objects, remote, stage, done)
        # From here on `gc` keeps whatever of these models is there, though none has its manifest yet.
        registry.refs.pin(stage / PIN, done.id)
        _fetch_blobs(registry, remote, family, stage, done, progress)
        for model in family:
            write_new(stage / "manifest", raw[model.id])
            registry.objects.publish("manifests", model.id, stage / "manifest")
            (stage / "manifest").unlink(missing_ok=True)
        registry.objects.sync("manifests")
        registry.tag(done.id, name, tag, why)
    if registry.added is not None:
        said = {key: value for key, value in family[-1].data.items() if key != "files"}
        registry.added(name=done.name, digest=done.id, manifest=said)
    return done


def send(
    registry: Registry,
    remote: Remote,
    ref: str,
    *,
    called: str | None = None,
    why: str = "",
    progress: Progress = lambda *_: None,
) -> Transfer:
    """Copy a model with its parents from `registry` to `remote`, perhaps no registry yet, and point a tag to it.

    A file that is there with its size is taken for whole; who reads it checks its digest.

    Args:
        ref: the model here, see `Registry.resolve`.
        called: what it is called there, `NAME` or `NAME:TAG`; None: as here.
        why: a note for the log.

    Raises:
        NotFoundError: there is no such model here.
        InvalidError: it cannot be called so there, or an id is given and no name.
        LayoutError: the location holds something else.
        DamagedError: a file of the model is missing or damaged here, or did not arrive whole.
    """
    name, tag = target_name(ref, called)
    done = Transfer(registry.resolve(ref), f"{name}:{tag}")
    with guard(f"send {ref}", registry.root), registry.hold(done.id):
        registry.require(done.id)
        stored = _prepare(remote, name, tag)
        family = _family(done.id, registry.objects.read_manifest)
        _send_blobs(registry.objects, remote, family, stored, done, progress)
        for model in family:
            path, raw = f"manifests/sha256/{model.id}.json", registry.objects.manifest_bytes(model.id)
            if _lacks(stored.get(path), len(raw), path, done):
                remote.put(path, [raw])
        _point(remote, name, tag, done.id, why)
    return done


def target_name(ref: str, called: str | None) -> tuple[str, str]:
    """Name and tag that a model gets where it arrives.

    Raises:
        InvalidError: `ref` is an id, which says no name, or the name cannot be one.
    """
    if called is None and (HEX64.fullmatch(ref) or PREFIX.fullmatch(ref)):
        raise InvalidError(
            f"The id {ref} says no name, and where it arrives gc would remove a model without one.",
            "Say what to call it there: --as NAME or --as NAME:TAG.",
        )
    name, _, tag = (called or ref).partition(":")
    check_name(name, tag or "latest")
    return name, tag or "latest"


def _family(id_: str, read: Callable[[str], Manifest]) -> list[Manifest]:
    """A model and all that it was made from, each behind its parents."""
    models, todo = dict[str, Manifest](), [id_]
    while todo:
        model = todo.pop()
        if model not in models:
            models[model] = read(model)
            todo += [parent.id for parent in models[model].parents]
    order = TopologicalSorter({m.id: [parent.id for parent in m.parents] for m in models.values()})
    return [models[model] for model in order.static_order()]


def _files(family: Iterable[Manifest]) -> list[FileEntry]:
    """The files of models, one of each content."""
    return [*{file.sha256: file for model in family for file in model.files.values()}.values()]


def _fetch_manifests(
    objects: Objects, remote: Remote, stage: Path, done: Transfer
) -> tuple[list[Manifest], dict[str, bytes]]:
    """The model and its parents, each behind its parents, and the bytes of each, staged beside the pin to come."""
    raw = dict[str, bytes]()

    def read(id_: str) -> Manifest:
        path = f"manifests/sha256/{id_}.json"
        try:
            manifest = objects.read_manifest(id_)
            raw[id_] = objects.manifest_bytes(id_)
            done.there.append(path)
        except DamagedError:
            stored = remote.read(path)
            if stored is None:
                raise (
                    _not_there(remote, path)
                    if id_ != done.id
                    else NotFoundError(f"There is no model {id_[:12]} in {remote.url}.", _hint(remote))
                ) from None
            raw[id_] = stored
            manifest = parse(raw[id_], id_, f"{remote.url}/{path}")
            (done.copied if objects.find("manifests", id_) is None else done.repaired).append(path)
        write_new(stage / f"{id_}.json", raw[id_])
        return manifest

    return _family(done.id, read), raw


def _fetch_blobs(
    registry: Registry,
    remote: Remote,
    family: Iterable[Manifest],
    stage: Path,
    done: Transfer,
    progress: Progress,
) -> None:
    """Get each file that the registry lacks or has damaged, and give it its name at once."""
    objects, lacking = registry.objects, list[FileEntry]()
    missing = 0
    for entry in _files(family):
        there = objects.touch("blobs", entry.sha256)
        whole = there and blob_fault(objects, entry.sha256, entry.size) is None
        (done.there if whole else done.repaired if there else done.copied).append(
            f"blobs/sha256/{entry.sha256}"
        )
        missing += 0 if there else entry.size
        lacking += [] if whole else [entry]
    registry.require_room(missing)
    total = sum(entry.size for entry in lacking)
    for entry in lacking:
        path = f"blobs/sha256/{entry.sha256}"
        pieces = _counted(_arriving(remote, path), done, total, progress)
        if write_hashed(pieces, stage / entry.sha256) != (entry.sha256, entry.size):
            raise DamagedError(
                f"{remote.url}/{path} is damaged: its digest is not its name; it was not kept.",
                "Remove it there, push the model again from a registry that has it, then pull again.",
            )
        objects.publish("blobs", entry.sha256, stage / entry.sha256)
    objects.sync("blobs")


def _send_blobs(
    objects: Objects,
    remote: Remote,
    family: Iterable[Manifest],
    stored: Mapping[str, int],
    done: Transfer,
    progress: Progress,
) -> None:
    """Send each file that is not there with its size, and look whether all arrived with it."""
    files = {f"blobs/sha256/{entry.sha256}": entry for entry in _files(family)}
    lacking = {path: e for path, e in files.items() if _lacks(stored.get(path), e.size, path, done)}
    total = sum(entry.size for entry in lacking.values())
    for path, entry in lacking.items():
        remote.put(path, _counted(_whole(objects, entry), done, total, progress))
    arrived = remote.files("blobs/sha256") if lacking else {}
    short = [path for path, entry in lacking.items() if arrived.get(path) != entry.size]
    for path in short:
        if path in arrived:
            remote.remove(path)
    if short:
        raise DamagedError(
            f"{remote.url}/{short[0]} arrived with {arrived.get(short[0], 0)} bytes instead of "
            f"{lacking[short[0]].size}; it was removed.",
            "Run the same again.",
        )


def _lacks(there: int | None, size: int, path: str, done: Transfer) -> bool:
    """Whether an object has to be sent, by its size there; written down in `done`."""
    (done.there if there == size else done.copied if there is None else done.repaired).append(path)
    return there != size


def _whole(objects: Objects, entry: FileEntry) -> Iterator[bytes]:
    """A stored file's bytes; DamagedError in place of the end if they are not what its name says."""
    blob, digest = objects.find("blobs", entry.sha256), hashlib.sha256()
    with guard("read a blob", objects.root):
        for chunk in chunks(blob) if blob else ():
            digest.update(chunk)
            yield bytes(chunk)
    if digest.hexdigest() != entry.sha256 or blob is None:
        raise DamagedError(
            f"blobs/sha256/{entry.sha256} ({entry.path}) is damaged here; nothing of it was kept there.",
            "Run `earec registry verify` to see everything that is damaged, then make or pull the model again.",
        )


def _arriving(remote: Remote, path: str) -> Iterator[bytes]:
    """A file's bytes from the other side, where something refers to it."""
    try:
        yield from remote.chunks(path)
    except FileNotFoundError:
        raise _not_there(remote, path) from None


def _not_there(remote: Remote, path: str) -> DamagedError:
    return DamagedError(
        f"{remote.url}/{path} is missing, though the model needs it.",
        "Push the model again from a registry that has it, then pull again.",
    )


def _counted(pieces: Iterable[bytes], done: Transfer, total: int, progress: Progress) -> Iterator[bytes]:
    """The same pieces, counted as they pass."""
    for piece in pieces:
        yield piece
        done.bytes += len(piece)
        progress(done.bytes, total, "bytes")


def _resolve(remote: Remote, ref: str) -> str:
    """The id that a reference means on the other side; that of a whole id is not looked for."""
    if HEX64.fullmatch(ref):
        return ref
    named = split_ref(ref)
    raw = remote.read(f"refs/{named[0]}/{named[1]}") if named else None
    if raw is not None:
        id_ = raw.decode("ascii", "replace").removesuffix("\n")
        if not HEX64.fullmatch(id_):
            raise DamagedError(
                f"The tag {ref} in {remote.url} does not hold a model's id.", "Push the model there again."
            )
        return id_
    if PREFIX.fullmatch(ref):
        stored = (path.rpartition("/")[2].removesuffix(".json") for path in remote.files("manifests/sha256"))
        return only_id(ref, stored, _hint(remote))
    raise NotFoundError(f"There is no model named {ref!r} in {remote.url}.", _hint(remote, ref))


def _hint(remote: Remote, ref: str = "") -> str:
    """Which names there are on the other side, those most like `ref` first."""
    names = sorted(path.removeprefix("refs/") for path in remote.files("refs") if not path.endswith(LOG))
    tags = [":".join(name.rsplit("/", 1)) for name in names]
    shown = difflib.get_close_matches(ref, tags, n=3) or tags[:5]
    return (
        f"It has {', '.join(shown)}{', ...' if len(shown) < len(tags) else ''}." if tags else "It has none."
    )


def _prepare(remote: Remote, name: str, tag: str) -> dict[str, int]:
    """Make the location a registry if it is empty; refuse one that holds something else, or has the name taken.

    Returns:
        Every file there with its bytes.
    """
    marker, stored = remote.read(MARKER), remote.files("")
    if marker is None:
        if stored:
            raise LayoutError(
                f"{remote.url} is not empty and not a registry (it has {min(stored)!r}).",
                "Give an empty or new location.",
            )
        remote.put(MARKER, [MARKED])
    else:
        check_layout(f"{remote.url}/{MARKER}", marker)
    place = f"refs/{name}/{tag}"
    for taken in stored:
        if taken.startswith(f"{place}/") or place.startswith(f"{taken}/"):
            raise InvalidError(
                f"The place of {name}:{tag} in {remote.url} is taken by {taken}.",
                "Choose another name: --as NAME.",
            )
    return stored


def _point(remote: Remote, name: str, tag: str, id_: str, why: str) -> None:
    """Point a tag of the other side to a model, its line in the log first; nothing if both say so already."""
    path, log = f"refs/{name}/{tag}", f"refs/{name}/{LOG}"
    raw, lines = remote.read(path), remote.read(log) or b""
    said = (raw or b"").decode("ascii", "replace").removesuffix("\n")
    old = said if HEX64.fullmatch(said) else None
    if old == id_ and any((entry.tag, entry.new) == (tag, id_) for entry in log_entries(lines)):
        return
    lines += b"" if lines.endswith(b"\n") or not lines else b"\n"
    remote.put(log, [lines, log_line(old, id_, why, tag), b"\n"])
    remote.put(path, [f"{id_}\n".encode()])
