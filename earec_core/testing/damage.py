"""Items with damaged input, made from good ones: what a catalog of real files and columns may hold."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

from earec_core.types import Item

_TEXTS = ("", " ", "garbage \x00 ☃", "nan", b"", b"garbage \x00\xff")
_NUMBERS = (True, 0, -1, 2**63 - 1, 0.5, math.nan, math.inf, -math.inf, 1e300)
_LISTS: tuple[list[Any], ...] = ([], [None], ["a", ["b"]], [1.0, math.nan], [math.inf] * 3)
_ANYTHING: tuple[Any, ...] = (None, *_TEXTS, *_NUMBERS, *_LISTS, {}, date(2020, 2, 29))
_FIRST: tuple[Any, ...] = (None, math.nan, math.inf, "garbage", [])
_INSIDE = ("\x00", "\x1b[2J\r\n", "\ufffd" * 3, "\u202e")
_KEPT = ("item_id", "title")


def damaged(item: Item, folder: Path) -> Iterator[tuple[str, Item]]:
    """Every way of damaging one field of an item, one at a time.

    Args:
        item: a good one.
        folder: where copies of its files, damaged, are written.

    Yields:
        What was done, for a message, and the item.
    """
    named = dict(files(item))
    for name, value in item.fields.items():
        if name in _KEPT:
            continue
        copies = _copies(named[name], folder) if name in named else ()
        for how, bad in (*_cut(value), *copies, *((repr(bad), bad) for bad in _ANYTHING)):
            yield (
                f"field {name!r} of item {item.id} being {how}",
                replace(item, fields={**item.fields, name: bad}, outside=True),
            )
    for title in (None, ""):
        fields = {k: v for k, v in item.fields.items() if k != "title"}
        yield f"title of item {item.id} being {title!r}", replace(item, title=title, fields=fields)


def lengthened(item: Item) -> Iterator[Item]:
    """An item with one field 50 times as long, for every field that has a length."""
    for name, value in item.fields.items():
        if name not in _KEPT and isinstance(value, str | bytes | list):
            yield replace(item, fields={**item.fields, name: value * 50})


def files(item: Item) -> Iterator[tuple[str, Path]]:
    """Fields that name a file that is there, and the file."""
    anywhere = replace(item, outside=True)
    for name in item.fields:
        path = anywhere.path(name)
        if path is not None and os.path.isfile(path):  # noqa: PTH113 - a text may be too long for a Path's is_file
            yield name, Path(path)


def _copies(file: Path, folder: Path) -> Iterator[tuple[str, str]]:
    """Paths of damaged copies of a file."""
    yield "a file that is not there", str(folder / "not-there") + file.suffix
    yield "a folder", str(folder)
    for how, content in _bytes(file.read_bytes()):
        copy = folder / f"{how.replace(' ', '-')}{file.suffix}"
        copy.write_bytes(content)
        yield f"a file that is {how}", str(copy)


def _cut(value: Any) -> Iterator[tuple[str, Any]]:
    """Half of a value, or parts of it replaced."""
    if isinstance(value, str):
        half = len(value) // 2
        yield "cut in half", value[:half]
        for inside in _INSIDE:
            yield f"with {inside!r} inside", f"{value[:half]}{inside}{value[half:]}"
    elif isinstance(value, bytes):
        yield from _bytes(value)
    elif isinstance(value, list) and value:
        yield "cut in half", value[: len(value) // 2]
        for bad in _FIRST:
            yield f"a list that begins with {bad!r}", [bad, *value[1:]]


def _bytes(content: bytes) -> Iterator[tuple[str, bytes]]:
    yield "empty", b""
    yield "cut in half", content[: len(content) // 2]
    yield "its first bytes only", content[:16]
    yield "zero behind its first half", content[: len(content) // 2] + bytes(len(content) // 2)
    yield "garbage", bytes(range(256)) * 4
