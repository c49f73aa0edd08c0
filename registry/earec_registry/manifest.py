"""Manifests: what a model is, as canonical JSON whose SHA-256 is the model's id.

Canonical means: UTF-8, keys sorted by code point, no white space, no NaN or infinity, numbers as Python's
`repr` prints them. Nothing in it says when or where it was made, so the same input has the same id.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from .errors import DamagedError, InvalidError

KIND = re.compile(r"[a-z][a-z0-9-]{0,63}")
HEX64 = re.compile(r"[0-9a-f]{64}")
_DEEPEST = 64
_VERIFY = "Run `earec registry verify` to see everything that is damaged, then add the model again."


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of a model: its path inside the model, its SHA-256 (64 hex) and its size in bytes."""

    path: str
    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class Parent:
    """A model that this one was made from; `weight` is its share where the manifest gives one."""

    id: str
    weight: float | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    """A stored manifest.

    Attributes:
        id: SHA-256 of its canonical JSON, 64 hex digits.
        kind: a lower-case word; what it means is its users' business.
        files: the model's files by their path inside it.
        parents: the models it was made from.
        data: everything it says, as read; changing it changes nothing that is stored.
    """

    id: str
    kind: str
    files: Mapping[str, FileEntry]
    parents: tuple[Parent, ...]
    data: Mapping[str, Any]


def plain(value: Any, at: str = "manifest", depth: int = 0) -> Any:
    """A deep copy of `value` in JSON's own types.

    Raises:
        InvalidError: a key is not text, a number is not finite, or something is not JSON; names the place.
    """
    fix = "Give text, numbers, true/false, none, lists and text-keyed mappings only."
    if depth > _DEEPEST:
        raise InvalidError(f"The manifest is nested deeper than {_DEEPEST} levels at {at[:80]}.", fix)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidError(
                f"{at} is {float(value)}, which JSON cannot hold.", "Leave it out, or give none."
            )
        return float(value)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise InvalidError(f"{at} has the key {key!r}, which is not text.", fix)
        return {str.__str__(k): plain(v, f"{at}.{k}", depth + 1) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v, f"{at}[{i}]", depth + 1) for i, v in enumerate(value)]
    raise InvalidError(f"{at} is of type {type(value).__name__}, which JSON cannot hold.", fix)


def canonical(value: Any) -> bytes:
    """The one way to write `value` as JSON bytes.

    Raises:
        InvalidError: see `plain`; also text that is not Unicode (a lone surrogate).
    """
    text = json.dumps(
        plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InvalidError(
            f"The manifest holds text that is not Unicode ({error.object[error.start : error.end]!r}).",
            "Leave it out or replace it.",
        ) from error


def check_paths(paths: Iterable[str]) -> None:
    """Refuse file paths that would not stay inside the model's folder or that exclude each other.

    Raises:
        InvalidError: a path is absolute, has "..", ".", an empty part, a backslash or a control character,
            or is a folder of another.
    """
    seen = set(paths)
    for path in seen:
        parts = path.split("/")
        if (
            not all(
                part not in ("", ".", "..") and len(part.encode(errors="replace")) <= 255 for part in parts
            )
            or "\\" in path
            or not path.isprintable()
        ):
            raise InvalidError(
                f"{path!r} is not a path inside a model.",
                "Use a relative path with '/' between its parts, without '..'.",
            )
        for end in range(1, len(parts)):
            if "/".join(parts[:end]) in seen:
                raise InvalidError(
                    f"{'/'.join(parts[:end])!r} cannot be both a file and the folder of {path!r}.",
                    "Rename one of them.",
                )


def build(data: Mapping[str, Any], files: Iterable[FileEntry]) -> tuple[bytes, Manifest]:
    """The bytes and the manifest of a model that says `data` and has `files`.

    Raises:
        InvalidError: the manifest cannot be stored.
    """
    if "files" in data:
        raise InvalidError(
            "The manifest has an entry 'files' of its own.", "Pass the files beside the manifest, not in it."
        )
    entries = {f.path: {"sha256": f.sha256, "size": f.size} for f in files}
    raw = canonical({**data, "files": entries})
    return raw, _read(raw, hashlib.sha256(raw).hexdigest())


def parse(raw: bytes, id_: str, where: str) -> Manifest:
    """Read back a stored manifest.

    Raises:
        DamagedError: its bytes do not have the digest that names it, or it is not a manifest.
    """
    if hashlib.sha256(raw).hexdigest() != id_:
        raise DamagedError(f"The manifest {where} is damaged: its digest is not its name.", _VERIFY)
    try:
        return _read(raw, id_)
    except (InvalidError, ValueError, RecursionError) as error:
        raise DamagedError(f"{where} is not a manifest ({error}).", _VERIFY) from error


def _read(raw: bytes, id_: str) -> Manifest:
    data = json.loads(raw, parse_constant=_no_constant)
    kind = data.get("kind") if isinstance(data, dict) else None
    if not isinstance(kind, str) or not KIND.fullmatch(kind):
        raise InvalidError(f"The manifest's kind is {kind!r}.", "Use a word of lower-case letters.")
    return Manifest(
        id_, kind, _files(data.get("files")), _parents(data.get("parents")), MappingProxyType(data)
    )


def _no_constant(name: str) -> None:
    raise ValueError(f"it holds {name}, which is no number")


def _files(value: Any) -> Mapping[str, FileEntry]:
    fix = "Each file needs a SHA-256 and a size."
    if not isinstance(value, dict):
        raise InvalidError("The manifest's files are not a mapping.", fix)
    check_paths(value)
    files = {}
    for path, entry in value.items():
        match entry:
            case {"sha256": str(digest), "size": int(size)} if HEX64.fullmatch(digest) and size >= 0:
                files[path] = FileEntry(path, digest, size)
            case _:
                raise InvalidError(f"The manifest's entry for the file {path!r} is incomplete.", fix)
    return MappingProxyType(files)


def _parents(value: Any) -> tuple[Parent, ...]:
    fix = "Give a list of full ids, or of mappings with 'id' and 'weight'; `Registry.resolve` gives an id."
    if value is None:
        return ()
    if not isinstance(value, list):
        raise InvalidError("The manifest's parents are not a list.", fix)
    parents = []
    for entry in value:
        id_, weight = (entry.get("id"), entry.get("weight")) if isinstance(entry, dict) else (entry, None)
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not isinstance(id_, str) or not HEX64.fullmatch(id_) or not (weight is None or number):
            raise InvalidError(f"The manifest's parent {entry!r} does not name a model by its id.", fix)
        parents.append(Parent(id_, None if weight is None else float(weight)))
    return tuple(parents)
