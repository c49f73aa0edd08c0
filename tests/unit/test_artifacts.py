"""Manifests: what a kind must say, and what earlier versions stored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from safetensors.numpy import save_file

from earec_core.artifacts import (
    AdapterManifest,
    CompositeManifest,
    EmbeddingsManifest,
    ItemVectors,
    ModalityRecord,
    RecommenderManifest,
    VectorsManifest,
    open_as,
    save,
)
from earec_core.catalog import Catalog, import_dataset
from earec_core.config import PromptConfig, RecommenderConfig
from earec_core.errors import IntegrityError, UsageError
from earec_registry import Registry

BASE = {"id": "tiny", "weights": "1" * 64, "config": "2" * 64, "tokenizer": "3" * 64}
DATA = {"name": "things", "digest": "4" * 64}
RECORD = {
    "plugin": {"distribution": "earec-text", "version": "0.1.0", "api": "1.0"},
    "config": {"max_tokens": 20},
    "shapes": {"d_enc": 32, "d_llm": 32},
    "projector": "projectors/text.safetensors",
}
PROMPT = PromptConfig().model_dump(mode="json")
# As `earec` stored them before manifests had a schema.
ADAPTER: dict[str, Any] = {
    "kind": "adapter",
    "modality": "text",
    "modalities": {"text": RECORD},
    "base": BASE,
    "prompt": PROMPT,
    "lora": {"r": 4, "alpha": 32, "dropout": 0.0, "seed": 0},
    "parents": [],
    "method": "lora",
    "training": {
        "config": "5" * 64,
        "data": DATA,
        "seed": 0,
        "steps": 3,
        "kept_step": 3,
        "items": {"train": 5, "valid": 1},
    },
    "metrics": {"valid_loss": 2.5},
}
COMPOSITE: dict[str, Any] = {
    "kind": "composite",
    "modalities": {"text": RECORD},
    "base": BASE,
    "prompt": PROMPT,
    "weights": {"text": 1.0},
    "layer_weights": {"0": {"text": 1.0}},
    "method": {"name": "dare", "rank": None, "density": 0.5, "seed": 0},
    "overridden": {},
    "report": {"rank": 4, "relative_error": 0.1, "truncation_error": None},
}
VECTORS: dict[str, Any] = {
    "kind": "features",
    "method": "last-hidden-state",
    "modalities": {"text": {"max_tokens": 20}},
    "base": BASE,
    "prompt": PROMPT,
    "parents": [],
    "data": DATA,
    "shapes": {"items": 2, "d": 3},
    "coverage": {"text": 2, "none": 0},
}
COMBINED: dict[str, Any] = {key: VECTORS[key] for key in ("kind", "parents", "data", "shapes")} | {
    "method": "mean of single modalities"
}
EMBEDDINGS: dict[str, Any] = {
    "kind": "features",
    "modality": "behavior",
    "plugin": {"distribution": "earec-behavior", "version": "0.1.0"},
    "catalog": DATA,
    "shapes": {"items": 2, "d": 3},
    "method": "sasrec",
    "training": {"config": RecommenderConfig().model_dump(mode="json"), "seed": 0, "epochs": 1},
    "metrics": {"test": {"hr@10": 0.5}},
}
RECOMMENDER: dict[str, Any] = {
    "kind": "recommender",
    "method": "vectors",
    "data": DATA,
    "parents": [],
    "training": {"config": RecommenderConfig().model_dump(mode="json"), "epoch": 2},
    "metrics": {"test": {"hr@10": 0.5}},
}


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry.open(tmp_path / "registry")


def store(registry: Registry, manifest: dict[str, Any], *paths: str, name: str = "a") -> str:
    file = registry.root.parent / "file"
    file.write_text("content")
    return registry.add(manifest, dict.fromkeys(paths, file), name=name)


PROJECTOR = "projectors/text.safetensors"


def test_an_adapter_of_before_opens(registry: Registry) -> None:
    identity = store(registry, ADAPTER, PROJECTOR)
    adapter = open_as(registry, "a", AdapterManifest, CompositeManifest)
    assert adapter.id == identity
    assert isinstance(adapter.manifest, AdapterManifest)
    assert adapter.manifest.record.shapes.d_enc == 32
    assert adapter.manifest.training.data.digest == "4" * 64
    assert adapter.manifest.prompt == PromptConfig()


def test_a_composite_of_before_opens(registry: Registry) -> None:
    parent = store(registry, ADAPTER, PROJECTOR)
    store(registry, {**COMPOSITE, "parents": [parent]}, PROJECTOR, name="b")
    composite = open_as(registry, "b", CompositeManifest).manifest
    assert (composite.method.name, composite.method.rank) == ("dare", None)
    assert composite.method.options == {"density": 0.5, "seed": 0}
    assert composite.adapters == {"text": parent}
    assert composite.search is None


def test_both_meanings_of_features_open_as_what_they_are(registry: Registry) -> None:
    store(registry, VECTORS, "vectors.safetensors", "item_ids.json", name="v")
    store(registry, COMBINED, "vectors.safetensors", "item_ids.json", name="c")
    store(registry, EMBEDDINGS, "embeddings.safetensors", "item_ids.json", name="e")
    assert open_as(registry, "v", VectorsManifest).manifest.coverage == {"text": 2, "none": 0}
    assert open_as(registry, "c", VectorsManifest).manifest.base is None
    embeddings = open_as(registry, "e", EmbeddingsManifest).manifest
    assert (embeddings.data.name, embeddings.kind) == ("things", "embeddings")
    with pytest.raises(UsageError, match="'e' is of kind embeddings, not a table of item vectors"):
        open_as(registry, "e", VectorsManifest)


@pytest.mark.parametrize(("method", "model"), [("vectors", "earec"), ("ids", "sasrec")])
def test_a_recommender_of_before_says_its_model(registry: Registry, method: str, model: str) -> None:
    store(registry, {**RECOMMENDER, "method": method})
    assert open_as(registry, "a", RecommenderManifest).manifest.model == model


@pytest.mark.parametrize(
    ("kind", "before", "files"),
    [
        (AdapterManifest, ADAPTER, [PROJECTOR]),
        (CompositeManifest, COMPOSITE, [PROJECTOR]),
        (VectorsManifest, VECTORS, ["vectors.safetensors"]),
        (EmbeddingsManifest, EMBEDDINGS, ["embeddings.safetensors"]),
        (RecommenderManifest, RECOMMENDER, []),
    ],
)
def test_what_is_saved_is_read_back_equal_and_has_a_schema(
    registry: Registry, tmp_path: Path, kind: Any, before: dict[str, Any], files: list[str]
) -> None:
    store(registry, before, *files, name="before")
    manifest = open_as(registry, "before", kind).manifest
    (tmp_path / "f").write_text("f")
    save(registry, manifest, dict.fromkeys(files, tmp_path / "f"), name="after", why="")
    stored = registry.manifest("after")
    assert stored.data["schema"] == 1
    assert open_as(registry, "after", kind).manifest == manifest


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"lora": {"r": 0}}, "lora.r"),
        ({"base": {}}, "base.id"),
        ({"prompt": None}, "prompt"),
        ({"surprise": 1}, "surprise"),
        ({"modalities": {"text": {**RECORD, "projector": "../../secret"}}}, "secret"),
        ({"modalities": {"text": {**RECORD, "projector": "other.safetensors"}}}, "other.safetensors"),
    ],
)
def test_a_manifest_that_lacks_what_its_kind_must_say_is_refused(
    registry: Registry, change: dict[str, Any], place: str
) -> None:
    store(registry, {**ADAPTER, **change}, PROJECTOR)
    with pytest.raises(IntegrityError, match=place):
        open_as(registry, "a", AdapterManifest)


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    source = tmp_path / "source"
    source.mkdir()
    (source / "items.jsonl").write_text(
        "\n".join(json.dumps({"item_id": i, "title": f"Thing {i}"}) for i in ("x", "y"))
    )
    import_dataset(source, tmp_path / "data", core=1)
    return Catalog.open(tmp_path / "data")


def test_vectors_are_those_of_the_catalog(registry: Registry, catalog: Catalog, tmp_path: Path) -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    saved = ItemVectors.save(registry, values, catalog, name="v", why="", method="test")
    opened = ItemVectors.open(registry, "v", catalog)
    assert opened.id == saved.id
    np.testing.assert_array_equal(opened.vectors, values)
    assert opened.manifest == saved.manifest
    assert opened.manifest.shapes.items == 2
    ids, tensors = tmp_path / "ids", tmp_path / "tensors"
    ids.write_text(json.dumps(["x", "z"]))
    save_file({"vectors": values}, tensors)
    files = {"vectors.safetensors": tensors, "item_ids.json": ids}
    registry.add({**VECTORS, "parents": []}, files, name="others")
    with pytest.raises(UsageError, match="are of 'things', whose items are not those of 'data'"):
        ItemVectors.open(registry, "others", catalog)


@pytest.mark.parametrize("path", ["../../secret", "/etc/hostname", "a/../../b", "projectors//x", "a\\b", ""])
def test_no_path_of_a_manifest_leaves_the_model_when_read_or_saved(
    registry: Registry, tmp_path: Path, path: str
) -> None:
    store(registry, {**ADAPTER, "modalities": {"text": {**RECORD, "projector": path}}}, PROJECTOR)
    with pytest.raises(IntegrityError, match="not a path inside a model"):
        open_as(registry, "a", AdapterManifest)
    with pytest.raises(ValidationError, match="not a path inside a model"):
        ModalityRecord.model_validate({**RECORD, "projector": path})


@pytest.mark.parametrize("name", ["..", "../text", "/etc", "a/b", "", "."])
@pytest.mark.parametrize("kind", [AdapterManifest, CompositeManifest, VectorsManifest])
def test_a_modality_whose_name_is_a_path_is_refused(registry: Registry, kind: Any, name: str) -> None:
    before = {AdapterManifest: ADAPTER, CompositeManifest: COMPOSITE, VectorsManifest: VECTORS}[kind]
    change = {
        "modalities": {name: before["modalities"]["text"]},
        **({"modality": name} if "modality" in before else {}),
    }
    store(registry, {**before, **change}, PROJECTOR, "vectors.safetensors")
    with pytest.raises(IntegrityError, match="modalit"):
        open_as(registry, "a", kind)


def test_a_file_that_is_not_listed_is_refused_when_it_is_saved(registry: Registry, tmp_path: Path) -> None:
    manifest = AdapterManifest.model_validate({**ADAPTER, "schema": 1})
    with pytest.raises(IntegrityError, match="none of its files"):
        save(registry, manifest, {}, name="b", why="")
    assert registry.list().entries == ()


def test_what_a_view_holds_beside_the_listed_files_is_never_opened(
    registry: Registry, tmp_path: Path
) -> None:
    store(registry, ADAPTER, PROJECTOR)
    view = open_as(registry, "a", AdapterManifest).folder
    (tmp_path / "outside" / "text").mkdir(parents=True)
    (view / "adapters").symlink_to(tmp_path / "outside")
    assert not (open_as(registry, "a", AdapterManifest).folder / "adapters").exists()


@pytest.mark.parametrize("key", sorted({*ADAPTER} - {"kind", "parents", "method"}))
def test_an_adapter_without_a_part_is_refused_in_a_sentence(registry: Registry, key: str) -> None:
    store(registry, {part: said for part, said in ADAPTER.items() if part != key}, PROJECTOR)
    with pytest.raises(IntegrityError, match=key):
        open_as(registry, "a", AdapterManifest)


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        (CompositeManifest, {"method": "dare"}),
        (CompositeManifest, {"method": {}}),
        (CompositeManifest, {"overridden": {"plugin": 3}}),
        (EmbeddingsManifest, {"catalog": None}),
        (RecommenderManifest, {"method": "magic"}),
        (RecommenderManifest, {"method": ["ids"]}),
        (AdapterManifest, {"modality": "vision"}),
        (AdapterManifest, {"modalities": {}}),
        (AdapterManifest, {"lora": {"r": 10**30, "alpha": "many"}}),
    ],
)
def test_a_manifest_of_before_with_wrong_types_is_refused(
    registry: Registry, kind: Any, change: dict[str, Any]
) -> None:
    before = {CompositeManifest: COMPOSITE, EmbeddingsManifest: EMBEDDINGS, RecommenderManifest: RECOMMENDER}
    store(registry, {**before.get(kind, ADAPTER), **change}, PROJECTOR, "embeddings.safetensors")
    with pytest.raises(IntegrityError, match="is not that of"):
        open_as(registry, "a", kind)


def test_vectors_of_another_shape_than_the_manifest_says_are_refused(
    registry: Registry, catalog: Catalog, tmp_path: Path
) -> None:
    (tmp_path / "ids").write_text(json.dumps(["x", "y"]))
    for values in (np.zeros((1, 3), np.float32), np.zeros(2, np.float32), np.zeros((2, 3), np.int64)):
        save_file({"vectors": values}, tmp_path / "tensors")
        files = {"vectors.safetensors": tmp_path / "tensors", "item_ids.json": tmp_path / "ids"}
        registry.add(VECTORS, files, name="v")
        with pytest.raises(IntegrityError, match="cannot be read"):
            ItemVectors.open(registry, "v", catalog)
