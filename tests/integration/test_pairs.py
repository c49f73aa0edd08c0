"""Alignment with pairs: items that users have together come together, and a killed run ends the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from earec_core.align import train as training
from earec_core.align.contrast import Companions
from earec_core.artifacts import ItemVectors
from earec_core.workspace import Workspace

from .conftest import Pipeline


def _closeness(pipeline: Pipeline, name: str) -> float:
    """Mean cosine of standardised vectors of training items that go together, less that of those that do not."""
    catalog = pipeline.catalog
    vectors = ItemVectors.open(pipeline.workspace.registry, name, catalog).vectors
    x = (vectors - vectors.mean(0)) / vectors.std(0)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    rows = catalog.item_split("train").tolist()
    companions = Companions.read(catalog.leave_one_out().train, rows)
    pairs = [(a, b) for a in rows for b in rows if a < b]
    near = [x[a] @ x[b] for a, b in pairs if companions.together(a, b)]
    far = [x[a] @ x[b] for a, b in pairs if not companions.together(a, b)]
    return float(np.mean(near) - np.mean(far))


def test_what_users_have_together_comes_together(
    in_home: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this catalog users stay with one colour."""
    closeness = {}
    for weight in (0.0, 1.0):
        on = ["--data", str(in_home.data), *in_home.settings(align__pairs=weight, align__epochs=8)]
        assert (
            in_home.run("align", "--modality", "text", *on, "--name", f"text/pairs-{weight}", "--json") == 0
        )
        run = Path(json.loads(capsys.readouterr().out)["run"])
        history = json.loads((run / "result.json").read_text())["history"]
        losses = [point["pairs_loss"] for point in history if "pairs_loss" in point]
        assert bool(losses) == bool(weight)
        assert in_home.run("encode", f"text/pairs-{weight}", *on, "--name", f"vectors/pairs-{weight}") == 0
        capsys.readouterr()
        closeness[weight] = _closeness(in_home, f"vectors/pairs-{weight}")
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
    assert closeness[1.0] > closeness[0.0] + 0.1


def test_a_killed_run_ends_the_same(in_home: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    on = ["--data", str(in_home.data), *in_home.settings(align__pairs=0.5, align__epochs=2)]
    argv = ["align", "--modality", "text", *on, "--name", "text/whole"]
    assert in_home.run(*argv) == 0
    whole = in_home.workspace.registry.resolve("text/whole")
    # The same run in another home, where nothing is known of the first.
    other = Workspace.open(in_home.folder / "other", in_home.registry)
    monkeypatch.setenv("EAREC_HOME", str(other.home))
    step, calls = training.Trainer._step, []

    def killed(self: Any, batch: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return step(self, batch)

    monkeypatch.setattr(training.Trainer, "_step", killed)
    assert in_home.run(*argv[:-1], "text/killed") == 130
    assert in_home.run(*argv[:-1], "text/killed") == 0
    folders = [in_home.workspace.registry.materialize(ref) for ref in (whole, "text/killed")]
    bytes_of = [(folder / "adapter_model.safetensors").read_bytes() for folder in folders]
    assert bytes_of[0] == bytes_of[1]


def test_another_readout_is_another_run_and_another_layer_is_refused(
    in_home: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    """With batches of one item, too, beside which its companion stands."""
    ids = set()
    for readout in ("last", "mean"):
        settings = in_home.settings(
            align__pairs=1.0, align__batch_size=1, align__epochs=1, encode__readout=readout
        )
        on = ["--data", str(in_home.data), *settings, "--name", f"text/{readout}"]
        assert in_home.run("align", "--modality", "text", *on) == 0
        ids.add(in_home.workspace.registry.resolve(f"text/{readout}"))
    assert len(ids) == 2
    on = ["--data", str(in_home.data), *in_home.settings(align__pairs=1.0, encode__layer=1)]
    assert in_home.run("align", "--modality", "text", *on) == 2
    assert "Leave encode.layer out" in capsys.readouterr().err


def test_a_catalog_without_companions_is_refused(
    in_home: Pipeline, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Companions, "read", classmethod(lambda cls, *_: cls({})))
    on = ["--data", str(in_home.data), *in_home.settings(align__pairs=0.7)]
    assert in_home.run("align", "--modality", "text", *on) == 2
    assert "set align.pairs to 0" in capsys.readouterr().err
