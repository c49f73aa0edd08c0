"""`earec compare` on the tiny LLM, against what the single commands say and against SciPy and plain loops."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Sequence
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy import stats

from earec_core.aligned.model import AlignedModel
from earec_core.artifacts import ItemVectors
from earec_core.cli import run
from earec_core.encode import stage as encoding
from earec_core.llm.backbone import Backbone
from earec_core.recommend.evaluate import histories
from earec_core.recommend.trained import TrainedRecommender

from .conftest import Pipeline

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def command(in_home: Pipeline) -> list[str]:
    """The comparison of the composite with its text adapter, of all items; two recommenders are registered."""
    data = ["--data", str(in_home.data)]
    for name, epochs in (("a", 3), ("b", 1)):
        few = [f"recommender.{key}" for key in ("dim=8", "inner=8", "lr=0.01", f"epochs={epochs}")]
        settings = [part for one in few for part in ("--set", one)]
        assert (
            in_home.run("recommend", "train", "--ids", *data, "--name", f"recommender/{name}", *settings) == 0
        )
    settings = in_home.settings(explain__max_new_tokens=3, explain__batch_size=7)
    return ["compare", "composite", "text/things", *data, "--split", "all", *settings]


@pytest.fixture
def without_vectors(in_home: Pipeline, command: list[str], tmp_path: Path) -> Pipeline:
    """The pipeline with a registry of its own, in which no vectors are."""
    copy = Pipeline(tmp_path, in_home.llm)
    copy.data = in_home.data
    shutil.copytree(in_home.registry, copy.registry)
    registry = copy.workspace.registry
    for entry in registry.list().entries:
        if entry.name.startswith("vectors/"):
            registry.untag(entry.name, entry.tag)
    return copy


def _recommenders() -> list[str]:
    return ["--recommender-a", "recommender/a", "--recommender-b", "recommender/b"]


def test_each_part_says_what_the_commands_of_its_own_say(
    in_home: Pipeline,
    command: list[str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EAREC_HOME", str(tmp_path / "home"))
    models = {"a": "composite", "b": "text/things"}
    for model in models.values():
        assert in_home.run("explain", model, *command[3:]) == 0
    _say_something(tmp_path / "home", [item.title or "" for item in in_home.catalog.all_items()])
    texts = {}
    for name, model in models.items():
        assert in_home.run("explain", model, *command[3:], "--out", str(tmp_path / name)) == 0
        read = pl.read_parquet(tmp_path / name).filter(variant="aligned")
        texts[name] = {
            str(source): dict(rows.select("item_id", "rouge_l").iter_rows())
            for (source,), rows in read.group_by("source")
        }
    named = ["--name", "vectors/mine"]
    assert in_home.run("encode", "composite", *command[3:5], *in_home.settings(), *named) == 0
    # What explain has said is not said again.
    monkeypatch.setattr(AlignedModel, "generate", lambda *_, **__: pytest.fail("it generates"))
    page = tmp_path / "page.html"
    capsys.readouterr()
    assert in_home.run(*command, *_recommenders(), "--out", str(page), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    rows = {(row["part"], row["what"]): row for row in found["rows"]}
    assert found["a"]["vectors"] == "vectors/mine:latest"
    _check_texts(rows, texts)
    pair = ["A=recommender/a", "B=recommender/b"]
    assert in_home.run("recommend", "compare", *pair, *command[3:5], "--json") == 0
    first, second = json.loads(capsys.readouterr().out)
    for metric in ("hr@10", "ndcg@10"):
        row = rows["recommendations", metric]
        assert [row[key] for key in ("a", "b")] == [first[metric], second[metric]]
        for key, there in (("difference", "less"), ("low", "low"), ("high", "high"), ("p", "p")):
            assert row[key] == second[f"{metric}_{there}"]
    assert rows["recommendations", "first 10 items"]["overlap"] == pytest.approx(_shared(in_home))
    assert rows["manifest", "kind"]["a"] == "composite"
    assert rows["manifest", "weights.behavior"]["a"] == "0.5"
    assert rows["manifest", "weights.behavior"]["b"] is None
    assert [what for part, what in rows if part == "manifest" and what.startswith("behavior.")] == [
        "behavior.adapter"
    ]
    assert not any("base" in what or "prompt" in what for part, what in rows if part == "manifest")
    shown = unescape(page.read_text())
    assert all(one["anchor"] in shown for one in found["said"])
    assert f"earec {shlex.join([*command, *_recommenders(), '--out', str(page), '--json'])}" in shown
    assert re.search(r"ROUGE-L from all: B less A is", shown)


def _say_something(home: Path, titles: list[str]) -> None:
    """Texts for those of the tiny LLM, which share no word with any anchor: a title, or a part of it."""
    for number, journal in enumerate(sorted(home.glob("runs/explain-*/texts-aligned-*.jsonl"))):
        rows = [row for line in journal.read_text().splitlines() for row in json.loads(line)]
        words = np.random.default_rng(number).integers(0, 3, len(rows)).tolist()
        said = {row: " ".join(titles[int(row)].split()[:n]) for row, n in zip(rows, words, strict=True)}
        journal.write_text(json.dumps(said) + "\n")


def _check_texts(rows: dict[tuple[str, str], Any], texts: dict[str, dict[str, dict[str, float]]]) -> None:
    """Means and paired differences of the texts that `explain` wrote; the adapter's one source is all of it."""
    ps, found = [], []
    for source in ("text", "all"):
        mine, theirs = texts["a"][source], texts["b"]["text"]
        both = [item for item in mine if item in theirs]
        a, b = (np.array([said[item] for item in both]) for said in (mine, theirs))
        row = rows["texts", f"ROUGE-L from {source}"]
        assert row["n"] == len(both) == 18
        assert (row["a"], row["b"]) == (pytest.approx(a.mean()), pytest.approx(b.mean()))
        low, high = stats.norm.interval(0.95, (b - a).mean(), stats.sem(b - a))
        assert (row["low"], row["high"]) == (pytest.approx(low, abs=1e-6), pytest.approx(high, abs=1e-6))
        ps.append(2 * stats.norm.sf(abs((b - a).mean()) / stats.sem(b - a)))
        found.append(row["p"])
    small, large = sorted(ps)
    assert sorted(found) == pytest.approx([min(1, 2 * small), max(min(1, 2 * small), large)])


