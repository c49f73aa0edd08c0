"""Items that do not fit, models of few positions, titles that say nothing, templates that change."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import load_file

from earec_core.align import train as training
from earec_core.aligned.build import new_model
from earec_core.artifacts import AdapterManifest, VectorsManifest, open_as
from earec_core.catalog import Catalog
from earec_core.cli import run
from earec_core.config import BackboneConfig, PromptConfig
from earec_core.llm.backbone import Backbone
from earec_core.workspace import Workspace
from earec_registry import Registry

from .conftest import FAST, write_source

LONG = "i3"


class Bench:
    """Commands over a home of their own."""

    def __init__(self, folder: Path, llm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.llm = folder, llm
        monkeypatch.setenv("EAREC_HOME", str(folder / "home"))

    def imported(self, source: Path) -> Path:
        data = self.folder / "data" / source.name
        assert run(["data", "import", str(source), "--out", str(data), "--core", "1"]) == 0
        return data

    def run(self, *argv: str, **settings: Any) -> int:
        values = {**FAST, "align.epochs": 1, **{k.replace("__", "."): v for k, v in settings.items()}}
        pairs = [part for key, value in values.items() for part in ("--set", f"{key}={value}")]
        registry = str(self.folder / "registry")
        return run([*argv, "--backbone", str(self.llm), *pairs, "--registry", registry])

    @property
    def registry(self) -> Registry:
        return Registry.open(self.folder / "registry")

    def items(self, name: str) -> dict[str, int]:
        """How many items an adapter was trained on, and left out."""
        return dict(open_as(self.registry, name, AdapterManifest).manifest.training.items)


@pytest.fixture
def bench(tmp_path: Path, tiny_llm: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, tiny_llm, monkeypatch)


def _changed(source: Path, **fields: str) -> Path:
    """The items' file with other fields in one item."""
    file = source / "items.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows = [{**row, **fields} if row["item_id"] == LONG else row for row in rows]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return source


