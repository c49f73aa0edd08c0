"""`search`: one backbone, the adapters beside each other on it, and a strategy over their weights."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

import earec_core
from earec_core.aligned.model import AlignedModel
from earec_core.aligned.prompts import ItemPrompts
from earec_core.aligned.stored import StoredModel, stored_model
from earec_core.catalog import Catalog
from earec_core.compose.guards import open_adapters
from earec_core.config import RecommenderConfig, RunConfig
from earec_core.errors import EarecError, UsageError
from earec_core.home import home
from earec_core.llm.backbone import Backbone
from earec_core.llm.lora import Mixture
from earec_core.search import strategies
from earec_core.search.learn import Descent, Surrogate
from earec_core.search.objectives import Validation, validation_ndcg
from earec_core.types import Show
from earec_registry import Registry

Objective = Literal["loss", "rouge", "ndcg@10"]
OBJECTIVES: tuple[Objective, ...] = ("loss", "rouge", "ndcg@10")
STRATEGIES = ("grid", "learn", "bayes")


@dataclass(frozen=True)
class Evaluation:
    """One weighting, its value on the objective, and the seconds that it took."""

    weights: Mapping[str, float]
    value: float
    seconds: float
    layers: Mapping[int, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """A finished search.

    Attributes:
        best: the best weighting evaluated.
        path: every evaluation, in order.
        steps: those evaluations of `learn` that have a gradient (`step`, `loss`, `weights`), in order.
        folder: the run's folder; `path.jsonl` in it is what a killed search resumes from.
        complete: whether the strategy came to its end within the budget.
        catalog, data: name and digest of what was searched on.
    """

    strategy: str
    objective: Objective
    best: Evaluation
    path: tuple[Evaluation, ...]
    steps: tuple[Mapping[str, Any], ...]
    folder: Path
    complete: bool
    catalog: str
    data: str

    def summary(self) -> dict[str, Any]:
        """What a composite's manifest keeps of it."""
        return {
            "strategy": self.strategy,
            "objective": self.objective,
            "value": self.best.value,
            "evaluations": len(self.path),
            "steps": len(self.steps),
            "complete": self.complete,
            "data": {"name": self.catalog, "digest": self.data},
        }


