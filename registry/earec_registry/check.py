"""Looking after what is stored: `verify` says what is damaged, `gc` removes what nothing needs."""

from __future__ import annotations

import re
import time
import uuid
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from .errors import DamagedError
from .files import hash_file, newest, remove, size_of
from .manifest import Manifest
from .objects import KINDS, Kind, Objects
from .refs import Problem, Refs
from .views import Views

# What somebody wrote to in the last minute belongs to a writer at work, whatever grace time is asked for.
_AT_WORK_S = 60
MISSING = "missing"
Needed = dict[Kind, set[str]]
"""Digests of what must stay, by kind."""
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
    """What `gc` removed, or would: ids, digests, names of views and of left-overs in tmp/, and bytes.

    Attributes:
        names: what each of the manifests was called last (NAME:TAG), of those that were ever called something.
    """

    manifests: tuple[str, ...]
    blobs: tuple[str, ...]
    views: tuple[str, ...]
    tmp: tuple[str, ...]
    freed_bytes: int
    dry_run: bool
    names: Mapping[str, str]


def verify(objects: Objects, refs: Refs, views: Views, id_: str | None) -> Report:
    """Hash everything, or one model with its parents; see `Registry.verify`."""
    survey = _Survey(objects, refs, id_)
    problems = [] if id_ is not None else [*survey.problems, *refs.log_problems(survey.tags)]
    for model, manifest in survey.models.items():
        used_by = tuple(sorted(survey.users[model]))
        if isinstance(manifest, DamagedError):
            problems.append(Problem(f"manifests/sha256/{model}.json", _fault(manifest), used_by))
        else:
            problems += [replace(problem, used_by=used_by) for problem in views.problems(manifest)]
    for digest, (size, by) in sorted(survey.blobs.items()):
        fault = blob_fault(objects, digest, size)
        if fault:
            problems.append(Problem(f"blobs/sha256/{digest}", fault, tuple(sorted(by))))
    if any(problem.fault == MISSING for problem in problems):
        # A `gc` may have removed it since we listed it, with all that needed it.
        again = _Survey(objects, refs, id_)
        needed = {f"manifests/sha256/{model}.json" for model in again.models}
        needed |= {f"blobs/sha256/{digest}" for digest in again.blobs}
        problems = [p for p in problems if p.fault != MISSING or p.path in needed]
    return Report(len(survey.models) + len(survey.blobs), tuple(problems))


class _Survey:
    """What is stored, and who uses it, nothing hashed but manifests.

    Attributes:
        tags, problems: every tag, and what of them cannot be read.
        models: manifests by id, those that tags or other models need included; an error for what is not whole.
        users: the tags that need a model, the model's own first digits where none does.
        blobs: size (-1: not known) and users by digest.
    """

    def __init__(self, objects: Objects, refs: Refs, id_: str | None) -> None:
        self._objects = objects
        self._loaded: dict[str, Manifest | DamagedError] = {}
        self.tags, self.problems = refs.all()
        self.users: dict[str, set[str]] = defaultdict(set)
        for ref in self.tags:
            for model in self._family(ref.id):
                self.users[model].add(str(ref))
        for model in objects.all("manifests"):
            if model not in self.users:
                for member in self._family(model):
                    self.users[member].add(model[:12])
        chosen = set(self.users) if id_ is None else self._family(id_) & set(self.users)
        self.models = {model: self._loaded[model] for model in sorted(chosen)}
        self.blobs: dict[str, tuple[int, set[str]]] = {}
        for model, manifest in self.models.items():
            for file in manifest.files.values() if isinstance(manifest, Manifest) else ():
                self.blobs.setdefault(file.sha256, (file.size, set()))[1].update(self.users[model])
        if id_ is None:
            for digest in objects.all("blobs"):
                self.blobs.setdefault(digest, (-1, set()))

    def _family(self, model: str) -> set[str]:
        """A model and all that it was made from."""
        seen, todo = {model}, [model]
        while todo:
            manifest = self._load(todo.pop())
            parents = {p.id for p in manifest.parents} - seen if isinstance(manifest, Manifest) else set()
            seen |= parents
            todo += parents
        return seen

    def _load(self, model: str) -> Manifest | DamagedError:
        if model not in self._loaded:
            try:
                self._loaded[model] = self._objects.read_manifest(model)
            except DamagedError as error:
                self._loaded[model] = error
        return self._loaded[model]


def is_whole(objects: Objects, manifest: Manifest) -> bool:
    """Whether every file of a model is there and has its digest."""
    return all(blob_fault(objects, file.sha256, file.size) is None for file in manifest.files.values())


