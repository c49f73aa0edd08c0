"""A recommender at work on what it was not trained on: a later snapshot of its catalog, or another catalog."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from earec_core.artifacts import ItemVectors, RecommenderManifest, VectorsManifest, open_as
from earec_core.artifacts.base import Stored
from earec_core.artifacts.tables import IDS
from earec_core.catalog import Catalog
from earec_core.errors import IntegrityError, UsageError, one_line
from earec_core.recommend.indexes import AUTO, index_of
from earec_core.recommend.models import get_recommender
from earec_core.recommend.models.base import Recommender
from earec_core.recommend.models.transformer import TransformerRecommender
from earec_core.recommend.retriever import Retriever
from earec_core.recommend.tables import PLUS_IDS, Items
from earec_core.recommend.train import side_by_side, widths
from earec_core.recommend.trained import TrainedRecommender
from earec_core.recommend.transfer import Source
from earec_registry import Registry


def open_retriever(
    registry: Registry,
    reference: str,
    catalog: Catalog,
    vectors: Sequence[str] = (),
    *,
    index: str = AUTO,
    cache: Path | None = None,
    note: Callable[[str], None] = lambda _: None,
) -> Retriever:
    """A registered recommender, ready to recommend a catalog's items.

    It knows the items of its training by their ids, in whatever version of the catalog they are. With vectors it
    knows every item: what maps them was trained, and nothing is trained here. An id's own embedding (`+ids`) is
    there for the items of the training alone.

    Args:
        vectors: references to item vectors of the catalog, made as those that the recommender was trained on.
        index, cache: see `earec_core.recommend.indexes.open_index`.
        note: told what it does not know of the catalog, and why.

    Raises:
        UsageError: it is of another kind, cannot read vectors or not these, or knows none of the items.
        IntegrityError: it cannot be read.
    """
    stored = open_as(registry, reference, RecommenderManifest)
    ids = catalog.items["item_id"].to_list()
    if vectors:
        tables = [ItemVectors.open(registry, one, catalog) for one in vectors]
        named = dict(zip(vectors, tables, strict=True))
        return over_vectors(registry, reference, catalog, named, index=index, cache=cache, note=note)
    if stored.manifest.data.digest == catalog.digest:
        return Retriever.open(stored.folder, ids, kind=index, cache=cache)
    known = _rows_in(_trained_ids(registry, reference, stored, catalog), ids)
    count = int((known >= 0).sum())
    if not count:
        raise UsageError(
            f"The recommender {reference!r} was trained on {stored.manifest.data.name!r} and knows none of the "
            f"items of {catalog.name!r}.",
            _remedy(stored.manifest),
        )
    if count < len(ids):
        note(
            f"{count} of {len(ids)} items were in the training of {reference!r}; the others are neither "
            "read in a history nor recommended. " + _remedy(stored.manifest)
        )
    return Retriever.open(stored.folder, ids, known, kind=index, cache=cache)


def over_vectors(
    registry: Registry,
    reference: str,
    catalog: Catalog,
    vectors: Mapping[str, ItemVectors],
    *,
    index: str = AUTO,
    cache: Path | None = None,
    note: Callable[[str], None] = lambda _: None,
) -> Retriever:
    """A registered recommender over item vectors of a catalog.

    Args:
        vectors: by what to call them in a message, in the order of those that it was trained on.
        index, cache, note: see `open_retriever`.

    Raises:
        UsageError, IntegrityError: see `open_retriever`.
    """
    stored, source = open_as(registry, reference, RecommenderManifest), Source.open(registry, reference)
    tables = list(vectors.values())
    source.check(list(vectors), tables)
    ids = catalog.items["item_id"].to_list()
    model = _started(source, side_by_side(tables), widths(tables))
    with torch.inference_mode():
        table = model.items().clone()
        if source.config.table.endswith(PLUS_IDS):
            known = _rows_in(_trained_ids(registry, reference, stored, catalog), ids)
            trained = TrainedRecommender.load(stored.folder).model.items()
            places = np.flatnonzero(known >= 0)
            table[places] = trained[known[places]]
            if len(places) < len(ids):
                note(
                    f"{len(places)} of {len(ids)} items were in the training of {reference!r} and have an "
                    "embedding of their own; the others are known by their vectors alone."
                )
    return Retriever(model, ids, index_of(model, table, index, cache), items=table)


def with_new_items(
    retriever: Retriever, source: Source, ids: Sequence[str], vectors: ItemVectors
) -> Retriever | None:
    """The retriever of `over_vectors` with further items, known by their vectors alone; no other is mapped again.

    Args:
        source: the same recommender.
        vectors: of the further items, read off as those that the others have.

    Returns:
        None where the model reads users by all items together, so that it must be opened anew.
    """
    if not isinstance(retriever.model, TransformerRecommender):
        return None
    model = _started(source, side_by_side([vectors]), widths([vectors]))
    with torch.inference_mode():
        return retriever.with_items(ids, model.items())


@torch.inference_mode()
def by_vectors(source: Source, vectors: Sequence[ItemVectors]) -> Float[Tensor, "n d"]:
    """Items as a recommender has them by their vectors alone: without what it learned of their ids.

    Args:
        vectors: as those that it was trained on, side by side.
    """
    return _started(source, side_by_side(vectors), widths(vectors)).items().clone()


def _started(source: Source, vectors: Float[Tensor, "n d_in"], columns: tuple[int, ...]) -> Recommender:
    """The source's model over items by their vectors, none of which anybody has chosen."""
    items = Items(torch.zeros(len(vectors), dtype=torch.long), vectors, columns)
    return get_recommender(source.model).started(source.config, items, source.tensors).eval()


def _trained_ids(
    registry: Registry, reference: str, stored: Stored[RecommenderManifest], catalog: Catalog
) -> list[str]:
    """Ids of the items of its training, by the model's rows."""
    file = stored.folder / IDS
    if not file.exists():
        # Before they were stored with it, they stood beside its vectors alone.
        parents = (
            open_as(registry, id_, VectorsManifest, RecommenderManifest) for id_ in stored.manifest.parents
        )
        tables = [parent for parent in parents if isinstance(parent.manifest, VectorsManifest)]
        if not tables:
            raise UsageError(
                f"The recommender {reference!r} was trained on {stored.manifest.data.name!r}, not on this version "
                f"of {catalog.name!r}, and by an earlier version of earec, which did not store the items' ids.",
                "Give the dataset it was trained on, or train again.",
            )
        file = tables[0].folder / IDS
    try:
        ids: list[str] = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise IntegrityError(
            f"The recommender {reference!r} cannot be read: {one_line(error)}.", "Train it again."
        ) from error
    return ids


def _rows_in(trained: Sequence[str], ids: Sequence[str]) -> np.ndarray:
    """The row of each id among the trained ones; -1 for one that is not there."""
    rows = {id_: row for row, id_ in enumerate(trained)}
    return np.array([rows.get(id_, -1) for id_ in ids])


def _remedy(manifest: RecommenderManifest) -> str:
    if get_recommender(manifest.model).transfer is not None:
        return "Give vectors of this dataset: earec encode, then --vectors REF."
    return "It knows items by their ids alone: train again, or train one on item vectors."
