"""The one sink of every command: data to stdout, everything else to stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol


class Progress(Protocol):
    """What a stage reports to while it runs."""

    def update(self, done: int, total: int, text: str = "") -> None:
        """Say that `done` of `total` units are done; a total of 0 is not known."""


class Output:
    """Writes results to stdout and notes, hints and progress to stderr."""

    def data(self, text: str) -> None:
        """Write one line of the result."""
        sys.stdout.write(text + "\n")

    def json(self, value: Any) -> None:
        """Write the result as indented JSON."""
        self.data(json.dumps(value, indent=2, ensure_ascii=False, default=str))

    def table(self, rows: Sequence[Mapping[str, Any]], columns: Sequence[str], as_json: bool = False) -> None:
        """Write rows as JSON, as an aligned table on a terminal, or tab-separated into a pipe."""
        if as_json:
            self.json([{c: row.get(c) for c in columns} for row in rows])
            return
        cells = [[_cell(row.get(c)) for c in columns] for row in rows]
        if not sys.stdout.isatty():
            for line in [list(columns), *cells]:
                self.data("\t".join(line))
            return
        from rich.console import Console
        from rich.table import Table

        table = Table(box=None, pad_edge=False)
        for column in columns:
            table.add_column(column, overflow="fold")
        for line in cells:
            table.add_row(*line)
        Console().print(table)

    def note(self, text: str) -> None:
        """Tell the person something that is not the result."""
        sys.stderr.write(text + "\n")
        sys.stderr.flush()

    @contextmanager
    def progress(self, title: str) -> Iterator[Progress]:
        """A progress bar on a terminal, a line every few percent elsewhere."""
        if sys.stderr.isatty():
            with _bar(title) as bar:
                yield bar
        else:
            yield _Lines(title, self)


class _Lines:
    """Progress for logs: at most twenty lines, so that a log stays readable."""

    def __init__(self, title: str, out: Output) -> None:
        self._title, self._out, self._last = title, out, -1

    def update(self, done: int, total: int, text: str = "") -> None:
        step = 20 * done // max(total, 1)
        if step != self._last:
            self._last = step
            of = f"/{total}" if total else ""
            self._out.note(f"{self._title}: {done}{of} {text}".rstrip())


@contextmanager
def _bar(title: str) -> Iterator[Progress]:
    from rich import progress as rp
    from rich.console import Console

    columns = (
        rp.TextColumn("{task.description}"),
        rp.BarColumn(),
        rp.MofNCompleteColumn(),
        rp.TimeRemainingColumn(),
        rp.TextColumn("{task.fields[text]}"),
    )
    with rp.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None, text="")

        class _Bar:
            def update(self, done: int, total: int, text: str = "") -> None:
                bar.update(task, completed=done, total=total or None, text=text)

        yield _Bar()


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


out = Output()