def lacking(objects: Objects, id_: str) -> Problem | None:
    """The first file of a model, or of what it was made from, that is missing or of another size."""
    seen, todo = {id_}, [id_]
    while todo:
        model = todo.pop()
        try:
            manifest = objects.read_manifest(model)
        except DamagedError as error:
            return Problem(f"manifests/sha256/{model}.json", _fault(error))
        for file in manifest.files.values():
            blob = objects.find("blobs", file.sha256)
            if blob is None or blob.stat().st_size != file.size:
                path = f"{file.path} of the model {model[:12]} (blobs/sha256/{file.sha256})"
                return Problem(path, MISSING if blob is None else "damaged: it has another size")
        parents = {parent.id for parent in manifest.parents} - seen
        seen |= parents
        todo += sorted(parents)
    return None


def gc(objects: Objects, refs: Refs, dry_run: bool, grace_s: float) -> GcReport:
    """Remove what nothing needs; see `Registry.gc`."""
    cutoff = time.time() - grace_s
    if not dry_run:
        objects.put_all_back()
    # Listed before tracing: whatever appears later is not looked at.
    stored: dict[Kind, list[str]] = {kind: objects.all(kind) for kind in KINDS}
    needed = _trace(objects, refs, cutoff)
    gone = [
        (kind, digest)
        for kind in KINDS
        for digest in stored[kind]
        if digest not in needed[kind] and _older(objects, kind, digest, cutoff)
    ]
    if dry_run:
        freed = sum(size_of(objects.path(kind, digest)) for kind, digest in gone)
    else:
        gone, freed, needed = _remove(objects, refs, gone, cutoff)

    living = {id_[:12] for id_ in needed["manifests"]}
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
    manifests, called = tuple(digest for kind, digest in gone if kind == "manifests"), refs.called()
    return GcReport(
        manifests,
        tuple(digest for kind, digest in gone if kind == "blobs"),
        tuple(sorted({p.name.removesuffix(".json") for p in views})),
        tuple(p.name for p in tmp),
        freed,
        dry_run,
        {id_: called[id_] for id_ in manifests if id_ in called},
    )


def _remove(
    objects: Objects, refs: Refs, chosen: list[tuple[Kind, str]], cutoff: float
) -> tuple[list[tuple[Kind, str]], int, Needed]:
    """Remove what of `chosen` is still not needed once it is out of reach.

    Returns:
        What was removed, its bytes, and what is needed now.
    """
    run = uuid.uuid4().hex
    taken = [(kind, digest, objects.take(kind, digest, run)) for kind, digest in chosen]
    try:
        needed = _trace(objects, refs, cutoff)
    except DamagedError:
        objects.put_all_back()
        raise
    gone: list[tuple[Kind, str]] = []
    freed = 0
    for kind, digest, trash in taken:  # manifests first: a model goes before its files
        with suppress(FileNotFoundError):  # put back by somebody who needs it
            if trash is None:
                continue
            stat = trash.stat()
            if digest in needed[kind] or stat.st_mtime > cutoff:
                objects.put_back(trash, kind, digest)
                continue
            trash.unlink()
            gone.append((kind, digest))
            freed += stat.st_size
    return gone, freed, needed


def _trace(objects: Objects, refs: Refs, cutoff: float) -> Needed:
    for _ in range(2):  # a tag that moves while we look can seem to point to nothing
        with suppress(DamagedError):
            return _trace_once(objects, refs, cutoff)
    return _trace_once(objects, refs, cutoff)


def _trace_once(objects: Objects, refs: Refs, cutoff: float) -> Needed:
    """What a tag, a writer at work or a young manifest needs."""
    roots = set(refs.pins())  # before the tags: a pin that becomes a tag meanwhile is seen twice
    refs_, problems = refs.all()
    if problems:
        raise _refusal(f"{problems[0].path} {problems[0].fault}")
    tags = {ref.id for ref in refs_}
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
            lacking = objects.find("manifests", id_) is None
            if lacking and (arriving := objects.arriving(id_)):
                live[id_] = arriving
            elif lacking and id_ in (roots | young) - tags:
                continue  # a pin's writer starts over; a young one was removed by another gc
            else:
                raise _refusal(error.problem.rstrip(".")) from error
        todo += [p.id for p in live[id_].parents]
    blobs = {file.sha256 for manifest in live.values() for file in manifest.files.values()}
    return {"manifests": set(live), "blobs": blobs}


def _refusal(reason: str) -> DamagedError:
    return DamagedError(
        f"Nothing was removed, because what is needed cannot be told: {reason}.",
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


def blob_fault(objects: Objects, digest: str, size: int) -> str | None:
    """What is wrong with a blob, in few words; None if it is whole.

    Args:
        size: what it should have, in bytes; -1: not known.
    """
    path = objects.find("blobs", digest)
    if path is None:
        return MISSING
    try:
        stored = path.stat().st_size
        if size not in (-1, stored):
            return f"damaged: has {stored} bytes instead of {size}"
        return None if hash_file(path) == digest else "damaged: its digest is not its name"
    except FileNotFoundError:
        return MISSING
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _fault(error: DamagedError) -> str:
    """What is wrong with a manifest, in few words."""
    if " is missing" in error.problem:
        return MISSING
    return "damaged: " + error.problem.rstrip(".").rpartition(": ")[2]
