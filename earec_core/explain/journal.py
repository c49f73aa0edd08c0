"""Texts as they are generated, batch by batch, so that a killed run goes on and a finished one is not repeated."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path


class TextJournal:
    """The texts of one source and variant by row, in a file of JSON lines, a batch each.

    A line that a killed process did not finish counts as not written.

    Args:
        file: new, or of an earlier process of the same run.
    """

    def __init__(self, file: Path) -> None:
        self.file, self.texts = file, dict[int, str]()
        whole = 0
        if file.exists():
            for line in file.read_bytes().splitlines(keepends=True):
                try:
                    batch: dict[str, str] = json.loads(line)
                except ValueError:
                    break
                self.texts.update((int(row), text) for row, text in batch.items())
                whole += len(line)
            with file.open("rb+") as opened:
                opened.truncate(whole)

    def add(self, texts: Mapping[int, str]) -> None:
        """Write down a batch."""
        with self.file.open("a", encoding="ascii") as file:
            file.write(json.dumps({str(row): text for row, text in texts.items()}) + "\n")
        self.texts.update(texts)
