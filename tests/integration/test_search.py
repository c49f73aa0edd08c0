"""`earec search` over the tiny LLM: values, budget, resuming, and that no test data is looked at."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from earec_core.search.learn import Descent

from earec_core.aligned.prompts import Sample
from earec_core.aligned.stored import StoredModel, stored_model
from earec_core.catalog import Catalog
from earec_core.config import BackboneConfig, RecommenderConfig, RunConfig, resolve
from earec_core.errors import EarecError, UsageError
from earec_core.llm.backbone import Backbone
from earec_core.llm.lora import Mixture
from earec_core.search import Found, search, stage, strategies
from earec_core.search.objectives import Validation
from earec_registry import Registry

from .conftest import Pipeline

TEXT = ["--adapter", "text=text/things"]
BEHAVIOR = ["--adapter", "behavior=behavior/things"]
ADAPTERS = {"text": "text/things", "behavior": "behavior/things"}
OutJson = Callable[[], Any]


def config(pipeline: Pipeline) -> RunConfig:
    return resolve(flags={"backbone.model": str(pipeline.llm), "backbone.dtype": "float32"})


def found(pipeline: Pipeline, catalog: Catalog | None = None, **kwargs: Any) -> Found:
    return search(
        catalog or Catalog.open(pipeline.data),
        ADAPTERS,
        config(pipeline),
        Registry.open(pipeline.registry),
        **{"strategy": "grid", "objective": "loss", "step": 0.5, **kwargs},
    )


def found_at(pipeline: Pipeline, text: float) -> float:
    """The loss at one weighting."""
    backbone = Backbone.load(BackboneConfig(model=str(pipeline.llm), dtype="float32"))
    registry, catalog = Registry.open(pipeline.registry), Catalog.open(pipeline.data)
    models = {m: StoredModel.open(registry, ref) for m, ref in ADAPTERS.items()}
    model = stored_model(
        StoredModel.open(registry, "composite"), catalog.all_items(), catalog.name, backbone, registry
    )
    with backbone.adapted(Mixture({m: one.folder for m, one in models.items()})) as mixture:
        mixture.set({"text": text, "behavior": 1 - text})
        return Validation(model, catalog, 0, None).loss(16)


def test_the_grid_is_the_simplex() -> None:
    points: list[dict[str, float]] = []
    asking = strategies.grid(["a", "b", "c"], 0.1)
    weights = next(asking)
    try:
        while True:
            points.append(weights)
            weights = asking.send(0.0)
    except StopIteration:
        pass
    assert len(points) == strategies.grid_points(["a", "b", "c"], 0.1) == 66
    assert len({tuple(p.values()) for p in points}) == 66
    assert all(sum(p.values()) == pytest.approx(1) and min(p.values()) >= 0 for p in points)
    with pytest.raises(UsageError, match="no multiple of the step"):
        next(strategies.grid(["a"], 0.3))


def test_a_value_is_that_of_the_stored_composite(in_home: Pipeline) -> None:
    path = found(in_home).path
    assert [dict(e.weights) for e in path] == [
        {"text": 1.0, "behavior": 0.0},
        {"text": 0.5, "behavior": 0.5},
        {"text": 0.0, "behavior": 1.0},
    ]
    backbone = Backbone.load(BackboneConfig(model=str(in_home.llm), dtype="float32"))
    registry, catalog = Registry.open(in_home.registry), Catalog.open(in_home.data)
    stored = StoredModel.open(registry, "composite")
    model = stored_model(stored, catalog.all_items(), catalog.name, backbone, registry)
    with backbone.adapted(stored.adapter()):
        merged = Validation(model, catalog, 0, None).loss(16)
    assert path[1].value == pytest.approx(merged, rel=1e-4)


def test_learning_descends_below_the_grid(in_home: Pipeline) -> None:
    best = found(in_home, step=0.1).best.value
    learned = found(in_home, strategy="learn", descent=Descent())
    assert learned.best.value <= best + 1e-5
    assert (len(learned.steps), len(learned.path)) == (4, 5)
    layered = found(in_home, strategy="learn", descent=Descent(steps=6, per_layer=True)).best
    assert layered.value <= learned.best.value + 1e-4
    assert set(layered.layers) == {0, 1}
    assert all(sum(w.values()) == pytest.approx(1) for w in layered.layers.values())


def test_a_gradient_is_the_loss_es_slope(in_home: Pipeline) -> None:
    first, *_ = found(in_home, strategy="learn", descent=Descent(steps=1)).steps
    slope = np.array(first["gradient"][0]) @ [1.0, -1.0]
    around = [found_at(in_home, share) for share in (0.5 - 0.02, 0.5, 0.5 + 0.02)]
    assert first["loss"] == pytest.approx(around[1], rel=1e-5)
    assert slope == pytest.approx((around[2] - around[0]) / 0.04, rel=0.05)


@pytest.mark.parametrize("strategy", ["grid", "learn", "bayes"])
def test_a_killed_search_goes_on_to_the_same_end(
    strategy: str, in_home: Pipeline, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = {"strategy": strategy, "step": 0.25, "descent": Descent(steps=6)}
    if strategy == "bayes":
        settings["max_evaluations"] = 6
    monkeypatch.setattr(stage, "home", lambda: tmp_path / "whole")
    whole = found(in_home, **settings)
    monkeypatch.setattr(stage, "home", lambda: tmp_path / "killed")
    cut = found(in_home, **{**settings, "max_evaluations": 3})
    assert not cut.complete or strategy == "bayes"
    with (cut.folder / "path.jsonl").open("a") as log:
        log.write('{"weights": {"te')  # a line that the kill cut off
    again = found(in_home, **settings)
    assert [dict(e.weights) for e in again.path][-1] == pytest.approx(dict(whole.path[-1].weights), abs=1e-5)
    assert again.best.value == pytest.approx(whole.best.value, rel=1e-5)
    assert len(again.steps) == len(whole.steps)


def test_progress_says_how_far_the_search_is(in_home: Pipeline, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--data", str(in_home.data), "--modalities", "text,behavior", "--backbone", str(in_home.llm)]
    argv += [*TEXT, *BEHAVIOR, "--max-items", "2"]
    assert in_home.run("search", "grid", *argv, "--step", "0.25") == 0
    assert "search grid: 5/5 loss" in capsys.readouterr().err
    assert in_home.run("search", "bayes", *argv, "--max-minutes", "0.0001") == 0
    assert "search bayes: 1 loss" in capsys.readouterr().err


def test_a_loss_that_is_no_number_ends_the_search(in_home: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "home", lambda: in_home.data.parent / "nan")
    monkeypatch.setattr(Validation, "loss", lambda *_: float("nan"))
    with pytest.raises(EarecError, match=r"The loss of the weights text=1,behavior=0 is not a number"):
        found(in_home)


@pytest.mark.parametrize("objective", ["loss", "rouge", "ndcg@10"])
def test_test_targets_do_not_matter(
    objective: str, in_home: Pipeline, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The same search, with every user's test target and every test item's anchor replaced."""
    fast = {
        "objective": objective,
        "step": 1.0,
        "recommender": RecommenderConfig(dim=8, epochs=2, batch_size=64),
    }
    monkeypatch.setattr(stage, "home", lambda: tmp_path / "one")
    plain = found(in_home, **fast)
    monkeypatch.setattr(stage, "home", lambda: tmp_path / "other")
    catalog = Catalog.open(in_home.data)
    tested = set(catalog.item_split("test").tolist())
    items, split = catalog.all_items(), catalog.leave_one_out()
    monkeypatch.setattr(
        Catalog,
        "all_items",
        lambda _: [replace(i, title="elsewhere") if i.index in tested else i for i in items],
    )
    monkeypatch.setattr(
        Catalog, "leave_one_out", lambda _: replace(split, test=(split.test + 1) % len(catalog))
    )
    other = found(in_home, catalog, **fast)
    assert [e.value for e in other.path] == [e.value for e in plain.path]
    assert tested


