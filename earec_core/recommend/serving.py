"""`recommend topk`: what comes next for a user, a history typed in, or many users at once."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Int
from torch import Tensor

from earec_core.catalog import Catalog
from earec_core.catalog.splits import Sequences
from earec_core.errors import DataError, UsageError
from earec_core.files import digest, write_atomic, write_json
from earec_core.recommend.indexes import sampled
from earec_core.recommend.retriever import Ranking, Retriever

_PART, _ABOUT = 4096, "recommendations.json"


def history(
    catalog: Catalog, *, user: str | None = None, items: Sequence[str] | None = None
) -> Int[Tensor, " _"]:
    """Item rows of a user's whole history, or of items by their ids, the latest last.

    Raises:
        UsageError: the catalog has no such user or item.
    """
    if user is None:
        return torch.tensor(catalog.rows_of(items or []), dtype=torch.long)
    sequences = catalog.sequences()
    return torch.from_numpy(sequences.of(_rows_of(catalog, sequences, [user])[0]).copy())


def measured(retriever: Retriever, catalog: Catalog) -> dict[str, Any] | None:
    """What a retriever's index is and finds: `kind`, `why`, `recall@10` and over how many `queries`.

    The queries are after the histories of a sample of the catalog's users; its recall is None where the model
    knows none of their items. None where all items are compared.
    """
    if retriever.index is None or retriever.index.exact:
        return None
    sequences = catalog.sequences()
    histories = [torch.from_numpy(sequences.of(row).copy()) for row in sampled(len(sequences)).tolist()]
    found = retriever.recall(histories)
    about = {"kind": retriever.index.kind, "why": retriever.index.why}
    return {**about, "recall@10": found, "queries": len(histories)}


def shown(catalog: Catalog, ranking: Ranking) -> list[dict[str, Any]]:
    """A ranking as rows to print: `rank`, `item_id`, `title`, `score`."""
    items = catalog.items_at(ranking.rows.tolist())
    return [
        {"rank": rank, "item_id": item.id, "title": item.title, "score": score}
        for rank, (item, score) in enumerate(zip(items, ranking.scores.tolist(), strict=True), start=1)
    ]


def recommend_to_many(
    retriever: Retriever,
    catalog: Catalog,
    users: Sequence[str] | None,
    k: int,
    out: Path,
    *,
    model: str,
    vectors: Sequence[str] = (),
    exclude_seen: bool = True,
    progress: Callable[[int, int, str], None] = lambda *_: None,
) -> int:
    """Write the k best next items of many users as Parquet files of some thousand users each.

    The columns are `user_id`, `rank`, `item_id` and `score`; a user of whose items the recommender knows none has
    no row. A file that is there is not made again, so a killed run goes on where it was; no more than one file's
    users are held at a time.

    Args:
        users: their ids; default: all of the catalog.
        out: a directory, new or of an earlier run of the same.
        model, vectors: ids of the recommender and of item vectors given to it.

    Returns:
        How many users there are.

    Raises:
        UsageError: the catalog lacks one of the users, one is named twice, or none is.
        DataError: `out` holds something else.
    """
    sequences = catalog.sequences()
    rows = range(len(sequences)) if users is None else _rows_of(catalog, sequences, users)
    if not rows:
        raise UsageError("No user is named.", "Give one at least.")
    about = {
        "recommender": model,
        **({"vectors": list(vectors)} if vectors else {}),
        **({} if retriever.index is None or retriever.index.exact else {"index": retriever.index.kind}),
        "data": catalog.digest,
        "users": "all" if users is None else digest(list(users)),
        "k": k,
        "exclude_seen": exclude_seen,
    }
    _claim(out, about)
    for number, start in enumerate(range(0, len(rows), _PART)):
        file = out / f"part-{number:05}.parquet"
        if not file.exists():
            part = rows[start : start + _PART]
            histories = [torch.from_numpy(sequences.of(row).copy()) for row in part]
            rankings = retriever.recommend(histories, k, exclude_seen=exclude_seen)
            buffer = io.BytesIO()
            _table(sequences.users[list(part)], rankings).write_parquet(buffer)
            write_atomic(file, buffer.getvalue())
        progress(min(start + _PART, len(rows)), len(rows), "users")
    return len(rows)


def _table(users: np.ndarray, rankings: Sequence[Ranking]) -> pl.DataFrame:
    lengths = [len(ranking.rows) for ranking in rankings]
    return pl.DataFrame(
        {
            "user_id": np.repeat(users, lengths),
            "rank": np.concatenate([np.arange(1, n + 1) for n in lengths]),
            "item_id": [id_ for ranking in rankings for id_ in ranking.ids],
            "score": np.concatenate([ranking.scores for ranking in rankings]),
        }
    )


def _claim(out: Path, about: dict[str, Any]) -> None:
    """Make the directory of these recommendations, or go on in it."""
    file = out / _ABOUT
    if not out.exists():
        out.mkdir(parents=True)
        write_json(file, about)
        return
    there = None
    with suppress(OSError, ValueError):
        there = json.loads(file.read_text(encoding="utf-8"))
    if there != about:
        raise DataError(f"{out} holds something else than these recommendations.", "Choose another --out.")


def _rows_of(catalog: Catalog, sequences: Sequences, users: Sequence[str]) -> list[int]:
    """The rows of users by their ids."""
    rows = {str(id_): row for row, id_ in enumerate(sequences.users)}
    if twice := [user for user, count in Counter(users).items() if count > 1]:
        raise UsageError(f"The user {twice[0]!r} is named twice.", "Name each once.")
    if missing := [user for user in users if user not in rows]:
        raise UsageError(
            f"The catalog {catalog.name!r} has no user {missing[0]!r}.", "Give an id of the source data."
        )
    return [rows[user] for user in users]
