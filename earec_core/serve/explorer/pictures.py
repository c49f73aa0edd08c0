"""The picture of an item, as the catalog has it: a file of its folder, or bytes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from earec_core.errors import DamagedInputError, UsageError
from earec_core.serve.errors import UnknownIdError
from earec_core.types import Item

MEDIA_TYPES = ("image/png", "image/jpeg", "image/gif", "image/webp", "image/bmp")
_SUFFIXES = {".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp"}
_MOST = 8 << 20


@dataclass(frozen=True)
class Picture:
    """A picture's bytes, and what they are by their own beginning, whatever the file is called."""

    content: bytes
    media_type: str


def picture_of(item: Item) -> Picture:
    """The first picture among an item's fields.

    Raises:
        UnknownIdError: no field has one, or its file is not there.
        UsageError: the file is outside the catalog's folder, is no picture, or is too large.
    """
    problems: list[UsageError] = []
    for name in _fields(item):
        try:
            content = _read(item.content(name))
        except UsageError as error:
            problems.append(error)
        except DamagedInputError as error:
            problems.append(UsageError(error.problem, error.next_step))
        else:
            if kind := media_type(content):
                return Picture(content, kind)
            problem = f"The {name} of item {item.id!r} is no picture."
            problems.append(UsageError(problem, "Mend the file or the field."))
    if problems:
        raise problems[0]
    raise UnknownIdError(f"The item {item.id!r} has no picture.", "Its fields are at /v1/items/ID.")


def has_picture(item: Item) -> bool:
    """Whether `picture_of` gives one."""
    try:
        picture_of(item)
    except UsageError:
        return False
    return True


def media_type(content: bytes) -> str | None:
    """What a picture is by its first bytes; None for what no browser should show as one."""
    if content.startswith(b"RIFF") and content[8:12] == b"WEBP":
        return "image/webp"
    starts = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg", b"BM": "image/bmp"}
    starts |= dict.fromkeys((b"GIF87a", b"GIF89a"), "image/gif")
    return next((kind for start, kind in starts.items() if content.startswith(start)), None)


def _fields(item: Item) -> Iterator[str]:
    """Fields of a picture's bytes, or of a file with a picture's ending; what is on the web is not fetched."""
    for name in item.fields:
        try:
            content = item.content(name)
        except DamagedInputError:
            content = _named(item.fields[name])
        if _is_picture(content):
            yield name


def _named(value: Any) -> Any:
    """What a field of a file says, whether or not it may be opened."""
    if isinstance(value, list):
        value = value[0] if value else None
    return value.get("path") if isinstance(value, dict) else value


def _is_picture(content: Any) -> bool:
    if isinstance(content, bytes):
        return media_type(content) is not None
    return isinstance(content, str) and "://" not in content and PurePath(content).suffix.lower() in _SUFFIXES


def _read(content: Any) -> bytes:
    if isinstance(content, bytes):
        return content
    file = Path(content)
    try:
        if not file.is_file():
            raise UnknownIdError("The item's picture is not there.", "Put it into the catalog's folder.")
        with file.open("rb") as opened:
            read = opened.read(_MOST + 1)
    except (OSError, ValueError) as error:
        raise UnknownIdError("The item's picture cannot be read.", "See the service's files.") from error
    if len(read) > _MOST:
        raise UsageError("The item's picture is too large.", f"{_MOST >> 20} MiB are the most.")
    return read
