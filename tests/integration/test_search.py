"""`earec search` over the tiny LLM: values, budget, resuming, and that no test data is looked at."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from earec_core.aligned.model import AlignedModel
from earec_core.aligned.prompts import Sample
from earec_core.aligned.stored import adapter_of, open_model, stored_model
from earec_core.catalog import Catalog
from earec_core.config import BackboneConfig, RecommenderConfig, RunConfig, SearchConfig, resolve
from earec_core.errors import EarecError, UsageError
from earec_core.llm.backbone import Adapter, Backbone
from earec_core.llm.lora import Mixture
from earec_core.search import SearchResult, objectives, search, strategies
from earec_core.search.stage import Objective
from earec_core.search.strategies import Outcome, Problem
from earec_core.workspace import Workspace
from earec_registry import Registry

from .conftest import Pipeline

TEXT = ["--adapter", "text=text/things"]
BEHAVIOR = ["--adapter", "behavior=behavior/things"]
ADAPTERS = {"text": "text/things", "behavior": "behavior/things"}
OutJson = Callable[[], Any]


def config(pipeline: Pipeline, **settings: Any) -> RunConfig:
    flags = {f"search.{key}": value for key, value in settings.items()}
    return resolve(flags={"backbone.model": str(pipeline.llm), "backbone.dtype": "float32", **flags})


def searched(
    pipeline: Pipeline,
    catalog: Catalog | None = None,
    *,
    strategy: str = "grid",
    objective: Objective = "loss",
    home: Path | None = None,
    recommender: RecommenderConfig | None = None,
    **settings: Any,
) -> SearchResult:
    """A search on the pipeline's adapters; `settings` are those of the section `search`."""
    resolved = config(pipeline, **{"step": 0.5, **settings})
    if recommender is not None:
        resolved = resolved.model_copy(update={"recommender": recommender})
    workspace = Workspace.open(home or pipeline.folder / "home", pipeline.registry)
    return search(
        workspace,
        catalog or pipeline.catalog,
        ADAPTERS,
        resolved,
        strategy=strategy,
        objective=objective,
    )


def validation_loss_of(pipeline: Pipeline, adapter: Callable[[], Adapter]) -> float:
    """The loss on the validation items with an adapter on the LLM."""
    backbone = Backbone.load(BackboneConfig(model=str(pipeline.llm), dtype="float32"))
    workspace, catalog = pipeline.workspace, pipeline.catalog
    model = stored_model(workspace, catalog, backbone, open_model(workspace.registry, "composite"))
    with backbone.adapted(adapter()):
        samples = objectives.validation_samples(model, catalog, 0, None)
        return objectives.validation_loss(model, samples, 16)


def loss_at(pipeline: Pipeline, text: float) -> float:
    """The loss at one weighting."""

    def mixture() -> Mixture:
        registry = pipeline.workspace.registry
        mixed = Mixture({m: open_model(registry, ref).folder for m, ref in ADAPTERS.items()})
        mixed.set({"text": text, "behavior": 1 - text})
        return mixed

    return validation_loss_of(pipeline, mixture)


def test_the_grid_is_the_simplex() -> None:
    problem = Problem(("a", "b", "c"), 1, maximise=False, seed=0, config=SearchConfig(step=0.1))
    asking, points = strategies.grid(problem), []
    proposal = next(asking)
    with suppress(StopIteration):
        while True:
            points.append(proposal.rows[0])
            proposal = asking.send(Outcome(0.0))
    assert len(points) == strategies.grid_points(problem) == 66
    assert len({tuple(point) for point in points}) == 66
    assert all(point.sum() == pytest.approx(1) and point.min() >= 0 for point in points)
    uneven = Problem(("a",), 1, maximise=False, seed=0, config=SearchConfig(step=0.3))
    with pytest.raises(UsageError, match="no multiple of the step"):
        next(strategies.grid(uneven))


def test_a_value_is_that_of_the_stored_composite(in_home: Pipeline) -> None:
    path = searched(in_home).path
    assert [dict(e.weights) for e in path] == [
        {"text": 1.0, "behavior": 0.0},
        {"text": 0.5, "behavior": 0.5},
        {"text": 0.0, "behavior": 1.0},
    ]
    composite = open_model(in_home.workspace.registry, "composite")
    merged = validation_loss_of(in_home, lambda: adapter_of(composite))
    assert path[1].value == pytest.approx(merged, rel=1e-4)


def test_learning_goes_below_the_grid(in_home: Pipeline) -> None:
    best = searched(in_home, step=0.1).best.value
    learned = searched(in_home, strategy="learn")
    assert learned.best.value <= best + 1e-5
    assert (len(learned.steps), len(learned.path)) == (4, 5)
    layered = searched(in_home, strategy="learn", gradients=6, per_layer=True).best
    assert layered.value <= learned.best.value + 1e-4
    assert set(layered.layers) == {0, 1}
    assert all(sum(w.values()) == pytest.approx(1) for w in layered.layers.values())


