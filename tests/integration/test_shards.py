"""Encoding in windows and shards: what is encoded when, and that the vectors are those of encoding all at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from earec_core.aligned.model import AlignedModel
from earec_core.aligned.stored import adapter_of, open_model, stored_model
from earec_core.artifacts import ItemVectors
from earec_core.catalog import Catalog, import_dataset
from earec_core.config import RunConfig, resolve
from earec_core.encode import encode, item_vectors, windows
from earec_core.errors import DataError
from earec_core.llm.backbone import Backbone, Spliced
from earec_core.workspace import Reporter, Workspace

from .conftest import Pipeline, write_source


class Encoding:
    """Encodes in a home of its own, whose registry has the pipeline's models, and counts what the LLM reads."""

    def __init__(self, pipeline: Pipeline, home: Path) -> None:
        self.notes = list[str]()
        self.workspace = Workspace.open(home, pipeline.registry, reporter=Reporter(self.notes.append))
        self.pipeline, self.read = pipeline, list[int]()
        self.backbone = Backbone.load(self.config().backbone)

    def config(self, **more: Any) -> RunConfig:
        flags = {"backbone.model": str(self.pipeline.llm), "backbone.dtype": "float32"}
        return resolve(
            flags={**flags, "encode.shard_items": 3, **{k.replace("__", "."): v for k, v in more.items()}}
        )

    def __call__(self, catalog: Catalog, model: str = "composite", **more: Any) -> tuple[np.ndarray, int]:
        """The vectors, and how many prompts the LLM read for them."""
        self.read.clear()
        config, name = self.config(**more), "vectors/sharded"
        vectors = encode(self.workspace, catalog, model, config, name=name, backbone=self.backbone).vectors
        return vectors, sum(self.read)

    def at_once(self, catalog: Catalog, model: str = "composite", **more: Any) -> np.ndarray:
        """The vectors without windows, shards and store."""
        stored = open_model(self.workspace.registry, model)
        aligned = stored_model(self.workspace, catalog, self.backbone, stored)
        with self.backbone.adapted(adapter_of(stored)):
            return item_vectors(aligned, range(len(catalog)), self.config(**more).encode)


@pytest.fixture
def encoding(in_home: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Encoding:
    """Windows of 6 items, shards of 3 or more."""
    monkeypatch.setattr(windows, "WINDOW", 6)
    made, states = Encoding(in_home, tmp_path / "home"), AlignedModel.states

    def spied(model: AlignedModel, batch: Spliced, **options: Any) -> Any:
        made.read.append(len(batch.body))
        return states(model, batch, **options)

    monkeypatch.setattr(AlignedModel, "states", spied)
    return made


@pytest.fixture
def variant(tmp_path: Path) -> Callable[[Callable[[list[dict[str, Any]]], None]], Catalog]:
    """The pipeline's catalog with other items, without interactions."""
    number = 0

    def made(change: Callable[[list[dict[str, Any]]], None]) -> Catalog:
        nonlocal number
        number += 1
        source = write_source(tmp_path / f"source{number}")
        (source / "interactions.csv").unlink()
        rows = [json.loads(line) for line in (source / "items.jsonl").read_text().splitlines()]
        change(rows)
        (source / "items.jsonl").write_text("\n".join(map(json.dumps, rows)))
        return import_dataset(source, tmp_path / f"data{number}", name="things")

    return made


@pytest.mark.parametrize("readout", ["last", "mean", "slots"])
def test_windows_give_the_vectors_of_all_items_at_once(encoding: Encoding, readout: str) -> None:
    """With related items in the prompts, which may be of other windows."""
    catalog = encoding.pipeline.catalog
    assert any(item.relations for item in catalog.all_items())
    vectors, _ = encoding(encoding.pipeline.catalog, encode__readout=readout)
    np.testing.assert_allclose(vectors, encoding.at_once(catalog, encode__readout=readout), atol=1e-4)


def test_what_was_encoded_is_read_again(encoding: Encoding) -> None:
    catalog = encoding.pipeline.catalog
    vectors, read = encoding(catalog)
    again, nothing = encoding(catalog)
    assert (read, nothing) == (len(catalog), 0)
    np.testing.assert_array_equal(again, vectors)
    # Another readout is another vector, another model too.
    assert encoding(catalog, encode__readout="mean")[1] == len(catalog)
    assert encoding(catalog, "text/things")[1] > 0


def test_a_killed_run_goes_on_at_the_last_shard(encoding: Encoding, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog, states = encoding.pipeline.catalog, AlignedModel.states
    batches: list[int] = []

    def killed(model: AlignedModel, batch: Spliced, **options: Any) -> Any:
        if sum(batches) >= 10:
            raise KeyboardInterrupt
        batches.append(len(batch.body))
        return states(model, batch, **options)

    with monkeypatch.context() as patch:
        patch.setattr(AlignedModel, "states", killed)
        with pytest.raises(KeyboardInterrupt):
            encoding(catalog, encode__batch_tokens=64)
    assert encoding.backbone.adapter is None
    vectors, read = encoding(catalog, encode__batch_tokens=64)
    assert len(catalog) - sum(batches) <= read <= len(catalog) - sum(batches) + 3
    np.testing.assert_allclose(vectors, encoding.at_once(catalog), atol=1e-4)
    assert not list(encoding.workspace.home.glob("runs/*/.*"))


def test_a_damaged_shard_is_made_again(encoding: Encoding) -> None:
    catalog = encoding.pipeline.catalog
    vectors, _ = encoding(catalog)
    shard = min(encoding.workspace.vectors.glob("*/*.safetensors"))
    held = len(load_file(shard)["keys"])
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    again, read = encoding(catalog)
    assert read == held
    np.testing.assert_allclose(again, vectors, atol=1e-4)


def test_changed_and_new_items_are_encoded_alone_and_identical_ones_once(
    encoding: Encoding, variant: Callable[..., Catalog]
) -> None:
    def change(rows: list[dict[str, Any]]) -> None:
        rows[3]["description"] = "something else"
        rows.insert(1, {"item_id": "new", "title": "new", "description": "a lamp of brass"})
        rows.append({"item_id": "twin", "title": "twin", "description": "a lamp of brass"})

    before, after = variant(lambda rows: None), variant(change)
    first, _ = encoding(before, "text/things")
    assert not any("before" in note for note in encoding.notes)
    vectors, read = encoding(after, "text/things")
    assert read == 2
    kept_count = f"{len(after) - 3} of {len(after)} items were encoded before"
    assert any(kept_count in note for note in encoding.notes)
    np.testing.assert_allclose(vectors, encoding.at_once(after, "text/things"), atol=1e-4)
    kept = [row for row in range(1, len(before)) if row != 3]
    np.testing.assert_array_equal(vectors[[row + 1 for row in kept]], first[kept])
    stored = ItemVectors.open(encoding.workspace.registry, "vectors/sharded", after)
    np.testing.assert_array_equal(stored.vectors, vectors)


def test_a_catalog_that_is_replaced_meanwhile_stops_the_run(
    encoding: Encoding, variant: Callable[..., Catalog]
) -> None:
    catalog, other = variant(lambda rows: None), variant(lambda rows: rows.pop())
    (other.path / "items.parquet").replace(catalog.path / "items.parquet")
    with pytest.raises(DataError, match="was replaced while it was in use"):
        encoding(catalog, "text/things")
