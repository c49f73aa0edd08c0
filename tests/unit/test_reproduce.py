"""The rows of Table 4, the controls' arithmetic and the statistics, against independent computations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy import stats

from earec_core.catalog import Catalog
from earec_core.cli import run
from earec_core.errors import UsageError
from earec_core.metrics import statistics
from earec_core.metrics.ranking import Metrics
from earec_core.recommend import recommender_names
from earec_core.studies.reproduce import compare, controls, describe, plan
from earec_core.studies.reproduce.plan import Row, read_table, weightings
from earec_core.studies.reproduce.verdict import verdicts

GIVEN = ["text", "vision", "behavior"]


@pytest.fixture
def vectors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {m: rng.normal(size=(40, 6)).astype(np.float32) * (1 + i) for i, m in enumerate(GIVEN)}


@pytest.fixture
def present() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    found = {m: rng.random(40) < 0.6 for m in GIVEN}
    for mask in found.values():
        mask[3] = False
    return found


def test_the_papers_weights_sum_to_1() -> None:
    found = weightings(read_table(4)["row"], GIVEN)
    assert [[round(100 * w, 1) for w in weights.values()] for weights, _ in found] == [
        [33.3, 33.3, 33.3],
        [20, 40, 40],
        [15, 42.5, 42.5],
        [10, 45, 45],
        [5, 47.5, 47.5],
        [5, 5, 90],
    ]
    assert all(sum(weights.values()) == pytest.approx(1) for weights, _ in found)
    assert [paper["ndcg@10"] for _, paper in found] == [0.0674, 0.0703, 0.0703, 0.0722, 0.0721, 0.0713]


def test_a_modality_left_out_leaves_the_others_proportions() -> None:
    found = weightings(read_table(4)["row"], ["text", "behavior"])
    assert [weights["text"] for weights, _ in found] == pytest.approx(
        [1 / 2, 1 / 3, 15 / 57.5, 10 / 55, 5 / 52.5, 5 / 95]
    )
    assert all(weights["behavior"] == pytest.approx(1 - weights["text"]) for weights, _ in found)


def test_weightings_that_become_equal_are_one_row() -> None:
    found = weightings(read_table(4)["row"], ["vision", "behavior"])
    assert [weights["vision"] for weights, _ in found] == pytest.approx([1 / 2, 5 / 95])
    assert found[0][1]["hr@10"] == 0.1187
    assert [row.name for row in plan(4, modalities=["text"])[0] if row.kind == "composite"] == [
        "delta-100",
        "factor-100",
        "factor-norm-100",
        "routed-100",
    ]


def test_the_reference_is_always_measured() -> None:
    rows, reference = plan(4, methods=["factor"], only=["ids"])
    assert [row.name for row in rows] == [reference, "ids"] == ["delta-33.3-33.3-33.3", "ids"]
    composites = [row for row in plan(4, methods=["factor"])[0] if row.kind == "composite"]
    assert [row.method for row in composites] == ["factor"] * 6 + ["delta"]
    rows, reference = plan(4, methods=["factor"], reference="ids")
    assert reference == "ids"
    assert {row.method for row in rows} == {"factor", None}


def test_table_3_leaves_out_each_modality_and_keeps_the_others_proportions() -> None:
    rows, reference = plan(3)
    assert reference == "all"
    assert [(row.name, row.kind) for row in rows] == [
        ("all", "composite"),
        ("without-text", "composite"),
        ("without-vision", "composite"),
        ("without-behavior", "composite"),
        ("unaligned-text", "unaligned"),
        ("unaligned", "unaligned"),
    ]
    assert rows[0].weights == pytest.approx({"text": 0.05, "vision": 0.05, "behavior": 0.9})
    assert rows[1].weights == pytest.approx({"vision": 5 / 95, "behavior": 90 / 95})
    assert rows[3].weights == pytest.approx({"text": 0.5, "vision": 0.5})
    assert [row.paper.get("ndcg@10") for row in rows] == [0.0713, 0.0692, 0.0691, 0.0704, None, 0.0699]


def test_without_one_of_two_the_other_stands_alone_and_one_has_nothing_to_leave_out() -> None:
    rows, _ = plan(3, modalities=["text", "behavior"], weights={"behavior": 3, "text": 1}, methods=["factor"])
    assert [(row.name, row.kind, row.modalities, row.method) for row in rows[:3]] == [
        ("all", "composite", ("text", "behavior"), "factor"),
        ("without-text", "single", ("behavior",), None),
        ("without-behavior", "single", ("text",), None),
    ]
    assert rows[0].weights == {"text": 0.25, "behavior": 0.75}
    assert [(row.name, row.kind) for row in plan(3, modalities=["text"])[0]] == [
        ("all", "single"),
        ("unaligned", "unaligned"),
    ]


@pytest.mark.parametrize(
    ("table", "weights", "named"),
    [
        (4, {"text": 1.0}, "has weights of its own"),
        (3, {"text": 1.0}, "text, but the modalities are text, vision, behavior"),
        (3, {"text": 1.0, "vision": 1.0, "behavior": 0.0}, "a weight above 0"),
    ],
)
def test_weights_that_do_not_fit_the_table_are_refused(
    table: int, weights: dict[str, float], named: str
) -> None:
    with pytest.raises(UsageError, match=named):
        plan(table, weights=weights)


def test_table_2_has_the_baselines_that_the_modalities_allow() -> None:
    rows, reference = plan(2, modalities=["text", "behavior"])
    names = [row.name for row in rows]
    assert reference == "sasrec"
    assert "missrec-text-vision" not in names
    assert names[-4:] == ["earec-text", "earec-behavior", "earec-text-behavior", "earec-text-behavior-ids"]
    assert {row.name for row in rows if row.ids} == {
        "sasrec",
        "esasrec",
        "unisrec-text-ids",
        "earec-text-behavior-ids",
    }
    every = [row.name for row in plan(2)[0]]
    assert {"missrec-text-vision-ids", "earec-text-vision", "earec-text-vision-behavior-ids"} <= {*every}
    assert {row.model for row in plan(2)[0] if row.model} <= {*recommender_names()}


def test_a_modality_that_the_paper_does_not_have_needs_its_weight() -> None:
    weights = {"audio": 1.0, "text": 2.0, "behavior": 1.0}
    rows, _ = plan(2, modalities=["audio", "text", "behavior"], weights=weights)
    ours = {row.name: row.weights for row in rows if row.side == "ours" and not row.ids}
    assert ours == {
        "earec-text": {},
        "earec-behavior": {},
        "earec-audio": {},
        "earec-text-behavior": pytest.approx({"text": 2 / 3, "behavior": 1 / 3}),
        "earec-text-audio": pytest.approx({"text": 2 / 3, "audio": 1 / 3}),
        "earec-text-behavior-audio": {"text": 0.5, "behavior": 0.25, "audio": 0.25},
    }
    rows, _ = plan(3, modalities=["audio", "text"], weights={"audio": 1.0, "text": 1.0})
    assert [(row.name, row.modalities) for row in rows] == [
        ("all", ("text", "audio")),
        ("without-text", ("audio",)),
        ("without-audio", ("text",)),
        ("unaligned-text", ("text",)),
        ("unaligned", ("text", "audio")),
    ]
    with pytest.raises(UsageError, match="The paper has no weight of audio"):
        plan(2, modalities=["audio", "text"])


def test_the_best_on_validation_are_compared_on_test_and_corrected_together() -> None:
    rng = np.random.default_rng(0)
    rows = [
        Row("a", "baseline", side="baseline"),
        Row("b", "baseline", side="baseline"),
        Row("x", "single", side="ours"),
        Row("y", "single", side="ours"),
        Row("ids", "baseline", side="baseline", ids=True),
    ]
    valid = {"a": 0.3, "b": 0.2, "x": 0.1, "y": 0.4, "ids": 0.9}
    base = {row.name: rng.random(50) for row in rows}
    gains = {
        metric: {n: g + (0.3 if n == "y" and metric == "hr@10" else 0) for n, g in base.items()}
        for metric in ("hr@10", "ndcg@10")
    }
    hr, ndcg = verdicts(rows, valid, gains)
    assert (hr.ours, hr.baseline, hr.ids, hr.metric) == ("y", "a", False, "hr@10")
    y, a = gains["hr@10"]["y"], gains["hr@10"]["a"]
    assert hr.improvement == pytest.approx(y.mean() / a.mean() - 1)
    t = (y - a).mean() / ((y - a).std(ddof=1) / np.sqrt(50))
    assert hr.p_t == pytest.approx(2 * stats.t.sf(abs(t), 49))
    first, second = sorted([hr.p_t, ndcg.p_t])
    assert sorted([hr.p, ndcg.p]) == pytest.approx([2 * first, max(2 * first, second)])
    assert hr.low < hr.difference < hr.high
    assert (hr.stars, ndcg.stars) == ("**", "")
    same = {metric: dict.fromkeys(by_row, base["a"]) for metric, by_row in gains.items()}
    assert [(v.p_t, v.p_wilcoxon, v.stars) for v in verdicts(rows, valid, same)] == [(1.0, 1.0, "")] * 2


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--table", "1", "--seeds", "2"], "--seeds is nothing that table 1 heeds"),
        (["--table", "3", "--encoder", "x"], "--encoder is nothing that table 3 heeds"),
        (["--table", "2", "--items", "3"], "--items is nothing that table 2 heeds"),
        (["--figure", "4", "--dry-run"], "--dry-run is nothing that figure 4 heeds"),
        (["--figure", "5", "--trials", "3"], "--trials is nothing that figure 5 heeds"),
        (["--table", "2", "--figure", "4"], "Exactly one of --table and --figure"),
    ],
)
def test_an_option_without_effect_is_refused(
    argv: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["reproduce", *argv, "--data", str(tmp_path)]) == 2
    assert said in capsys.readouterr().err


def test_table_1_counts_what_the_catalog_holds(tmp_path: Path) -> None:
    items = pl.DataFrame(
        {"item_id": ["a", "b", "c"], "title": ["A", "B", "C"], "image": ["a.jpg", None, None]}
    )
    lines = [("u", "a", 1), ("u", "b", 2), ("v", "b", 1), ("v", "c", 2), ("v", "a", 3)]
    items.write_ndjson(tmp_path / "items.jsonl")
    pl.DataFrame(lines, schema=["user_id", "item_id", "timestamp"], orient="row").write_csv(
        tmp_path / "interactions.csv"
    )
    argv = ["data", "import", str(tmp_path), "--out", str(tmp_path / "small"), "--core", "1"]
    assert run(argv) == 0
    (row,) = describe([Catalog.open(tmp_path / "small")])
    assert (row["dataset"], row["users"], row["items"], row["interactions"]) == ("small", 2, 3, 5)
    assert (row["length"], row["density"]) == pytest.approx((2.5, 5 / 6))
    assert row["fields"]["title"] == 3
    assert row["fields"]["image"] == 1


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"table": 3, "methods": ["delta", "factor"]}, "Table 3 composes by one method"),
        ({"table": 5}, "Table 5 .* 2, 3, 4"),
        ({"methods": ["slerp"]}, "slerp"),
        ({"modalities": ["smell"]}, "smell"),
        ({"modalities": []}, "--modalities"),
        ({"modalities": ["text"], "adapters": ["behavior"]}, "behavior"),
        ({"only": ["delta-1-2-3"]}, "delta-1-2-3"),
        ({"reference": "nothing"}, "nothing"),
    ],
)
def test_what_is_not_there_is_named(options: dict[str, object], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        plan(**{"table": 4, **options})  # type: ignore[arg-type]


def test_mean_takes_the_modalities_an_item_has(
    vectors: dict[str, np.ndarray], present: dict[str, np.ndarray]
) -> None:
    found = controls.mean(vectors, present)
    for row in range(40):
        has = [vectors[m][row] for m in GIVEN if present[m][row]] or [vectors[m][row] for m in GIVEN]
        np.testing.assert_allclose(found[row], np.mean(has, axis=0), rtol=1e-5, atol=1e-6)
    assert not any(present[m][3] for m in GIVEN)


def test_concatenation_is_pca_by_the_covariances_eigenvectors(
    vectors: dict[str, np.ndarray], present: dict[str, np.ndarray]
) -> None:
    found = controls.concatenation(vectors, present, 6)
    joined = np.hstack([np.where(present[m][:, None], vectors[m], 0.0) for m in GIVEN]).astype(float)
    values, axes = np.linalg.eigh(np.cov(joined.T))
    expected = (joined - joined.mean(0)) @ axes[:, ::-1][:, :6]
    signs = np.sign((found * expected).sum(0))
    np.testing.assert_allclose(found * signs, expected, atol=1e-4)
    np.testing.assert_allclose(found.var(0, ddof=1), values[::-1][:6], rtol=1e-4)


def test_concatenation_has_no_more_components_than_items(vectors: dict[str, np.ndarray]) -> None:
    few = {m: v[:4] for m, v in vectors.items()}
    assert controls.concatenation(few, {m: np.ones(4, bool) for m in GIVEN}, 6).shape == (4, 4)


def test_holm_by_hand() -> None:
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.6, 0.5]) == [1.0, 1.0]
    assert statistics.holm([0.02]) == [0.02]
    assert statistics.holm([]) == []


def test_the_paired_test_is_the_one_sample_test_of_the_differences() -> None:
    from scipy.stats import norm, ttest_1samp

    rng = np.random.default_rng(2)
    a, b = (Metrics(rng.integers(1, 30, 200), np.arange(200)).gains(10) for _ in range(2))
    ours, theirs = statistics.paired(a, b), ttest_1samp(a - b, 0)
    assert ours["difference"] / ours["se"] == pytest.approx(theirs.statistic)
    assert ours["p"] == pytest.approx(2 * norm.sf(abs(theirs.statistic)))
    assert statistics.paired(a, a)["p"] == 1.0
    assert statistics.paired(a[:1], b[:1])["p"] == 1.0


def test_the_paired_test_sees_a_shift_that_the_means_alone_do_not_show() -> None:
    rng = np.random.default_rng(0)
    users = rng.normal(size=500)
    better = users + 0.01 + 0.02 * rng.normal(size=500)
    assert statistics.paired(better, users)["p"] < 1e-6
    apart = np.hypot(better.std(ddof=1), users.std(ddof=1)) / 500**0.5
    assert abs(better.mean() - users.mean()) < apart


def test_every_test_but_the_references_is_corrected_together() -> None:
    rng = np.random.default_rng(4)
    gains = {name: rng.normal(size=60) for name in ("reference", "a", "b", "c")}
    tests = statistics.versus(gains, "reference")
    assert list(tests) == ["a", "b", "c"]
    for name, test in tests.items():
        alone = statistics.paired(gains[name], gains["reference"])
        assert {key: test[key] for key in alone} == alone
    assert [t["p_holm"] for t in tests.values()] == statistics.holm([t["p"] for t in tests.values()])


def test_the_bootstraps_interval_holds_the_true_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    intervals = [statistics.interval(rng.normal(0.3, 1, 80), resamples=400, seed=s) for s in range(200)]
    assert 0.9 <= np.mean([found.low < 0.3 < found.high for found in intervals]) <= 0.99
    assert np.isnan(statistics.interval(np.array([])).mean)


def test_resolution_is_that_of_two_binomial_rates() -> None:
    found = statistics.resolution(0.1, 600)
    draws = np.random.default_rng(3).binomial(600, 0.1, (2, 40_000)) / 600
    assert found["se"] == pytest.approx(draws[0].std(), rel=0.02)
    beyond = np.abs(draws[0] - draws[1]) > found["smallest"]
    assert beyond.mean() == pytest.approx(0.05, abs=0.005)


def test_main_effects_are_those_put_in() -> None:
    rng = np.random.default_rng(0)
    users = rng.normal(size=400)
    method, weighting = {"delta": 0.0, "factor": -0.05}, {"50-50": 0.0, "9.5-90.5": 0.02, "5.3-94.7": 0.01}
    gains = {
        (m, w): users + a + b + 0.1 * rng.normal(size=400)
        for m, a in method.items()
        for w, b in weighting.items()
    }
    delta, factor = compare.main_effects(gains, 0, "delta")
    assert (delta.level, delta.versus, factor.rows) == ("delta", None, 3)
    each = sum(gains["factor", w] - gains["delta", w] for w in weighting) / 3
    assert factor.versus is not None
    assert factor.versus["difference"] == pytest.approx(each.mean())
    assert factor.versus["se"] == pytest.approx(each.std(ddof=1) / 20)
    assert abs(factor.versus["difference"] + 0.05) < 4 * factor.versus["se"] < 0.02
    found = {effect.level: effect for effect in compare.main_effects(gains, 1, "50-50")}
    for level, true in weighting.items():
        assert found[level].ndcg == pytest.approx(users.mean() + true - 0.025, abs=0.02)
    assert found["9.5-90.5"].rows == 2


def test_main_effects_compare_like_with_like() -> None:
    """A row that one method has and another has not is left out; too few of them are no effect."""
    rng = np.random.default_rng(0)
    cells = [(m, w) for m in ("delta", "factor") for w in ("a", "b", "c")]
    gains = {cell: rng.random(50) for cell in cells}
    gains.pop(("factor", "c"))
    whole = {cell: gain for cell, gain in gains.items() if cell[1] != "c"}
    assert compare.main_effects(gains, 0, "delta") == compare.main_effects(whole, 0, "delta") != ()
    one = {cell: gain for cell, gain in gains.items() if cell[1] == "a"}
    assert compare.main_effects(one, 0, "delta") == compare.main_effects(gains, 0, "ties") == ()
