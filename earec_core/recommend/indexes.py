"""FAISS indexes of vectors by inner product: which one, how it is built and asked, how much of the best it finds.

Another index is a function that builds it and a row of `INDEXES`.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from earec_core.errors import IntegrityError, UsageError
from earec_core.files import make_once
from earec_core.recommend.models.base import Recommender

AUTO, FLAT = "auto", "flat"
NEAREST, SAMPLE = 10, 1000
"""Recall is of so many items, over a sample of so many queries."""
_FLAT_ITEMS = 100_000
_HNSW_BYTES = 8 << 30
_NEIGHBOURS = 32
"""Of an item in HNSW's graph; twice as many in its lowest layer."""
_CODES = 256
_TRAINING = 39
"""Vectors that FAISS wants for each centroid that it learns."""
_RESCORED = 8
"""Of IVF-PQ's best, as a multiple of what is asked for, whose exact scores decide."""
_FILE = "index.faiss"

Vectors = Float[np.ndarray, "n d"]


@dataclass(frozen=True)
class ItemIndex:
    """A FAISS index that is asked for the largest inner products.

    Attributes:
        kind: a key of `INDEXES`.
        why: this one, half a sentence.
        faiss: the library's own.
    """

    kind: str
    why: str
    faiss: Any

    def __len__(self) -> int:
        return int(self.faiss.ntotal)

    @property
    def exact(self) -> bool:
        """Whether it finds the best, and not most of them."""
        return self.kind == FLAT

    def search(
        self, queries: Float[np.ndarray, "b d"], k: int, *, among: Bool[np.ndarray, " n"] | None = None
    ) -> tuple[Float[np.ndarray, "b k"], Int[np.ndarray, "b k"]]:
        """Scores and rows of each query's k best, best first; row -1 where no more are found.

        Args:
            among: the rows that may be found; default: all.
        """
        options = {} if among is None else {"params": self._parameters(among)}
        found: tuple[np.ndarray, np.ndarray] = self.faiss.search(queries, k, **options)
        return found

    def with_vectors(self, vectors: Vectors) -> ItemIndex:
        """The same with further rows, behind those that there are."""
        import faiss

        grown = faiss.clone_index(self.faiss)
        grown.add(vectors)
        return ItemIndex(self.kind, self.why, grown)

    def _parameters(self, among: Bool[np.ndarray, " n"]) -> Any:
        """FAISS's parameters of a search among some rows; the others are those of the index."""
        faiss: Any = import_module("faiss")  # its types lack the arguments
        selector = faiss.IDSelectorBitmap(np.packbits(among, bitorder="little"))
        if self.kind == "hnsw":
            return faiss.SearchParametersHNSW(sel=selector, efSearch=self.faiss.hnsw.efSearch)
        if self.kind == "ivfpq":
            inner = faiss.SearchParametersIVF(sel=selector, nprobe=_lists_of(self.faiss).nprobe)
            if isinstance(self.faiss, faiss.IndexIVFPQ):
                return inner
            return faiss.IndexRefineSearchParameters(k_factor=self.faiss.k_factor, base_index_params=inner)
        return faiss.SearchParameters(sel=selector)


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


def build_index(vectors: Vectors, kind: str = AUTO, *, rescored: bool = True) -> ItemIndex:
    """Index vectors.

    Args:
        kind: `auto`, or a key of `INDEXES`.
        rescored: IVF-PQ keeps the vectors beside their codes, and the exact scores of its best decide; else it has
            the codes alone, which is what makes it small.

    Raises:
        UsageError: see `check_index`.
    """
    import faiss

    named, why = _chosen(vectors, kind)
    index = INDEXES[named](vectors)
    if named == "ivfpq" and rescored:
        index = faiss.IndexRefineFlat(index, faiss.swig_ptr(vectors))
        index.k_factor = _RESCORED
    return ItemIndex(named, why, index)


