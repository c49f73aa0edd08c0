"""A copy of lastfm-2k-audio whose items have `tags`: of the 100 most frequent at most six, the rarest last.

Usage: common_tags.py DATA OUT
"""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from pathlib import Path

import polars as pl

_COMMON, _MOST = 100, 6
_NO_SOUND = {"seen live", "favorites", "favourites", "awesome", "love", "amazing", "favorite", "my favorites"}


def common_tags(texts: list[str]) -> list[str | None]:
    """Of each comma-separated list the common tags, the most frequent first; None where there is none."""
    lists = [text.split(",") for text in texts]
    counts = Counter(tag for tags in lists for tag in tags if tag not in _NO_SOUND)
    common = {tag: place for place, (tag, _) in enumerate(counts.most_common(_COMMON))}
    kept = [sorted((t for t in tags if t in common), key=common.__getitem__)[:_MOST] for tags in lists]
    return [", ".join(tags) or None for tags in kept]


def main(data: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    items = pl.read_ndjson(data / "items.jsonl")
    tags = pl.Series("tags", common_tags(items["text"].fill_null("").to_list()))
    items.with_columns(tags).write_ndjson(out / "items.jsonl")
    shutil.copy(data / "interactions.csv", out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
