"""The one sink of every command: data to stdout, everything else to stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

Progress = Callable[[int, int, str], None]
"""Takes units done, units in all (0: not known), and a few words."""


class Output:
    """Writes results to stdout and notes, hints and progress to stderr."""

    def data(self, text: str) -> None:
        """Write one line of the result."""
        sys.stdout.write(text + "\n")

    def json(self, value: Any) -> None:
        """Write the result as indented JSON."""
        self.data(json.dumps(value, indent=2, ensure_ascii=False, default=str))

    def result(self, text: str, facts: Mapping[str, Any], as_json: bool) -> None:
        """Write the facts as JSON, or the one line that says the result."""
        if as_json:
            self.json(facts)
        else:
            self.data(text)

    def table(self, rows: Sequence[Mapping[str, Any]], columns: Sequence[str], as_json: bool = False) -> None:
        """Write rows as JSON, as an aligned table on a terminal, or tab-separated into a pipe."""
        if as_json:
            self.json([{c: row.get(c) for c in columns} for row in rows])
            return
        lines = [[_cell(row.get(c)) for c in columns] for row in rows]
        if not sys.stdout.isatty():
            for line in [columns, *lines]:
                self.data("\t".join(line))
            return
        from rich.console import Console
        from rich.table import Column, Table

        table = Table(*(Column(name, overflow="fold") for name in columns), box=None, pad_edge=False)
        for line in lines:
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
            with _bar(title) as show:
                yield show
        else:
            yield self._log(title)

    def _log(self, title: str) -> Progress:
        """Progress in at most twenty lines, so that a log stays readable."""
        last = -1

        def show(done: int, total: int, text: str) -> None:
            nonlocal last
            step = 20 * done // max(total, 1)
            if step != last:
                last = step
                count = f"{done}/{total}" if total else str(done)
                self.note(f"{title}: {count} {text}".rstrip())

        return show


@contextmanager
def _bar(title: str) -> Iterator[Progress]:
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeRemainingColumn(),
        progress.TextColumn("{task.fields[text]}"),
    )
    with progress.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None, text="")
        yield lambda done, total, text: bar.update(task, completed=done, total=total or None, text=text)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


out = Output()
