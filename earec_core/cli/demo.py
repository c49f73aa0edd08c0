"""`earec demo`."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import click

from earec_core.cli.options import GUIDED, PathType, json_option
from earec_core.cli.output import out
from earec_core.workspace import Reporter, Workspace


@click.command()
@click.option(
    "--out", "folder", type=PathType, default="earec-demo", show_default=True, help="The demo's folder."
)
@click.option(
    "--at-once",
    type=click.IntRange(1),
    help="Stages that run at once, in processes of their own.  [default: 2; 1 with a GPU or one core]",
)
@click.option("--print", "show_only", is_flag=True, help="Print the commands instead of running them.")
@json_option
def command(folder: Path, at_once: int | None, show_only: bool, as_json: bool) -> None:
    """Fit behavior, align three modalities, explain, compose, encode and recommend, on data from packages.

    Safe to interrupt: run it again and finished stages are not repeated. Prints the report's path.
    """
    from earec_core.report import write
    from earec_core.studies import demo
    from earec_core.studies.demo.summary import report
    from earec_core.studies.processes import sensible

    if show_only:
        lines = [stage.line for stage in demo.stages(folder)]
        out.facts(lines, {"commands": lines}, as_json)
        return
    started = time.monotonic()
    workspace = Workspace.open(registry=folder / "registry", reporter=Reporter(out.lines))
    stages = demo.run(folder, workspace, run_command, at_once=at_once or sensible(2))
    target = write(report(folder, workspace, stages), folder / "report.html", folder / "report.json")
    minutes = (time.monotonic() - started) / 60
    out.lines(f"\nDone in {minutes:.1f} minutes.")
    facts = {"page": target, "figures": target.with_suffix(".json"), "minutes": round(minutes, 1)}
    out.result(str(target), facts, as_json)


def run_command(argv: Sequence[str]) -> Any:
    """Run one `earec` command in this process; what it printed, parsed where it is JSON."""
    from earec_core.cli import cli

    printed = io.StringIO()
    with redirect_stdout(printed):
        cli.main(args=list(argv), prog_name="earec", standalone_mode=False, obj=GUIDED)
    text = printed.getvalue().strip()
    try:
        return json.loads(text)
    except ValueError:
        return text
