"""`earec plugins`."""

from __future__ import annotations

import click

from earec_core import plugins
from earec_core.cli.options import json_option
from earec_core.cli.output import out
from earec_core.errors import UsageError


@click.group(short_help="List the modality plugins and their states.")
def command() -> None:
    """Modality plugins that are installed here."""


@command.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List every plugin with its state, and for those that are not ok the cause and the fix."""
    rows = [
        {
            "name": plugin.name,
            "state": str(plugin.state),
            "distribution": plugin.distribution,
            "version": plugin.version,
            "summary": plugin.spec.summary if plugin.spec else None,
            "cause": plugin.cause or None,
            "fix": plugin.fix or None,
        }
        for plugin in plugins.discover()
    ]
    out.table(rows, ["name", "state", "distribution", "version", "summary", "cause", "fix"], as_json)


@command.command()
@click.argument("name")
@json_option
def show(name: str, as_json: bool) -> None:
    """Show one plugin: its spec, and its configuration's keys with their defaults."""
    found = [plugin for plugin in plugins.discover() if plugin.name == name]
    if not found:
        raise UsageError(f"There is no plugin {name!r}.", "See `earec plugins list`.")
    plugin = found[0]
    facts = [
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
        for key, entry in plugins.load(plugin.spec.config).model_fields.items():
            default = "(required)" if entry.is_required() else repr(entry.default)
            facts.append((f"{name}.{key}", f"{default}  {entry.description or ''}".rstrip()))
    out.table([{"what": k, "value": v} for k, v in facts if v is not None], ["what", "value"], as_json)
