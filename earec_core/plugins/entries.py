"""Entry points of the installed distributions, one distribution at a time.

`importlib.metadata.entry_points` parses every file before it gives the first entry, so that one file that cannot be
read takes all others along; here it costs its own plugin alone. Only files that name the group are looked at.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from pathlib import Path


@dataclass(frozen=True)
class Entry:
    """One line of an installed distribution's `entry_points.txt`, as it stands there.

    Attributes:
        name, value, group: `name = value` under `[group]`.
        distribution: the distribution that brings it, and its version; `unknown` where it does not say.
        problem: why name and version of the distribution cannot be read; empty when they can.
    """

    name: str
    value: str
    group: str
    distribution: str
    version: str = "unknown"
    problem: str = ""


def entry_points(group: str) -> list[Entry]:
    """Entry points of a group, not imported; of a distribution seen through two paths, the first counts."""
    seen: set[str] = set()
    entries = []
    for dist in distributions():
        text = _read(dist, "entry_points.txt")
        lines = [line for line in _lines(text) if line[0] == group] if group in text else []
        if not lines:
            continue
        name, version, problem = _identity(dist)
        name = name or root(lines[0][2]) or lines[0][1]
        key = re.sub(r"[-_.]+", "-", name).lower()
        if key not in seen:
            seen.add(key)
            entries += [Entry(own or name, value, group, name, version, problem) for _, own, value in lines]
    return entries


def root(reference: str) -> str:
    """The first name of `package.module:name`."""
    return re.split(r"[.:\s]", reference, maxsplit=1)[0]


def _read(dist: Distribution, file: str) -> str:
    """A file of a distribution's metadata, empty if it is not there, undecodable bytes replaced."""
    try:
        return dist.read_text(file) or ""
    except UnicodeDecodeError as error:
        return bytes(error.object).decode(errors="replace")
    except OSError:
        return ""


def _lines(text: str) -> Iterator[tuple[str, str, str]]:
    """Group, name and value of each entry point; a line without `=` has an empty value."""
    group = ""
    for line in map(str.strip, text.splitlines()):
        if line.startswith("[") and line.endswith("]"):
            group = line[1:-1].strip()
        elif line and not line.startswith(("#", ";")):
            name, _, value = line.partition("=")
            yield group, name.strip(), value.strip()


def _identity(dist: Distribution) -> tuple[str, str, str]:
    """Name, version, and why they cannot be read."""
    head = (_read(dist, "METADATA") or _read(dist, "PKG-INFO")).partition("\n\n")[0]
    fields = [line.partition(":") for line in head.splitlines()]
    values = {key.strip().lower(): value.strip() for key, _, value in reversed(fields)}
    name, version = values.get("name", ""), values.get("version", "")
    if name and version:
        return name, version, ""
    # The folder is named after the distribution; the library knows where it is and does not say.
    folder = re.fullmatch(r"([^-]+)-.*\.(dist|egg)-info", Path(str(getattr(dist, "_path", ""))).name)
    name = name or (folder[1] if folder else "")
    return name, version or "unknown", "Its METADATA file gives no name and version, or cannot be read."
