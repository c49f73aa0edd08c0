"""A dataset as atomic files of RecBole (https://recbole.io/docs/user_guide/data/atomic_files.html).

Files of the data set NAME, which is the folder's name, for that is where RecBole looks for it:

- `NAME.inter`: every interaction; `timestamp` is its place in the user's sequence. RecBole keeps times as float32,
  which makes one of the seconds within two minutes.
- `NAME.train.inter`, `NAME.valid.inter`, `NAME.test.inter`: what is predicted, with the items before it
  (`item_id_list`). RecBole's own leave-one-out makes a test target of a user's second item.
- `NAME.item`: every item; `NAME.itememb`: its vector, as the shortest decimals that give the float32 back.
- `settings.yaml`: what RecBole must be told to read them.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml
from jaxtyping import Float

from earec_core.catalog import Catalog
from earec_core.config import RecommenderConfig
from earec_core.errors import UsageError
from earec_core.export.datasets.base import DatasetExport

_PARTS = ("train", "valid", "test")
_TEXTS = {"title": "token_seq", "category": "token_seq", "brand": "token"}
_VECTOR_ID, _VECTOR, _VECTORS = "vector_id", "vector", "itememb"

_OWN_DATA = "ml-100k"
"""For a data set of this name RecBole reads the one that it ships, whatever the folder holds."""
_MISSING = (
    *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>"),
    *("N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"),
)
"""Texts that pandas, with which RecBole reads, takes for missing values."""
_PADDING = "[PAD]"
_FIELD = 131_072
"""Characters that a field may have for Python's csv module, with which pandas reads for RecBole."""


def write_recbole(export: DatasetExport, folder: Path) -> None:
    """Write a dataset as RecBole's atomic files.

    Raises:
        UsageError: RecBole would read an id, or the name, as something else, or not read the vectors.
    """
    catalog, name, vectors = export.catalog, export.name, export.vectors
    if name == _OWN_DATA:
        raise UsageError(
            f"RecBole reads its own data for a data set named {name}.", "Give the folder another name."
        )
    length = export.max_len or RecommenderConfig().max_len
    ids = catalog.items["item_id"]
    _check(ids, "item", r"[\s\"]")
    _check(catalog.interactions["user_id"], "user", r"[\t\r\n\"]")
    _write_interactions(catalog, folder / f"{name}.inter")
    _write_parts(catalog, folder / name, length)
    texts = {column: kind for column, kind in _TEXTS.items() if column in catalog.items.columns}
    described = catalog.items.select("item_id", *texts)
    _write(described, {"item_id": "token", **texts}, folder / f"{name}.item")
    if vectors is not None:
        table = pl.DataFrame({_VECTOR_ID: ids, _VECTOR: _texts(vectors)})
        _write(table, {_VECTOR_ID: "token", _VECTOR: "float_seq"}, folder / f"{name}.{_VECTORS}")
    settings = yaml.safe_dump(_settings(length, vectors is not None), sort_keys=False)
    (folder / "settings.yaml").write_text(settings, encoding="utf-8")


def _check(ids: pl.Series, whose: str, broken: str) -> None:
    """Raises UsageError for the first id that RecBole would not read as it is."""
    wrong = ids.filter(ids.is_in([*_MISSING, _PADDING]) | ids.str.contains(broken))
    if len(wrong):
        raise UsageError(
            f"RecBole cannot hold the {whose} id {wrong[0]!r}: it splits, drops or replaces it.",
            "Import the source with other ids.",
        )


def _write_interactions(catalog: Catalog, file: Path) -> None:
    places = pl.int_range(pl.len()).over("user").alias("timestamp")
    ids = catalog.items["item_id"][catalog.interactions["item"].cast(pl.UInt32)]
    table = catalog.interactions.select("user_id", ids, places)
    _write(table, {"user_id": "token", "item_id": "token", "timestamp": "float"}, file)


def _write_parts(catalog: Catalog, stem: Path, length: int) -> None:
    """A row for each item that is predicted: the user, up to `length` items before it, the item."""
    ids, sequences = catalog.items["item_id"].to_list(), catalog.sequences()
    train = catalog.leave_one_out().train
    with ExitStack() as stack:
        files = [
            stack.enter_context(Path(f"{stem}.{part}.inter").open("w", encoding="utf-8", newline=""))
            for part in _PARTS
        ]
        for file in files:
            file.write("user_id:token\titem_id_list:token_seq\titem_id:token\n")
        for row, user in enumerate(sequences.users):
            items = [ids[item] for item in sequences.of(row)]
            trained = len(train.of(row))
            for end in range(1, len(items)):
                history = " ".join(items[max(0, end - length) : end])
                files[max(0, end - trained + 1)].write(f"{user}\t{history}\t{items[end]}\n")


def _texts(vectors: Float[np.ndarray, "n d"]) -> pl.Series:
    """Each row as numbers with spaces between."""
    rows = pl.Series(np.ascontiguousarray(vectors, dtype=np.float32)).arr.to_list()
    texts = rows.cast(pl.List(pl.String)).list.join(" ")
    if (texts.str.len_bytes() > _FIELD).any():
        raise UsageError(
            f"Vectors of {vectors.shape[1]:,} numbers are more than RecBole reads of a field "
            f"({_FIELD:,} characters).",
            "Export narrower ones.",
        )
    return texts


def _write(table: pl.DataFrame, kinds: dict[str, str], file: Path) -> None:
    """A tab-separated file with a header of typed names, quoted as pandas reads it."""
    table = table.rename({column: f"{column}:{kind}" for column, kind in kinds.items()})
    table.write_csv(file, separator="\t")


def _settings(length: int, vectors: bool) -> dict[str, Any]:
    """RecBole's settings for the parts, ranked in full as `earec recommend evaluate` does."""
    settings: dict[str, Any] = {
        "USER_ID_FIELD": "user_id",
        "ITEM_ID_FIELD": "item_id",
        "TIME_FIELD": "timestamp",
        "MAX_ITEM_LIST_LENGTH": length,
        "benchmark_filename": list(_PARTS),
        "alias_of_item_id": ["item_id_list"],
        "load_col": {"inter": ["user_id", "item_id_list", "item_id"], "item": ["item_id"]},
        "eval_args": {
            "split": {"LS": "valid_and_test"},
            "group_by": "user",
            "order": "TO",
            "mode": "full",
        },
        "train_neg_sample_args": None,
        "metrics": ["Hit", "NDCG"],
        "topk": [10, 50],
        "valid_metric": "NDCG@10",
    }
    if vectors:
        settings["alias_of_item_id"].append(_VECTOR_ID)
        settings["additional_feat_suffix"] = [_VECTORS]
        settings["load_col"][_VECTORS] = [_VECTOR_ID, _VECTOR]
        settings["preload_weight"] = {_VECTOR_ID: _VECTOR}
    return settings
