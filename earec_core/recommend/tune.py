"""Hyper-parameters of a recommender by validation NDCG@10, within a budget; test targets are never ranked."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ValidationError

from earec_core.artifacts import ItemVectors
from earec_core.catalog import Catalog
from earec_core.config import RecommenderConfig
from earec_core.errors import MissingDependencyError, UsageError
from earec_core.files import write_atomic
from earec_core.metrics.ranking import ScoresError
from earec_core.recommend.models import choose_recommender, get_recommender
from earec_core.recommend.models.base import RecommenderModel
from earec_core.recommend.tables import PLUS_IDS
from earec_core.recommend.train import side_by_side, train, widths
from earec_core.recommend.trained import EpochStats
from earec_core.workspace import Run, Workspace

TRIALS = "trials.jsonl"
GRID = tuple({"lr": lr, "dim": dim} for dim in (64, 128, 300) for lr in (3e-4, 1e-3, 3e-3, 1e-2))
"""The paper's search (section 4.1.4)."""
SECOND = {"similarity": "cosine", "candidates": "trained"}
"""What is tried after the settings as given, over vectors with `scaling = "pca"`: the best where users have few
interactions (docs/results.md)."""


class Trial(BaseModel, frozen=True):
    """One training.

    Attributes:
        settings: those of `[recommender]` that were tried; none: as they were given.
        vectors: reference of the item vectors; None for a model on ids.
        ndcg10, hr10: on the validation targets at the best epoch; 0 where the training came to no numbers.
        best_epoch, seconds: which epoch that was, and how long the training took.
    """

    settings: Mapping[str, Any]
    vectors: str | None
    ndcg10: float
    hr10: float
    best_epoch: int
    seconds: float


@dataclass(frozen=True)
class Tuning:
    """What a tuning came to.

    Attributes:
        trials: in their order, the first with the settings as they were given.
        config: the best trial's.
        run: the folder of its run.
    """

    trials: tuple[Trial, ...]
    config: RecommenderConfig
    run: Run

    @property
    def best(self) -> Trial:
        """The trial of the highest validation NDCG@10, the first of equals."""
        return max(self.trials, key=lambda trial: trial.ndcg10)

    def toml(self) -> str:
        """All settings of the best trial, those that were given too, as a file for `--config`."""
        settings = self.config.model_dump(mode="json", exclude_none=True)
        return "\n".join(
            ("[recommender]", *(f"{key} = {json.dumps(value)}" for key, value in settings.items()), "")
        )


def tune(
    workspace: Workspace,
    catalog: Catalog,
    config: RecommenderConfig,
    *,
    trials: int,
    minutes: float | None = None,
    model: str | None = None,
    vectors: Sequence[str] = (),
    together: bool = False,
    grid: bool = False,
    force: bool = False,
) -> Tuning:
    """Try settings by optuna's TPE (Bergstra et al., NIPS 2011); the first trial is the configuration as given.

    Learning rate, width, dropout, similarity and candidates of every model; of one on vectors also the item table,
    its dropout, the scaling and, of several, which vectors. A table with `+ids` stays one. A killed tuning goes on
    where it was, one with a larger budget from the trials there are.

    Args:
        trials: at most, those of before included.
        minutes: no trial starts after so many.
        vectors: references to item vectors to choose from.
        together: they stand side by side, and none is chosen.
        grid: try the paper's learning rates and widths in place of what TPE proposes; only those.
        force: begin anew, whatever was tried before.

    Raises:
        UsageError: see `choose_recommender`; the model has nothing to train, or an encoder; or no trial came to
            numbers.
        MissingDependencyError: optuna is not installed.
    """
    if find_spec("optuna") is None:
        raise MissingDependencyError("Tuning needs optuna.", "pip install 'earec[search]'")
    import optuna

    _check_tunable(model)
    kind = choose_recommender(model, vectors=bool(vectors))
    opened = {ref: ItemVectors.open(workspace.registry, ref, catalog) for ref in vectors}
    tables: dict[str, tuple[ItemVectors, ...]] = {ref: (one,) for ref, one in opened.items()}
    if together and opened:
        tables = {" + ".join(opened): tuple(opened.values())}
    key = {
        "model": kind.name,
        "recommender": config.model_dump(mode="json"),
        "data": catalog.digest,
        "vectors": {ref: "+".join(one.id for one in table) for ref, table in tables.items()},
        "search": "grid" if grid else {"optuna": optuna.__version__, "second": SECOND},
    }
    run = workspace.run("tune", key).own()
    if force:
        (run.folder / TRIALS).unlink(missing_ok=True)
    run.start()
    results = _Job(catalog, config, kind, tables, run, grid).trials(trials, minutes)
    best = Tuning(tuple(results), config, run).best
    if best.ndcg10 <= 0:
        raise UsageError("No trial ranked a validation target among the first ten.", "Lower recommender.lr.")
    run.finish({"trials": len(results), **best.model_dump()}, step=len(results))
    return Tuning(tuple(results), config.model_copy(update=dict(best.settings)), run)