def test_the_search_reads_validation_items_alone(in_home: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: set[int] = set()
    plain = Validation.__init__

    def watched(self: Validation, *args: Any) -> None:
        plain(self, *args)
        samples: Iterator[Sample] = iter(self.samples)
        rows.update(s.prompt.item for s in samples)

    monkeypatch.setattr(Validation, "__init__", watched)
    catalog = Catalog.open(in_home.data)
    found(in_home, step=1.0)
    assert rows
    assert rows <= set(catalog.item_split("valid").tolist())


@pytest.mark.parametrize("per_layer", [False, True])
def test_what_is_found_is_composed_from_its_file(
    per_layer: bool, in_home: Pipeline, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    page, file = tmp_path / "page.html", tmp_path / "weights.json"
    strategy = ["learn", "--gradients", "2", "--per-layer"] if per_layer else ["grid", "--step", "0.5"]
    argv = ["search", *strategy, "--data", str(in_home.data), "--modalities", "text,behavior"]
    argv += ["--backbone", str(in_home.llm), "--set", "backbone.dtype=float32", *TEXT, *BEHAVIOR]
    argv += ["--report", str(page), "--out", str(file)]
    assert in_home.run(*argv) == 0
    done = capsys.readouterr()
    assert done.out == f"{file}\n"
    assert f"earec compose --weights @{file}\n" in done.err
    assert "<svg" in page.read_text()
    assert {path.name for path in tmp_path.iterdir()} == {page.name, file.name}
    found = json.loads(file.read_text())
    assert found["search"]["evaluations"] == 3
    assert found["search"]["data"]["digest"] == Catalog.open(in_home.data).digest
    assert len(found["layer_weights"]) == 2 * per_layer
    assert in_home.run("compose", "--weights", f"@{file}", "--name", "searched") == 0
    stored = Registry.open(in_home.registry).manifest("searched").data
    assert stored["search"] == found["search"]
    assert stored["weights"] == pytest.approx(found["weights"])
    assert stored.get("layer_weights", {}) == found["layer_weights"]
    assert stored["parents"][:2] == [found["adapters"][m] for m in ("behavior", "text")]


def test_the_file_lies_in_the_runs_folder(in_home: Pipeline, out_json: OutJson) -> None:
    argv = ["search", "grid", "--step", "1", "--data", str(in_home.data), "--modalities", "text,behavior"]
    assert in_home.run(*argv, "--backbone", str(in_home.llm), *TEXT, *BEHAVIOR, "--json") == 0
    said = out_json()
    assert Path(said["file"]) == Path(said["run"]) / "weights.json"
    stored = json.loads(Path(said["file"]).read_text())
    assert stored == {key: said[key] for key in ("weights", "layer_weights", "adapters", "search")}


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["learn", "--adapter", "text=text/described"], "prompt.anchor"),
        (["grid", *TEXT, "--step", "0.3"], "no multiple of the step"),
        (["learn", *TEXT, "--step", "0.5"], "--step belongs to the search grid"),
        (["grid", *TEXT, "--per-layer"], "--per-layer belongs to the search learn"),
        (["bayes", *TEXT, "--gradients", "3"], "--gradients belongs to the search learn"),
        (["learn", *TEXT, "--objective", "rouge"], "no gradient"),
        (["bayes", *TEXT], "no end of its own"),
        (["grid", *TEXT, "--allow-mismatch", "colour"], "knows no colour"),
        (["grid", *TEXT, "--out", "none/weights.json"], "does not exist"),
    ],
)
def test_what_does_not_fit_is_not_searched(
    argv: list[str],
    said: str,
    in_home: Pipeline,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = ["align", "--modality", "text", "--data", str(in_home.data), "--name", "text/described"]
    other += in_home.settings(align__max_steps=1, prompt__anchor='["description"]')
    assert in_home.run(*other) == 0
    monkeypatch.setattr(Backbone, "load", lambda *_: pytest.fail("it loads the backbone"))
    common = ["--data", str(in_home.data), "--modalities", "text,behavior", "--backbone", str(in_home.llm)]
    assert in_home.run("search", *argv, *common, *BEHAVIOR) == 2
    assert said in capsys.readouterr().err
