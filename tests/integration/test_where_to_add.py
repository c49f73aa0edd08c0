"""Rows that the core does not have: a search strategy and a readout, added as docs/architecture.md says and run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from earec_core.aligned import readouts
from earec_core.aligned.model import States
from earec_core.aligned.readouts import Readout
from earec_core.aligned.stored import adapter_of, open_model, stored_model
from earec_core.artifacts import ItemVectors
from earec_core.config import BackboneConfig, RunConfig, SearchConfig, resolve
from earec_core.llm.backbone import Backbone
from earec_core.search import SearchResult, search, strategies
from earec_core.workspace import Workspace

from .conftest import Pipeline

DOCS = Path(__file__).parents[2] / "docs"


def _search(pipeline: Pipeline, home: Path, strategy: str, **budget: Any) -> SearchResult:
    config: RunConfig = resolve(flags={"backbone.model": str(pipeline.llm), "backbone.dtype": "float32"})
    config = config.model_copy(update={"search": SearchConfig(step=0.25, **budget)})
    adapters: Mapping[str, str] = {"text": "text/things", "behavior": "behavior/things"}
    workspace = Workspace.open(home, pipeline.registry)
    return search(workspace, pipeline.catalog, adapters, config, strategy=strategy)


def test_a_strategy_is_a_row_more(in_home: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one of docs/composition.md."""
    block = re.search(
        r"<!-- strategy -->\n```python\n(.*?)```", (DOCS / "composition.md").read_text(), re.DOTALL
    )
    assert block is not None
    monkeypatch.setitem(strategies.STRATEGIES, "corners", strategies.STRATEGIES["grid"])  # taken out again
    exec(block[1], {})  # noqa: S102 - our own page
    assert strategies.STRATEGIES["corners"].name == "corners"
    grid = _search(in_home, tmp_path / "grid", "grid").path
    values = {(e.weights["text"], e.weights["behavior"]): e.value for e in grid}
    best = min(((1.0, 0.0), (0.0, 1.0)), key=values.__getitem__)
    expected = [(1.0, 0.0), (0.0, 1.0), (0.75, 0.25) if best == (1.0, 0.0) else (0.25, 0.75)]
    begun = _search(in_home, tmp_path / "corners", "corners", max_evaluations=1)
    assert (len(begun.path), begun.complete) == (1, False)
    found = _search(in_home, tmp_path / "corners", "corners")
    assert found.folder == begun.folder
    assert found.complete
    assert [(e.weights["text"], e.weights["behavior"]) for e in found.path] == expected
    assert [e.value for e in found.path] == pytest.approx([values[point] for point in expected], rel=1e-5)
    assert found.best.value == min(e.value for e in found.path)


def _last_two(states: States) -> torch.Tensor:
    rows, lengths = torch.arange(len(states.lengths)), states.lengths
    return (states.hidden[rows, lengths - 1] + states.hidden[rows, lengths - 2]) / 2


def test_a_readout_is_a_row_more(in_home: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    argv = ["encode", "composite", "--data", str(in_home.data), *in_home.settings(encode__readout="last-two")]
    argv += ["--name", "vectors/last-two"]
    assert in_home.run(*argv) == 2
    row: dict[str, Any] = {"name": "last-two", "method": "mean-of-last-two", "read": _last_two}
    readout = Readout(**{field.name: row[field.name] for field in fields(Readout)})
    monkeypatch.setitem(readouts.READOUTS, "last-two", readout)
    assert in_home.run(*argv) == 0
    workspace, catalog = in_home.workspace, in_home.catalog
    vectors = ItemVectors.open(workspace.registry, "vectors/last-two", catalog)
    assert vectors.manifest.method == "mean-of-last-two"
    backbone = Backbone.load(BackboneConfig(model=str(in_home.llm), dtype="float32"))
    stored = open_model(workspace.registry, "composite")
    model = stored_model(workspace, catalog, backbone, stored)
    with backbone.adapted(adapter_of(stored)), torch.inference_mode():
        states = [model.states(model.splice([model.prompts.prompt(row)])) for row in range(len(catalog))]
    alone = [(each.hidden, int(each.lengths)) for each in states]
    expected = np.stack([hidden[0, n - 2 : n].mean(0).numpy() for hidden, n in alone])
    np.testing.assert_allclose(vectors.vectors, expected, rtol=1e-4, atol=1e-5)
    last = np.stack([hidden[0, n - 1].numpy() for hidden, n in alone])
    assert np.abs(vectors.vectors - last).max() > 1e-2


def test_the_pages_example_runs(in_home: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The block under "Data flow" on the pipeline's composite: both ways give the same vectors."""
    block = re.search(r"```python\n(.*?)```", (DOCS / "architecture.md").read_text(), re.DOTALL)
    assert block is not None
    (tmp_path / "home").mkdir()
    (tmp_path / "home/registry").symlink_to(in_home.registry)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/movies").symlink_to(in_home.data)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EAREC_BACKBONE__MODEL", str(in_home.llm))
    monkeypatch.setenv("EAREC_BACKBONE__DTYPE", "float32")
    scope: dict[str, Any] = {}
    exec(block[1], scope)  # noqa: S102 - our own page
    assert scope["vectors"].shape == (len(in_home.catalog), scope["backbone"].d_llm)
    np.testing.assert_allclose(scope["first"], scope["vectors"][:10], rtol=1e-4, atol=1e-5)