def _check_tunable(model: str | None) -> None:
    if model and not get_recommender(model).tunable:
        raise UsageError(
            f"The recommender {model!r} has no parameters to tune, or an encoder among them, which is too much for "
            "many trials.",
            f"Train it: earec recommend train --model {model}.",
        )


@dataclass(frozen=True)
class _Job:
    """What every trial has in common."""

    catalog: Catalog
    config: RecommenderConfig
    kind: RecommenderModel
    tables: Mapping[str, tuple[ItemVectors, ...]]
    run: Run
    grid: bool = False

    def trials(self, most: int, minutes: float | None) -> list[Trial]:
        """All trials up to a budget: those of before are told to optuna again, others trained and kept."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        sampler = optuna.samplers.TPESampler(seed=self.config.seed)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        file, started = self.run.folder / TRIALS, time.monotonic()
        done, results = _read(file), list[Trial]()
        most = min(most, 1 + len(GRID)) if self.grid else most
        first = ({}, *GRID) if self.grid else ({}, self.second())
        while len(results) < most:
            asked = study.ask() if len(results) >= len(first) else None
            settings, ref = (
                self.proposed(asked) if asked else (first[len(results)], next(iter(self.tables), None))
            )
            if len(results) < len(done):
                results.append(done[len(results)])
            elif results and minutes is not None and time.monotonic() - started > 60 * minutes:
                break
            else:
                results.append(self.trained(settings, ref, f"trial {len(results) + 1} of {most}"))
                write_atomic(file, "".join(f"{trial.model_dump_json()}\n" for trial in results))
                self.run.step(len(results), {"valid_ndcg@10": results[-1].ndcg10})
            if asked:
                study.tell(asked, results[-1].ndcg10)
        return results

    def second(self) -> dict[str, Any]:
        """What is tried before optuna proposes anything."""
        return SECOND | ({"scaling": "pca"} if self.kind.needs_vectors else {})

    def proposed(self, trial: Any) -> tuple[dict[str, Any], str | None]:
        """The settings that optuna asks for, and the vectors."""
        settings = {
            "lr": trial.suggest_float("lr", 3e-4, 3e-3, log=True),
            "dim": trial.suggest_categorical("dim", [64, 128]),
            "dropout": _tenths(trial, "dropout", 1, 6),
            "similarity": trial.suggest_categorical("similarity", ["inner", "cosine"]),
            "candidates": trial.suggest_categorical("candidates", ["catalog", "trained"]),
        }
        if not self.kind.needs_vectors:
            return settings, None
        plus = PLUS_IDS if self.config.table.endswith(PLUS_IDS) else ""
        settings["table"] = trial.suggest_categorical("table", ["linear", "mlp", "moe"]) + plus
        settings["table_dropout"] = _tenths(trial, "table_dropout", 0, 5)
        settings["scaling"] = trial.suggest_categorical("scaling", ["whiten", "soften", "pca", "standardise"])
        if settings["scaling"] == "soften":
            settings["soften"] = trial.suggest_float("soften", 0.01, 3.0, log=True)
        if plus:
            settings["id_dropout"] = _tenths(trial, "id_dropout", 0, 8)
        several = len(self.tables) > 1
        ref = trial.suggest_categorical("vectors", list(self.tables)) if several else next(iter(self.tables))
        return settings, ref

    def trained(self, settings: Mapping[str, Any], ref: str | None, title: str) -> Trial:
        """Train once; a training that comes to no numbers is worth nothing."""
        config, workspace = self.config.model_copy(update=dict(settings)), self.run.workspace
        started, best = time.monotonic(), EpochStats(0, 0.0, 0.0, 0.0, 0.0)

        def progress(stats: EpochStats) -> None:
            workspace.progress(stats.epoch, config.epochs, f"{title}, valid NDCG@10 {stats.ndcg10:.4f}")

        with suppress(ScoresError):
            trained = train(
                self.kind,
                self.catalog.leave_one_out(),
                len(self.catalog),
                config,
                vectors=side_by_side(self.tables[ref]) if ref else None,
                widths=widths(self.tables[ref]) if ref else (),
                progress=progress,
                device="cuda" if torch.cuda.is_available() else "cpu",
            )
            best = max(trained.history, key=lambda epoch: epoch.ndcg10)
        seconds = round(time.monotonic() - started, 1)
        return Trial(
            settings=settings,
            vectors=ref,
            ndcg10=best.ndcg10,
            hr10=best.hr10,
            best_epoch=best.epoch,
            seconds=seconds,
        )


def _tenths(trial: Any, name: str, low: int, high: int) -> float:
    return float(trial.suggest_int(name, low, high)) / 10


def _read(file: Path) -> list[Trial]:
    """The trials of a run, up to the first line that is none."""
    trials: list[Trial] = []
    if file.exists():
        with suppress(ValidationError):
            for line in file.read_text().splitlines():
                trials.append(Trial.model_validate_json(line))  # noqa: PERF401 - what came before an error stays
    return trials