def _shared(pipeline: Pipeline) -> float:
    """Mean part of the first ten items of a that are among those of b, after each user's history."""
    registry, split = pipeline.workspace.registry, pipeline.catalog.leave_one_out()
    past = histories(split, "test", split.eval_users)
    best = []
    for name in ("a", "b"):
        model = TrainedRecommender.load(registry.materialize(f"recommender/{name}")).model
        items = model.items()
        scores = model.scores(model.users(past, items), items).detach().numpy()
        best.append([set(row[:10]) for row in np.argsort(-scores, axis=1).tolist()])
    return float(np.mean([len(a & b) / 10 for a, b in zip(*best, strict=True)]))


def test_a_killed_comparison_goes_on_and_what_is_there_is_not_made_again(
    without_vectors: Pipeline,
    command: list[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("EAREC_HOME", str(tmp_path / "home"))
    generate, batches, stop = AlignedModel.generate, list[int](), 10

    def counted(model: AlignedModel, prompts: Sequence[Any], *given: Any, **named: Any) -> list[str]:
        batches.append(len(prompts))
        if len(batches) == stop:
            raise KeyboardInterrupt
        return generate(model, prompts, *given, **named)

    monkeypatch.setattr(AlignedModel, "generate", counted)
    assert without_vectors.run(*command) == 130
    before = sum(batches[:-1])
    batches.clear()
    stop = 0
    assert without_vectors.run(*command) == 0
    # The composite says something of 18 items from text, of 20 from behavior and from both, the adapter of 18.
    assert before + sum(batches) == 18 + 20 + 20 + 18
    assert before > 18
    said = capsys.readouterr()
    model = without_vectors.workspace.registry.resolve("text/things")
    name = f"vectors/things-{model[:12]}:latest"
    assert (
        ItemVectors.open(without_vectors.workspace.registry, name, without_vectors.catalog).manifest.parents[
            0
        ]
        == model
    )
    (last,) = [line for line in said.err.splitlines() if line.startswith("Next: ")]
    assert shlex.split(last)[1:5] == ["earec", "recommend", "train", "--vectors"]
    monkeypatch.setattr(encoding, "opened", lambda *_, **__: pytest.fail("it encodes"))
    batches.clear()
    assert without_vectors.run(*command) == 0
    assert batches == []
    assert capsys.readouterr().out == said.out


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["composite", "composite"], "are the same model"),
        (["composite", "vectors/none"], "vectors/none"),
        (["composite", "embeddings/things"], "not an adapter or a composite"),
        (["composite", "text/things", "--recommender-a", "x"], "Give both or none"),
        (
            ["composite", "text/things", "--recommender-a", "composite", "--recommender-b", "composite"],
            "not a recommender",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused_before_the_llm_is_loaded(
    in_home: Pipeline,
    argv: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(Backbone, "load", lambda *_: pytest.fail("it loads the backbone"))
    assert in_home.run("compare", *argv, "--data", str(in_home.data)) == 2
    assert said in capsys.readouterr().err


def test_models_of_two_llms_are_compared_with_both(
    in_home: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from earec_core.testing import tiny_backbone

    other = tiny_backbone(tmp_path / "other", hidden=24, seed=9)
    data = ["--data", str(in_home.data)]
    settings = in_home.settings(align__max_steps=1, explain__max_new_tokens=2)
    theirs = ["--backbone", str(other), *settings[2:]]
    assert in_home.run("align", "--modality", "text", *data, *theirs, "--name", "text/other") == 0
    argv = ["compare", "text/things", "text/other", *data, *settings, "--items", "2"]
    assert in_home.run(*argv) == 4
    assert "was aligned on" in capsys.readouterr().err
    assert in_home.run(*argv, "--backbone-b", str(other), "--json") == 0
    rows = {row["what"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    assert rows["base.weights"]["a"] != rows["base.weights"]["b"]
    assert rows["nearest 10 items"]["n"] == len(in_home.catalog)
    assert rows["ROUGE-L from text"]["n"] <= 2


def test_help_names_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    assert re.search(r"^  compare ", capsys.readouterr().out, re.MULTILINE)
