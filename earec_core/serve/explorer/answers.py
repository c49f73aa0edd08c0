"""What the explorer asks for beside a service's other answers: why, where on the map, what it looks like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from earec_core.encode.batches import prompt_vectors
from earec_core.errors import UsageError
from earec_core.recommend.reasons import reasons, without_vectors
from earec_core.recommend.snapshots import by_vectors
from earec_core.serve.explorer import models, projection
from earec_core.serve.explorer.pictures import Picture, picture_of
from earec_core.serve.limits import Deadline
from earec_core.serve.listing import retriever_of, row_of, vectors_of
from earec_core.serve.service import Service
from earec_core.serve.state import Snapshot


class Explorer:
    """Around a service; any number of threads may ask."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._map: tuple[Snapshot, models.ItemMap] | None = None

    def reasons(
        self,
        ids: Sequence[str],
        history: Sequence[str] = (),
        user: str | None = None,
        *,
        timeout_s: float | None = None,
    ) -> list[models.Reasons]:
        """What the score of each item becomes without each of its modalities, and without each item of a history.

        An item is encoded anew without a modality; the user stays as they are.

        Args:
            history: item ids, the latest last.
            user: in place of a history, a user of the catalog.
            timeout_s: default: that of the limits.

        Raises:
            UnknownIdError: there is no such item or user.
            UsageError: there is no recommender, or too much or too little is asked for.
            BusyError, SlowError: too many wait for the LLM; it took too long.
        """
        service, now = self._service, self._service.snapshot
        service.limits.check("explained", len(ids), "items to explain")
        if (user is None) == (not history):
            raise UsageError("Either a user or a history is needed.", "Give one of them.")
        retriever, source = retriever_of(now), now.found.recommender
        assert source is not None  # noqa: S101 - there is a retriever
        deadline = Deadline(timeout_s or service.limits.timeout_s)
        past = service.history(now, history, user)
        rows = list(dict.fromkeys(row_of(now, id_) for id_ in ids))
        without = self._without(now, rows, deadline)
        altered = {}
        for row in rows:
            # The first is the whole item, so that what the id adds can be told from what the vector gives.
            table = np.stack([*vectors_of(now, [row]), *without[row].values()])
            mapped = by_vectors(source, [replace(now.found.vectors, vectors=table)])
            parts = dict(zip(without[row], mapped[1:], strict=True))
            altered[row] = without_vectors(retriever, row, mapped[0], parts)
        found = {one.row: one for one in reasons(retriever, past, altered, check=deadline.check)}
        return [
            models.Reasons(
                item_id=id_,
                title=now.catalog.item(one.row).title,
                score=one.score,
                modalities=[
                    models.WithoutModality(modality=name, score=score, change=score - one.score)
                    for name, score in one.without_part.items()
                ],
                history=_past(now, one.score, one.without_item),
            )
            for id_ in ids
            for one in [found[row_of(now, id_)]]
        ]

    def picture(self, id_: str) -> Picture:
        """The picture of an item.

        Raises:
            UnknownIdError: there is no such item, or it has none.
            UsageError: what it has is not to be shown.
        """
        now = self._service.snapshot
        return picture_of(now.catalog.item(row_of(now, id_)))

    def map(self) -> models.ItemMap:
        """The catalog's items on a plane, a sample where there are many; computed again when one is added."""
        now = self._service.snapshot
        if self._map is None or self._map[0] is not now:
            self._map = now, _map(now)
        return self._map[1]

    def _without(
        self, now: Snapshot, rows: Sequence[int], deadline: Deadline
    ) -> dict[int, dict[str, np.ndarray]]:
        """By row and by modality that the model reads of the item: its vector without the modality."""
        with self._service.turn(now, deadline):
            model = now.job.over(rows)
            wanted = [(row, name) for row in rows for name in model.inputs if model.prompts.has(row, [name])]
            prompts = [
                model.prompts.prompt(row, [other for other in model.inputs if other != name])
                for row, name in wanted
            ]
            found: dict[int, dict[str, np.ndarray]] = {row: {} for row in rows}
            for chunk, vectors in prompt_vectors(model, prompts, now.job.config.encode):
                deadline.check()
                for place, vector in zip(chunk, vectors, strict=True):
                    row, name = wanted[place]
                    found[row][name] = vector
        return {row: {name: one[name] for name in model.inputs if name in one} for row, one in found.items()}


def _past(now: Snapshot, score: float, without: Mapping[int, float | None]) -> list[models.WithoutItem]:
    items = now.catalog.items_at(list(without))
    return [
        models.WithoutItem(
            item_id=item.id, title=item.title, score=one, change=None if one is None else one - score
        )
        for item, one in zip(items, without.values(), strict=True)
    ]


def _map(now: Snapshot) -> models.ItemMap:
    known = now.neighbours.rows.numpy()
    rows = projection.sampled(known).tolist()
    items, vectors = now.catalog.items[rows], vectors_of(now, rows)
    column = "category" if "category" in items.columns else None
    names, places = projection.groups(items[column].to_list() if column else [None] * len(rows))
    points = zip(items["item_id"], items["title"], projection.plane(vectors).tolist(), places, strict=True)
    return models.ItemMap(
        total=len(known),
        groups=names,
        items=[
            models.Point(item_id=id_, title=title, x=x, y=y, group=place)
            for id_, title, (x, y), place in points
        ],
    )
