"""`search`: one LLM, the adapters beside each other on it, and a strategy over their weights."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import TypeAdapter

from earec_core.aligned.model import AlignedModel
from earec_core.aligned.prompts import Sample
from earec_core.aligned.stored import joined_model
from earec_core.artifacts import DataRecord
from earec_core.catalog import Catalog
from earec_core.compose.guards import open_adapters
from earec_core.config import RunConfig
from earec_core.errors import EarecError, UsageError
from earec_core.files import write_atomic
from earec_core.llm.backbone import Backbone
from earec_core.llm.lora import Mixture
from earec_core.search import objectives
from earec_core.search.strategies import Asking, Outcome, Problem, Proposal, get_strategy
from earec_core.workspace import Run, Workspace

Objective = Literal["loss", "rouge", "ndcg@10"]
_SAYS = "how well anchors are said; what a modality adds to recommendation it does not see, as ndcg@10 would"
OBJECTIVES: Mapping[Objective, str] = {
    "loss": _SAYS,
    "rouge": _SAYS,
    "ndcg@10": "what is recommended next; what the model says of an item it does not see, as rouge would",
}
"""What each judges a weighting by, and what it is blind to."""
_CORNER = 0.01


@dataclass(frozen=True)
class Evaluation:
    """One weighting, its value on the objective, and the seconds that it took.

    Attributes:
        weights: by adapter; the mean over layers where each layer has its own.
        layers: those of each layer, by its number; empty where all layers share one.
        gradient: of the value, a row a weighting, where it was taken.
    """

    weights: Mapping[str, float]
    value: float
    seconds: float
    layers: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    gradient: list[list[float]] | None = None


_EVALUATION = TypeAdapter(Evaluation)


@dataclass(frozen=True)
class SearchResult:
    """A finished search.

    Attributes:
        best: the best weighting evaluated.
        path: every evaluation, in order.
        steps: those with a gradient.
        folder: the run's folder; `path.jsonl` in it is what a killed search resumes from.
        complete: whether the strategy came to its end within the budget.
        data: the catalog that was searched on.
    """

    strategy: str
    objective: Objective
    best: Evaluation
    path: tuple[Evaluation, ...]
    steps: tuple[Evaluation, ...]
    folder: Path
    complete: bool
    data: DataRecord

    def caution(self) -> str:
        """A sentence where the best weighting all but leaves a modality out; empty where it does not."""
        left = [modality for modality, weight in self.best.weights.items() if abs(weight) < _CORNER]
        if not left:
            return ""
        names = " and ".join(left)
        return (
            f"{names} would have next to no part in the composite. {self.objective} judges "
            f"{OBJECTIVES[self.objective]}; compare before you leave {names} out."
        )

    def summary(self) -> dict[str, Any]:
        """What a composite's manifest keeps of it."""
        return {
            "strategy": self.strategy,
            "objective": self.objective,
            "value": self.best.value,
            "evaluations": len(self.path),
            "steps": len(self.steps),
            "complete": self.complete,
            "data": self.data.model_dump(),
        }


def search(
    workspace: Workspace,
    catalog: Catalog,
    adapters: Mapping[str, str],
    config: RunConfig,
    *,
    strategy: str,
    objective: Objective = "loss",
    allow: frozenset[str] = frozenset(),
    backbone: Backbone | None = None,
) -> SearchResult:
    """Search the weights of `delta` on a catalog's validation data.

    Args:
        adapters: reference of each modality's adapter.
        config: its section `search` holds the strategy's settings and the budget; `ndcg@10` trains the recommender
            of its section.
        strategy: a key of `STRATEGIES`.
        objective: `loss` is minimised, the others are maximised.
        allow: see `compose_models`.
        backbone: one already loaded.

    Raises:
        UsageError: strategy and objective do not fit, a search has no end, or the adapters cannot be composed.
        DataError, PluginError, IntegrityError: see the parts.
    """
    if objective not in OBJECTIVES:
        raise UsageError(f"There is no objective {objective!r}.", f"Choose one of {', '.join(OBJECTIVES)}.")
    chosen = get_strategy(strategy, objective, config.search)
    opened, _ = open_adapters(workspace.registry, adapters, allow)
    models = [opened[modality] for modality in adapters]
    mixture = Mixture({modality: opened[modality].folder for modality in adapters})
    problem = Problem(mixture.names, mixture.layers, objective != "loss", config.run.seed, config.search)
    count = chosen.count(problem)
    key = {
        "adapters": {modality: opened[modality].id for modality in adapters},
        "data": catalog.digest,
        "strategy": strategy,
        "objective": objective,
        **_settings(config, objective),
    }
    run = workspace.run("search", key).start()
    backbone = backbone or Backbone.load(config.backbone, workspace)
    model = joined_model(workspace, catalog, backbone, models, overrides=config.modalities)
    with backbone.adapted(mixture):
        evaluator = _Evaluator(model, mixture, catalog, config, objective, run, count)
        complete = evaluator.answer(chosen.ask(problem))
    path = tuple(evaluator.path)
    result = SearchResult(
        strategy=strategy,
        objective=objective,
        best=(max if problem.maximise else min)(path, key=lambda evaluation: evaluation.value),
        path=path,
        steps=tuple(evaluation for evaluation in path if evaluation.gradient is not None),
        folder=run.folder,
        complete=complete,
        data=DataRecord(name=catalog.name, digest=catalog.digest),
    )
    run.finish(result.summary(), step=len(path), metrics={objective: result.best.value})
    return result


