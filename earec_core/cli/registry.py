"""`earec registry`: what is stored, how it came to be, whether it is whole."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from earec_core.cli.options import json_option, open_registry, registry_option
from earec_core.cli.output import out
from earec_registry import DamagedError, Problem


@click.group()
def registry() -> None:
    """List, show, tag, verify and clean stored models.

    A model is meant by NAME (its tag latest), NAME:TAG, its id, or the first 6 or more digits of its id.
    """


@registry.command("list")
@registry_option
@json_option
def list_(registry: Path, as_json: bool) -> None:
    """List every name and tag with the model it points to."""
    found = open_registry(registry).list()
    rows = [asdict(entry) for entry in found.entries]
    if not as_json:
        rows = [{**row, "id": row["id"][:12]} for row in rows]
    out.table(rows, ["name", "tag", "id", "kind", "created"], as_json)
    _note_problems(found.problems)
    if not (found.entries or found.problems):
        out.note(f"The registry {registry} is empty.")


@registry.command()
@click.argument("ref")
@click.option(
    "--path", is_flag=True, help="Make the plain directory of the model's files and print its path."
)
@registry_option
@json_option
def show(ref: str, path: bool, registry: Path, as_json: bool) -> None:
    """Show the manifest of REF, or the directory of its files."""
    stored = open_registry(registry)
    if path:
        folder = str(stored.materialize(ref))
        if as_json:
            out.json({"path": folder})
        else:
            out.data(folder)
        return
    manifest = stored.manifest(ref)
    said = {k: v for k, v in manifest.data.items() if k not in ("files", "parents")}
    if as_json:
        out.json({"id": manifest.id, **manifest.data})
        return
    rows: list[dict[str, object]] = [{"entry": "id", "value": manifest.id}]
    rows += [{"entry": k, "value": v} for k, v in _flat(said)]
    rows += [
        {"entry": f"parent {p.id[:12]}", "value": "-" if p.weight is None else f"weight {p.weight:g}"}
        for p in manifest.parents
    ]
    rows += [
        {"entry": f"file {f.path}", "value": f"{f.size} bytes, sha256 {f.sha256[:12]}"}
        for f in manifest.files.values()
    ]
    out.table(rows, ["entry", "value"])


@registry.command()
@click.argument("name")
@registry_option
@json_option
def log(name: str, registry: Path, as_json: bool) -> None:
    """Show how the tags of NAME moved, oldest first, and whether the model is still stored."""
    stored = open_registry(registry)
    rows = [
        {**asdict(entry), "stored": stored.objects.find("manifests", entry.new) is not None}
        for entry in stored.log(name)
    ]
    if not as_json:
        rows = [
            {
                **row,
                "old": row["old"] and row["old"][:12],
                "new": row["new"][:12],
                "stored": "yes" if row["stored"] else "no",
            }
            for row in rows
        ]
    out.table(rows, ["when", "tag", "old", "new", "stored", "why"], as_json)


@registry.command()
@click.argument("ref")
@click.argument("name")
@click.argument("tag")
@click.option("--why", default="", help="A note for the log.")
@registry_option
def tag(ref: str, name: str, tag: str, why: str, registry: Path) -> None:
    """Point TAG of NAME to the model REF."""
    stored = open_registry(registry)
    id_ = stored.resolve(ref)
    stored.tag(id_, name, tag, why)
    out.data(id_)
    out.note(f"{name}:{tag} is now {id_[:12]}.")


@registry.command()
@click.argument("ref", required=False)
@registry_option
@json_option
def verify(ref: str | None, registry: Path, as_json: bool) -> None:
    """Hash everything stored, or REF and its parents; exit 4 if anything is damaged or missing."""
    report = open_registry(registry).verify(ref)
    if as_json:
        out.json(
            {"ok": report.ok, "checked": report.checked, "problems": [asdict(p) for p in report.problems]}
        )
    elif report.problems:
        rows = [
            {"path": p.path, "what": p.what, "used by": ", ".join(p.used_by) or "-"} for p in report.problems
        ]
        out.table(rows, ["path", "what", "used by"])
    if not report.ok:
        raise DamagedError(
            f"{len(report.problems)} of what the registry {registry} holds is damaged or missing "
            f"({report.checked} manifests and blobs checked).",
            "Make or add the models that use it again: that mends it.",
        )
    out.note(f"{report.checked} manifests and blobs checked; all are whole.")


@registry.command()
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@click.option(
    "--grace",
    type=click.FloatRange(min=0),
    default=3600.0,
    show_default=True,
    help="Keep what was written or used in the last so many seconds.",
)
@registry_option
@json_option
def gc(dry_run: bool, grace: float, registry: Path, as_json: bool) -> None:
    """Remove models that no tag reaches, files that no model has, and left-overs."""
    report = open_registry(registry).gc(dry_run=dry_run, grace_s=grace)
    if as_json:
        out.json(asdict(report))
    else:
        kinds = (
            ("manifest", report.manifests),
            ("blob", report.blobs),
            ("view", report.views),
            ("tmp", report.tmp),
        )
        rows = [{"what": what, "name": name} for what, names in kinds for name in names]
        out.table(rows, ["what", "name"])
    out.note(f"{report.freed_bytes} bytes {'would be ' if dry_run else ''}freed.")


def _note_problems(problems: tuple[Problem, ...]) -> None:
    for problem in problems:
        users = f" (used by {', '.join(problem.used_by)})" if problem.used_by else ""
        out.note(f"Problem: {problem.path}: {problem.what}{users}")
    if problems:
        out.note("Run `earec registry verify` to see everything that is damaged.")


def _flat(value: object, at: str = "") -> list[tuple[str, object]]:
    if isinstance(value, dict) and value:
        return [pair for k, v in value.items() for pair in _flat(v, f"{at}.{k}" if at else str(k))]
    return [(at, value)]


command = registry
