"""Looking after what is stored: `verify` says what is damaged, `gc` removes what nothing needs."""

from __future__ import annotations

import re
import time
import uuid
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from .errors import DamagedError
from .files import hash_file, newest, remove, size_of
from .manifest import Manifest
from .objects import KINDS, Kind, Objects
from .refs import Problem, Refs
from .views import Views

# What somebody wrote to in the last minute belongs to a writer at work, whatever grace time is asked for.
_AT_WORK_S = 60
_VIEW = re.compile(r"([0-9a-f]{12})(\.json)?")


@dataclass(frozen=True, slots=True)
class Report:
    """What `verify` found: how many stored objects it hashed, and everything wrong."""

    checked: int
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


@dataclass(frozen=True, slots=True)
class GcReport:
    """What `gc` removed, or would: ids, digests, names of views and of left-overs in tmp/, and bytes."""

    manifests: tuple[str, ...]
    blobs: tuple[str, ...]
    views: tuple[str, ...]
    tmp: tuple[str, ...]
    freed_bytes: int
    dry_run: bool


def verify(objects: Objects, refs: Refs, views: Views, id_: str | None) -> Report:
    """Hash everything, or one model with its parents; see `Registry.verify`."""
    tags, problems = refs.all()
    if id_ is not None:
        problems = []
    read: dict[str, Manifest | DamagedError] = {}

    def load(model: str) -> Manifest | None:
        if model not in read:
            try:
                read[model] = objects.read_manifest(model)
            except DamagedError as error:
                read[model] = error
        found = read[model]
        return found if isinstance(found, Manifest) else None

    def family(model: str) -> set[str]:
        seen, todo = {model}, [model]
        while todo:
            found = load(todo.pop())
            new = {p.id for p in found.parents} - seen if found else set()
            seen |= new
            todo += new
        return seen

    users: dict[str, set[str]] = defaultdict(set)
    for ref in tags:
        for model in family(ref.id):
            users[model].add(str(ref))
    stored = objects.all("manifests")
    for model in stored:
        if model not in users:
            for member in family(model):
                users[member].add(model[:12])
    models = sorted(users) if id_ is None else sorted(family(id_))

    blobs: dict[str, tuple[int, set[str]]] = {}
    for model in models:
        found = read[model]
        if isinstance(found, DamagedError):
            problems.append(
                Problem(f"manifests/sha256/{model}.json", _short(found), tuple(sorted(users[model])))
            )
            continue
        for file in found.files.values():
            blobs.setdefault(file.sha256, (file.size, set()))[1].update(users[model])
        problems += [Problem(p.path, p.fault, tuple(sorted(users[model]))) for p in views.problems(found)]
    if id_ is None:
        for digest in objects.all("blobs"):
            blobs.setdefault(digest, (-1, set()))
    for digest, (size, by) in sorted(blobs.items()):
        what = _wrong_blob(objects, digest, size)
        if what:
            problems.append(Problem(f"blobs/sha256/{digest}", what, tuple(sorted(by))))
    return Report(len(models) + len(blobs), tuple(problems))


