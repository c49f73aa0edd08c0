"""Pages out of `templates/`: one self-contained file, in which whatever comes from data is escaped."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from earec_core.errors import UsageError
from earec_core.files import write_atomic
from earec_core.report.words import highlight


def number(value: float, digits: int) -> str:
    """A number, or a dash where it is none."""
    return f"{value:,.{digits}f}" if math.isfinite(value) else "–"


def count(amount: int, noun: str) -> str:
    """`1 evaluation`, `2,000 evaluations`."""
    return f"{amount:,} {noun}{'' if amount == 1 else 's'}"


def quoted(text: str) -> str:
    """A text as a string of CSS: whatever is no letter, digit or space by its code point."""
    return '"' + "".join(c if c.isalnum() or c == " " else f"\\{ord(c):x} " for c in text) + '"'


@cache
def _templates() -> Environment:
    templates = Environment(
        loader=PackageLoader("earec_core.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {"number": number, "count": count, "highlight": highlight, "quoted": quoted}
    templates.tests["finite"] = math.isfinite
    templates.globals["nan"] = math.nan
    return templates


def fill(template: str, **data: object) -> str:
    """A template with its data.

    Args:
        template: its path below `templates/`, without `.html.j2`.
    """
    return _templates().get_template(f"{template}.html.j2").render(data)


def save(target: Path, text: str) -> Path:
    """Write a file and the folders on its way, complete or not at all.

    Raises:
        UsageError: it cannot be written.
    """
    try:
        write_atomic(target, text.encode(errors="replace"))
    except OSError as error:
        raise UsageError(
            f"The report {target} cannot be written: {error.strerror or error}.", "Name another folder."
        ) from error
    return target
