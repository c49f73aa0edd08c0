"""docs/api.md, run as the one script that it is."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from earec_core.cli import run

from .conftest import FAST, write_source

PAGE = Path(__file__).parents[2] / "docs" / "api.md"


def test_the_page_is_a_script_that_does_what_the_commands_do(
    tmp_path: Path, tiny_llm: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_source(tmp_path / "source")
    fast: dict[str, Any] = {**FAST, "backbone.model": str(tiny_llm), "recommender.epochs": 2}
    fast |= {"recommender.dim": 8, "recommender.lr": 0.01}
    del fast["align.epochs"]  # the page has it
    sections: dict[str, list[str]] = {}
    for key, value in fast.items():
        section, name = key.split(".")
        sections.setdefault(section, []).append(f"{name} = {json.dumps(value)}")
    lines = [line for section, rows in sections.items() for line in (f"[{section}]", *rows)]
    (tmp_path / "settings.toml").write_text("\n".join(lines))
    found: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(compile(block, str(PAGE), "exec"), found)  # noqa: S102 - the page's own code

    assert set(found["texts"]["source"]) == {"text", "behavior", "all"}
    assert {"source", "aligned", "shuffled"} <= {column.split("_")[0] for column in found["scores"].columns}
    width = json.loads((tiny_llm / "config.json").read_text())["hidden_size"]
    assert found["vectors"].shape == (len(found["movies"]), width)
    assert isinstance(found["table"], pl.DataFrame)
    capsys.readouterr()
    common = ["--data", "data/movies", "--registry", "home/registry", "--json"]
    assert run(["recommend", "evaluate", "recommender/movies", *common]) == 0
    by_command = json.loads(capsys.readouterr().out)
    assert found["metrics"].summary() == by_command
    assert run(["recommend", "topk", "recommender/movies", "--user", found["user"], "-k", "3", *common]) == 0
    best = json.loads(capsys.readouterr().out)
    assert [row["item_id"] for row in best] == list(found["best"].ids)
    assert np.allclose([row["score"] for row in best], found["best"].scores)
