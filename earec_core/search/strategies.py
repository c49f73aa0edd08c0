"""Ways to choose the next weighting. Each is a generator: it yields proposals and is sent their outcome.

All of them are deterministic, so that a search which was killed is resumed by sending it the outcomes it had.
Another one is added as a row of `STRATEGIES`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import combinations

import numpy as np

from earec_core.config import SearchConfig
from earec_core.errors import MissingDependencyError, UsageError
from earec_core.search.surrogate import Rows, Surrogate


@dataclass(frozen=True)
class Problem:
    """What is searched.

    Attributes:
        names: the adapters.
        layers: how many numbered layers of the LLM they change.
        maximise: whether a larger value is better.
        seed: of what a strategy draws.
        config: its settings.
    """

    names: tuple[str, ...]
    layers: int
    maximise: bool
    seed: int
    config: SearchConfig


@dataclass(frozen=True)
class Proposal:
    """A weighting to evaluate.

    Attributes:
        rows: weights in the order of the names: one row, or one for every layer; each lies on the simplex.
        gradient: whether the value's gradient is wanted as well.
    """

    rows: Rows
    gradient: bool = False


@dataclass(frozen=True)
class Outcome:
    """A proposal's value, and its gradient where that was wanted."""

    value: float
    gradient: Rows | None = None


Asking = Generator[Proposal, Outcome, None]


@dataclass(frozen=True)
class Strategy:
    """A way to search.

    Attributes:
        name: what `earec search` takes.
        summary: one line.
        ask: gives the generator of proposals.
        count: evaluations to its end; None for a strategy that has none.
        gradients: whether it needs them; the objective `loss` alone has some.
        extra: the package that it needs, and the extra of earec that brings it.
    """

    name: str
    summary: str
    ask: Callable[[Problem], Asking]
    count: Callable[[Problem], int | None] = lambda _: None
    gradients: bool = False
    extra: tuple[str, str] | None = None


def grid(problem: Problem) -> Asking:
    """Every point of the simplex whose weights are multiples of the step, the first name's largest ones first."""
    parts, count = _parts(problem.config.step), len(problem.names)
    places = parts + count - 1  # for so many parts, and a bar between one name's and the next's
    for bars in reversed(list(combinations(range(places), count - 1))):
        yield Proposal((np.diff([-1, *bars, places]) - 1)[None] / parts)


def grid_points(problem: Problem) -> int:
    """How many weightings `grid` proposes.

    Raises:
        UsageError: 1 is no multiple of the step.
    """
    return math.comb(_parts(problem.config.step) + len(problem.names) - 1, len(problem.names) - 1)


def learn(problem: Problem) -> Asking:
    """The lowest point of a surrogate fitted to values and gradients, again and again; then one more evaluation."""
    layers = problem.layers if problem.config.per_layer else 1
    surrogate = Surrogate(layers, len(problem.names))
    for _ in range(problem.config.gradients):
        outcome = yield Proposal(surrogate.x, gradient=True)
        assert outcome.gradient is not None  # noqa: S101 - it was asked for
        surrogate.tell(outcome.value, outcome.gradient)
    yield Proposal(surrogate.x)


def learn_points(problem: Problem) -> int:
    """How many weightings `learn` proposes."""
    return problem.config.gradients + 1


def bayes(problem: Problem) -> Asking:
    """Tree-structured Parzen estimator (optuna) on the simplex; endless.

    A weight is -log(u) over the sum of all (u uniform), which is uniform on the simplex.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        direction="maximize" if problem.maximise else "minimize",
        sampler=optuna.samplers.TPESampler(seed=problem.seed),
    )
    while True:
        trial = study.ask()
        sizes = [-math.log(trial.suggest_float(name, 1e-6, 1 - 1e-6)) for name in problem.names]
        outcome = yield Proposal(np.array([[size / sum(sizes) for size in sizes]]))
        study.tell(trial, outcome.value)


STRATEGIES: Mapping[str, Strategy] = {
    strategy.name: strategy
    for strategy in (
        Strategy("grid", "every point of a grid on the simplex", grid, grid_points),
        Strategy(
            "learn", "a Gaussian process with gradients of the loss", learn, learn_points, gradients=True
        ),
        Strategy("bayes", "optuna's TPE, until the budget ends", bayes, extra=("optuna", "search")),
    )
}


def get_strategy(name: str, objective: str, config: SearchConfig) -> Strategy:
    """The strategy of that name, if it can search with this objective and budget.

    Raises:
        UsageError: there is none, or the objective has no gradient that it needs, or it would never end.
        MissingDependencyError: what it needs is not installed.
    """
    strategy = STRATEGIES.get(name)
    if strategy is None:
        raise UsageError(f"There is no search {name!r}.", f"Choose one of {', '.join(STRATEGIES)}.")
    if strategy.gradients and objective != "loss":
        raise UsageError(
            f"The search {name} follows the gradient of the loss; {objective} has no gradient.",
            "Say --objective loss, or search by grid or bayes.",
        )
    if strategy.extra and find_spec(strategy.extra[0]) is None:
        package, extra = strategy.extra
        raise MissingDependencyError(
            f"The search {name} needs {package}, which is not installed.",
            f"Run: pip install 'earec[{extra}]'",
        )
    endless = strategy.count(Problem(("",), 1, False, 0, config)) is None
    if endless and config.max_evaluations is None and config.max_minutes is None:
        raise UsageError(
            f"The search {name} has no end of its own.", "Give --max-evaluations or --max-minutes."
        )
    return strategy


def _parts(step: float) -> int:
    parts = round(1 / step)
    if abs(parts * step - 1) > 1e-9:
        raise UsageError(f"1 is no multiple of the step {step:g}.", "Give --step such as 0.1 or 0.25.")
    return parts