def _gpt2(folder: Path, llm: Path, positions: int) -> Path:
    """A tiny random GPT-2, whose positions are learned and end, with the tiny tokenizer."""
    from transformers import GPT2Config, GPT2LMHeadModel

    shutil.copytree(llm, folder)
    vocabulary = json.loads((llm / "config.json").read_text())["vocab_size"]
    config = GPT2Config(
        vocab_size=vocabulary, n_positions=positions, n_embd=32, n_layer=2, n_head=4, bos_token_id=0
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def test_an_item_of_a_huge_title_is_left_out_and_counted(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    data = bench.imported(_changed(write_source(bench.folder / "things"), title="x" * 100_000))
    argv = ["align", "--modality", "text", "--data", str(data)]
    assert bench.run(*argv, prompt__too_long="stop") == 2
    said = capsys.readouterr().err
    assert f"Item '{LONG}' needs" in said
    assert "prompt.too_long=leave-out" in said
    assert not bench.registry.list().entries
    assert bench.run(*argv) == 0
    assert "1 items left out" in capsys.readouterr().err
    # The split is by item id; this one is in the part that trains or validates.
    assert bench.items("text/things")["too_long"] == 1
    # The title is no part of the prompt: the item is encoded as any other.
    assert bench.run("encode", "text/things", "--data", str(data)) == 0
    assert "too_long" not in open_as(bench.registry, "vectors/things", VectorsManifest).manifest.coverage


def test_generation_ends_where_the_positions_do(bench: Bench, tmp_path: Path) -> None:
    """GPT-2's table of positions has no row behind its last; a prompt may fill all of them."""
    limit = 100
    source = _changed(write_source(bench.folder / "things"), description="lamp " * 50)
    catalog = Catalog.open(bench.imported(source))
    backbone = Backbone.load(BackboneConfig(model=str(_gpt2(tmp_path / "gpt2", bench.llm, limit))))
    workspace = Workspace.open(tmp_path / "home", tmp_path / "registry")
    config = PromptConfig(item="{item}", request="Say it.")
    model = new_model(workspace, catalog, backbone, {"text": {"max_tokens": 300}}, config)
    rows = [row for row in range(len(catalog)) if model.prompts.has(row)]
    prompts = [model.prompts.prompt(row) for row in rows]
    lengths = [model.prompts.length(prompt) for prompt in prompts]
    assert max(lengths) == limit
    model.generate(prompts, 64, batch_size=4)
    roomy = [model.prompts.prompt(row, room=30) for row in rows]
    assert max(model.prompts.length(prompt) for prompt in roomy) == limit - 30
    cut = [prompt.cut for prompt in roomy]
    assert sum(n > 0 for n in cut) == 1
    assert [prompt for prompt, n in zip(roomy, cut, strict=True) if not n] == [
        prompt for prompt, n in zip(prompts, cut, strict=True) if not n
    ]


def test_a_shortened_slot_is_the_start_of_the_whole_one(bench: Bench) -> None:
    catalog = Catalog.open(bench.imported(write_source(bench.folder / "things")))
    backbone = Backbone.load(BackboneConfig(model=str(bench.llm)))
    workspace = Workspace.open(bench.folder / "home", bench.folder / "registry")
    model = new_model(workspace, catalog, backbone, {"text": {}}, PromptConfig(request="Say it."))
    whole = model.prompts.prompt(0)
    (slot,) = whole.slots
    pieces = tuple(replace(slot, keep=3) if piece == slot else piece for piece in whole.pieces)
    first, short = (model.splice([replace(whole, pieces=p)]) for p in (whole.pieces, pieces))
    kept = first.owners[0] == 0
    assert short.body[0][short.owners[0] == 0].tolist() == first.body[0][kept][:3].tolist()
    assert short.body[0][short.owners[0] != 0].tolist() == first.body[0][~kept].tolist()


def test_a_text_longer_than_the_model_is_shown_by_its_start(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.llm = _gpt2(tmp_path / "gpt2", bench.llm, 100)
    source = _changed(write_source(bench.folder / "things"), description="lamp " * 50)
    data = ["--data", str(bench.imported(source)), "--json"]
    argv = ["encode", "--unaligned", "--modalities", "text", *data]
    capsys.readouterr()
    assert bench.run(*argv, prompt__item="{item}", text__max_tokens=300) == 0
    said = capsys.readouterr()
    assert "1 of 20 items do not fit; they are shown by the start of their input." in said.err
    assert json.loads(said.out)["coverage"] == {"text": 18, "none": 2}


def test_an_item_that_cannot_be_shortened_is_counted_at_every_stage(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from earec_text.modality import TextModality

    monkeypatch.setattr(TextModality, "may_shorten", False)
    source = _changed(write_source(bench.folder / "things"), description="lamp " * 50)
    data = ["--data", str(bench.imported(source))]
    small: dict[str, Any] = {"text__max_tokens": 300, "prompt__item": "{item}", "prompt__max_tokens": 120}
    assert bench.run("align", "--modality", "text", *data, **small) == 0
    assert bench.items("text/things")["too_long"] == 1
    assert bench.run("encode", "text/things", *data, **small) == 0
    assert "1 of 20 items do not fit; their vector is the bare prompt's." in capsys.readouterr().err
    vectors = open_as(bench.registry, "vectors/things", VectorsManifest)
    assert vectors.manifest.coverage == {"text": 18, "none": 2, "too_long": 1}
    table = load_file(vectors.folder / "vectors.safetensors")["vectors"]
    items = Catalog.open(Path(data[1])).all_items()
    rows = [item.index for item in items if item.id == LONG or "description" not in item.fields]
    assert len(rows) == 3
    np.testing.assert_allclose(table[rows], np.repeat(table[rows[:1]], 3, axis=0), atol=1e-6)
    texts = bench.folder / "texts.parquet"
    argv = ["explain", "text/things", *data, "--split", "all", "--out", str(texts)]
    assert bench.run(*argv, **small) == 0
    assert "1 items left out" in capsys.readouterr().err
    assert pl.read_parquet(texts).filter(variant="aligned").height == 17
    assert LONG not in pl.read_parquet(texts)["item_id"].to_list()
    monkeypatch.setattr(Catalog, "item_split", lambda self, _: np.arange(len(self)))
    assert bench.run("search", "grid", "--modalities", "text", *data, **small) == 0
    assert "1 of 18 validation items do not fit and take no part." in capsys.readouterr().err


def test_titles_of_dots_are_without_anchor(
    bench: Bench, cases: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = bench.imported(cases / "dots")
    assert bench.run("align", "--modality", "text", "--data", str(data)) == 2
    assert "has both an anchor (title) and text" in capsys.readouterr().err


def test_titles_that_spell_control_tokens_train_as_text(
    bench: Bench, cases: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    responses: dict[int, tuple[int, ...]] = {}
    step = training.Trainer._step

    def watched(self: Any, batch: Any) -> Any:
        responses.update({sample.prompt.item: sample.response for sample in batch})
        return step(self, batch)

    monkeypatch.setattr(training.Trainer, "_step", watched)
    data = bench.imported(cases / "special")
    assert bench.run("align", "--modality", "text", "--data", str(data)) == 0
    assert len(responses) > 10
    # 0 and 1 are the tiny tokenizer's two control tokens.
    assert all(not {0, 1} & set(ids[:-1]) and ids[-1] == 1 for ids in responses.values())


def test_a_template_that_changes_is_another_run_and_leaves_stored_models_alone(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    llm = tmp_path / "llm"
    shutil.copytree(bench.llm, llm)
    bench.llm = llm
    data = ["--data", str(bench.imported(write_source(bench.folder / "things")))]
    assert bench.run("align", "--modality", "text", *data) == 0
    first = bench.registry.resolve("text/things")
    chat = open_as(bench.registry, "text/things", AdapterManifest).manifest.chat
    assert chat is not None
    assert chat.before == "<|im_start|>user\n"
    assert bench.run("encode", "text/things", *data, "--name", "before") == 0
    template = llm / "chat_template.jinja"
    template.write_text("{{ '<|im_start|>now\n' }}" + template.read_text())
    # The adapter's prompts are those that it was aligned with.
    assert bench.run("encode", first, *data, "--name", "after") == 0
    assert bench.registry.resolve("before") == bench.registry.resolve("after")
    capsys.readouterr()
    assert bench.run("align", "--modality", "text", *data) == 0
    assert "Already aligned" not in capsys.readouterr().err
    assert bench.registry.resolve("text/things") != first
