"""Registered recommenders side by side, by the ranks that they give the same users' targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from earec_core.artifacts import RecommenderManifest, open_as
from earec_core.artifacts.recommender import RANKS
from earec_core.catalog import Catalog
from earec_core.errors import IntegrityError, UsageError
from earec_core.metrics.ranking import Metrics
from earec_core.metrics.statistics import Z, holm, paired
from earec_core.recommend.evaluate import Part
from earec_core.recommend.slices import users_of
from earec_core.recommend.stage import evaluate_registered
from earec_registry import Registry

_METRICS = ("hr@10", "ndcg@10")


def compare(
    registry: Registry,
    catalog: Catalog,
    contestants: Mapping[str, Sequence[str]],
    *,
    to: str,
    part: str = "all",
    split: Part = "test",
    exclude_seen: bool = False,
) -> list[dict[str, Any]]:
    """Mean HR@10 and NDCG@10 of contestants, and the paired differences to one of them.

    Args:
        contestants: references of one or several trainings (seeds) by a label; those of one are averaged by user.
        to: the label that the others are compared with.
        part: a slice of the users, see `earec_core.recommend.slices`.
        split: whose targets. Those of the test among all items were ranked when the recommender was stored; others
            are ranked now.
        exclude_seen: items of the user's history do not compete.

    Returns:
        A row per contestant: `model`, `seeds`, `users`, for each metric its mean, and but for `to` the difference
        (`_less`, with `_low` and `_high` of its 95% interval) and the p of a two-sided paired test over users,
        corrected by Holm for all rows and metrics together (`_p`).

    Raises:
        UsageError: one is of another catalog, no label is `to`, or the slice has no user.
        IntegrityError: the ranks of one cannot be read.
    """
    if to not in contestants:
        raise UsageError(f"No contestant is called {to!r}.", f"Choose one of {', '.join(contestants)}.")
    if split == "test" and not exclude_seen:
        rank = partial(_stored_ranks, registry, catalog=catalog)
    else:
        rank = partial(evaluate_registered, registry, catalog=catalog, part=split, exclude_seen=exclude_seen)
    ranks = {label: [rank(reference) for reference in refs] for label, refs in contestants.items()}
    first = ranks[to][0]
    mask = users_of(first.users, catalog.leave_one_out(), split, len(catalog)).get(part)
    if mask is None or not mask.any():
        raise UsageError(f"No evaluated user is in the slice {part!r}.", "Choose another --slice.")
    gains = {
        (label, metric): np.mean([_values(metrics.of(mask), metric) for metrics in each], axis=0)
        for label, each in ranks.items()
        for metric in _METRICS
    }
    tests = {key: paired(values, gains[to, key[1]]) for key, values in gains.items() if key[0] != to}
    corrected = dict(zip(tests, holm([test["p"] for test in tests.values()]), strict=True))
    rows = []
    for label, refs in contestants.items():
        row: dict[str, Any] = {"model": label, "seeds": len(refs), "users": int(mask.sum())}
        for metric in _METRICS:
            row[metric] = round(float(gains[label, metric].mean()), 6)
            test = tests.get((label, metric))
            if test:
                less, reach = test["difference"], Z * test["se"]
                row |= {f"{metric}_less": less, f"{metric}_low": less - reach, f"{metric}_high": less + reach}
                row[f"{metric}_p"] = corrected[label, metric]
        rows.append(row)
    return rows


def _values(metrics: Metrics, metric: str) -> np.ndarray:
    return metrics.gains(10) if metric == "ndcg@10" else (metrics.ranks <= 10).astype(float)


def _stored_ranks(registry: Registry, reference: str, catalog: Catalog) -> Metrics:
    stored = open_as(registry, reference, RecommenderManifest)
    if stored.manifest.data.digest != catalog.digest:
        raise UsageError(
            f"The recommender {reference!r} was trained on {stored.manifest.data.name!r}, not on this version of "
            f"{catalog.name!r}.",
            "Compare recommenders of one dataset.",
        )
    try:
        table = load_file(stored.folder / RANKS)
        return Metrics(table["ranks"], table["users"])
    except (OSError, KeyError, SafetensorError) as error:
        raise IntegrityError(
            f"The recommender {reference!r} has no ranks of its test.",
            "Train it again: earec recommend train.",
        ) from error
