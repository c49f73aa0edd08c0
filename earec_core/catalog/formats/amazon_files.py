"""Which files of a folder are Amazon's metadata and reviews, told by their first rows."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from earec_core.catalog.formats.files import file_names, several
from earec_core.catalog.formats.lines import Row, first_row
from earec_core.errors import DataError

_ENDING = re.compile(r"\.(json|jsonl)(\.gz)?$")
_AFFIX = re.compile(r"^(meta|reviews?)_|(_\d+)?(_?core)?$")


@dataclass(frozen=True)
class Files:
    """The files that are read.

    Attributes:
        metadata: those whose rows are items.
        reviews: those whose rows are reviews.
        parents: whether items have parents, as in 2023.
    """

    metadata: tuple[Path, ...]
    reviews: tuple[Path, ...]
    parents: bool


def is_metadata(name: str) -> bool:
    """Whether a file's name says that it is metadata."""
    return bool(_ENDING.search(name)) and "meta" in name.lower()


def chosen(source: Path) -> Files:
    """The metadata and reviews of a folder, of one category or several.

    Raises:
        DataError: none of either, several of one category, or of different years.
    """
    names = sorted(name for name in file_names(source) if _ENDING.search(name))
    described = [name for name in names if is_metadata(name)]
    reviewed = [name for name in names if not is_metadata(name)]
    metadata = _of_kind(source, described, _is_item, "metadata (meta_*.json.gz)")
    reviews = _of_kind(source, reviewed, _is_review, "reviews (*.json.gz)")
    parents = ["parent_asin" in row for row in metadata.values()]
    by_year = ["user_id" in row for row in reviews.values()]
    for files, kinds in ((metadata, parents), (reviews, by_year)):
        _check_together(source, list(files), kinds)
    return Files(tuple(metadata), tuple(reviews), parents[0])


def _of_kind(source: Path, names: list[str], fits: Callable[[Row], bool], content: str) -> dict[Path, Row]:
    """The files whose first row is of the kind, with that row; the only file there is, whatever it holds."""
    if not names:
        raise DataError(f"{source} has no file of {content}.", "Put reviews and metadata into one folder.")
    if len(names) == 1:
        file = source / names[0]
        return {file: first_row(file) or {}}
    rows = {source / name: first_row(source / name) for name in names}
    files = {file: row for file, row in rows.items() if row is not None and fits(row)}
    if not files:
        raise DataError(
            f"{source} has no file of {content}; {several(names)} hold something else.",
            "Put reviews and metadata into one folder.",
        )
    return files


def _is_item(row: Row) -> bool:
    return "asin" in row or "parent_asin" in row


def _is_review(row: Row) -> bool:
    return _is_item(row) and ("reviewerID" in row or "user_id" in row)


def _check_together(source: Path, files: list[Path], kinds: list[bool]) -> None:
    """Raises DataError for files that would count twice, or that tell time in different units."""
    seen: dict[str, Path] = {}
    for file in files:
        category = _AFFIX.sub("", _ENDING.sub("", file.name)).lower()
        if category in seen:
            raise DataError(
                f"{source} has {seen[category].name} and {file.name}, by their names the same category twice.",
                "Leave the one that is meant.",
            )
        seen[category] = file
    if len(set(kinds)) > 1:
        raise DataError(
            f"{source} has files of different years: {several(file.name for file in files)}.",
            "Import one year at a time.",
        )
