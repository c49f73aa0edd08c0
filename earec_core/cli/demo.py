"""`earec demo`."""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import click

from earec_core.cli.options import PathType
from earec_core.cli.output import out


@click.command(short_help="Run the whole method on an embedded default and write a report.")
@click.option(
    "--out", "folder", type=PathType, default="earec-demo", show_default=True, help="The demo's folder."
)
@click.option("--print", "show_only", is_flag=True, help="Print the commands instead of running them.")
def command(folder: Path, show_only: bool) -> None:
    """Fit behavior, align three modalities, explain, compose, encode and recommend, on data from packages.

    Safe to interrupt: run it again and finished stages are not repeated. Prints the report's path.
    """
    from earec_core.report import write
    from earec_core.studies import demo
    from earec_core.studies.demo.summary import report

    if show_only:
        for stage in demo.stages(folder):
            out.data(stage.line)
        return
    started = time.monotonic()
    os.environ["EAREC_REGISTRY"] = str((folder / "registry").absolute())
    done = demo.run(folder, run_command, out.note)
    target = write(report(folder, done), folder / "report.html", folder / "report.json")
    out.note(f"\nDone in {(time.monotonic() - started) / 60:.1f} minutes.")
    out.data(str(target))


def run_command(argv: Sequence[str]) -> Any:
    """Run one `earec` command in this process; what it printed, parsed where it is JSON."""
    from earec_core.cli import cli

    printed = io.StringIO()
    with redirect_stdout(printed):
        cli.main(args=list(argv), prog_name="earec", standalone_mode=False)
    text = printed.getvalue().strip()
    try:
        return json.loads(text)
    except ValueError:
        return text
