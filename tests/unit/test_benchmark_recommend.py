"""`benchmarks/recommend.py` and `sasrec_parity.py` on a small catalog; with their peers where there are any.

`EAREC_RECBOLE` and `EAREC_RECTOOLS` name the Pythons of environments with RecBole and RecTools.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from earec_core.catalog import Catalog, import_dataset
from earec_core.config import RecommenderConfig
from earec_core.recommend import MODELS, evaluate, train

FOLDER = Path(__file__).parents[2] / "benchmarks"
PEERS = {name: os.environ.get(f"EAREC_{name.upper()}") for name in ("recbole", "rectools")}


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    """40 users who go round a ring of 20 items."""
    folder = tmp_path_factory.mktemp("ring")
    rng, rows = np.random.default_rng(0), []
    for user in range(40):
        start = rng.integers(20)
        rows += [f"u{user},i{(start + step) % 20},{len(rows) + step}" for step in range(rng.integers(5, 12))]
    (folder / "source").mkdir()
    (folder / "source/items.csv").write_text("item_id,title\n" + "".join(f"i{i},Item\n" for i in range(20)))
    (folder / "source/interactions.csv").write_text("user_id,item_id,timestamp\n" + "\n".join(rows) + "\n")
    return import_dataset(folder / "source", folder / "data", core=1)


def _worker() -> ModuleType:
    spec = spec_from_file_location("recommend_worker", FOLDER / "recommend_worker.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _run(script: str, *options: str) -> dict[str, Any]:
    """What a benchmark prints with `--json`."""
    command = [sys.executable, "-W", "ignore", str(FOLDER / script), *options, "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_benchmark_trains_as_the_package_does(catalog: Catalog) -> None:
    found = _run("recommend.py", "--only", "quality", "--data", str(catalog.path), "--epochs", "3")
    assert found.keys() == {"quality"}
    split = catalog.leave_one_out()
    trained = train(MODELS["sasrec"], split, len(catalog), RecommenderConfig(epochs=3))
    ours, metrics = found["quality"]["earec"], evaluate(trained.model, split, "test")
    assert ours["best_valid"] == pytest.approx(max(epoch.ndcg10 for epoch in trained.history), abs=1e-6)
    assert ours["epochs_to_target"] == trained.best_epoch
    assert ours["test_ndcg@10"] == pytest.approx(metrics.ndcg(10), abs=1e-6)
    assert ours["test_hr@10"] == pytest.approx(metrics.hr(10), abs=1e-6)
    assert 0 < ours["seconds_to_target"] <= ours["seconds"]


def test_both_types_are_timed_on_the_same_steps() -> None:
    found = _run("recommend.py", "--only", "bfloat16", "--low-steps", "2", "--batch", "70")["bfloat16"]
    for items in ("ids", "vectors"):
        assert 0 < found[items]["losses_differ"] < 0.01
        assert found[items]["ratio"] == pytest.approx(found[items]["float32_s"] / found[items]["bfloat16_s"])


def test_training_alone_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    worker, now = _worker(), 0.0
    monkeypatch.setattr(worker.time, "process_time", lambda: now)
    trace = worker.Trace()
    now = 5.0
    trace.prepared()

    def validate(seconds: float) -> float:
        nonlocal now
        now += seconds
        return seconds

    validate_untimed = trace.without(validate)
    for trained, validated in ((2.0, 10.0), (3.0, 20.0)):
        now += trained
        trace.epoch(validate_untimed(validated))
    assert (trace.prepare, trace.seconds, trace.valid) == (5.0, [2.0, 5.0], [10.0, 20.0])


def test_training_stops_after_epochs_that_are_no_better() -> None:
    trace = _worker().Trace()
    settings = {"epochs": 6, "patience": 2, "seed": 0}
    stopped = []
    for ndcg in (0.1, 0.3, 0.3, 0.2):
        trace.epoch(ndcg)
        stopped.append(trace.ended(settings))
    assert stopped == [False, False, False, True]
    assert trace.best == 1


@pytest.mark.skipif(
    not all(PEERS.values()), reason="needs RecBole and RecTools; set EAREC_RECBOLE, EAREC_RECTOOLS"
)
def test_peers_train_on_the_same(catalog: Catalog) -> None:
    peers = [f"--{name}={python}" for name, python in PEERS.items()]
    options = ["--data", str(catalog.path), "--epochs", "2"]
    found = _run("recommend.py", "--only", "quality", *options, *peers)["quality"]
    for name in ("earec", *PEERS):
        assert found[name]["epochs"] == 2
        assert found[name]["best_valid"] >= found[name]["target"] > 0
        assert 0 < found[name]["test_hr@10"] <= 1
        assert 0 < found[name]["seconds_to_target"] <= found[name]["seconds"]
    both = _run("sasrec_parity.py", *options, peers[0], "--seeds", "2")
    assert both["recbole"]["epochs"] == both["earec"]["epochs"] == [2, 2]
    assert both["recbole"]["hr@10"]["mean"] > 0