def _settings(config: RunConfig, objective: Objective) -> dict[str, Any]:
    """The settings that a value depends on; not the budget, so a run with a larger one is the same."""
    sections = {"run", "backbone", "modalities", "explain", "encode"}
    return {
        "search": config.search.model_dump(mode="json", exclude={"max_evaluations", "max_minutes"}),
        "recommender": config.recommender.model_dump(mode="json") if objective == "ndcg@10" else None,
        "config": config.model_dump(mode="json", include=sections),
    }


@dataclass
class _Evaluator:
    """Answers a strategy's proposals: from the log as far as it goes, else by evaluating them.

    Attributes:
        count: evaluations to the strategy's end, if it has one.
        path: every evaluation so far; those of a killed run come first.
    """

    model: AlignedModel
    mixture: Mixture
    catalog: Catalog
    config: RunConfig
    objective: Objective
    run: Run
    count: int | None
    path: list[Evaluation] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._log = self.run.folder / "path.jsonl"
        if self._log.exists():
            for line in self._log.read_text().splitlines():
                with suppress(ValueError):  # a kill cut the line off
                    self.path.append(_EVALUATION.validate_json(line))
            write_atomic(self._log, "".join(map(_line, self.path)))
        if self.path:
            self.run.workspace.note(f"Going on from {len(self.path)} evaluations of {self.run.name}.")
        self._started, settings = time.monotonic(), self.config.search
        ends = [end for end in (self.count, settings.max_evaluations) if end is not None]
        self._total = min(ends, default=0)
        self._samples: list[Sample] = []
        if self.objective != "ndcg@10":
            self._samples = objectives.validation_samples(
                self.model,
                self.catalog,
                self.config.run.seed,
                settings.max_items,
                self.run.workspace.note,
            )

    def answer(self, asking: Asking) -> bool:
        """Answer until the strategy or the budget ends; whether it was the strategy."""
        known = iter(tuple(self.path))
        with suppress(StopIteration):
            proposal = next(asking)
            while True:
                evaluation = next(known, None)
                if evaluation is None:
                    if self._spent() and self.path:
                        return False
                    evaluation = self._evaluate(proposal)
                gradient = None if evaluation.gradient is None else np.array(evaluation.gradient)
                proposal = asking.send(Outcome(evaluation.value, gradient))
        return True

    def _spent(self) -> bool:
        """Whether the budget is: evaluations of a killed search count, its minutes do not."""
        budget = self.config.search
        minutes = (time.monotonic() - self._started) / 60
        most, longest = budget.max_evaluations or math.inf, budget.max_minutes or math.inf
        return len(self.path) >= most or minutes >= longest

    def _evaluate(self, proposal: Proposal) -> Evaluation:
        """Evaluate a weighting, or one of each layer, and log it."""
        started, names, rows = time.monotonic(), self.mixture.names, proposal.rows
        weights = torch.tensor(rows, dtype=torch.float32, requires_grad=proposal.gradient)
        value = self._value(weights if len(rows) > 1 else weights[0], proposal.gradient)
        mean = dict(zip(names, rows.mean(axis=0).tolist(), strict=True))
        if not math.isfinite(value):
            listed = ",".join(f"{name}={weight:.4g}" for name, weight in mean.items())
            raise EarecError(
                f"The {self.objective} of the weights {listed} is not a number.",
                "Search on another --set backbone.dtype, such as float32.",
            )
        layers = {n: dict(zip(names, row, strict=True)) for n, row in enumerate(rows.tolist())}
        gradient = weights.grad.tolist() if weights.grad is not None else None
        seconds = time.monotonic() - started
        evaluation = Evaluation(mean, value, seconds, layers if len(rows) > 1 else {}, gradient)
        self.path.append(evaluation)
        with self._log.open("a") as log:
            log.write(_line(evaluation))
        self.run.step(len(self.path), {self.objective: value})
        self.run.workspace.progress(len(self.path), self._total, f"{self.objective} {value:.4f}")
        return evaluation

    def _value(self, weights: torch.Tensor, gradient: bool) -> float:
        model, config = self.model, self.config
        self.mixture.set(weights)
        if self.objective == "ndcg@10":
            return objectives.validation_ndcg(model, self.catalog, config)
        if self.objective == "rouge":
            return objectives.validation_rouge(model, self._samples, config.explain)
        return objectives.validation_loss(model, self._samples, config.search.batch_size, gradient)


def _line(evaluation: Evaluation) -> str:
    return json.dumps(asdict(evaluation)) + "\n"
