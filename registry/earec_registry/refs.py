"""Names and tags: `refs/<name>/<tag>` holds one id; `refs/<name>/.log` says how it came to."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .errors import DamagedError, InvalidError
from .files import append_line, sync_folder, write_new
from .manifest import HEX64

_NAME = re.compile(r"[a-z0-9][a-z0-9._/-]*")
_TAG = re.compile(r"[a-z0-9][a-z0-9._-]*")
_LIKE_ID = re.compile(r"[0-9a-f]{6,}")
_LONGEST = 200
LOG = ".log"
PIN = "ref"


@dataclass(frozen=True, slots=True)
class Ref:
    """A tag of a name and the id that it points to."""

    name: str
    tag: str
    id: str

    def __str__(self) -> str:
        return f"{self.name}:{self.tag}"


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One move of a tag: from `old` (None at first) to `new`, at `when` (UTC, ISO 8601), because of `why`."""

    old: str | None
    new: str
    when: str
    why: str
    tag: str


@dataclass(frozen=True, slots=True)
class Problem:
    """Something stored that is missing or damaged.

    Attributes:
        path: where, inside the registry.
        fault: what is wrong with it, e.g. `missing`.
        used_by: the models that use it, as name:tag, or the first digits of the id where they have no tag.
    """

    path: str
    fault: str
    used_by: tuple[str, ...] = ()

    def __str__(self) -> str:
        users = f" (used by {', '.join(self.used_by)})" if self.used_by else ""
        return f"{self.path}: {self.fault}{users}"


def is_name(name: str) -> bool:
    """Whether `name` can be a model's name."""
    return bool(
        _NAME.fullmatch(name)
        and len(name) <= _LONGEST
        and ".." not in name
        and not any(part == "" or part.startswith(".") for part in name.split("/"))
        and not _LIKE_ID.fullmatch(name)
    )


def split_ref(ref: str) -> tuple[str, str] | None:
    """Name and tag of "name" (its tag latest) or "name:tag"; None for what is neither."""
    name, colon, tag = ref.partition(":")
    is_ref = is_name(name) and (not colon or is_name(f"a/{tag}")) and "/" not in tag
    return (name, tag or "latest") if is_ref else None


def check_name(name: str, tag: str) -> None:
    """Refuse a name or a tag that cannot be stored, or that could be mistaken for an id.

    Raises:
        InvalidError: says the rule.
    """
    if not is_name(name):
        raise InvalidError(
            f"{name!r} cannot be a model's name.",
            "Use lower-case letters, digits, '.', '_', '-' and '/', starting with a letter or a digit, "
            "without '..' or '/.', and not six or more of an id's digits (0-9, a-f) alone.",
        )
    if not _TAG.fullmatch(tag) or len(tag) > _LONGEST:
        raise InvalidError(f"{tag!r} cannot be a tag.", "Use lower-case letters, digits and . _ - only.")