def open_index(vectors: Vectors, kind: str = AUTO, cache: Path | None = None) -> ItemIndex:
    """The index of `build_index`; one that is not exact is built once for the same vectors, and kept.

    Args:
        cache: a folder for those; None keeps none.
    """
    import faiss

    named, why = _chosen(vectors, kind)
    if cache is None or named == FLAT:
        return build_index(vectors, kind)
    settings = f"{named} {vectors.shape} {faiss.__version__} {_NEIGHBOURS} {_CODES} {_RESCORED}"
    content = hashlib.sha256(settings.encode() + vectors.tobytes()).hexdigest()
    folder = cache / content
    for _ in range(2):
        make_once(folder, lambda out: write_index(build_index(vectors, named).faiss, out / _FILE))
        try:
            return ItemIndex(named, why, read_index(folder / _FILE))
        except IntegrityError:  # cut short, or another's: made again
            shutil.rmtree(folder, ignore_errors=True)
    return build_index(vectors, kind)


def index_of(
    model: Recommender, items: Float[Tensor, "n d"], kind: str = AUTO, cache: Path | None = None
) -> ItemIndex | None:
    """The index over a model's items; None where it scores them otherwise than by inner products.

    Args:
        kind, cache: see `open_index`.

    Raises:
        UsageError: it has none, and one is asked for.
    """
    if model.inner_product:
        return open_index(keys_of(model, items), kind, cache)
    if kind != AUTO:
        raise UsageError(
            "The recommender does not score by inner products, so it has no index.", "Leave --index out."
        )
    return None


@torch.inference_mode()
def keys_of(model: Recommender, items: Float[Tensor, "n d"]) -> Float[np.ndarray, "n e"]:
    """A model's items as an index has them."""
    return plain(model.keys(items))


def recall(
    index: ItemIndex,
    vectors: Vectors,
    queries: Float[np.ndarray, "b d"],
    own: Int[np.ndarray, " b"] | None = None,
    k: int = NEAREST,
) -> float:
    """Part of each query's k best rows that an index finds, on average; an equally good one is as good.

    Args:
        vectors: those of the index.
        own: of queries that are rows themselves, which; they are left out.
        k: fewer where there are fewer rows.
    """
    import faiss

    mine = np.full(len(queries), -1) if own is None else own
    k = min(k, len(vectors) - (own is not None))
    best, nearest = faiss.knn(queries, vectors, k + 1, metric=faiss.METRIC_INNER_PRODUCT)
    _, found = index.search(queries, k + 1)
    hits = 0
    for place, row in enumerate(mine.tolist()):
        needed = best[place][nearest[place] != row][k - 1]
        rows = found[place][(found[place] != row) & (found[place] >= 0)][:k]
        hits += int((vectors[rows] @ queries[place] >= needed - 1e-6 * max(1.0, abs(needed))).sum())
    return hits / (k * len(queries))


def sampled(n: int) -> Int[np.ndarray, " b"]:
    """Which of n queries recall is measured on: `SAMPLE` of them, always the same, rising."""
    chosen: np.ndarray = np.random.default_rng(0).choice(n, min(SAMPLE, n), replace=False)
    return np.sort(chosen)


def write_index(index: Any, file: Path) -> None:
    """Write FAISS's index, the same bytes for the same index."""
    import faiss

    faiss.write_index(index, str(file))


def read_index(file: Path) -> Any:
    """Read what `write_index` wrote.

    Raises:
        IntegrityError: it is no index.
    """
    import faiss

    try:
        return faiss.read_index(str(file))
    except RuntimeError as error:
        raise IntegrityError(
            f"The index {file} cannot be read.", "Train the recommender again: earec recommend train."
        ) from error


def plain(x: Float[Tensor, "_ d"]) -> Float[np.ndarray, "_ d"]:
    """Vectors as FAISS takes them."""
    return np.ascontiguousarray(x.float().cpu().numpy())


def _chosen(vectors: Vectors, kind: str) -> tuple[str, str]:
    """Which index, and why; UsageError where it cannot be built."""
    check_index(kind, len(vectors))
    return choose_index(*vectors.shape) if kind == AUTO else (kind, "asked for")


def _lists_of(index: Any) -> Any:
    """The inverted lists below whatever scores their best again."""
    import faiss

    return index if isinstance(index, faiss.IndexIVFPQ) else faiss.downcast_index(index.base_index)


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
