"""Items as requests name them and answers have them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import numpy as np
import polars as pl
from jaxtyping import Float

from earec_core.aligned.stored import StoredModel
from earec_core.artifacts import CompositeManifest
from earec_core.errors import EarecError, UsageError
from earec_core.recommend.retriever import Ranking, Retriever
from earec_core.serve import models
from earec_core.serve.beside import BesideVectors
from earec_core.serve.errors import TakenError, UnknownIdError
from earec_core.serve.explorer.pictures import has_picture
from earec_core.serve.state import Snapshot
from earec_core.types import Item


def row_of(now: Snapshot, id_: str) -> int:
    """The row of an item.

    Raises:
        UnknownIdError: there is none of that id.
    """
    if id_ not in now.rows:
        raise UnknownIdError(f"There is no item {id_!r}.", "Search for its title: /v1/items?q=WORDS.")
    return now.rows[id_]


def retriever_of(now: Snapshot) -> Retriever:
    """The recommender.

    Raises:
        UsageError: there is none.
    """
    if now.retriever is None:
        raise UsageError("No recommender is served.", "Start with one: earec serve MODEL --recommender REF.")
    return now.retriever


def beside_of(now: Snapshot, name: str) -> BesideVectors:
    """The vectors of that name beside the model's own.

    Raises:
        UsageError: there are none.
    """
    if name not in now.beside:
        served = ", ".join(now.beside) or "none beside the model's own"
        raise UsageError(
            f"No vectors {name!r} are served; there are: {served}.", f"Start with them: --beside {name}."
        )
    return now.beside[name]


def vectors_of(now: Snapshot, rows: Sequence[int]) -> Float[np.ndarray, "n d"]:
    """The vectors of items, of the dataset or added."""
    stored = now.found.vectors.vectors
    return np.stack([stored[row] if row < len(stored) else now.vectors[row - len(stored)] for row in rows])


def weights_of(model: StoredModel) -> dict[str, float] | None:
    """The weights of a composite's modalities; None for a single adapter."""
    manifest = model.manifest
    return dict(manifest.weights) if isinstance(manifest, CompositeManifest) else None


def is_there(now: Snapshot, id_: str, row: pl.DataFrame) -> bool:
    """Whether the item is there already.

    Raises:
        TakenError: another is, of the same id.
    """
    if id_ not in now.rows:
        return False
    if not now.catalog.items[now.rows[id_]].equals(row):
        raise TakenError(f"There is another item {id_!r} already.", "Give the new one an id of its own.")
    return True


def item_of(now: Snapshot, item: Item) -> models.Item:
    """An item with everything that is known of it."""
    inputs, model = dict[str, str](), now.job.model
    for name, one in model.inputs.items():
        with suppress(EarecError):  # an item is shown, whatever a plugin cannot show of it
            if shown := one.modality.describe(item):
                inputs[name] = shown
    related = now.catalog.items_at(list(item.relations))
    return models.Item(
        item_id=item.id,
        title=item.title,
        fields={name: models.to_json(value) for name, value in item.fields.items()},
        anchor=model.prompts.over(model.inputs, {item.index: item}).anchor(item.index),
        inputs=inputs,
        related=[models.ItemLine(item_id=other.id, title=other.title) for other in related],
        added=item.index >= len(now.catalog.first),
        picture=has_picture(item),
    )


def ranked(now: Snapshot, lists: Sequence[Sequence[tuple[int, float]]]) -> list[list[models.Ranked]]:
    """Lists of rows and scores as answers have them."""
    rows = [row for some in lists for row, _ in some]
    lines = now.catalog.items[rows].select("item_id", "title").iter_rows()
    return [
        [
            models.Ranked(item_id=id_, title=title, rank=rank, score=score)
            for rank, ((_, score), (id_, title)) in enumerate(zip(some, lines), start=1)  # noqa: B905 - as many
        ]
        for some in lists
    ]


def pairs(ranking: Ranking) -> list[tuple[int, float]]:
    """The rows and scores of a ranking."""
    return list(zip(ranking.rows.tolist(), np.asarray(ranking.scores).tolist(), strict=True))
