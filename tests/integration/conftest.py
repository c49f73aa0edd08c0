"""A small real pipeline over the tiny LLM: catalog, adapters, composite; made once a session."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from earec_core.catalog import Catalog
from earec_core.cli import run
from earec_core.workspace import Workspace

COLOURS = ["red", "blue", "green", "black"]
THINGS = ["pen", "book", "lamp", "chair", "desk"]
FAST = {
    "backbone.dtype": "float32",
    "align.epochs": 3,
    "align.eval_every": 1000,
    "align.rouge_items": 2,
    "align.checkpoint_every": 2,
    "align.lr": 0.01,
    "align.projector_lr": 0.01,
    "lora.r": 4,
    "explain.max_new_tokens": 6,
    "prompt.request": "Say it.",
    "text.max_tokens": 20,
}


def write_source(folder: Path) -> Path:
    """Items of a colour and a thing; users who stay with one colour. Some lack a description."""
    folder.mkdir(parents=True)
    rng = random.Random(0)
    items = [(f"i{n}", c, t) for n, (c, t) in enumerate((c, t) for c in COLOURS for t in THINGS)]
    with (folder / "items.jsonl").open("w") as out:
        for n, (item, colour, thing) in enumerate(items):
            row = {
                "item_id": item,
                "title": f"{colour} {thing}",
                "description": f"a {thing} that is {colour}",
            }
            if n % 7 == 6:
                del row["description"]
            out.write(json.dumps(row) + "\n")
    with (folder / "interactions.csv").open("w") as out:
        out.write("user_id,item_id,timestamp\n")
        for user in range(40):
            mine = [item for item, colour, _ in items if colour == COLOURS[user % 4]]
            rng.shuffle(mine)
            for time, item in enumerate([*mine, *mine[:2]]):
                out.write(f"u{user},{item},{time}\n")
    return folder


class Pipeline:
    """Commands over one home, registry and dataset."""

    def __init__(self, folder: Path, llm: Path) -> None:
        self.folder, self.llm = folder, llm
        self.data, self.registry = folder / "data" / "things", folder / "registry"

    def settings(self, **more: Any) -> list[str]:
        values = {**FAST, **{k.replace("__", "."): v for k, v in more.items()}}
        pairs = [part for key, value in values.items() for part in ("--set", f"{key}={value}")]
        return ["--backbone", str(self.llm), *pairs]

    @property
    def workspace(self) -> Workspace:
        return Workspace.open(self.folder / "home", self.registry)

    @property
    def catalog(self) -> Catalog:
        return Catalog.open(self.data)

    def run(self, *argv: str) -> int:
        return run([*argv, "--registry", str(self.registry)])


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory: pytest.TempPathFactory, tiny_llm: Path) -> Pipeline:
    folder = tmp_path_factory.mktemp("pipeline")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EAREC_HOME", str(folder / "home"))
        one = Pipeline(folder, tiny_llm)
        source = write_source(folder / "source")
        assert run(["data", "import", str(source), "--out", str(one.data)]) == 0
        data = ["--data", str(one.data)]
        assert one.run("behavior", "fit", *data, "--epochs", "2", "--dim", "8", "--lr", "0.01") == 0
        for modality in ("text", "behavior"):
            assert one.run("align", "--modality", modality, *data, *one.settings()) == 0
        assert one.run("compose", "--weights", "text=0.5,behavior=0.5", "--name", "composite") == 0
    return one


@pytest.fixture
def in_home(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    """The pipeline with its own home set for this test."""
    monkeypatch.setenv("EAREC_HOME", str(pipeline.folder / "home"))
    return pipeline


@pytest.fixture
def out_json(capsys: pytest.CaptureFixture[str]) -> Callable[[], Any]:
    """What the last command printed to stdout, as JSON."""
    return lambda: json.loads(capsys.readouterr().out)
