"""From adapters to a table: what each row needs, recommenders over seeds, comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, as_completed
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float

from earec_core.catalog import Catalog
from earec_core.config import RecommenderConfig, RunConfig
from earec_core.errors import DataError
from earec_core.metrics import statistics
from earec_core.metrics.ranking import KS, Metrics
from earec_core.studies.reproduce import compare
from earec_core.studies.reproduce.plan import Row, label
from earec_core.studies.reproduce.rows import Protocol, RowMaker
from earec_core.studies.reproduce.trainings import here, trainings
from earec_core.studies.reproduce.verdict import Verdict, verdicts
from earec_core.workspace import Workspace

METRICS = tuple(f"{name}@{k}" for name in ("hr", "ndcg") for k in KS)


@dataclass(frozen=True)
class Result:
    """A measured row.

    Attributes:
        row: what it is.
        ids: what was made: composite, vectors, one recommender a seed.
        test: by metric `mean`, `sd` over the recommender's seeds (None with one seed), the `seeds`' figures, and
            `se` over users, the seeds averaged.
        size: of a composite: ||dW||_F `composed` and `exact`, their `ratio`, `relative_error` to the exact sum.
            Norms are None where the composite is not one adapter.
        valid: NDCG@10 on the validation targets, mean over the seeds.
        versus: `difference` of NDCG@10 to the reference, paired over users, its `se`, `p` and `p_holm`; None for
            the reference.
    """

    row: Row
    ids: Mapping[str, Any]
    test: Mapping[str, Mapping[str, Any]]
    valid: float
    size: Mapping[str, float | None] | None
    versus: Mapping[str, float] | None


@dataclass(frozen=True)
class Report:
    """A measured table.

    Attributes:
        table: the paper's.
        catalog, users, items: what it was measured on; `users` are those that have a test target.
        adapters: id of each modality's adapter.
        recommender: its configuration, the seed left out.
        seeds: how many trainings of the recommender a row.
        reference: the row that the others are compared with.
        resolution: see `statistics.resolution`, for HR@10 of the reference.
        results: by row.
        trials: how many settings each row was tuned over.
        exclude_seen: whether items of a user's history were left out of the ranking.
        verdicts: the best of ours beside the best baseline, see `verdict`; none where a table has no two sides.
        effects: of `method` and `weighting`, see `compare.main_effects`; empty where the rows are too few.
    """

    table: int
    catalog: str
    users: int
    items: int
    adapters: Mapping[str, str]
    recommender: Mapping[str, Any]
    seeds: int
    reference: str
    resolution: Mapping[str, float]
    results: tuple[Result, ...]
    effects: Mapping[str, tuple[compare.Effect, ...]]
    trials: int = 1
    exclude_seen: bool = False
    verdicts: tuple[Verdict, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Everything, plain."""
        return asdict(self)


def reproduce(
    workspace: Workspace,
    catalog: Catalog,
    table: int,
    rows: Sequence[Row],
    reference: str,
    config: RunConfig,
    *,
    adapters: Mapping[str, str] | None = None,
    protocol: Protocol | None = None,
    at_once: int = 1,
) -> Report:
    """Measure the rows of `plan`; what is already in the registry is not made again.

    Args:
        table, rows, reference: those of `plan`.
        config: backbone, the recommender's hyper-parameters, plugin settings that differ from the adapters' own.
        adapters: references by modality; default: see `choose_adapters`.
        at_once: trainings that run at once, each in a process of its own with its share of the processor. A script
            that asks for several does so under `if __name__ == "__main__":`, since each process imports it.

    Raises:
        UsageError: an adapter is missing, or the adapters cannot be composed.
        DataError: no user has a test target.
        IntegrityError: the backbone is not the adapters'.
    """
    protocol = protocol or Protocol()
    users = _evaluated(catalog)
    maker = RowMaker.over(workspace, catalog, rows, config, adapters or {}, protocol.encoder)
    ids, measured = _measure(workspace, maker, rows, config.recommender, protocol, at_once)
    worth = {metric: _worth(measured, metric) for metric in METRICS}
    gains = worth["ndcg@10"]
    valid = {name: float(np.mean([*map(maker.valid, made["recommenders"])])) for name, made in ids.items()}
    versus = statistics.versus(gains, reference)
    rate = float(np.mean([metrics.hr(10) for metrics in measured[reference]]))
    return Report(
        table,
        catalog.name,
        users,
        len(catalog),
        {m: model.id for m, model in maker.models.items()},
        config.recommender.model_dump(mode="json", exclude={"seed"}),
        protocol.seeds,
        reference,
        statistics.resolution(rate, users),
        tuple(_result(maker, row, ids[row.name], measured, worth, valid, versus) for row in rows),
        _effects(rows, gains, reference),
        protocol.trials,
        protocol.exclude_seen,
        verdicts(rows, valid, worth),
    )


def _result(
    maker: RowMaker,
    row: Row,
    made: Mapping[str, Any],
    measured: Mapping[str, Sequence[Metrics]],
    worth: Mapping[str, Mapping[str, Any]],
    valid: Mapping[str, float],
    versus: Mapping[str, Mapping[str, float]],
) -> Result:
    size = maker.size(made["composite"]) if row.kind == "composite" else None
    test = _test(row.name, measured, worth)
    return Result(row, made, test, valid[row.name], size, versus.get(row.name))


