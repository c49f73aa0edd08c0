"""Item vectors in files: read back by pyarrow, polars, numpy and FAISS, indexes measured against brute force."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import polars as pl
import pytest
import torch
from pyarrow import parquet

from earec_core.artifacts import ItemVectors
from earec_core.catalog import Catalog, import_dataset
from earec_core.cli import run
from earec_core.config import RecommenderConfig
from earec_core.export import export_vectors, vectors
from earec_core.recommend.scaling import scaled
from earec_core.workspace import Workspace

N, D = 60, 16
TABLE = np.random.default_rng(0).normal(size=(N, D)).astype(np.float32)
PLAIN = RecommenderConfig(scaling="none")


@pytest.fixture
def stored(tmp_path: Path) -> Workspace:
    """Vectors of sixty items, `vectors/shop`."""
    (tmp_path / "source").mkdir()
    rows = [json.dumps({"item_id": f"é{n}", "title": f"thing {n}"}) for n in range(N)]
    (tmp_path / "source/items.jsonl").write_text("\n".join(rows))
    catalog = import_dataset(tmp_path / "source", tmp_path / "shop", core=0)
    workspace = Workspace.open(tmp_path / "home", tmp_path / "registry")
    ItemVectors.save(workspace.registry, TABLE, catalog, name="vectors/shop", why="a test", method="given")
    return workspace


def _ids(tmp_path: Path) -> list[str]:
    return Catalog.open(tmp_path / "shop").items["item_id"].to_list()


def _export(workspace: Workspace, *argv: str) -> int:
    return run(["export", "vectors/shop", "--registry", str(workspace.registry.root), *argv])


def test_parquet_is_read_back_by_pyarrow_and_polars(stored: Workspace, tmp_path: Path) -> None:
    file = tmp_path / "v.parquet"
    assert _export(stored, "--out", str(file)) == 0
    read = parquet.read_table(file)
    assert read["item_id"].to_pylist() == _ids(tmp_path)
    flat = read["vector"].combine_chunks()
    np.testing.assert_array_equal(flat.flatten().to_numpy().reshape(N, D), TABLE)
    assert (str(flat.type.value_type), flat.type.list_size) == ("float", D)
    np.testing.assert_array_equal(pl.read_parquet(file)["vector"].to_numpy(), TABLE)


def test_numpy_and_faiss_read_back_what_was_stored(
    stored: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for ending in ("npy", "faiss"):
        file = tmp_path / f"v.{ending}"
        assert _export(stored, "--out", str(file), "--json") == 0
        facts = json.loads(capsys.readouterr().out)
        assert (facts["file"], facts["items"], facts["d"]) == (str(file), N, D)
        assert json.loads(Path(facts["ids"]).read_text()) == _ids(tmp_path)
    np.testing.assert_array_equal(np.load(tmp_path / "v.npy"), TABLE)
    index = faiss.read_index(str(tmp_path / "v.faiss"))
    unit = TABLE / np.linalg.norm(TABLE, axis=1, keepdims=True)
    np.testing.assert_allclose(index.reconstruct_n(0, N), unit, atol=1e-6)
    cosines, found = index.search(unit[:5], 4)
    truth = np.argsort(-(unit[:5] @ unit.T), axis=1)[:, :4]
    np.testing.assert_array_equal(found, truth)
    np.testing.assert_allclose(cosines, np.take_along_axis(unit[:5] @ unit.T, truth, 1), atol=1e-6)
    assert facts["index"]["kind"] == "flat"
    assert facts["index"]["recall@10"] == 1


def test_vectors_are_scaled_as_the_recommender_scales_them(stored: Workspace, tmp_path: Path) -> None:
    file = str(tmp_path / "v.npy")
    for scaling in ("whiten", "standardise", "pca"):
        assert _export(stored, "--out", file, "--scaling", scaling) == 0
        expected = scaled(torch.from_numpy(TABLE), RecommenderConfig(scaling=scaling)).numpy()
        np.testing.assert_array_equal(np.load(file), expected)
    export_vectors(stored.registry, "vectors/shop", Path(file), RecommenderConfig(scaling="pca", dim=2))
    assert np.load(file).shape == (N, 8)


def test_an_export_that_fails_leaves_the_file_of_before(
    stored: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "v.npy"
    export_vectors(stored.registry, "vectors/shop", file, PLAIN)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}

    def full(opened: Any, table: np.ndarray, **_: Any) -> None:
        opened.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(vectors.np, "save", full)
    assert _export(stored, "--out", str(file), "--scaling", "whiten") == 1
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--out", "v.csv"], "ends with none of .parquet, .npy, .faiss"),
        (["--out", "plain"], "say --as for an adapter or composite"),
        (["--out", "v.npy", "--index", "hnsw"], "A .npy file has no index"),
        (["--out", "v.faiss", "--index", "ivfpq"], "from 9,984 items at least; there are 60"),
        (["--out", "nowhere/v.npy"], "does not exist"),
        (["--out", "plain", "--as", "peft"], "is of kind vectors, not an adapter or a composite"),
        (["--out", "plain", "--as", "peft", "--scaling", "pca"], "are of item vectors"),
    ],
)
def test_what_cannot_be_written_is_refused(
    stored: Workspace,
    argv: list[str],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert _export(stored, *argv) == 2
    assert said in capsys.readouterr().err
    assert not list(Path.cwd().iterdir())
