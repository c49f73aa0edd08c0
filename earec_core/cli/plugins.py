"""`earec plugins`."""

from __future__ import annotations

from pathlib import Path

import click

from earec_core import plugins
from earec_core.cli.inspection import every_plugin, look, questions
from earec_core.cli.options import PathType, json_option, pairs_option, run_config
from earec_core.cli.output import out
from earec_core.errors import EarecError, UsageError


@click.group()
def command() -> None:
    """What plugins bring here: modalities, observers, commands, methods of composition and recommenders."""


@command.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List every plugin with its state, and for those that are not ok the cause and the fix."""
    rows = [
        {
            **vars(plugin),
            "summary": plugin.spec.summary if plugin.spec else None,
            "cause": plugin.cause or None,
            "fix": plugin.fix or None,
        }
        for plugin in every_plugin()
    ]
    out.table(rows, ["name", "kind", "state", "distribution", "version", "summary", "cause", "fix"], as_json)


@command.command()
@click.argument("name")
@json_option
def show(name: str, as_json: bool) -> None:
    """Show one plugin: its spec, and its configuration's keys with their defaults."""
    from earec_core.modality import PluginConfig

    # A modality stands before an observer or command of its name.
    question = next((question for question in questions() if question[1] == name), None)
    if question is None:
        raise UsageError(f"There is no plugin {name!r}.", "See `earec plugins list`.")
    plugin = look(question, examined=True)[0]
    facts = [
        ("kind", plugin.kind),
        ("state", str(plugin.state)),
        ("distribution", f"{plugin.distribution} {plugin.version}"),
        ("cause", plugin.cause or None),
        ("fix", plugin.fix or None),
    ]
    if plugin.spec is not None:
        facts += [
            ("api", ".".join(map(str, plugin.spec.api_version))),
            ("slot", plugin.spec.slot_token),
            ("summary", plugin.spec.summary),
        ]
    if plugin.state is plugins.State.OK and plugin.spec is not None:
        for key, setting in plugins.part(plugin, "config", PluginConfig).model_fields.items():
            default = "(required)" if setting.is_required() else repr(setting.default)
            facts.append((f"{name}.{key}", f"{default}  {setting.description or ''}".rstrip()))
    out.table(
        [{"what": fact, "value": value} for fact, value in facts if value is not None],
        ["what", "value"],
        as_json,
    )


@command.command()
@click.argument("name")
@click.option("--trace", is_flag=True, help="Also write the failures' tracebacks, to stderr.")
@pairs_option(
    "--set",
    "settings",
    metavar="KEY=VALUE",
    help="A setting other than the examples', e.g. vision.positions=9.",
)
@json_option
def check(name: str, trace: bool, settings: dict[str, str], as_json: bool) -> None:
    """Run the conformance kit on an installed modality: one line for each clause of the contract.

    Exits 1 if a check fails. Needs pytest: pip install 'earec[testing]'
    """
    from earec_core.testing.check import check as run_kit

    resolved = run_config(None, settings).modalities
    if others := set(resolved) - {name}:
        raise UsageError(f"--set {', '.join(sorted(others))}: {name} is checked.", f"Write {name}.KEY=VALUE.")
    with out.progress(f"Checking {name}") as progress:
        findings = run_kit(name, progress, resolved.get(name))
    rows = [{"check": each.check, "outcome": each.outcome, "why": each.why or None} for each in findings]
    out.table(rows, ["check", "outcome", "why"], as_json)
    failed = [f for f in findings if f.outcome == "failed"]
    for finding in failed if trace else ():
        out.lines(f"\n{finding.check}\n{finding.trace}")
    if failed:
        raise EarecError(
            f"{name} fails {len(failed)} of {len(findings)} checks.",
            f"Mend what they say and run again: earec plugins check {name}"
            + ("" if trace else " (--trace shows where)"),
        )


@command.command()
@click.argument("name")
@click.option("--into", type=PathType, default=Path(), help="Folder to write it into.  [default: here]")
@json_option
def new(name: str, into: Path, as_json: bool) -> None:
    """Write a working plugin distribution `earec-NAME`, the places to change marked."""
    from earec_core.testing import scaffold

    folder = scaffold.new(name, into)
    out.result(str(folder), {"path": folder}, as_json)
    out.lines(
        f"Next:\n    pip install -e '{folder}[test]'\n    earec plugins check {name}\n"
        f"    grep -rn CHANGE {folder}"
    )
