"""Where a behavior model's item embeddings come from: a file, or the registry."""

from __future__ import annotations

from dataclasses import replace

from earec_core.errors import UsageError
from earec_core.modality import Context
from earec_core.modality.tables import PIN, SUFFIXES, Table, read_table
from earec_registry import Registry
from earec_registry.errors import NotFoundError

_SETTING = "behavior.embeddings"
_SET = f"--set {_SETTING}=NAME_OR_FILE"
_FIT = "earec behavior fit --data DIR"


def load(reference: str, ids: str, context: Context) -> tuple[Table, str | None]:
    """Read the table that a configuration names.

    Args:
        reference: registry reference or file; "" for the catalog's own `embeddings/<catalog>`.
        ids: file of item ids in row order, "" for none.
        context: catalog and registry.

    Returns:
        The table, and the registry's id of it if it comes from there.

    Raises:
        UsageError: not there, not readable, or made on another catalog.
        IntegrityError: a pinned file has changed.
    """
    if reference.partition(PIN)[0].lower().endswith(SUFFIXES):
        return read_table(reference, ids, _SETTING), None
    if ids:
        raise UsageError(
            f"behavior.ids={ids} does not go with {reference or 'registered embeddings'}: those have ids.",
            "Leave it out: --set behavior.ids=",
        )
    return _from_registry(reference or default_name(context.catalog), not reference, context)


def default_name(catalog: str) -> str:
    """Where `earec behavior fit` registers a catalog's embeddings."""
    return f"embeddings/{catalog}"


def _from_registry(reference: str, is_default: bool, context: Context) -> tuple[Table, str]:
    if context.registry is None or (is_default and not context.catalog):
        raise UsageError(
            f"behavior.embeddings={reference!r} needs a registry and a catalog.", f"Give a file: {_SET}"
        )
    registry = Registry.open(context.registry)
    try:
        manifest = registry.manifest(reference)
    except NotFoundError as error:
        # A misspelled file name ends here too.
        what = (
            f"There are no item embeddings of the catalog {context.catalog!r} in the registry."
            if is_default
            else f"behavior.embeddings={reference!r} is no file of {', '.join(SUFFIXES)}: {error.what}"
        )
        raise UsageError(what, f"Make them: {_FIT}; or give others: {_SET}") from None
    data = manifest.data
    if data.get("kind") != "features" or data.get("modality") != "behavior":
        raise UsageError(
            f"{reference} is no table of item embeddings (kind {data.get('kind')}, {data.get('modality')}).",
            f"Make one: {_FIT}; or give another: {_SET}",
        )
    made_on = str(dict(data.get("catalog") or {}).get("name", ""))
    if context.catalog and made_on != context.catalog:
        raise UsageError(
            f"The item embeddings {reference} were made on the catalog {made_on!r}, this is the catalog "
            f"{context.catalog!r}: the same ids mean other items.",
            f"Give this catalog's: --set behavior.embeddings={default_name(context.catalog)} "
            f"(made by `earec behavior fit`).",
        )
    folder = registry.materialize(manifest.id)
    table = read_table(str(folder / "embeddings.safetensors"), str(folder / "item_ids.json"), _SETTING)
    return replace(table, origin=reference, pinned=manifest.id), manifest.id
