"""From whatever a catalog holds to one clean line of text. Standard library only."""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from string import Formatter
from typing import Any

_HIDDEN = re.compile(r"<(script|style)\b.*?</\1\s*>|<!--.*?-->", re.IGNORECASE | re.DOTALL)
_INLINE = re.compile(r"</?(?:a|b|i|u|s|em|strong|span|font|sup|sub|small|big)(?:\s[^<>]*)?/?>", re.IGNORECASE)
# A letter, slash or exclamation mark right behind "<": "5 < 6" and "<3" are no tags.
_TAG = re.compile(r"</?[a-z][^<>]*>|<![^<>]*>", re.IGNORECASE)
_INVISIBLE = re.compile("[\u00ad\u200b\u2060\ufeff\ud800-\udfff]")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
_SENTENCE_END = (".", "!", "?", ":", ";", "…")


def clean(value: Any) -> str:
    """Text without HTML, entities, control characters and repeated white space; "" for nothing.

    Args:
        value: a string, a number, None, or lists of these, joined by ", ".
    """
    if value is None:
        return ""
    if isinstance(value, (list, tuple)):
        return ", ".join(filter(None, map(clean, value)))
    text = str(value)
    # Twice: shops store markup escaped, and escaped once more.
    for _ in range(2):
        text = _TAG.sub(" ", _INLINE.sub("", _HIDDEN.sub(" ", text)))
        text = html.unescape(text)
    text = _CONTROL.sub(" ", _INVISIBLE.sub("", unicodedata.normalize("NFC", text)))
    return " ".join(text.split())


def join_sentences(parts: Iterable[str]) -> str:
    """Join texts by full stops where they do not end a sentence already; empty ones are left out."""
    joined = ""
    for part in filter(None, parts):
        joined += ("" if not joined else " " if joined.endswith(_SENTENCE_END) else ". ") + part
    return joined


@dataclass(frozen=True)
class _Part:
    label: str
    field: str
    behind: str


@dataclass(frozen=True)
class Template:
    """A line with named fields, of which any may be missing.

    Text between two fields is cut behind its last punctuation: what stands before the cut goes with the first
    field, what stands behind it labels the second. A missing field takes both of its own along.
    """

    parts: tuple[_Part, ...]

    @classmethod
    def parse(cls, template: str) -> Template:
        """Read a template.

        Raises:
            ValueError: no field, or one that is not a plain name.
        """
        literals, fields = [""], []
        for literal, field, spec, conversion in Formatter().parse(template):
            literals[-1] += literal
            if field is None:
                continue
            if not re.fullmatch(r"[\w-]+", field) or spec or conversion:
                raise ValueError(f"{{{field}}} is not a field's plain name")
            fields.append(field)
            literals.append("")
        if not fields:
            raise ValueError("the template names no field, e.g. {description}")
        behind, labels = [], [literals[0]]
        for literal in literals[1:-1]:
            cut = max((m.end() for m in re.finditer(r"[.,;|\n!?]\s*", literal)), default=0)
            behind.append(literal[:cut] or literal)
            labels.append(literal[cut:] if cut else "")
        behind.append(literals[-1])
        return cls(tuple(map(_Part, labels, fields, behind)))

    def fill(self, value: Callable[[str], str]) -> str:
        """The line with every field's value; "" where all are missing."""
        present = [(part, text) for part in self.parts if (text := value(part.field))]
        if not present:
            return ""
        line = "".join(
            f"{part.label}{text.rstrip('.') if part.behind.startswith('.') else text}{part.behind}"
            for part, text in present
        )
        return " ".join(line.split()).rstrip(",;| ")
