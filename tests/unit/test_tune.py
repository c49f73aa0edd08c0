"""`earec recommend tune`: on validation alone, within its budget, the same after a kill."""

from __future__ import annotations

import importlib
import json
import shlex
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from earec_core.artifacts import ItemVectors
from earec_core.catalog import Catalog
from earec_core.cli import run
from earec_core.config import RecommenderConfig
from earec_core.metrics.ranking import ScoresError
from earec_core.recommend import tune as tuning
from earec_core.recommend.tune import Tuning, tune
from earec_core.workspace import Workspace

N = 20
CONFIG = RecommenderConfig(dim=16, inner=16, max_len=8, lr=1e-6, epochs=2, table="linear+ids")


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    """Users whose every next item follows from the last."""
    source = tmp_path / "source"
    source.mkdir()
    items = [json.dumps({"item_id": f"i{row:02}", "title": f"thing {row}"}) for row in range(N)]
    (source / "items.jsonl").write_text("\n".join(items))
    users = [[(start + i) % N for i in range(8)] for start in range(N)] * 2
    lines = [f"u{u},i{item:02},{t}" for u, row in enumerate(users) for t, item in enumerate(row)]
    (source / "interactions.csv").write_text("\n".join(["user_id,item_id,timestamp", *lines]))
    assert run(["data", "import", str(source), "--out", str(tmp_path / "data")]) == 0
    return Catalog.open(tmp_path / "data")


@pytest.fixture
def at(tmp_path: Path, catalog: Catalog) -> Callable[..., Tuning]:
    """A tuning in a home of that name, over two tables of vectors."""

    def tuned(home: str, trials: int, **options: Any) -> Tuning:
        workspace = Workspace.open(tmp_path / home, tmp_path / home / "registry")
        for seed, name in enumerate(("vectors/a", "vectors/b")):
            vectors = np.random.default_rng(seed).normal(size=(N, 6)).astype(np.float32)
            ItemVectors.save(workspace.registry, vectors, catalog, name=name, why="test", method="drawn")
        options = {"vectors": ["vectors/a", "vectors/b"], **options}
        return tune(workspace, catalog, CONFIG, trials=trials, **options)

    return tuned


def _told(tuned: Tuning) -> list[dict[str, Any]]:
    return [trial.model_dump(exclude={"seconds"}) for trial in tuned.trials]


def test_a_tuning_goes_on_to_the_same_trials_and_does_none_twice(
    at: Callable[..., Tuning], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = at("whole", 5)
    assert whole.trials[0].settings == {}
    assert whole.trials[1].settings == {"similarity": "cosine", "candidates": "trained", "scaling": "pca"}
    assert all(trial.settings["table"].endswith("+ids") for trial in whole.trials[2:])
    assert whole.best.ndcg10 == max(trial.ndcg10 for trial in whole.trials)
    assert whole.config == CONFIG.model_copy(update=dict(whole.best.settings))
    assert {trial.vectors for trial in whole.trials} == {"vectors/a", "vectors/b"}
    calls, train = [], tuning.train

    def killed(*args: Any, **options: Any) -> Any:
        calls.append(args[3])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return train(*args, **options)

    monkeypatch.setattr(tuning, "train", killed)
    with pytest.raises(KeyboardInterrupt):
        at("killed", 5)
    assert _told(at("killed", 5)) == _told(whole)
    assert len(calls) == 6
    assert _told(at("killed", 4)) == _told(whole)[:4]
    assert len(calls) == 6
    assert _told(at("killed", 3, force=True)) == _told(whole)[:3]
    assert len(calls) == 9


def test_the_budget_in_minutes_starts_no_trial_later(at: Callable[..., Tuning]) -> None:
    assert len(at("home", 5, minutes=1e-9).trials) == 1


def test_no_test_target_is_ranked(at: Callable[..., Tuning], monkeypatch: pytest.MonkeyPatch) -> None:
    evaluation = importlib.import_module("earec_core.recommend.evaluate")
    histories, parts = evaluation.histories, []

    def watched(split: Any, part: str, users: Any) -> Any:
        parts.append(part)
        return histories(split, part, users)

    monkeypatch.setattr(evaluation, "histories", watched)
    at("home", 2)
    assert set(parts) == {"valid"}


def test_a_training_that_comes_to_no_numbers_is_worth_nothing(
    at: Callable[..., Tuning], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, train = [], tuning.train

    def broken(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise ScoresError("Not numbers.", "Lower it.")
        return train(*args, **options)

    monkeypatch.setattr(tuning, "train", broken)
    tuned = at("home", 3)
    assert [trial.best_epoch > 0 for trial in tuned.trials] == [True, False, True]
    assert tuned.trials[1].ndcg10 == 0.0


def test_the_papers_grid_is_tried_after_the_settings_given(catalog: Catalog, tmp_path: Path) -> None:
    config = RecommenderConfig(epochs=1, inner=16, dim=8)
    workspace = Workspace.open(tmp_path / "home")
    tuning = tune(workspace, catalog, config, trials=40, grid=True)
    tried = [(trial.settings.get("lr"), trial.settings.get("dim")) for trial in tuning.trials]
    assert tried[0] == (None, None)
    assert sorted(tried[1:]) == sorted(product((3e-4, 1e-3, 3e-3, 1e-2), (64, 128, 300)))
    assert len(tune(workspace, catalog, config, trials=3, grid=True).trials) == 3


@pytest.mark.parametrize("given", [["--ids"], ["--model", "esasrec"]])
def test_the_next_command_trains_what_was_tuned(
    given: list[str], catalog: Catalog, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    registry = ["--registry", str(tmp_path / "registry")]
    on = ["--data", str(catalog.path), *given, "--set", "recommender.epochs=1"]
    assert run(["recommend", "tune", *on, "--trials", "1", *registry]) == 0
    said = capsys.readouterr()
    argv = shlex.split(next(line for line in said.err.splitlines() if line.startswith("Next: ")))[2:]
    assert argv == ["recommend", "train", "--data", str(catalog.path), *given, "--config", said.out.strip()]
    assert run([*argv, *registry, "--json"]) == 0


def test_the_command_writes_settings_that_train_reads(
    catalog: Catalog, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    registry = ["--registry", str(tmp_path / "registry")]
    quick = [part for key in ("epochs=2", "inner=16") for part in ("--set", f"recommender.{key}")]
    argv = ["recommend", "tune", "--data", str(catalog.path), "--ids", "--trials", "3", *registry, *quick]
    assert run([*argv, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert len(said["trials"]) == 3
    assert run(argv) == 0
    file = capsys.readouterr().out.strip()
    assert file == said["file"]
    argv = ["recommend", "train", "--data", str(catalog.path), "--ids", "--config", file, *registry]
    assert run([*argv, "--json"]) == 0
    trained = json.loads(capsys.readouterr().out)
    assert trained["valid"]["ndcg@10"] == pytest.approx(said["best"]["ndcg10"], abs=1e-6)
    assert (
        run(
            [
                "recommend",
                "evaluate",
                trained["id"],
                "--data",
                str(catalog.path),
                "--slices",
                "--json",
                *registry,
            ]
        )
        == 0
    )
    sliced = json.loads(capsys.readouterr().out)
    assert sliced["slices"][0]["ndcg@10"] == trained["test"]["ndcg@10"]
    assert 0 < sliced["coverage"] <= 1
    assert run(["recommend", "tune", "--data", str(catalog.path), *registry]) == 2
    assert "--vectors REF or --ids" in capsys.readouterr().err
