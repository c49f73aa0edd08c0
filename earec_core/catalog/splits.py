"""Users' sequences and the leave-one-out split."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Int

Split = Literal["train", "valid", "test", "all"]


@dataclass(frozen=True)
class Sequences:
    """Users' items in time order, in compressed rows.

    Attributes:
        users: the users' ids in the source, by row.
        offsets: user u's items are `items[offsets[u]:offsets[u + 1]]`.
        items: item rows.
    """

    users: np.ndarray
    offsets: Int[np.ndarray, " offsets"]
    items: Int[np.ndarray, " items"]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def of(self, user: int | np.integer) -> Int[np.ndarray, " length"]:
        """Items of one user (a view)."""
        return self.items[self.offsets[user] : self.offsets[user + 1]]


@dataclass(frozen=True)
class LeaveOneOut:
    """The last item of a user is the test target, the one before it the validation target.

    Attributes:
        train: what is left of each user's sequence; all of it for users with fewer than three interactions.
        valid, test: target items by user; -1 for users that have none.
        eval_users: rows of the users that have targets.
    """

    train: Sequences
    valid: Int[np.ndarray, " n"]
    test: Int[np.ndarray, " n"]
    eval_users: Int[np.ndarray, " k"]


def leave_one_out(sequences: Sequences) -> LeaveOneOut:
    """Split sequences by leave-one-out (section 4.1.3 of the paper)."""
    lengths = np.diff(sequences.offsets)
    evaluated = lengths >= 3
    kept = np.where(evaluated, lengths - 2, lengths)
    position = np.arange(len(sequences.items)) - np.repeat(sequences.offsets[:-1], lengths)
    items = sequences.items[position < np.repeat(kept, lengths)]
    ends = sequences.offsets[1:]
    valid, test = np.full(len(lengths), -1), np.full(len(lengths), -1)
    valid[evaluated] = sequences.items[ends[evaluated] - 2]
    test[evaluated] = sequences.items[ends[evaluated] - 1]
    offsets = np.concatenate([[0], np.cumsum(kept)])
    return LeaveOneOut(Sequences(sequences.users, offsets, items), valid, test, np.flatnonzero(evaluated))


FROM, JOINED = "from_catalog", "joined"
"""The column of whose an item is, and the key of a manifest, of catalogs that were joined (`joining`)."""


def item_split(ids: Sequence[str], split: Split) -> Int[np.ndarray, " n"]:
    """Rows of the items in a split: 80% train, 10% valid, 10% test, by a hash of the id.

    An item's split depends on nothing else, neither the other items nor a seed: what one adapter was trained on
    is never held out for another, a search or a report.
    """
    if split == "all":
        return np.arange(len(ids))
    low, high = {"train": (0, 80), "valid": (80, 90), "test": (90, 100)}[split]
    hashes = [hashlib.blake2b(f"0:{id_}".encode(), digest_size=8).digest() for id_ in ids]
    buckets = np.array([int.from_bytes(digest, "big") % 100 for digest in hashes], dtype=np.int64)
    return np.flatnonzero((buckets >= low) & (buckets < high))


def random_part(n: int, size: int | None, seed: int) -> Int[np.ndarray, " k"]:
    """Indices of a random part of n things, ascending; of all of them where they are no more than `size`."""
    if size is None or n <= size:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).choice(n, size, replace=False))
