"""FAISS indexes over item vectors by cosine: which one, how it is built, how many of the nearest items it finds.

Another index is a function that builds it and a row of `INDEXES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from earec_core.errors import UsageError

AUTO = "auto"
_FLAT_ITEMS = 100_000
_HNSW_BYTES = 8 << 30
_NEIGHBOURS = 32
"""Of an item in HNSW's graph; twice as many in its lowest layer."""
_CODES = 256
_TRAINING = 39
"""Vectors that FAISS wants for each centroid that it learns."""
_NEAREST, _QUERIES = 10, 1000


@dataclass(frozen=True)
class BuiltIndex:
    """A FAISS index of unit vectors, by inner product.

    Attributes:
        kind: a key of `INDEXES`.
        why: this one, half a sentence.
        index: FAISS's.
        recall: part of the 10 nearest other items that it finds, over a sample of the items.
        queries: how many items are in the sample; 0 where the index is exact.
    """

    kind: str
    why: str
    index: Any
    recall: float
    queries: int


def check_index(kind: str, n: int) -> None:
    """Refuse an index that cannot be built of n items.

    Raises:
        UsageError: there is none of this name, or it learns from more items.
    """
    if kind not in (AUTO, *INDEXES):
        raise UsageError(f"There is no index {kind!r}.", f"Choose {AUTO}, {', '.join(INDEXES)}.")
    if kind == "ivfpq" and n < _CODES * _TRAINING:
        raise UsageError(
            f"IVF-PQ learns {_CODES} codes from {_CODES * _TRAINING:,} items at least; there are {n:,}.",
            "Leave --index out: a flat index of as many is small.",
        )


def choose_index(n: int, d: int) -> tuple[str, str]:
    """The index of n vectors of d numbers, and why: flat, HNSW beyond 100,000, IVF-PQ where HNSW is over 8 GiB."""
    if n <= _FLAT_ITEMS:
        return "flat", f"{n:,} items are no more than {_FLAT_ITEMS:,}"
    size = n * 4 * (d + 2 * _NEIGHBOURS)
    takes = f"HNSW takes {size / 2**30:.1f} GiB of memory"
    if size <= _HNSW_BYTES:
        return "hnsw", f"{n:,} items are more than {_FLAT_ITEMS:,}; {takes}"
    return "ivfpq", f"{takes}, more than {_HNSW_BYTES >> 30}"


def build_index(vectors: Float[np.ndarray, "n d"], kind: str = AUTO) -> BuiltIndex:
    """Index vectors by cosine, and measure what the index finds.

    Args:
        kind: `auto`, or a key of `INDEXES`.

    Raises:
        UsageError: see `check_index`.
    """
    import faiss

    check_index(kind, len(vectors))
    named, why = choose_index(*vectors.shape) if kind == AUTO else (kind, "asked for")
    unit = np.array(vectors, dtype=np.float32, order="C")
    faiss.normalize_L2(unit)
    index = INDEXES[named](unit)
    if named == "flat":
        return BuiltIndex(named, why, index, 1.0, 0)
    sample = np.random.default_rng(0).choice(len(unit), min(_QUERIES, len(unit)), replace=False)
    return BuiltIndex(named, why, index, recall(index, unit, np.sort(sample)), len(sample))


def recall(index: Any, unit: Float[np.ndarray, "n d"], rows: np.ndarray, k: int = _NEAREST) -> float:
    """Part of each row's k nearest other rows that an index finds, on average; an equally near one is as good.

    Args:
        unit: vectors of length 1, those of the index.
        rows: whose neighbours are looked for.
        k: neighbours, fewer where there are fewer other rows.
    """
    import faiss

    queries, k = unit[rows], min(k, len(unit) - 1)
    best, nearest = faiss.knn(queries, unit, k + 1, metric=faiss.METRIC_INNER_PRODUCT)
    _, found = index.search(queries, k + 1)
    hits = 0
    for place, row in enumerate(rows.tolist()):
        needed = best[place][nearest[place] != row][k - 1]
        mine = found[place][(found[place] != row) & (found[place] >= 0)][:k]
        hits += int((unit[mine] @ queries[place] >= needed - 1e-6).sum())
    return hits / (k * len(rows))


def _flat(unit: Float[np.ndarray, "n d"]) -> Any:
    """Exact: every vector is compared."""
    import faiss

    index = faiss.IndexFlatIP(unit.shape[1])
    index.add(unit)
    return index


def _hnsw(unit: Float[np.ndarray, "n d"]) -> Any:
    """A graph of near neighbours over the vectors as they are (Malkov and Yashunin, TPAMI 2020)."""
    import faiss

    index = faiss.IndexHNSWFlat(unit.shape[1], _NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction, index.hnsw.efSearch = 200, 128
    index.add(unit)
    return index


def _ivfpq(unit: Float[np.ndarray, "n d"]) -> Any:
    """Vectors as codes of a byte for every four numbers or more, in lists of which some are read (Jégou et al.,
    TPAMI 2011)."""
    import faiss

    n, d = unit.shape
    lists = min(round(4 * n**0.5), n // _TRAINING)
    parts = max(m for m in range(1, max(1, min(d // 4, 128)) + 1) if d % m == 0)
    index: Any = faiss.index_factory(d, f"IVF{lists},PQ{parts}np", faiss.METRIC_INNER_PRODUCT)
    learnt_from = min(n, _CODES * max(lists, _CODES))
    index.train(unit[np.sort(np.random.default_rng(0).choice(n, learnt_from, replace=False))])
    index.add(unit)
    index.nprobe = max(8, lists // 32)
    return index


INDEXES: Mapping[str, Callable[[Float[np.ndarray, "n d"]], Any]] = {
    "flat": _flat,
    "hnsw": _hnsw,
    "ivfpq": _ivfpq,
}
"""Who builds, by the name that `--index` takes."""
