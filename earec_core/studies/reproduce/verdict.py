"""Is the best of ours better than the best baseline? Chosen on validation, told by the test targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from earec_core.metrics.statistics import holm, interval
from earec_core.studies.reproduce.plan import Row

Gains = Mapping[str, Float[np.ndarray, " users"]]


@dataclass(frozen=True)
class Verdict:
    """The best of ours beside the best baseline on one metric.

    Attributes:
        ids: whether both have trained embeddings of ids, or both have none.
        metric: such as `ndcg@10`.
        ours, baseline: the rows of the highest validation NDCG@10.
        value: of ours.
        improvement: over the baseline, relatively; NaN where that has 0.
        difference, low, high: of ours less the baseline over users, and its 95% bootstrap interval.
        p_t, p_wilcoxon: of two-sided paired tests over users.
        p: that of the t-test by Holm's correction over all verdicts of a table.
    """

    ids: bool
    metric: str
    ours: str
    baseline: str
    value: float
    improvement: float
    difference: float
    low: float
    high: float
    p_t: float
    p_wilcoxon: float
    p: float

    @property
    def stars(self) -> str:
        """The paper's: * for p <= 0.05, ** for p <= 0.01."""
        return "**" if self.p <= 0.01 else "*" if self.p <= 0.05 else ""


def verdicts(
    rows: Sequence[Row], valid: Mapping[str, float], gains: Mapping[str, Gains]
) -> tuple[Verdict, ...]:
    """One for each metric, without ids and with.

    Args:
        rows: those of ours and the baselines.
        valid: NDCG@10 on the validation targets by row.
        gains: by metric, then by row: what each user's target was worth, the seeds averaged.

    Returns:
        None for a group in which one side has no row.
    """
    pairs: list[tuple[bool, str, str]] = []
    for ids in (False, True):
        ours, baselines = (
            [row.name for row in rows if row.side == side and row.ids is ids] for side in ("ours", "baseline")
        )
        if ours and baselines:
            pairs.append((ids, max(ours, key=valid.__getitem__), max(baselines, key=valid.__getitem__)))
    tested = [(ids, metric, names) for ids, *names in pairs for metric in gains]
    tests = [_tests(gains[metric][ours], gains[metric][baseline]) for _, metric, (ours, baseline) in tested]
    corrected = holm([t for t, _ in tests])
    return tuple(
        _verdict(ids, metric, (ours, baseline), (gains[metric][ours], gains[metric][baseline]), each, p)
        for (ids, metric, (ours, baseline)), each, p in zip(tested, tests, corrected, strict=True)
    )


def _verdict(
    ids: bool,
    metric: str,
    names: tuple[str, str],
    gains: tuple[Float[np.ndarray, " users"], Float[np.ndarray, " users"]],
    tests: tuple[float, float],
    p: float,
) -> Verdict:
    ours, baseline = (float(gain.mean()) for gain in gains)
    spread = interval(gains[0] - gains[1])
    improvement = ours / baseline - 1 if baseline else float("nan")
    return Verdict(ids, metric, *names, ours, improvement, spread.mean, spread.low, spread.high, *tests, p)


def _tests(a: Float[np.ndarray, " users"], b: Float[np.ndarray, " users"]) -> tuple[float, float]:
    """p of the paired t-test and of Wilcoxon's signed-rank test; 1 where nothing differs."""
    from scipy import stats

    if len(a) < 2 or np.array_equal(a, b):
        return 1.0, 1.0
    return float(stats.ttest_rel(a, b).pvalue), float(stats.wilcoxon(a, b).pvalue)
