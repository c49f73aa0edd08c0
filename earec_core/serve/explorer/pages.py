"""The files of the page, read once. They hold nothing of a catalog, so they are open to who has no token."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import PurePath

_KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


def _read() -> dict[str, tuple[bytes, str]]:
    found = {}
    for file in (resources.files("earec_core.serve") / "static").iterdir():
        if kind := _KINDS.get(PurePath(file.name).suffix):
            address = "/" if file.name == "index.html" else f"/static/{file.name}"
            found[address] = file.read_bytes(), f"{kind}; charset=utf-8"
    return found


PAGES: Mapping[str, tuple[bytes, str]] = _read()
"""Content and media type by address."""
