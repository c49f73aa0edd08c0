"""Items that were added, in a file that is only appended to: what was answered is there after a kill."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from earec_core.errors import EarecError, IntegrityError, UsageError
from earec_core.files import sync

Fields = Mapping[str, Any]
"""An item's fields as they were posted."""


class ItemJournal:
    """The added items of a model and a catalog: a line is the JSON list of those of one request.

    A line that a killed process did not finish was answered to nobody; it is passed over, and cut off.

    Attributes:
        file: `items.jsonl` of the folder.
        items: in the order in which they were added.

    Args:
        folder: made, if it is not there.

    Raises:
        UsageError: another process has it.
        IntegrityError: a line is no such list.
        EarecError: it cannot be read or written.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / "items.jsonl"
        self.items: list[Fields] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(folder)
            whole = self._read(self.file.read_bytes() if self.file.exists() else b"")
            with self.file.open("ab") as opened:
                opened.truncate(whole)
            for path in (self.file, folder, folder.parent):
                sync(path)
        except OSError as error:
            raise EarecError(
                f"The journal of added items {self.file} cannot be read or written ({error}).",
                "Mend its folder, or set EAREC_HOME to another.",
            ) from error

    def add(self, items: Sequence[Fields]) -> None:
        """Write down the items of a request, all or none; they are on the disk when this returns.

        Raises:
            EarecError: they cannot be written; the file is as it was.
        """
        line = json.dumps(list(items)).encode() + b"\n"
        size = self.file.stat().st_size
        try:
            with self.file.open("ab", buffering=0) as opened:
                try:
                    if opened.write(line) != len(line):
                        raise OSError("the disk took a part of it")
                    os.fsync(opened.fileno())
                except OSError:
                    opened.truncate(size)
                    raise
        except OSError as error:
            raise EarecError(
                f"The items could not be written to {self.file} ({error}).",
                "Free some space, then post them again.",
            ) from error
        self.items.extend(items)

    def close(self) -> None:
        """Let another process have it."""
        if self._lock is not None:
            self._lock.release()

    def _read(self, content: bytes) -> int:
        """Take up the items of whole lines; how many bytes these have."""
        whole = 0
        for number, line in enumerate(content.splitlines(keepends=True), start=1):
            if not line.endswith(b"\n"):
                break
            items = _items(line)
            if items is None:
                raise IntegrityError(
                    f"Line {number} of the journal of added items {self.file} is damaged.",
                    "Take the line out; its items are to be added again.",
                )
            self.items.extend(items)
            whole += len(line)
        return whole


def _items(line: bytes) -> list[Fields] | None:
    """The items of a line; None for one that is no list of them."""
    try:
        items = json.loads(line)
    except ValueError:
        return None
    good = isinstance(items, list) and all(isinstance(one, dict) and "item_id" in one for one in items)
    return items if good else None


def _locked(folder: Path) -> FileLock | None:
    """The lock on a journal; None where the file system has none."""
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UsageError(
            f"Another process serves this model and catalog ({folder}).",
            "End it first, or set another EAREC_HOME.",
        ) from None
    except NotImplementedError:
        return None
    return lock
