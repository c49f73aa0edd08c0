"""Ways to choose the next weighting. Each is a generator: it yields weights and is sent their value.

All of them are deterministic, so that a search which was killed is resumed by sending it the values it had.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence

from earec_core.errors import MissingDependencyError, UsageError

Weights = dict[str, float]
Strategy = Generator[Weights, float, None]


def grid(names: Sequence[str], step: float) -> Strategy:
    """Every point of the simplex whose weights are multiples of `step`.

    Raises:
        UsageError: 1 is no multiple of `step`.
    """
    parts = _parts(step)
    for counts in _compositions(parts, len(names)):
        yield {name: count / parts for name, count in zip(names, counts, strict=True)}


def grid_points(names: Sequence[str], step: float) -> int:
    """How many weightings `grid` yields; raises as it does."""
    return math.comb(_parts(step) + len(names) - 1, len(names) - 1)


def _parts(step: float) -> int:
    parts = round(1 / step)
    if abs(parts * step - 1) > 1e-9:
        raise UsageError(f"1 is no multiple of the step {step:g}.", "Give --step such as 0.1 or 0.25.")
    return parts


def _compositions(total: int, parts: int) -> Generator[tuple[int, ...], None, None]:
    if parts == 1:
        yield (total,)
        return
    for first in range(total, -1, -1):
        for rest in _compositions(total - first, parts - 1):
            yield (first, *rest)


def bayes(names: Sequence[str], seed: int, *, maximise: bool) -> Strategy:
    """Tree-structured Parzen estimator (optuna) on the simplex; endless.

    A weight is -log(u) over the sum of all (u uniform), which is uniform on the simplex.

    Raises:
        MissingDependencyError: optuna is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise MissingDependencyError(
            "The search bayes needs optuna, which is not installed.", "Run: pip install 'earec[search]'"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        direction="maximize" if maximise else "minimize", sampler=optuna.samplers.TPESampler(seed=seed)
    )
    while True:
        trial = study.ask()
        sizes = [-math.log(trial.suggest_float(name, 1e-6, 1 - 1e-6)) for name in names]
        weights = {name: size / sum(sizes) for name, size in zip(names, sizes, strict=True)}
        study.tell(trial, (yield weights))