def _evaluated(catalog: Catalog) -> int:
    """How many users have a test target; some, or it is an error."""
    users = len(catalog.leave_one_out().eval_users)
    if not users:
        raise DataError(
            f"No user of {catalog.name!r} has three interactions.", "Import a dataset with interactions."
        )
    return users


def _test(
    row: str, measured: Mapping[str, Sequence[Metrics]], worth: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """`Result.test` of a row."""
    return {metric: _over_seeds(measured[row], worth[metric][row], metric) for metric in METRICS}


def _worth(measured: Mapping[str, Sequence[Metrics]], metric: str) -> dict[str, Float[np.ndarray, " users"]]:
    """By row what each user's target is worth, the seeds averaged."""
    name, _, k = metric.partition("@")
    return {
        row: np.mean([m.gains(int(k)) if name == "ndcg" else m.ranks <= int(k) for m in runs], axis=0)
        for row, runs in measured.items()
    }


def _measure(
    workspace: Workspace,
    maker: RowMaker,
    rows: Sequence[Row],
    config: RecommenderConfig,
    protocol: Protocol,
    at_once: int,
) -> tuple[dict[str, dict[str, Any]], dict[str, list[Metrics]]]:
    """Every row's ids, and its recommenders' test ranks, a seed each."""
    key = {
        "data": maker.catalog.digest,
        "adapters": {m: model.id for m, model in maker.models.items()},
        "rows": [row.name for row in rows],
        "recommender": config.model_dump(mode="json"),
        **asdict(protocol),
    }
    run = workspace.run("reproduce", key).start()
    # All of them first: adapters that do not fit are then found before hours of training.
    composites = {row.name: maker.composite(row) for row in rows if row.kind == "composite"}
    vectors = {row.name: maker.inputs(row, composites.get(row.name)) for row in rows}
    trained = _train(maker, rows, vectors, config, protocol, at_once)
    ids: dict[str, dict[str, Any]] = {}
    measured: dict[str, list[Metrics]] = {}
    for number, row in enumerate(rows, 1):
        read = vectors[row.name]
        ids[row.name] = {
            "composite": composites.get(row.name),
            "vectors": read[0] if len(read) == 1 else list(read) or None,
            "recommenders": trained[row.name],
        }
        measured[row.name] = [maker.tested(identity, protocol.exclude_seen) for identity in trained[row.name]]
        hits = [metrics.hr(10) for metrics in measured[row.name]]
        workspace.note(f"{row.name}: HR@10 {np.mean(hits):.4f} ({', '.join(f'{hit:.4f}' for hit in hits)})")
        run.step(number, {"hr@10": float(np.mean(hits))})
    run.finish({"rows": ids}, step=len(rows))
    return ids, measured


def _train(
    maker: RowMaker,
    rows: Sequence[Row],
    vectors: Mapping[str, Sequence[str]],
    config: RecommenderConfig,
    protocol: Protocol,
    at_once: int,
) -> dict[str, list[str]]:
    """Ids of every row's recommenders, a seed each; the rows' settings are found first."""
    trained: dict[tuple[str, int], str] = {}
    with trainings(maker, at_once) as submit:
        search = submit if protocol.trials > 1 else partial(here, maker)
        tuned = {row.name: search("settings", row, vectors[row.name], config, protocol) for row in rows}
        begun: dict[Future[str], tuple[str, int]] = {}
        for row in rows:
            best, read = tuned[row.name].result(), vectors[row.name]
            for seed in range(protocol.seeds):
                seeded = best.model_copy(update={"seed": seed})
                if (made := maker.made(row, read, seeded)) is not None:
                    trained[row.name, seed] = made
                else:
                    begun[submit("recommender", row, read, seeded)] = (row.name, seed)
        for done, future in enumerate(as_completed(begun), 1):
            name, seed = begun[future]
            trained[name, seed] = future.result()
            if at_once > 1:
                maker.workspace.progress(done, len(begun), f"{name}, seed {seed}")
    return {row.name: [trained[row.name, seed] for seed in range(protocol.seeds)] for row in rows}


def _over_seeds(
    measured: Sequence[Metrics], worth: Float[np.ndarray, " users"], metric: str
) -> dict[str, Any]:
    name, _, k = metric.partition("@")
    values = [float(getattr(metrics, name)(int(k))) for metrics in measured]
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
    error = float(np.std(worth) / np.sqrt(len(worth)))
    return {"mean": float(np.mean(values)), "sd": sd, "se": error, "seeds": values}


def _effects(
    rows: Sequence[Row], gains: Mapping[str, Float[np.ndarray, " users"]], reference: str
) -> dict[str, tuple[compare.Effect, ...]]:
    cells = {row.name: (str(row.method), label(row.weights)) for row in rows if row.kind == "composite"}
    if reference not in cells:
        return {}
    by_cell = {cell: gains[name] for name, cell in cells.items()}
    return {
        factor: effects
        for axis, factor in enumerate(("method", "weighting"))
        if (effects := compare.main_effects(by_cell, axis, cells[reference][axis]))
    }
