"""`earec recommend compare` against SciPy's paired test over the stored ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from scipy import stats

from earec_core.catalog import Catalog
from earec_core.cli import run
from earec_core.config import RecommenderConfig
from earec_core.recommend.stage import train_registered
from earec_core.workspace import Workspace

N = 40


@pytest.fixture
def home(tmp_path: Path) -> tuple[Workspace, Catalog]:
    """Three trainings: two seeds of one contestant, and one of far fewer epochs."""
    source = tmp_path / "source"
    source.mkdir()
    items = [json.dumps({"item_id": f"i{row:02}", "title": f"thing {row}"}) for row in range(N)]
    (source / "items.jsonl").write_text("\n".join(items))
    rng = np.random.default_rng(0)
    users = [[(int(start) + i) % N for i in range(8)] for start in rng.integers(0, N, 150)]
    lines = [f"u{u},i{item:02},{t}" for u, row in enumerate(users) for t, item in enumerate(row)]
    (source / "interactions.csv").write_text("\n".join(["user_id,item_id,timestamp", *lines]))
    assert run(["data", "import", str(source), "--out", str(tmp_path / "data"), "--core", "1"]) == 0
    workspace, catalog = (
        Workspace.open(tmp_path / "home", tmp_path / "registry"),
        Catalog.open(tmp_path / "data"),
    )
    for name, seed, epochs in (("a", 0, 8), ("b", 1, 8), ("weak", 0, 1)):
        config = RecommenderConfig(dim=16, inner=16, max_len=8, lr=0.01, epochs=epochs, seed=seed)
        train_registered(workspace, catalog, config, name=f"recommender/{name}")
    return workspace, catalog


def test_means_differences_and_p_are_those_of_a_paired_test(
    home: tuple[Workspace, Catalog], capsys: pytest.CaptureFixture[str]
) -> None:
    workspace, catalog = home
    registry = ["--registry", str(workspace.registry.root)]
    contestants = ["weak=recommender/weak", "strong=recommender/a,recommender/b"]
    capsys.readouterr()
    assert run(["recommend", "compare", *contestants, "--data", str(catalog.path), *registry, "--json"]) == 0
    weak, strong = json.loads(capsys.readouterr().out)
    ranks = {
        name: load_file(workspace.registry.materialize(f"recommender/{name}") / "test_ranks.safetensors")[
            "ranks"
        ]
        for name in ("a", "b", "weak")
    }
    gains = {name: np.where(r <= 10, 1 / np.log2(r + 1), 0) for name, r in ranks.items()}
    hits = {name: (r <= 10).astype(float) for name, r in ranks.items()}
    ps = {}
    for metric, values in (("ndcg@10", gains), ("hr@10", hits)):
        better = (values["a"] + values["b"]) / 2
        assert weak[metric] == pytest.approx(values["weak"].mean(), abs=1e-6)
        assert strong[metric] == pytest.approx(better.mean(), abs=1e-6)
        less = better - values["weak"]
        assert strong[f"{metric}_less"] == pytest.approx(less.mean())
        error = stats.sem(less)
        assert strong[f"{metric}_low"] == pytest.approx(less.mean() - stats.norm.ppf(0.975) * error)
        ps[metric] = 2 * stats.norm.sf(abs(less.mean()) / error)
    smaller, larger = sorted(ps, key=ps.__getitem__)
    assert strong[f"{smaller}_p"] == pytest.approx(min(1, 2 * ps[smaller]))
    assert strong[f"{larger}_p"] == pytest.approx(max(min(1, 2 * ps[smaller]), ps[larger]))
    assert (weak["seeds"], strong["seeds"]) == (1, 2)
    assert not any(key.endswith("_less") and weak[key] is not None for key in weak)


@pytest.mark.parametrize(
    "protocol", [["--exclude-seen"], ["--split", "valid"], ["--split", "valid", "--exclude-seen"]]
)
def test_other_protocols_have_the_figures_of_evaluate(
    protocol: list[str], home: tuple[Workspace, Catalog], capsys: pytest.CaptureFixture[str]
) -> None:
    workspace, catalog = home
    on = ["--data", str(catalog.path), "--registry", str(workspace.registry.root), "--json"]

    def printed(*argv: str) -> Any:
        capsys.readouterr()
        assert run(["recommend", *argv, *on]) == 0
        return json.loads(capsys.readouterr().out)

    compared = printed("compare", "x=recommender/weak", "y=recommender/a,recommender/b", *protocol)
    figures = {name: printed("evaluate", f"recommender/{name}", *protocol) for name in ("weak", "a", "b")}
    for metric in ("hr@10", "ndcg@10"):
        assert compared[0][metric] == pytest.approx(figures["weak"][metric], abs=1e-6)
        both = (figures["a"][metric] + figures["b"][metric]) / 2
        assert compared[1][metric] == pytest.approx(both, abs=1e-6)
    assert compared[0]["ndcg@10"] != printed("compare", "x=recommender/weak")[0]["ndcg@10"]


def test_a_slice_has_its_users_alone_and_wrong_requests_are_said(
    home: tuple[Workspace, Catalog], capsys: pytest.CaptureFixture[str]
) -> None:
    workspace, catalog = home
    on = ["--data", str(catalog.path), "--registry", str(workspace.registry.root)]
    both = ["x=recommender/a", "y=recommender/weak"]
    capsys.readouterr()
    assert run(["recommend", "compare", *both, *on, "--slice", "long", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["users"] == 150
    for argv, said in (
        ([*both, "--slice", "unseen"], "No evaluated user is in the slice 'unseen'"),
        ([*both, "--to", "z"], "No contestant is called 'z'. Choose one of x, y"),
        (["x=recommender/a", "x=recommender/b"], "Give each its label"),
        (["x=recommender/none"], "recommender/none"),
    ):
        assert run(["recommend", "compare", *argv, *on]) == 2
        assert said in capsys.readouterr().err