def search(
    catalog: Catalog,
    adapters: Mapping[str, str],
    config: RunConfig,
    registry: Registry,
    *,
    strategy: str,
    objective: Objective,
    step: float = 0.1,
    descent: Descent | None = None,
    max_evaluations: int | None = None,
    max_minutes: float | None = None,
    max_items: int | None = None,
    allow: frozenset[str] = frozenset(),
    recommender: RecommenderConfig | None = None,
    backbone: Backbone | None = None,
    note: Callable[[str], None] = lambda _: None,
    show: Show = lambda *_: None,
) -> Found:
    """Search the weights of `delta` on a catalog's validation data.

    Args:
        adapters: reference of each modality's adapter.
        strategy: one of `STRATEGIES`.
        objective: `loss` is minimised, the others are maximised; `learn` needs `loss`.
        step: of `grid`.
        descent: of `learn`.
        max_evaluations, max_minutes: budget; `bayes` needs one of them.
        max_items: a random part of the validation items, for `loss` and `rouge`.
        allow: see `compose_models`.
        recommender: for `ndcg@10`.
        backbone: one already loaded, without adapter.

    Raises:
        UsageError: strategy and objective do not fit, `bayes` has no budget, or the adapters cannot be composed.
        DataError, PluginError, IntegrityError: see the parts.
    """
    _check(strategy, objective, max_evaluations, max_minutes)
    opened, _ = open_adapters(registry, adapters, allow)
    models = {m: opened[m] for m in adapters}
    descent = descent or Descent()
    ends = [max_evaluations] if max_evaluations else []
    if strategy == "grid":
        ends.append(strategies.grid_points(list(models), step))
    elif strategy == "learn":
        ends.append(descent.steps + 1)
    recommender = recommender or RecommenderConfig()
    key = {
        "adapters": {m: model.id for m, model in models.items()},
        "data": catalog.digest,
        "strategy": strategy,
        "objective": objective,
        "step": step,
        "descent": asdict(descent),
        "items": max_items,
        "recommender": recommender.model_dump(mode="json") if objective == "ndcg@10" else None,
        "config": config.model_dump(mode="json", include={"backbone", "modalities", "explain", "encode"}),
        "seed": config.align.seed,
        "earec": earec_core.__version__,
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    folder = home() / "runs" / f"search-{digest[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(key, indent=1))
    log = _Log(folder / "path.jsonl")

    backbone = backbone or Backbone.load(config.backbone, note)
    model = _model(models, catalog, backbone, registry, config, show)
    names = tuple(models)
    mixture = Mixture({m: models[m].folder for m in names})
    budget = _Budget(max_evaluations, max_minutes)
    steps = [line for line in log.lines if "gradient" in line]
    path = [_evaluation(line) for line in log.lines]
    if log.lines:
        note(f"Going on from {len(path)} evaluations of {folder.name}.")
    budget.done = len(path)
    validation = None
    if objective != "ndcg@10":
        validation = Validation(model, catalog, config.align.seed, max_items)

    def value(weights: Tensor, gradient: bool) -> float:
        mixture.set(weights)
        if validation is None:
            return validation_ndcg(model, catalog, recommender, config.encode.batch_tokens)
        if gradient:
            return validation.loss_with_gradient(config.align.batch_size, lambda: mixture.set(weights))
        if objective == "loss":
            return validation.loss(config.align.batch_size)
        return validation.rouge(config.explain.batch_size, config.explain.max_new_tokens)

    def evaluate(rows: Float[np.ndarray, "l n"], *, gradient: bool = False) -> Evaluation:
        """Evaluate one weighting, or one of each layer, and log it."""
        started = time.monotonic()
        weights = torch.tensor(rows, dtype=torch.float32, requires_grad=gradient)
        found = value(weights if len(rows) > 1 else weights[0], gradient)
        named = [dict(zip(names, row, strict=True)) for row in rows.tolist()]
        mean = dict(zip(names, rows.mean(axis=0).tolist(), strict=True))
        layers = dict(enumerate(named)) if len(rows) > 1 else {}
        if not math.isfinite(found):
            named_mean = ",".join(f"{name}={weight:.4g}" for name, weight in mean.items())
            raise EarecError(
                f"The {objective} of the weights {named_mean} is not a number.",
                "Search on another --set backbone.dtype, such as float32.",
            )
        made = Evaluation(mean, found, time.monotonic() - started, layers)
        path.append(made)
        line = asdict(made)
        if gradient:
            assert weights.grad is not None  # noqa: S101 - `value` has just made it
            line |= {"step": len(steps) + 1, "loss": found, "gradient": weights.grad.tolist()}
            steps.append(line)
        log.add(line)
        budget.done += 1
        show(len(path), min(ends, default=0), f"{objective} {found:.4f}")
        return made

    with backbone.adapted(mixture):
        if strategy == "learn":
            complete = _learn(
                Surrogate(mixture.layers if descent.per_layer else 1, len(names)),
                descent.steps,
                steps,
                path,
                evaluate,
                budget,
            )
        else:
            complete = _walk(
                strategy,
                names,
                step,
                config.align.seed,
                objective,
                path,
                lambda weights: evaluate(np.array([[weights[name] for name in names]])),
                budget,
            )
    best = (min if objective == "loss" else max)(path, key=lambda one: one.value)
    return Found(
        strategy, objective, best, tuple(path), tuple(steps), folder, complete, catalog.name, catalog.digest
    )


def _learn(
    surrogate: Surrogate,
    wanted: int,
    steps: list[dict[str, Any]],
    path: list[Evaluation],
    evaluate: Callable[..., Evaluation],
    budget: _Budget,
) -> bool:
    """Descend from the steps that there are; returns whether the budget was enough."""
    for line in steps:
        surrogate.tell(line["loss"], np.array(line["gradient"]))
    while len(steps) < wanted:
        if budget.spent() and path:
            return False
        evaluate(surrogate.x, gradient=True)
        surrogate.tell(steps[-1]["loss"], np.array(steps[-1]["gradient"]))
    if len(path) == len(steps):
        if budget.spent():
            return False
        evaluate(surrogate.x)
    return True


def _walk(
    strategy: str,
    names: tuple[str, ...],
    step: float,
    seed: int,
    objective: Objective,
    path: list[Evaluation],
    evaluate: Callable[[Mapping[str, float]], Evaluation],
    budget: _Budget,
) -> bool:
    """Ask the strategy for weightings until it or the budget ends; what is in `path` is not evaluated again."""
    if strategy == "grid":
        asking = strategies.grid(names, step)
    else:
        asking = strategies.bayes(names, seed, maximise=objective != "loss")
    known = iter(tuple(path))
    with suppress(StopIteration):
        weights = next(asking)
        while True:
            before = next(known, None)
            if before is None:
                if budget.spent() and path:
                    return False
                before = evaluate(weights)
            weights = asking.send(before.value)
    return True


def _check(strategy: str, objective: str, evaluations: int | None, minutes: float | None) -> None:
    if strategy not in STRATEGIES:
        raise UsageError(f"There is no search {strategy!r}.", f"Choose one of {', '.join(STRATEGIES)}.")
    if objective not in OBJECTIVES:
        raise UsageError(f"There is no objective {objective!r}.", f"Choose one of {', '.join(OBJECTIVES)}.")
    if strategy == "learn" and objective != "loss":
        raise UsageError(
            f"The search learn follows gradients of the loss; {objective} has no gradient.",
            "Say --objective loss, or search by grid or bayes.",
        )
    if strategy == "bayes" and evaluations is None and minutes is None:
        raise UsageError(
            "The search bayes has no end of its own.", "Give --max-evaluations or --max-minutes."
        )


def _model(
    models: Mapping[str, StoredModel],
    catalog: Catalog,
    backbone: Backbone,
    registry: Registry,
    config: RunConfig,
    show: Show,
) -> AlignedModel:
    """A model with the inputs of every adapter, each with its own projector."""
    items = catalog.all_items()
    parts = [
        stored_model(one, items, catalog.name, backbone, registry, overrides=config.modalities, show=show)
        for one in models.values()
    ]
    inputs = {name: one for part in parts for name, one in part.inputs.items()}
    prompts = ItemPrompts(items, inputs, parts[0].prompts.config, backbone.tokenizer, catalog.name)
    return AlignedModel(backbone, inputs, prompts)


def _evaluation(line: Mapping[str, Any]) -> Evaluation:
    """What `evaluate` had logged."""
    layers = {int(n): weights for n, weights in line["layers"].items()}
    return Evaluation(line["weights"], line["value"], line["seconds"], layers)


@dataclass
class _Budget:
    """Evaluations and minutes; those of a killed search count as evaluations, not as minutes."""

    evaluations: int | None
    minutes: float | None
    done: int = 0
    started: float = field(default_factory=time.monotonic)

    def spent(self) -> bool:
        if self.evaluations is not None and self.done >= self.evaluations:
            return True
        return self.minutes is not None and time.monotonic() - self.started >= 60 * self.minutes


class _Log:
    """JSON lines, appended one by one; a line that a kill cut off is dropped."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.lines: list[dict[str, Any]] = []
        if file.exists():
            for line in file.read_text().splitlines():
                with suppress(ValueError):
                    self.lines.append(json.loads(line))
            self._rewrite()

    def add(self, line: Mapping[str, Any]) -> None:
        with self.file.open("a") as out:
            out.write(json.dumps(line) + "\n")

    def _rewrite(self) -> None:
        temp = self.file.with_suffix(".partial")
        temp.write_text("".join(json.dumps(line) + "\n" for line in self.lines))
        temp.replace(self.file)
