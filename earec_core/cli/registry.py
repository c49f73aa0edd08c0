"""`earec registry`: what is stored, how it came to be, whether it is whole."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from earec_core.cli.options import (
    PathType,
    Session,
    config_options,
    follow_up,
    json_option,
    open_registry,
    registry_option,
)
from earec_core.cli.output import out
from earec_core.config import RunConfig
from earec_core.files import folder_bytes
from earec_registry import DamagedError

if TYPE_CHECKING:
    from earec_registry import Transfer


@click.group()
def command() -> None:
    """List, show, tag, import, push, pull, verify and clean stored models.

    A model is meant by NAME (its tag latest), NAME:TAG, its id, or the first 6 or more digits of its id.
    """


@command.command("list")
@registry_option
@json_option
def list_(registry: Path, as_json: bool) -> None:
    """List every name and tag with the model it points to."""
    listing = open_registry(registry).list()
    rows = [asdict(entry) for entry in listing.entries]
    if not as_json:
        rows = [{**row, "id": row["id"][:12]} for row in rows]
    out.table(rows, ["name", "tag", "id", "kind", "created"], as_json)
    for problem in listing.problems:
        out.note(f"Problem: {problem}")
    if listing.problems:
        out.note("Run `earec registry verify` to see everything that is damaged.")
    elif not listing.entries:
        out.note(f"The registry {registry} is empty.")


@command.command()
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
        out.result(folder, {"path": folder}, as_json)
        return
    manifest = stored.manifest(ref)
    if as_json:
        out.json({"id": manifest.id, **manifest.data})
        return
    entries = [("id", manifest.id)]
    entries += _flat({key: manifest.data[key] for key in manifest.data if key not in ("files", "parents")})
    for parent in manifest.parents:
        weight = "-" if parent.weight is None else f"weight {parent.weight:g}"
        entries.append((f"parent {parent.id[:12]}", weight))
    for file in manifest.files.values():
        entries.append((f"file {file.path}", f"{file.size} bytes, sha256 {file.sha256[:12]}"))
    out.table([{"entry": entry, "value": value} for entry, value in entries], ["entry", "value"])


@command.command()
@click.argument("name")
@registry_option
@json_option
def log(name: str, registry: Path, as_json: bool) -> None:
    """Show how the tags of NAME moved, oldest first, and whether the model is still stored."""
    stored = open_registry(registry)
    rows = []
    for entry in stored.log(name):
        row = {**asdict(entry), "stored": stored.objects.find("manifests", entry.new) is not None}
        if not as_json:
            row["old"], row["new"] = entry.old and entry.old[:12], entry.new[:12]
            row["stored"] = "yes" if row["stored"] else "no"
        rows.append(row)
    out.table(rows, ["when", "tag", "old", "new", "stored", "why"], as_json)


@command.command()
@click.argument("ref")
@click.argument("name")
@click.argument("tag")
@click.option("--why", default="", help="A note for the log.")
@registry_option
@json_option
def tag(ref: str, name: str, tag: str, why: str, registry: Path, as_json: bool) -> None:
    """Point TAG of NAME to the model REF."""
    stored = open_registry(registry)
    model_id = stored.resolve(ref)
    stored.tag(model_id, name, tag, why)
    out.result(model_id, {"id": model_id, "name": name, "tag": tag}, as_json)
    out.note(f"{name}:{tag} is now {model_id[:12]}.")


@command.command("import")
@click.argument("folder", metavar="DIR", type=PathType)
@click.option("--name", required=True, help="What to register it as.")
@click.option("--modality", help="Whose adapter it is.  [default: as DIR says, where EAREC exported it]")
@config_options("backbone")
@registry_option
@json_option
def import_(
    folder: Path, name: str, modality: str | None, config: RunConfig, registry: Path, as_json: bool
) -> None:
    """Register the LoRA adapter of a directory that PEFT or `earec export` wrote. Prints its id.

    It is checked against the LLM first. Of PEFT's files alone, prompt and plugin are set as `earec align` sets
    them (--set, --config), and a modality whose projector is trained needs it in DIR/projectors.
    """
    from earec_core.aligned.importing import import_adapter

    with Session(registry)("import") as workspace:
        done = import_adapter(workspace, folder, name, config, modality=modality)
    facts = {"id": done.id, "name": done.name, "modality": done.modality, "exported": done.exported}
    out.result(done.id, {**facts, "projector": done.projector}, as_json)
    whence = "as it was exported" if done.exported else "with a new manifest"
    out.note(f"{done.name} is {done.id[:12]}, an adapter of {done.modality}, {whence}.")
    follow_up("registry", "show", done.name)


_called_option = click.option(
    "--as",
    "called",
    metavar="NAME[:TAG]",
    help="What to call it where it arrives.  [default: as where it is]",
)
_why_option = click.option("--why", default="", help="A note for the log, beside where the model came from.")


@command.command()
@click.argument("ref")
@click.argument("url")
@_called_option
@_why_option
@registry_option
@json_option
def push(ref: str, url: str, called: str | None, why: str, registry: Path, as_json: bool) -> None:
    """Copy REF with its parents to another registry, and set its tag there. Prints the id.

    URL is a directory, or whatever fsspec opens: s3://bucket/prefix. What is there already is not sent again.
    """
    from earec_core import remote

    stored = open_registry(registry)
    with out.progress("push") as progress:
        done = remote.push(stored, ref, url, called=called, why=why, progress=progress)
    _transferred(done, "sent", as_json)
    follow_up("registry", "pull", done.name, remote.without_secrets(url), along=())


@command.command()
@click.argument("ref")
@click.argument("url")
@_called_option
@_why_option
@registry_option
@json_option
def pull(ref: str, url: str, called: str | None, why: str, registry: Path, as_json: bool) -> None:
    """Copy REF with its parents from another registry into this one, and set its tag. Prints the id.

    URL is a directory, or whatever fsspec opens: s3://bucket/prefix. What is here already is not fetched again,
    and what is damaged here is repaired.
    """
    from earec_core import remote

    stored = open_registry(registry)
    with out.progress("pull") as progress:
        done = remote.pull(stored, ref, url, called=called, why=why, progress=progress)
    _transferred(done, "fetched", as_json)
    follow_up("registry", "show", done.name)


def _transferred(done: Transfer, verb: str, as_json: bool) -> None:
    """Print what a push or a pull came to."""
    facts = {
        "id": done.id,
        "name": done.name,
        "there": done.there,
        verb: done.copied,
        "repaired": done.repaired,
    }
    out.result(done.id, {**facts, "bytes": done.bytes}, as_json)
    for path in done.repaired:
        out.note(f"Repaired: {path}")
    objects = len(done.there) + len(done.copied) + len(done.repaired)
    out.note(
        f"{done.name} is {done.id[:12]}. Of {objects} files and manifests {len(done.there)} were there, "
        f"{len(done.copied)} {verb}, {len(done.repaired)} repaired ({done.bytes} bytes of files)."
    )


@command.command()
@click.argument("names", metavar="NAME[:TAG]...", nargs=-1, required=True)
@registry_option
@json_option
def rm(names: tuple[str, ...], registry: Path, as_json: bool) -> None:
    """Remove tags (latest where none is said). Models that no tag reaches then go with the next `gc`."""
    stored = open_registry(registry)
    for name in names:
        stored.resolve(name)
    removed = []
    for name in names:
        base, _, tag = name.partition(":")
        stored.untag(base, tag or "latest")
        removed.append({"name": base, "tag": tag or "latest"})
        out.note(f"{base}:{tag or 'latest'} is removed.")
    if as_json:
        out.json(removed)
    out.note("Next: earec registry gc --dry-run")


@command.command()
@registry_option
@json_option
def du(registry: Path, as_json: bool) -> None:
    """How many bytes each name's models have, and what else the home holds.

    A file that several models share counts for each of them, and once in the registry's sum.
    """
    from earec_core.workspace import default_home

    stored, home = open_registry(registry), default_home()
    sizes = dict[str, int]()
    blobs = dict[str, int]()
    for entry in stored.list().entries:
        files = {file.sha256: file.size for file in stored.manifest(entry.id).files.values()}
        sizes[f"{entry.name}:{entry.tag}"] = sum(files.values())
        blobs |= files
    rows = [{"what": name, "bytes": size} for name, size in sorted(sizes.items(), key=lambda s: -s[1])]
    rows.append({"what": "all of these", "bytes": sum(blobs.values())})
    rows += [
        {"what": str(folder), "bytes": folder_bytes(folder)}
        for folder in (stored.root, *sorted(home.iterdir() if home.is_dir() else ()))
        if folder.is_dir() and (folder == stored.root or folder.resolve() != stored.root.resolve())
    ]
    out.table(rows, ["what", "bytes"], as_json)


@command.command()
@click.argument("ref", required=False)
@registry_option
@json_option
def verify(ref: str | None, registry: Path, as_json: bool) -> None:
    """Hash everything stored, or REF and its parents; exit 4 if anything is damaged or missing."""
    report = open_registry(registry).verify(ref)
    if as_json:
        problems = [{"path": p.path, "what": p.fault, "used_by": p.used_by} for p in report.problems]
        out.json({"ok": report.ok, "checked": report.checked, "problems": problems})
    elif report.problems:
        rows = [
            {"path": p.path, "what": p.fault, "used by": ", ".join(p.used_by) or "-"} for p in report.problems
        ]
        out.table(rows, ["path", "what", "used by"])
    if not report.ok:
        raise DamagedError(
            f"{len(report.problems)} of what the registry {registry} holds is damaged or missing "
            f"({report.checked} manifests and blobs checked).",
            "Make or add the models that use it again: that mends it (a log: what is said of it).",
        )
    out.note(f"{report.checked} manifests and blobs checked; all are whole.")


@command.command()
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
        removed = {
            "manifest": report.manifests,
            "blob": report.blobs,
            "view": report.views,
            "tmp": report.tmp,
        }
        rows = [
            {"what": kind, "name": name, "was": report.names.get(name, "")}
            for kind, names in removed.items()
            for name in names
        ]
        out.table(rows, ["what", "name", "was"])
    out.note(f"{report.freed_bytes} bytes {'would be ' if dry_run else ''}freed.")


@command.command("clean")
@click.option(
    "--days", type=click.FloatRange(min=0), default=30.0, show_default=True, help="Keep what is newer."
)
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@json_option
def clean_(days: float, dry_run: bool, as_json: bool) -> None:
    """Remove old runs and caches from EAREC_HOME; they can be made again. No model is touched."""
    from earec_core.workspace import clean, default_home

    removed = clean(default_home(), days * 86400, dry_run=dry_run)
    rows = [{"what": str(folder), "bytes": size} for folder, size in removed.items()]
    out.table(rows, ["what", "bytes"], as_json)
    out.note(f"{sum(removed.values())} bytes {'would be ' if dry_run else ''}freed.")


def _flat(value: Any, path: str = "") -> list[tuple[str, Any]]:
    """Values of a nested mapping by their dotted path."""
    if isinstance(value, dict) and value:
        return [
            entry for key, inner in value.items() for entry in _flat(inner, f"{path}.{key}" if path else key)
        ]
    return [(path, value)]