def gc(objects: Objects, refs: Refs, dry_run: bool, grace_s: float) -> GcReport:
    """Remove what nothing needs; see `Registry.gc`."""
    cutoff = time.time() - grace_s
    if not dry_run:
        objects.put_all_back()
    # Listed before tracing: whatever appears later is not looked at.
    stored: dict[Kind, list[str]] = {kind: objects.all(kind) for kind in KINDS}
    live, needed = _trace(objects, refs, cutoff)
    chosen = [
        (kind, digest)
        for kind in KINDS
        for digest in stored[kind]
        if digest not in needed[kind] and _older(objects, kind, digest, cutoff)
    ]
    freed = 0
    gone: dict[Kind, list[str]] = {kind: [] for kind in KINDS}
    if dry_run:
        for kind, digest in chosen:
            gone[kind].append(digest)
            freed += size_of(objects.path(kind, digest))
    else:
        run = uuid.uuid4().hex
        taken = [(kind, digest, objects.take(kind, digest, run)) for kind, digest in chosen]
        try:
            live, needed = _trace(objects, refs, cutoff)
        except DamagedError:
            objects.put_all_back()
            raise
        for kind, digest, trash in taken:  # manifests first: a model goes before its files
            with suppress(FileNotFoundError):  # put back by somebody who needs it
                if trash is None:
                    continue
                found = trash.stat()
                if digest in needed[kind] or found.st_mtime > cutoff:
                    objects.put_back(trash, kind, digest)
                    continue
                trash.unlink()
                gone[kind].append(digest)
                freed += found.st_size

    living = {id_[:12] for id_ in live}
    views = []
    for path in sorted((objects.root / "views").iterdir()):
        named = _VIEW.fullmatch(path.name)
        if named and named[1] not in living and _unused(path.with_name(named[1]), cutoff):
            views.append(path)
    idle = min(cutoff, time.time() - _AT_WORK_S)
    tmp = [p for p in sorted((objects.root / "tmp").iterdir()) if p.name[:3] != "gc-" and _unused(p, idle)]
    freed += sum(size_of(path) for path in tmp)
    if not dry_run:
        for path in views + tmp:
            remove(path)
    return GcReport(
        tuple(gone["manifests"]),
        tuple(gone["blobs"]),
        tuple(sorted({p.name.removesuffix(".json") for p in views})),
        tuple(p.name for p in tmp),
        freed,
        dry_run,
    )


def _trace(objects: Objects, refs: Refs, cutoff: float) -> tuple[set[str], dict[Kind, set[str]]]:
    for _ in range(2):  # a tag that moves while we look can seem to point to nothing
        with suppress(DamagedError):
            return _trace_once(objects, refs, cutoff)
    return _trace_once(objects, refs, cutoff)


def _trace_once(objects: Objects, refs: Refs, cutoff: float) -> tuple[set[str], dict[Kind, set[str]]]:
    """The ids, and all digests by kind, that a tag, a writer at work or a young manifest needs."""
    roots = set(refs.pins())  # before the tags: a pin that becomes a tag meanwhile is seen twice
    found, problems = refs.all()
    if problems:
        raise _refusal(f"{problems[0].path} {problems[0].fault}")
    tags = {ref.id for ref in found}
    young = {i for i in objects.all("manifests") if not _older(objects, "manifests", i, cutoff)}
    live: dict[str, Manifest] = {}
    todo = sorted(roots | tags | young)
    while todo:
        id_ = todo.pop()
        if id_ in live:
            continue
        try:
            live[id_] = objects.read_manifest(id_)
        except DamagedError as error:
            if id_ in (roots | young) - tags and objects.find("manifests", id_) is None:
                continue  # a pin's writer starts over; a young one was removed by another gc
            raise _refusal(error.problem.rstrip(".")) from error
        todo += [p.id for p in live[id_].parents]
    blobs = {file.sha256 for manifest in live.values() for file in manifest.files.values()}
    return set(live), {"manifests": set(live), "blobs": blobs}


def _refusal(what: str) -> DamagedError:
    return DamagedError(
        f"Nothing was removed, because what is needed cannot be told: {what}.",
        "Run `earec registry verify` to see everything that is damaged, mend it, then run gc again.",
    )


def _older(objects: Objects, kind: Kind, digest: str, cutoff: float) -> bool:
    try:
        return objects.path(kind, digest).stat().st_mtime <= cutoff
    except FileNotFoundError:
        return False


def _unused(path: Path, cutoff: float) -> bool:
    """Whether nothing in `path`, nor the stamp beside a view, was written since `cutoff`."""
    times = []
    for file in (path, path.with_name(f"{path.name}.json")):
        try:
            times.append(newest(file))
        except FileNotFoundError:  # not there, or removed by somebody while we looked
            continue
    return max(times, default=cutoff + 1) <= cutoff


def _wrong_blob(objects: Objects, digest: str, size: int) -> str | None:
    path = objects.find("blobs", digest)
    if path is None:
        return "missing"
    try:
        found = path.stat().st_size
        if size not in (-1, found):
            return f"damaged: has {found} bytes instead of {size}"
        return None if hash_file(path) == digest else "damaged: its digest is not its name"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _short(error: DamagedError) -> str:
    return (
        "missing"
        if " is missing" in error.problem
        else "damaged: " + error.problem.rstrip(".").rpartition(": ")[2]
    )
