"""`recommend topk` for a user, a history and many users, and `similar`: against scores sorted by hand."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from earec_core.artifacts import ItemVectors
from earec_core.catalog import Catalog
from earec_core.cli import run
from earec_core.recommend import TrainedRecommender, serving
from earec_registry import Registry

N, USERS = 25, 20
Answer = Callable[..., Any]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    """A catalog `data`, a recommender `r` on ids, vectors `v` of which nearly all is alike."""
    monkeypatch.setenv("EAREC_HOME", str(tmp_path / "home"))
    source = tmp_path / "source"
    source.mkdir()
    rng = np.random.default_rng(0)
    uses = [(user, item) for user in range(USERS) for item in rng.permutation(N)[: rng.integers(5, 12)]]
    lines = [f"u{user},i{item:02},{time}" for time, (user, item) in enumerate(uses)]
    (source / "interactions.csv").write_text("\n".join(["user_id,item_id,timestamp", *lines]))
    items = [json.dumps({"item_id": f"i{row:02}", "title": f"thing {row}"}) for row in range(N)]
    (source / "items.jsonl").write_text("\n".join(items))
    data = tmp_path / "data"
    assert run(["data", "import", str(source), "--out", str(data), "--core", "1"]) == 0
    sets = [f"--set=recommender.{pair}" for pair in ("epochs=3", "dim=8", "lr=0.05")]
    assert run(["recommend", "train", "--ids", "--data", str(data), "--name", "r", *sets]) == 0
    catalog = Catalog.open(data)
    vectors = rng.normal(size=(len(catalog), 6)).astype(np.float32) * [9, 1, 1, 1, 1, 0.1] + 100
    vectors[3] = 0
    registry = Registry.open(tmp_path / "home" / "registry")
    ItemVectors.save(
        registry, vectors.astype(np.float32), catalog, name="vectors/data", why="test", method="last"
    )
    capsys.readouterr()
    return tmp_path


@pytest.fixture
def ask(home: Path, capsys: pytest.CaptureFixture[str]) -> Answer:
    """A command on that catalog, which must succeed; what it prints as JSON."""

    def asked(*argv: str) -> Any:
        assert run([*argv, "--data", str(home / "data"), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return asked


def _by_hand(home: Path, history: list[int], k: int, exclude: bool) -> list[str]:
    catalog = Catalog.open(home / "data")
    stored = Registry.open(home / "home" / "registry").materialize("r")
    model = TrainedRecommender.load(stored).model
    with torch.inference_mode():
        scores = model.scores(model.users([torch.tensor(history)], model.items()), model.items())[0]
    best = [row for row in scores.argsort(descending=True).tolist() if not (exclude and row in history)]
    return [catalog.items["item_id"][row] for row in best[:k]]


def test_a_history_typed_in_is_answered_as_one_that_is_known(home: Path, ask: Answer) -> None:
    catalog = Catalog.open(home / "data")
    sequences = catalog.sequences()
    known = sequences.of(4).tolist()
    user = ask("recommend", "topk", "r", "--user", str(sequences.users[4]), "-k", "4")
    typed = ask("recommend", "topk", "r", "--history", ",".join(catalog.items["item_id"][known]), "-k", "4")
    assert typed == user
    assert [row["item_id"] for row in user] == _by_hand(home, known, 4, exclude=True)
    assert [row["title"] for row in user] == [f"thing {int(row['item_id'][1:])}" for row in user]
    back = ask("recommend", "topk", "r", "--history", "i07", "-k", "25", "--include-seen")
    row = catalog.items["item_id"].to_list().index("i07")
    assert [one["item_id"] for one in back] == _by_hand(home, [row], 25, exclude=False)


def test_many_users_are_written_part_by_part_and_a_killed_run_goes_on(
    home: Path, ask: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "_PART", 6)
    whole, resumed = home / "whole", home / "resumed"
    answer = ask("recommend", "topk", "r", "--all-users", "-k", "3", "--out", str(whole))
    assert answer == {"out": str(whole), "users": USERS}
    assert len(list(whole.glob("part-*.parquet"))) == 4
    table = pl.read_parquet(whole / "part-*.parquet")
    sequences = Catalog.open(home / "data").sequences()
    assert table["user_id"].unique(maintain_order=True).to_list() == sequences.users.tolist()
    for row, user in enumerate(sequences.users.tolist()):
        mine = table.filter(pl.col("user_id") == user)
        assert mine["rank"].to_list() == [1, 2, 3]
        assert mine["item_id"].to_list() == _by_hand(home, sequences.of(row).tolist(), 3, exclude=True)

    command = ["recommend", "topk", "r", "--data", str(home / "data"), "--all-users", "-k", "3"]
    write = serving.write_atomic
    written: list[str] = []

    def killed(path: Path, content: bytes) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path.name)
        write(path, content)

    monkeypatch.setattr(serving, "write_atomic", killed)
    assert run([*command, "--out", str(resumed)]) == 130
    monkeypatch.setattr(
        serving, "write_atomic", lambda path, content: written.append(path.name) or write(path, content)
    )
    assert run([*command, "--out", str(resumed)]) == 0
    assert written == [f"part-0000{number}.parquet" for number in range(4)]
    assert pl.read_parquet(resumed / "part-*.parquet").equals(table)


def test_users_of_a_file_come_in_its_order(home: Path, ask: Answer) -> None:
    (home / "some.txt").write_text("u7\n\n  u2 \n")
    ask("recommend", "topk", "r", "--users", str(home / "some.txt"), "-k", "2", "--out", str(home / "some"))
    table = pl.read_parquet(home / "some" / "*.parquet")
    assert table["user_id"].to_list() == ["u7", "u7", "u2", "u2"]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--user", "nobody"], "no user 'nobody'"),
        (["--history", "i01,none"], "no item 'none'"),
        (["--history", ","], "without items"),
        (["--user", "u1", "--all-users"], "Exactly one of"),
        ([], "Exactly one of"),
        (["--all-users"], "--out belongs to"),
        (["--user", "u1", "--out", "x"], "--out belongs to"),
        (["--users", "{home}/gone.txt", "--out", "x"], "gone.txt cannot be read"),
        (["--users", "{home}/twice.txt", "--out", "x"], "'u1' is named twice"),
        (["--users", "{home}/empty.txt", "--out", "x"], "No user is named"),
        (["--all-users", "--out", "{home}/data"], "holds something else"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_answered_is_one_sentence(
    argv: list[str],
    said: str,
    home: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(home)
    (home / "twice.txt").write_text("u1\nu1\n")
    (home / "empty.txt").write_text("\n")
    command = ["recommend", "topk", "r", "--data", str(home / "data")]
    assert run([*command, *(part.format(home=home) for part in argv)]) == 2
    assert said in capsys.readouterr().err
    assert not (home / "x").exists()


def test_an_index_is_chosen_by_name_and_what_it_finds_is_told(
    home: Path, ask: Answer, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data", str(home / "data")]
    for argv in (["recommend", "topk", "r", "--user", "u3"], ["similar", "i08"]):
        exact = ask(*argv)
        assert run([*argv, *data, "--index", "hnsw", "--json"]) == 0
        said = capsys.readouterr()
        assert [row["item_id"] for row in json.loads(said.out)] == [row["item_id"] for row in exact]
        assert re.search(r"The index is hnsw: asked for\. Recall@10 1\.000, on \d\d (users|items)", said.err)
        assert run([*argv, *data, "--index", "ivfpq"]) == 2
        assert "IVF-PQ learns" in capsys.readouterr().err
    assert len(list((home / "home" / "cache" / "indexes").iterdir())) == 2
    many = ["recommend", "topk", "r", "--all-users", "-k", "3"]
    told = ask(*many, "--index", "hnsw", "--out", str(home / "graph"))
    assert told["index"] == {"kind": "hnsw", "why": "asked for", "recall@10": 1.0, "queries": USERS}
    assert run([*many, *data, "--out", str(home / "graph")]) == 2  # those of another index


@pytest.mark.parametrize("scaling", ["whiten", "none"])
def test_similar_items_are_those_of_the_largest_cosine(home: Path, ask: Answer, scaling: str) -> None:
    catalog = Catalog.open(home / "data")
    ids = catalog.items["item_id"].to_list()
    x = ItemVectors.open(Registry.open(home / "home" / "registry"), "vectors/data", catalog).vectors.astype(
        float
    )
    known = [row for row in range(N) if row != 3]
    x = x[known]
    if scaling == "whiten":
        z = (x - x.mean(0)) / x.std(0, ddof=1)
        values, basis = np.linalg.eigh(np.cov(z.T))
        x = z @ (basis / np.sqrt(values)) @ basis.T
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    cosines = dict(zip(known, unit @ unit[known.index(8)], strict=True))
    expected = sorted((row for row in known if row != 8), key=lambda row: -cosines[row])[:5]
    found = ask("similar", ids[8], "-k", "5", "--set", f"recommender.scaling={scaling}")
    assert [row["item_id"] for row in found] == [ids[row] for row in expected]
    assert [row["cosine"] for row in found] == pytest.approx([cosines[row] for row in expected], abs=1e-3)
    assert run(["similar", ids[3], "--data", str(home / "data")]) == 2
    # Raw vectors all point the same way, which is why they are whitened.
    assert (found[-1]["cosine"] > 0.98) == (scaling == "none")