def test_a_gradient_is_the_loss_es_slope(in_home: Pipeline) -> None:
    first, *_ = searched(in_home, strategy="learn", gradients=1).steps
    assert first.gradient is not None
    slope = np.array(first.gradient[0]) @ [1.0, -1.0]
    around = [loss_at(in_home, share) for share in (0.5 - 0.02, 0.5, 0.5 + 0.02)]
    assert first.value == pytest.approx(around[1], rel=1e-5)
    assert slope == pytest.approx((around[2] - around[0]) / 0.04, rel=0.05)


@pytest.mark.parametrize("strategy", ["grid", "learn", "bayes"])
def test_a_killed_search_goes_on_to_the_same_end(strategy: str, in_home: Pipeline, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"step": 0.25, "gradients": 6}
    if strategy == "bayes":
        settings["max_evaluations"] = 6
    whole = searched(in_home, strategy=strategy, home=tmp_path / "whole", **settings)
    killed = {"strategy": strategy, "home": tmp_path / "killed"}
    cut = searched(in_home, **killed, **{**settings, "max_evaluations": 3})
    assert not cut.complete
    with (cut.folder / "path.jsonl").open("a") as log:
        log.write('{"weights": {"te')  # a line that the kill cut off
    again = searched(in_home, **killed, **settings)
    assert again.folder == cut.folder
    assert [dict(e.weights) for e in again.path][-1] == pytest.approx(dict(whole.path[-1].weights), abs=1e-5)
    assert again.best.value == pytest.approx(whole.best.value, rel=1e-5)
    assert (len(again.steps), len(again.path)) == (len(whole.steps), len(whole.path))


def test_progress_says_how_far_the_search_is(in_home: Pipeline, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--data", str(in_home.data), "--modalities", "text,behavior", "--backbone", str(in_home.llm)]
    argv += [*TEXT, *BEHAVIOR, "--max-items", "2"]
    assert in_home.run("search", "grid", *argv, "--step", "0.25") == 0
    assert "search grid: 5/5 loss" in capsys.readouterr().err
    assert in_home.run("search", "bayes", *argv, "--max-minutes", "0.0001") == 0
    assert "search bayes: 1 loss" in capsys.readouterr().err


def test_a_loss_that_is_no_number_ends_the_search(
    in_home: Pipeline, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(objectives, "validation_loss", lambda *_: float("nan"))
    with pytest.raises(EarecError, match=r"The loss of the weights text=1,behavior=0 is not a number"):
        searched(in_home, home=tmp_path)


@pytest.mark.parametrize("objective", ["loss", "rouge", "ndcg@10"])
def test_test_targets_do_not_matter(
    objective: Objective, in_home: Pipeline, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The same search, with every user's test target and every test item's anchor replaced."""
    fast: dict[str, Any] = {"objective": objective, "step": 1.0}
    fast["recommender"] = RecommenderConfig(dim=8, epochs=2, batch_size=64)
    plain = searched(in_home, home=tmp_path / "plain", **fast)
    catalog = in_home.catalog
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
    other = searched(in_home, catalog, home=tmp_path / "other", **fast)
    assert [e.value for e in other.path] == [e.value for e in plain.path]
    assert tested


def test_the_search_reads_validation_items_alone(
    in_home: Pipeline, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows: set[int] = set()
    forward = AlignedModel.forward

    def watched(self: AlignedModel, samples: Sequence[Sample]) -> Any:
        rows.update(sample.prompt.item for sample in samples)
        return forward(self, samples)

    monkeypatch.setattr(AlignedModel, "forward", watched)
    searched(in_home, step=1.0, home=tmp_path)
    assert rows
    assert rows <= set(in_home.catalog.item_split("valid").tolist())


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
    assert (stored["layer_weights"] or {}) == found["layer_weights"]
    assert stored["parents"][:2] == [found["adapters"][m] for m in ("behavior", "text")]


def test_the_file_lies_in_the_runs_folder(in_home: Pipeline, out_json: OutJson) -> None:
    argv = ["search", "grid", "--step", "1", "--data", str(in_home.data), "--modalities", "text,behavior"]
    assert in_home.run(*argv, "--backbone", str(in_home.llm), *TEXT, *BEHAVIOR, "--json") == 0
    said = out_json()
    assert Path(said["file"]) == Path(said["run"]) / "weights.json"
    stored = json.loads(Path(said["file"]).read_text())
    assert stored == {key: said[key] for key in ("weights", "layer_weights", "adapters", "search")}
    # A grid of corners ends in one, and is said to.
    (left,) = [modality for modality, weight in said["weights"].items() if weight == 0]
    assert said["caution"].startswith(f"{left} would have next to no part")
    assert "ndcg@10" in said["caution"]


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
