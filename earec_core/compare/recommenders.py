"""What two recommenders, one over each model's vectors, recommend to the same users."""

from __future__ import annotations

from earec_core.catalog import Catalog
from earec_core.compare.rows import Row, overlap
from earec_core.recommend.compare import compare
from earec_core.recommend.slices import TOP
from earec_core.recommend.stage import evaluate_registered
from earec_registry import Registry

_METRICS = ("hr@10", "ndcg@10")


def recommended(registry: Registry, catalog: Catalog, a: str, b: str) -> list[Row]:
    """HR@10 and NDCG@10 with the paired tests of `earec recommend compare`, and the overlap of the lists of ten.

    Raises:
        UsageError: one is no recommender, or of another catalog.
        IntegrityError: one cannot be read.
    """
    mine, theirs = compare(registry, catalog, {"A": [a], "B": [b]}, to="A")
    rows = [
        Row(
            "recommendations",
            metric,
            mine["users"],
            mine[metric],
            theirs[metric],
            difference=theirs[f"{metric}_less"],
            low=theirs[f"{metric}_low"],
            high=theirs[f"{metric}_high"],
            p=theirs[f"{metric}_p"],
        )
        for metric in _METRICS
    ]
    lists = [evaluate_registered(registry, one, catalog, "test", top=TOP).top for one in (a, b)]
    first, second = (one for one in lists if one is not None)
    k = first.shape[1]
    shared = overlap("recommendations", f"first {k} items", first, second, k / len(catalog))
    return [*rows, shared]