class Refs:
    """The names and tags of the registry at `root`."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.folder = root / "refs"

    def read(self, name: str, tag: str) -> str | None:
        """The id that a tag points to, or None if there is no such tag.

        Raises:
            DamagedError: the file does not hold an id.
        """
        path = self.folder / name / tag
        mend = (
            f"See the last good id with `earec registry log {name}`, "
            f"then point the tag to it with `earec registry tag ID {name} {tag}`."
        )
        try:
            id_ = path.read_text("ascii").removesuffix("\n")
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        except (OSError, ValueError) as error:
            raise DamagedError(f"{self._where(path)} cannot be read ({error}).", mend) from error
        if not HEX64.fullmatch(id_):
            raise DamagedError(f"{self._where(path)} does not hold a model's id.", mend)
        return id_

    def all(self) -> tuple[list[Ref], list[Problem]]:
        """Every tag of every name, sorted, and whatever could not be read."""
        refs, problems = [], []

        def unreadable(error: OSError) -> None:
            problems.append(
                Problem(self._where(Path(error.filename)), f"cannot be listed ({error.strerror})")
            )

        for folder, folders, files in os.walk(self.folder, onerror=unreadable):
            folders.sort()
            name = Path(folder).relative_to(self.folder).as_posix()
            for tag in sorted(files):
                where = self._where(Path(folder, tag))
                if tag == LOG and is_name(name):
                    continue
                if not is_name(name) or not _TAG.fullmatch(tag):
                    problems.append(Problem(where, "is not a tag of a name"))
                    continue
                try:
                    id_ = self.read(name, tag)
                except DamagedError as error:
                    problems.append(Problem(where, error.problem.removeprefix(f"{where} ").rstrip(".")))
                else:
                    if id_ is not None:
                        refs.append(Ref(name, tag, id_))
        return sorted(refs, key=lambda r: (r.name, r.tag)), problems

    def check_free(self, name: str, tag: str) -> None:
        """Refuse a tag whose place is a folder of other names, and a name whose place is a tag.

        Raises:
            InvalidError: names the two.
        """
        parts = name.split("/")
        for end in range(1, len(parts)):
            if (self.folder / "/".join(parts[: end + 1])).is_file():
                raise InvalidError(
                    f"The name {name!r} is taken: {'/'.join(parts[:end])!r} has a tag {parts[end]!r}.",
                    "Choose another name.",
                )
        if (self.folder / name / tag).is_dir():
            raise InvalidError(
                f"The tag {name}:{tag} is taken: there are models named {name}/{tag}.", "Choose another tag."
            )

    @staticmethod
    def pin(staged: Path, id_: str) -> None:
        """Write a tag's file in a stage; from now on `gc` keeps what it refers to."""
        write_new(staged, f"{id_}\n".encode(), 0o644)

    def pins(self) -> list[str]:
        """The ids that writers at work, or killed ones, refer to."""
        ids = []
        for path in (self._root / "tmp").glob(f"*/{PIN}"):
            try:
                line = path.read_bytes()
            except FileNotFoundError:
                continue
            # A pin that is still being written is not looked past yet: its writer looks after us.
            if HEX64.fullmatch(line[:-1].decode("ascii", "replace")):
                ids.append(line[:-1].decode())
        return ids

    def move(self, name: str, tag: str, new: str, why: str, staged: Path) -> None:
        """Point a tag to `new` by renaming `staged`, written by `pin`; nothing happens if tag and log say so.

        The log is written first: a tag never moves without its line, though a line's move may be missing
        after a kill (the next line's `old` then shows it).
        """
        try:
            old = self.read(name, tag)
        except DamagedError:  # moving the tag is how to mend it
            old = None
        if old == new and any((entry.tag, entry.new) == (tag, new) for entry in self.log(name) or ()):
            return
        folder = self.folder / name
        line = log_line(old, new, why, tag)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            append_line(folder / LOG, line)
            staged.replace(folder / tag)
        except (NotADirectoryError, IsADirectoryError, FileExistsError) as error:
            self.check_free(name, tag)
            raise InvalidError(f"The place of {name}:{tag} is taken.", "Choose another name.") from error
        while folder != self._root:
            sync_folder(folder)
            folder = folder.parent

    def remove(self, name: str, tag: str) -> None:
        """Remove a tag's file; the log keeps how it moved.

        Raises:
            FileNotFoundError: there is no such tag.
        """
        (self.folder / name / tag).unlink()
        sync_folder(self.folder / name)

    def log(self, name: str) -> list[LogEntry] | None:
        """The moves of a name's tags, oldest first; None if the name is not known.

        A line that a kill or a full disk left torn is passed over.
        """
        try:
            return log_entries((self.folder / name / LOG).read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None

    def called(self) -> dict[str, str]:
        """What each model was called last (NAME:TAG), by its id; names without tags count, too."""
        called = dict[str, str]()
        for file in sorted(self.folder.rglob(LOG)):
            name = file.parent.relative_to(self.folder).as_posix()
            called |= {entry.new: f"{name}:{entry.tag}" for entry in self.log(name) or ()}
        return called

    def log_problems(self, tags: Iterable[Ref]) -> list[Problem]:
        """Lines of logs that are not as they were written, and tags whose last move is in none.

        What a kill left of a line, which has no end, is no problem: its tag did not move.

        Args:
            tags: read before, so that their moves are in the logs.
        """
        by_name: dict[str, list[Ref]] = defaultdict(list)
        for ref in tags:
            by_name[ref.name].append(ref)
        return [
            Problem(self._where(self.folder / name / LOG), fault, tuple(map(str, users)))
            for name, refs in sorted(by_name.items())
            for fault, users in self._log_faults(name, refs)
        ]

    def _log_faults(self, name: str, refs: list[Ref]) -> Iterator[tuple[str, list[Ref]]]:
        try:
            lines = (self.folder / name / LOG).read_bytes().split(b"\n")
        except FileNotFoundError:
            lines = []
        except OSError as error:
            yield f"cannot be read ({error.strerror})", refs
            return
        moves = set()
        for number, line in enumerate(lines, 1):
            entry = _entry(line)
            if entry is not None:
                moves.add((entry.tag, entry.new))
            elif line and not _torn(line):
                yield f"line {number} is damaged, no model is: remove it", refs
        for ref in refs:
            if (ref.tag, ref.id) not in moves:
                add = f"earec registry tag {ref.id[:12]} {name} {ref.tag}"
                yield f"lacks the last move of a tag, no model is damaged: `{add}` adds it", [ref]

    def _where(self, path: Path) -> str:
        return path.relative_to(self._root).as_posix()


def log_line(old: str | None, new: str, why: str, tag: str) -> bytes:
    """The line of a log for a move that happens now, with a digest of the rest of it."""
    said = asdict(LogEntry(old, new, datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), why, tag))
    return json.dumps({"sum": _sum(said), **said}, sort_keys=True).encode()


def log_entries(raw: bytes) -> list[LogEntry]:
    """What the lines of a log say; lines that are not as they were written are passed over."""
    return [entry for entry in map(_entry, raw.split(b"\n")) if entry is not None]


def _sum(said: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


def _torn(line: bytes) -> bool:
    """Whether a line is the beginning of one."""
    return line.startswith(b'{"new"'[: len(line)]) and not line.endswith(b"}")


def _entry(line: bytes) -> LogEntry | None:
    """What a line says; None if it is not as it was written. Lines of earlier versions have no digest."""
    try:
        data: Any = json.loads(line)
    except (ValueError, RecursionError):
        return None
    match data:
        case {"old": str() | None, "new": str(), "when": str(), "why": str(), "tag": str()}:
            said = {field.name: data.pop(field.name) for field in fields(LogEntry)}
            ids = [said["new"], *([said["old"]] if said["old"] else [])]
            if data in ({}, {"sum": _sum(said)}) and all(map(HEX64.fullmatch, ids)):
                return LogEntry(**said)
    return None
