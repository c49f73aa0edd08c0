"""A composite at other weights than it is served at: what it says of an item, what is like it, what comes next.

It is composed for one request. There are no vectors of the whole catalog at such weights, so candidates are encoded
and ranked again: the items that are nearest, and those that are recommended, at the served weights.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from earec_core.aligned.stored import StoredModel, composed_adapter
from earec_core.artifacts import AdapterManifest, CompositeManifest, open_as
from earec_core.compose import Recipe, compose
from earec_core.encode import item_vectors
from earec_core.errors import UsageError
from earec_core.explain import Said, say
from earec_core.llm.backbone import Adapter
from earec_core.recommend.reasons import rescored
from earec_core.recommend.snapshots import by_vectors
from earec_core.serve.explorer import models
from earec_core.serve.limits import Deadline
from earec_core.serve.listing import pairs, ranked, retriever_of, row_of, vectors_of
from earec_core.serve.models import Text
from earec_core.serve.service import Service
from earec_core.serve.state import Snapshot
from earec_registry import Registry

_MOST = 1000.0
Scored = Sequence[tuple[int, float]]
"""Rows and scores, best first."""


def recipe_at(model: StoredModel, weights: Mapping[str, float]) -> Recipe:
    """How a composite is composed at other weights: by its method, every layer alike.

    Args:
        weights: by modality, in proportion: their sum becomes that of the composite's own. One left out has none.

    Raises:
        UsageError: the model is a single adapter, or has no such modality, or a weight is none.
    """
    manifest = model.manifest
    if not isinstance(manifest, CompositeManifest):
        raise UsageError(
            "The model is a single adapter, which has no weights.", "Serve a composite: earec compose."
        )
    own, method = manifest.weights, manifest.method
    if unknown := sorted(set(weights) - set(own)):
        raise UsageError(f"The composite has no {unknown[0]!r}.", f"It has {', '.join(own)}.")
    for name, weight in weights.items():
        if not 0.0 <= weight <= _MOST:
            raise UsageError(
                f"The weight of {name}, {weight:g}, is not from 0 to {_MOST:g}.", "Give one that is."
            )
    total = math.fsum(weights.values())
    if not total:
        raise UsageError("Every weight is 0.", "Give one modality a weight.")
    sum_ = math.fsum(own.values())
    scale = sum_ if sum_ > 0.0 else 1.0
    seed = method.options.get("seed")
    return Recipe(
        {name: weights.get(name, 0.0) / total * scale for name in own},
        method=method.name,
        rank=method.rank,
        density=method.options.get("density"),
        seed=None if seed is None else int(seed),
        sum_rule="any",
        measure=False,
    )


@contextmanager
def composed(
    registry: Registry, model: StoredModel, recipe: Recipe, check: Callable[[], None] = lambda: None
) -> Iterator[Adapter]:
    """A composite composed anew of its adapters; its files are there for as long as the block lasts.

    Args:
        check: called after each layer; what it raises ends the work.

    Raises:
        UsageError, IntegrityError, RegistryError: an adapter is not there or damaged, or none fits the recipe.
    """
    assert isinstance(model.manifest, CompositeManifest)  # noqa: S101 - it has a recipe
    adapters = model.manifest.adapters
    folders = {name: open_as(registry, id_, AdapterManifest).folder for name, id_ in adapters.items()}
    with tempfile.TemporaryDirectory() as scratch:
        merged = Path(scratch) / "adapter"
        compose(folders, recipe, merged, progress=lambda *_: check())
        yield composed_adapter(merged, folders if recipe.arithmetic.routed else {})


@dataclass(frozen=True)
class _Asked:
    """An item, what its candidates are, and what must be encoded for them."""

    now: Snapshot
    row: int
    near: Scored
    history: Tensor | None
    recommended: Scored

    @property
    def rows(self) -> list[int]:
        """The item, the candidates, and what the recommender reads of the history; each once."""
        past: list[int] = []
        if self.history is not None and self.now.retriever is not None:
            past = self.history[-self.now.retriever.model.config.max_len :].tolist()
        candidates = [row for row, _ in (*self.near, *self.recommended)]
        return list(dict.fromkeys([self.row, *candidates, *past]))


def weighed(
    service: Service,
    weights: Mapping[str, float],
    id_: str,
    history: Sequence[str] = (),
    user: str | None = None,
    *,
    timeout_s: float | None = None,
) -> models.Weighed:
    """What a composite makes of an item at other weights, beside what it makes of it at those that are served.

    Args:
        weights: by modality, see `recipe_at`.
        history: item ids, the latest last, for what comes next.
        user: in place of a history, a user of the catalog.
        timeout_s: default: that of the limits.

    Raises:
        UnknownIdError: there is no such item or user.
        UsageError: see `recipe_at`; there is no recommender, or too much is asked for.
        BusyError, SlowError: too many wait for the LLM; it took too long.
    """
    now, deadline = service.snapshot, Deadline(timeout_s or service.limits.timeout_s)
    model = now.found.model
    recipe, asked = recipe_at(model, weights), _asked(service, now, id_, history, user)
    row, rows, job = asked.row, asked.rows, now.job
    explain = job.config.explain
    with (
        composed(job.workspace.registry, model, recipe, deadline.check) as adapter,
        service.turn(now, deadline),
    ):
        one = job.over([row])
        served = say(one, [row], explain, check=deadline.check)
        with service.aside(now, adapter):
            tried = say(one, [row], explain, check=deadline.check)
            over = job.over(rows)
            vectors = item_vectors(over, rows, job.config.encode, show=lambda *_: deadline.check())
        anchor = one.prompts.anchor(row)
    # What moves all alike says nothing of which are near, but scaled as before it would look like a likeness.
    vectors -= (vectors - vectors_of(now, rows)).mean(0)
    own = model.manifest.weights if isinstance(model.manifest, CompositeManifest) else {}
    return models.Weighed(
        item_id=id_,
        title=now.catalog.item(row).title,
        anchor=anchor,
        served=models.AtWeights(weights=dict(own), texts=_texts(served)),
        tried=models.AtWeights(weights=recipe.used, texts=_texts(tried)),
        similar=_reranked(now, asked.near, _cosines(asked, vectors)),
        recommended=_reranked(now, asked.recommended, _scores(asked, vectors)),
    )


def _asked(service: Service, now: Snapshot, id_: str, history: Sequence[str], user: str | None) -> _Asked:
    if history and user is not None:
        raise UsageError("A user and a history are too much.", "Give one of them, or neither.")
    row, count = row_of(now, id_), service.limits.candidates
    near = now.neighbours.nearest(row, count)
    if not history and user is None:
        return _Asked(now, row, near, None, ())
    past, retriever = service.history(now, history, user), retriever_of(now)
    (ranking,) = retriever.recommend([past], count)
    return _Asked(now, row, near, past, pairs(ranking))


def _texts(said: Sequence[Said]) -> list[Text]:
    return [Text(source=one.source, text=one.text, rouge_l=one.rouge_l) for one in said]


def _cosines(asked: _Asked, vectors: Float[np.ndarray, "n d"]) -> list[float]:
    """Of the item to its candidates by new vectors of `asked.rows`, scaled as those that are served."""
    scaled = F.normalize(asked.now.neighbours.scaling(torch.from_numpy(vectors)), dim=1)
    places = {row: place for place, row in enumerate(asked.rows)}
    cosines: list[float] = (scaled[[places[row] for row, _ in asked.near]] @ scaled[0]).tolist()
    return cosines


def _scores(asked: _Asked, vectors: Float[np.ndarray, "n d"]) -> list[float]:
    """The recommender's of its candidates, by new vectors of `asked.rows`; what it learned of ids stays."""
    now, rows = asked.now, asked.rows
    if asked.history is None or not asked.recommended:
        return []
    retriever, source = retriever_of(now), now.found.recommender
    assert source is not None  # noqa: S101 - there is a retriever
    both = np.concatenate([vectors_of(now, rows), vectors])
    before, after = by_vectors(source, [replace(now.found.vectors, vectors=both)]).chunk(2)
    altered = dict(zip(rows, retriever.items[rows] - before + after, strict=True))
    return rescored(retriever, asked.history, altered, [row for row, _ in asked.recommended])


def _reranked(now: Snapshot, served: Scored, scores: Sequence[float]) -> list[models.Reranked]:
    """Candidates as they are ranked by other scores."""
    (before,) = ranked(now, [served])
    order = sorted(range(len(scores)), key=lambda place: -scores[place])
    return [
        models.Reranked(
            item_id=before[place].item_id,
            title=before[place].title,
            rank=rank,
            score=scores[place],
            served_rank=before[place].rank,
            served_score=before[place].score,
        )
        for rank, place in enumerate(order, start=1)
    ]
