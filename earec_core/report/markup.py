"""What every page is made of: inline style, inline SVG, no script, no outside address."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path

# Nothing may be fetched and nothing may run, whatever the data holds.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(title: str, subtitle: str, body: str, *, header: str = "", made_by: str = "earec") -> str:
    """A whole page around finished `body` and `header`; the other texts are escaped here."""
    style = resources.files(__package__).joinpath("style.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title><style>{style}</style></head><body><header>"
        f'<h1>{escape(title)}</h1><p class="lead">{escape(subtitle)}</p>{header}'
        f"</header><main>{body}</main><footer>Made by {escape(made_by)}. "
        "Everything on this page is in this one file.</footer></body></html>\n"
    )


def table(caption: str, head: Sequence[str], rows: Sequence[str], numbers: Sequence[int] = ()) -> str:
    """A table of finished `<tr>`s; `numbers` are the columns that hold numbers, by default all but the first."""
    cells = "".join(
        f'<th scope="col"{" class=n" if i in (numbers or range(1, len(head))) else ""}>{escape(name)}</th>'
        for i, name in enumerate(head)
    )
    return (
        f'<div class="wide"><table><caption>{escape(caption)}</caption><thead><tr>{cells}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def name(text: str, colour: str = "var(--ink)") -> str:
    """A row's head."""
    return f'<th scope="row" style="color:{colour}">{escape(text)}</th>'


def number(value: float, digits: int) -> str:
    """A number, or a dash where it is none."""
    return f"{value:.{digits}f}" if math.isfinite(value) else "–"


def put(target: Path, text: str) -> None:
    """Write a file, complete or not at all."""
    temp = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with temp.open("w", encoding="utf-8", errors="replace") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temp.replace(target)
    finally:
        temp.unlink(missing_ok=True)
