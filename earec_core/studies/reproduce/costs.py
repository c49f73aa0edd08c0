"""`reproduce --dry-run`: how long each row would take on this machine, from a minute or two of trying."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from earec_core.catalog import Catalog
from earec_core.config import RecommenderConfig, RunConfig
from earec_core.recommend.train import train
from earec_core.studies.reproduce.plan import Row
from earec_core.studies.reproduce.rows import Protocol, RowMaker
from earec_core.workspace import Workspace

_USERS, _EPOCHS = 1000, 2
"""Of a training that is tried: the second epoch is timed, the first warms up."""
_WIDTH = 768
"""Columns of the random vectors that stand in for those that are not there yet."""


@dataclass(frozen=True)
class Cost:
    """Minutes of a row.

    Attributes:
        encoding: of its item vectors; 0 where they are there, or a row before it has the same.
        training: of its recommenders and of tuning them, at most: were each to come to its last epoch.
    """

    encoding: float
    training: float


def expected(
    workspace: Workspace,
    catalog: Catalog,
    rows: Sequence[Row],
    config: RunConfig,
    *,
    adapters: Mapping[str, str],
    protocol: Protocol,
    at_once: int = 1,
) -> dict[str, Cost]:
    """What each row of `reproduce`, its arguments being these, would take; nothing is stored.

    A training has the share of the processor that each of `at_once` has.

    Recommenders that are there already count as if they were not.

    Raises:
        UsageError: an adapter is missing.
    """
    maker = RowMaker.over(workspace, catalog, rows, config, adapters, protocol.encoder)
    costs, counted = dict[str, Cost](), set[str]()
    for number, row in enumerate(rows, 1):
        encodings = maker.encoding_minutes(row)
        encoding = sum(minutes for name, minutes in encodings.items() if name not in counted)
        counted |= encodings.keys()
        with _threads(max(1, torch.get_num_threads() // at_once)):
            training = _training(maker, row, config.recommender, protocol)
        costs[row.name] = Cost(encoding, training)
        workspace.progress(number, len(rows), row.name)
    return costs


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """So many within it, and as many as before behind it."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _training(maker: RowMaker, row: Row, config: RecommenderConfig, protocol: Protocol) -> float:
    """Minutes of all trainings of a row, from one of some users."""
    kind = maker.kind(row)
    if kind.counts:
        return 0.0
    config = maker.given(row, config)
    once = _epoch_seconds(maker, row, config) * config.epochs / 60
    if protocol.trials < 2 or not kind.tunable:
        return protocol.seeds * once
    tuning = protocol.trials * once
    # The last trial starts within the budget and ends when it ends.
    limit = math.inf if protocol.minutes is None else protocol.minutes + once
    return min(tuning, limit) + protocol.seeds * once


def _epoch_seconds(maker: RowMaker, row: Row, config: RecommenderConfig) -> float:
    """Seconds of an epoch and its validation, which grow with the users."""
    split, n = maker.catalog.leave_one_out(), len(maker.catalog)
    users = len(split.eval_users)
    share = min(1.0, _USERS / max(users, 1))
    validated = min(config.valid_users or users, users)
    tried = {
        "epochs": _EPOCHS,
        "patience": _EPOCHS,
        "train_users": share * config.train_users,
        "valid_users": max(1, math.ceil(share * validated)),
    }
    parts = max(1, bool(row.words) + len(row.features))
    reads = maker.kind(row).needs_vectors
    trained = train(
        maker.kind(row),
        split,
        n,
        config.model_copy(update=tried),
        vectors=torch.randn(n, parts * _WIDTH) if reads else None,
        widths=(_WIDTH,) * parts if reads else (),
        texts=maker.texts(row, config),
    )
    return trained.history[-1].seconds / share
