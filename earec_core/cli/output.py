"""The one sink of every command: data to stdout, everything else to stderr."""

from __future__ import annotations

import json
import math
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any, TextIO

Progress = Callable[[int, int, str], None]
"""Takes units done, units in all (0: not known), and a few words."""


_WORTH_SAYING = 30.0
"""Seconds."""
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ud800-\udfff]")
"""Control characters, separators of lines, marks that turn the direction of text, halves of characters."""


def printable(text: str, keep: str = "") -> str:
    """A text that does nothing to a terminal, and stays in its line and cell: `\\x1b` for an escape.

    Args:
        keep: characters that are meant, e.g. a line break.
    """
    return _UNSAFE.sub(lambda at: at[0] if at[0] in keep else repr(at[0])[1:-1], text)


class Output:
    """Writes results to stdout and notes, hints and progress to stderr, whatever is in them `printable`."""

    _stream: TextIO | None = None

    @property
    def stream(self) -> TextIO:
        """Where results go."""
        return self._stream or sys.stdout

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Within it, what others print to stdout, a plugin's encoder say, goes to stderr."""
        before, self._stream = self._stream, self.stream
        try:
            with redirect_stdout(sys.stderr):
                yield
        finally:
            self._stream = before

    def data(self, text: str) -> None:
        """Write one line of the result."""
        self.stream.write(printable(text) + "\n")

    def json(self, value: Any) -> None:
        """Write the result as indented JSON; it has escapes of its own for what is not printable."""
        text = json.dumps(value, indent=2, ensure_ascii=False, default=str)
        self.stream.write(
            _UNSAFE.sub(lambda at: at[0] if at[0] == "\n" else f"\\u{ord(at[0]):04x}", text) + "\n"
        )

    def result(self, text: str, facts: Mapping[str, Any], as_json: bool) -> None:
        """Write the facts as JSON, or the one line that says the result."""
        if as_json:
            self.json(facts)
        else:
            self.data(text)

    def facts(self, lines: Sequence[str], facts: Mapping[str, Any], as_json: bool) -> None:
        """Write the facts as JSON, or the lines that say them."""
        if as_json:
            self.json(facts)
            return
        for line in lines:
            self.data(line)

    def table(self, rows: Sequence[Mapping[str, Any]], columns: Sequence[str], as_json: bool = False) -> None:
        """Write rows as JSON, as an aligned table on a terminal, or tab-separated into a pipe."""
        if as_json:
            self.json([{c: row.get(c) for c in columns} for row in rows])
            return
        lines = [[_cell(row.get(c)) for c in columns] for row in rows]
        if not self.stream.isatty():
            for line in [columns, *lines]:
                self.stream.write("\t".join(line) + "\n")
            return
        from rich.console import Console
        from rich.table import Column, Table
        from rich.text import Text

        table = Table(*(Column(name, overflow="fold") for name in columns), box=None, pad_edge=False)
        for line in lines:
            # As they are: a string's [brackets] and :names: mean colours and emoji to rich.
            table.add_row(*map(Text, line))
        Console(file=self.stream).print(table)

    def note(self, text: str) -> None:
        """Tell the person something that is not the result, in one line."""
        self.lines(printable(text))

    def lines(self, text: str) -> None:
        """The same in several lines."""
        sys.stderr.write(printable(text, keep="\n") + "\n")
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
        """Progress in at most twenty lines, so that a log stays readable, with the time that is left."""
        last, before, began = -1, math.inf, (0, 0.0)

        def show(done: int, total: int, text: str) -> None:
            nonlocal last, before, began
            if done < before:  # another piece of work begins
                began = (done, time.monotonic())
            # So it does behind one that has come to its end.
            before = math.inf if done >= total else done
            step = 20 * done // max(total, 1)
            if step != last:
                last = step
                count = f"{done}/{total}" if total else str(done)
                self.note(f"{title}: {count} {text}".rstrip() + _left(done, total, began))

        return show


@contextmanager
def _bar(title: str) -> Iterator[Progress]:
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeRemainingColumn(),
        progress.TextColumn("{task.fields[text]}", markup=False),
    )
    with progress.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None, text="")
        yield lambda done, total, text: bar.update(task, completed=done, total=total or None, text=text)


def _left(done: int, total: int, began: tuple[int, float]) -> str:
    """About how long the rest takes, after half a minute and where it is half a minute or more.

    Args:
        began: units done and the time when they were, at the first report.
    """
    first, started = began
    elapsed = time.monotonic() - started
    if done <= first or done >= total or elapsed < _WORTH_SAYING:
        return ""
    left = elapsed / (done - first) * (total - done)
    return f", about {left / 60:.1f} min left" if left >= _WORTH_SAYING else ""


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return printable(str(value))


out = Output()
