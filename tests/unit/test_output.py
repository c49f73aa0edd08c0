"""What commands write: whole values where machines read, nothing that acts where people do."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from earec_core.cli.output import Output, printable

out = Output()
ACTS = "\x1b]0;owned\x07\x1b[2J\x9b31m\rname\n\t\u202eexe.gpj\u2066\u2028\x00\ud83d\u200f[/red] :smile:"
FINE = 'Café 日本 👩‍👩‍👧 العربية नमस्ते 12" C:\\temp [bold]'


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@given(st.text() | st.text("\x1b[]m\n\t\u202e\u200f\x9b\ud800a\\"))
def test_what_is_printable_cannot_act_and_what_is_fine_stays(text: str) -> None:
    shown = printable(text)
    assert not {unicodedata.category(character) for character in shown} & {"Cc", "Cs", "Zl", "Zp"}
    assert not {unicodedata.bidirectional(character) for character in shown} & {
        *("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
    }
    assert printable(shown) == shown
    shown.encode()


def test_what_is_fine_stays() -> None:
    assert printable(FINE) == FINE
    assert printable("a\nb\tc", keep="\n") == "a\nb\\tc"
    assert printable("\x1b[31m") == r"\x1b[31m"


def test_a_row_is_a_line_and_a_value_a_cell_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    out.table([{"id": ACTS, "title": FINE}, {"id": "b", "title": None}], ["id", "title"])
    header, first, second = capsys.readouterr().out.split("\n")[:-1]
    assert (header, second) == ("id\ttitle", "b\t-")
    assert first.split("\t") == [printable(ACTS), FINE]


def test_a_table_on_a_terminal_shows_values_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    # A closing tag without its opening one is an error of rich's markup.
    out.table([{"id": ACTS, "title": "[/red] [bold]pen[/bold] :smile:"}], ["id", "title"])
    # The header is bold.
    shown = re.sub("\x1b\\[[01]m", "", terminal.getvalue())
    assert "[/red] [bold]pen[/bold] :smile:" in shown
    assert printable(ACTS) in shown
    assert printable(shown, keep="\n") == shown


def test_json_has_every_value_as_it_is_and_acts_on_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"id": ACTS, ACTS: [FINE], "nothing": None}
    out.json(value)
    text = capsys.readouterr().out
    assert json.loads(text) == value
    assert printable(text, keep="\n") == text
    assert "Café 日本" in text


def test_a_note_is_one_line_and_lines_are_several(capsys: pytest.CaptureFixture[str]) -> None:
    out.note("Item a\nError: b\x1b[2J loses its picture.")
    out.lines("Next:\n    \x1b[2J")
    assert capsys.readouterr().err == "Item a\\nError: b\\x1b[2J loses its picture.\nNext:\n    \\x1b[2J\n"


def test_progress_on_a_terminal_reads_no_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with out.progress("Checking [/red]") as show:
        show(1, 2, "[/x] thing")
    assert "Checking [/red]" in terminal.getvalue()
    assert "[/x] thing" in terminal.getvalue()


def test_a_log_says_the_time_that_is_left_from_where_it_went_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with out.progress("align") as show:
        show(32, 32, "features")  # another piece of work before
        for done, at in ((50, 0), (60, 20), (70, 40), (90, 80), (100, 100)):
            now[0] = 1000.0 + at
            show(done, 100, "loss 1")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "align: 32/32 features",
        "align: 50/100 loss 1",
        "align: 60/100 loss 1",
        "align: 70/100 loss 1, about 1.0 min left",
        "align: 90/100 loss 1",
        "align: 100/100 loss 1",
    ]


def test_what_others_print_is_kept_out_of_the_result(capsys: pytest.CaptureFixture[str]) -> None:
    with out.alone():
        print("reading")
        out.data("id")
        with out.alone():
            out.data("again")
    print("after")
    assert capsys.readouterr() == ("id\nagain\nafter\n", "reading\n")


def test_the_shell_completes_commands() -> None:
    words = {"_EAREC_COMPLETE": "bash_complete", "COMP_WORDS": "earec registry cl", "COMP_CWORD": "2"}
    call = [sys.executable, "-m", "earec_core"]
    done = subprocess.run(call, env={**os.environ, **words}, capture_output=True, text=True, check=True)
    assert (done.stdout.split(), done.stderr) == (["plain,clean"], "")
