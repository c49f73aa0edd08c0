"""Why an item is recommended: what becomes of its score without a part of the item, or of the history."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from earec_core.recommend.models.transformer import TransformerRecommender
from earec_core.recommend.retriever import Retriever

_HISTORIES = 64


@dataclass(frozen=True)
class Reason:
    """The scores of one item after a history, whole and without parts.

    Attributes:
        row: the item's row.
        score: as the retriever has it.
        without_part: by part, its score when its vector lacks the part and the user stays as they are.
        without_item: by the row of each item of the history, its score after the history without that item; None
            where nothing is left of the history.
    """

    row: int
    score: float
    without_part: Mapping[str, float]
    without_item: Mapping[int, float | None]


@torch.inference_mode()
def reasons(
    retriever: Retriever,
    history: Int[Tensor, " _"],
    altered: Mapping[int, Mapping[str, Float[Tensor, " d"]]],
    *,
    check: Callable[[], None] = lambda: None,
) -> list[Reason]:
    """What each part of some items and each item of a history does to the items' scores.

    Args:
        retriever: over item vectors, so that it knows every item of its catalog.
        history: item rows in time order, one at least. An item that occurs several times is left out as a whole.
        altered: the items' rows, and by part each item without it, in the model's space: see `without_vectors`.
        check: called between batches of histories; what it raises ends the work.
    """
    model, items = retriever.model, retriever.items
    past = list(dict.fromkeys(history.tolist()))
    left = [part for row in past if len(part := history[history != row])]
    users = [model.users([history], items)]
    for start in range(0, len(left), _HISTORIES):
        check()
        users.append(model.users(left[start : start + _HISTORIES], items))
    whole, *rest = model.scores(torch.cat(users), items[list(altered)]).T.unbind(1)
    by_history = [part.tolist() for part in rest] or [[None] * len(altered)]
    found = []
    for place, (row, parts) in enumerate(altered.items()):
        scores = model.scores(users[0], torch.stack(list(parts.values())))[0].tolist() if parts else []
        without_item = {other: by_history[n][place] for n, other in enumerate(past)}
        found.append(Reason(row, whole[place].item(), dict(zip(parts, scores, strict=True)), without_item))
    return found


@torch.inference_mode()
def rescored(
    retriever: Retriever,
    history: Int[Tensor, " _"],
    altered: Mapping[int, Float[Tensor, " d"]],
    rows: Sequence[int],
) -> list[float]:
    """The scores of items after a history, some items in other vectors than their own.

    A model that reads users by all items together reads them by the items' own vectors.

    Args:
        history: item rows in time order, one at least.
        altered: items in the model's space, by their rows; the history's, too.
        rows: of the items to score.
    """
    model, items = retriever.model, retriever.items.clone()
    items[list(altered)] = torch.stack(list(altered.values()))
    read = items if isinstance(model, TransformerRecommender) else retriever.items
    scores: list[float] = model.scores(model.users([history], read), items[list(rows)])[0].tolist()
    return scores


@torch.inference_mode()
def without_vectors(
    retriever: Retriever,
    row: int,
    mapped: Float[Tensor, " d"],
    without: Mapping[str, Float[Tensor, " d"]],
) -> dict[str, Float[Tensor, " d"]]:
    """An item in the model's space, by other vectors than its own; what it has beside them, as by its id, it keeps.

    Args:
        mapped: the item by its own vector alone (`earec_core.recommend.snapshots.by_vectors`).
        without: by part, the item by its vector without the part.
    """
    beside = retriever.items[row] - mapped
    return {name: one + beside for name, one in without.items()}
