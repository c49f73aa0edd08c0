"""A recommender from outside the core (the one of docs/plugins.md): trained, evaluated, stored and served."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from earec_core.catalog import Sequences
from earec_core.catalog.splits import leave_one_out
from earec_core.cli import run
from earec_core.config import RecommenderConfig
from earec_core.errors import PluginError, UsageError
from earec_core.recommend import (
    MODELS,
    choose_recommender,
    evaluate,
    get_recommender,
    recommender_names,
    train,
)

PAGE = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text()
BILINEAR = next(b for b in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "RecommenderModel(" in b)
N = 20
SETTINGS = ("dim=16", "lr=0.05", "epochs=30", "patience=30", "max_len=10")


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A distribution that brings `bilinear`, and one whose import fails."""
    for distribution, module, name, source in (
        ("earec-bilinear", "kit_bilinear", "bilinear", BILINEAR),
        ("earec-halts", "kit_halts", "halts", "raise RuntimeError('no luck')"),
    ):
        info = tmp_path / "site" / f"{distribution.replace('-', '_')}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[earec.recommenders]\n{name} = {module}:MODEL\n")
        (tmp_path / "site" / f"{module}.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield
    for module in [name for name in sys.modules if name.startswith("kit_")]:
        sys.modules.pop(module)


def _cycle() -> np.ndarray:
    """Users whose every next item follows from the last: item i is followed by i + 1."""
    return np.array([[(start + i) % N for i in range(8)] for start in range(N)] * 3)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A catalog of these users."""
    source = tmp_path / "source"
    source.mkdir()
    items = [json.dumps({"item_id": f"i{row:02}", "title": f"thing {row}"}) for row in range(N)]
    (source / "items.jsonl").write_text("\n".join(items))
    lines = [
        f"u{user},i{item:02},{time}" for user, row in enumerate(_cycle()) for time, item in enumerate(row)
    ]
    (source / "interactions.csv").write_text("\n".join(["user_id,item_id,timestamp", *lines]))
    assert run(["data", "import", str(source), "--out", str(tmp_path / "data")]) == 0
    return tmp_path / "data"


def test_a_plugins_model_is_listed_by_name_and_imported_for_its_own(installed: None) -> None:
    assert recommender_names() == [*MODELS, "bilinear", "halts"]
    with pytest.raises(
        UsageError, match=r"no recommender 'gru'\. Choose one of sasrec, esasrec, earec, .*, bilinear, halts"
    ):
        get_recommender("gru")
    assert not {"kit_bilinear", "kit_halts"} & set(sys.modules)
    assert get_recommender("bilinear").summary == "the last item alone"
    assert "kit_halts" not in sys.modules
    with pytest.raises(PluginError, match="no luck"):
        get_recommender("halts")


@pytest.mark.parametrize("similarity", ["inner", "cosine"])
def test_an_installed_model_does_all_that_the_cores_do(
    installed: None, data: Path, similarity: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = [part for s in (*SETTINGS, f"similarity={similarity}") for part in ("--set", f"recommender.{s}")]
    common = ["--data", str(data), "--json"]
    capsys.readouterr()
    assert run(["recommend", "train", "--model", "bilinear", *common, "--name", "r", *sets]) == 0
    trained = json.loads(capsys.readouterr().out)
    assert trained["test"]["ndcg@10"] > 0.95
    assert run(["recommend", "evaluate", "r", *common]) == 0
    assert json.loads(capsys.readouterr().out) == trained["test"]
    assert run(["registry", "show", "r", "--path"]) == 0
    assert (
        json.loads((Path(capsys.readouterr().out.strip()) / "config.json").read_text())["model"] == "bilinear"
    )
    for user in (0, 7, 33):
        assert run(["recommend", "topk", "r", *common, "--user", f"u{user}", "-k", "2"]) == 0
        first = json.loads(capsys.readouterr().out)[0]
        assert first["item_id"] == f"i{(_cycle()[user, -1] + 1) % N:02}"


def test_a_killed_training_of_it_goes_on_to_the_same_result(installed: None, tmp_path: Path) -> None:
    kind, config = get_recommender("bilinear"), RecommenderConfig(dim=8, epochs=4)
    rows = _cycle()
    split = leave_one_out(
        Sequences(np.arange(len(rows)).astype(str), np.arange(0, rows.size + 1, 8), rows.ravel())
    )
    whole = train(kind, split, N, config)

    def kill(stats: object) -> None:
        if stats.epoch == 2:  # type: ignore[attr-defined]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(kind, split, N, config, checkpoint=tmp_path / "c", progress=kill)
    resumed = train(kind, split, N, config, checkpoint=tmp_path / "c")
    assert [e.loss for e in resumed.history] == [e.loss for e in whole.history]
    np.testing.assert_array_equal(
        evaluate(resumed.model, split, "test").ranks, evaluate(whole.model, split, "test").ranks
    )


def test_a_row_more_in_the_table_is_a_model_more(installed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    row = get_recommender("bilinear")
    monkeypatch.setitem(MODELS, "mine", row)
    assert recommender_names() == [*MODELS, "bilinear", "halts"]
    assert list(MODELS)[-1] == "mine"
    assert choose_recommender("mine", vectors=False) is row


def test_vectors_choose_the_model_where_none_is_named() -> None:
    assert [choose_recommender(None, vectors=given).name for given in (True, False)] == ["earec", "sasrec"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model", "earec"], "'earec' is built on item vectors. Give --vectors"),
        (["--model", "earec", "--ids"], "'earec' is built on item vectors. Give --vectors"),
        (["--model", "sasrec", "--vectors", "v"], "'sasrec' takes no item vectors"),
        (["--model", "esasrec", "--vectors", "v"], "'esasrec' takes no item vectors"),
        (["--model", "gru", "--ids"], "no recommender 'gru'"),
        (["--ids", "--vectors", "v"], "Exactly one of --vectors and --ids"),
        ([], "Exactly one of --vectors and --ids"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_vectors_that_a_model_needs_or_does_not_take_are_said_before_the_work(
    data: Path, options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["recommend", "train", "--data", str(data), *options]) == 2
    assert said in capsys.readouterr().err


def test_training_refuses_what_a_model_does_not_take() -> None:
    split = leave_one_out(Sequences(np.array(["a"]), np.array([0, 3]), np.array([0, 1, 2])))
    with pytest.raises(UsageError, match="built on item vectors"):
        train(MODELS["earec"], split, 3, RecommenderConfig())
    with pytest.raises(UsageError, match="takes no item vectors"):
        train(MODELS["sasrec"], split, 3, RecommenderConfig(), vectors=torch.randn(3, 4))
