"""Where a behavior model's item embeddings come from: a file, or the registry."""

from __future__ import annotations

from dataclasses import replace

from earec_behavior.spec import SPEC
from earec_core.artifacts import EmbeddingsManifest, open_as
from earec_core.artifacts.embeddings import TENSORS
from earec_core.artifacts.tables import IDS
from earec_core.errors import UsageError
from earec_core.modality import Context
from earec_core.modality.tables import PIN, SUFFIXES, Table, read_table
from earec_registry import Registry
from earec_registry.errors import NotFoundError

_SETTING = "behavior.embeddings"
_SET = f"--set {_SETTING}=NAME_OR_FILE"
_FIT = "earec behavior fit --data DIR"


def load(reference: str, ids: str, context: Context) -> Table:
    """Read the table that a configuration names.

    Args:
        reference: registry reference or file; "" for the catalog's own `embeddings/<catalog>`.
        ids: file of item ids in row order, "" for none.
        context: catalog and registry.

    Returns:
        The table; `pinned` is its id where it comes from the registry.

    Raises:
        UsageError: not there, not readable, or made on another catalog.
        IntegrityError: a pinned file has changed.
    """
    if reference.partition(PIN)[0].lower().endswith(SUFFIXES):
        return read_table(reference, ids, _SETTING)
    if ids:
        raise UsageError(
            f"behavior.ids={ids} does not go with {reference or 'registered embeddings'}: those have ids.",
            "Leave it out: --set behavior.ids=",
        )
    return _from_registry(reference or default_name(context.catalog), not reference, context)


def default_name(catalog: str) -> str:
    """Where `earec behavior fit` registers a catalog's embeddings."""
    return f"embeddings/{catalog}"


def _from_registry(reference: str, is_default: bool, context: Context) -> Table:
    if context.registry is None or (is_default and not context.catalog):
        raise UsageError(
            f"behavior.embeddings={reference!r} needs a registry and a catalog.", f"Give a file: {_SET}"
        )
    registry = Registry.open(context.registry)
    try:
        stored = open_as(registry, reference, EmbeddingsManifest)
    except NotFoundError as error:
        # A misspelled file name ends here too.
        problem = (
            f"There are no item embeddings of the catalog {context.catalog!r} in the registry."
            if is_default
            else f"behavior.embeddings={reference!r} is no file of {', '.join(SUFFIXES)}: {error.problem}"
        )
        raise UsageError(problem, f"Make them: {_FIT}; or give others: {_SET}") from None
    manifest = stored.manifest
    if manifest.modality != SPEC.name:
        raise UsageError(
            f"{reference} is a table of item embeddings for {manifest.modality}, not for {SPEC.name}.",
            f"Make one: {_FIT}; or give another: {_SET}",
        )
    if context.catalog and manifest.data.name != context.catalog:
        raise UsageError(
            f"The item embeddings {reference} were made on the catalog {manifest.data.name!r}, this is the "
            f"catalog {context.catalog!r}: the same ids mean other items.",
            f"Give this catalog's: --set behavior.embeddings={default_name(context.catalog)} "
            f"(made by `earec behavior fit`).",
        )
    table = read_table(str(stored.folder / TENSORS), str(stored.folder / IDS), _SETTING)
    return replace(table, origin=reference, pinned=stored.id)
