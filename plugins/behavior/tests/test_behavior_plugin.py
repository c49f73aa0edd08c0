"""The behavior plugin: tables of item embeddings in every form, and `earec behavior fit`."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.numpy import load_file, save_file

from earec_core import plugins
from earec_core.catalog import Catalog, import_dataset
from earec_core.cli import run
from earec_core.errors import DamagedInputError, IntegrityError, UsageError
from earec_core.modality import Context, create
from earec_core.types import Item
from earec_registry import Registry

IDS = ["a", "b", "c", "d"]
VALUES = np.random.default_rng(0).normal(3, 2, (4, 6)).astype(np.float32)


def item(index: int, id_: str | None = None) -> Item:
    return Item(index, id_ or IDS[index], None)


def make(*, catalog: str = "books", registry: Path | None = None, **config: Any) -> Any:
    return create("behavior", config, Context(catalog, registry))


@pytest.fixture
def registry(tmp_path: Path) -> Path:
    files = {name: tmp_path / name for name in ("embeddings.safetensors", "item_ids.json")}
    save_file({"embeddings": VALUES}, files["embeddings.safetensors"])
    files["item_ids.json"].write_text(json.dumps(IDS))
    # As earec stored them before manifests had a schema.
    manifest = {
        "kind": "features",
        "modality": "behavior",
        "plugin": {"distribution": "earec-behavior", "version": "0.1.0"},
        "catalog": {"name": "books", "digest": "0"},
        "shapes": {"items": 3, "d": 2},
        "method": "sasrec",
        "training": {},
        "metrics": {},
    }
    Registry.open(tmp_path / "registry").add(manifest, files, name="embeddings/books")
    return tmp_path / "registry"


def _npy(folder: Path) -> dict[str, str]:
    np.save(folder / "t.npy", VALUES.astype(np.float64))
    return {"embeddings": str(folder / "t.npy")}


def _npy_with(name: str, content: str) -> Callable[[Path], dict[str, str]]:
    def write(folder: Path) -> dict[str, str]:
        (folder / name).write_text(content)
        return {**_npy(folder), "ids": str(folder / name)}

    return write


def _safetensors(folder: Path) -> dict[str, str]:
    tensors = {"embeddings": VALUES, "other": VALUES[:1]}
    save_file(tensors, folder / "t.safetensors")
    return {"embeddings": str(folder / "t.safetensors")}


def _parquet_list(folder: Path) -> dict[str, str]:
    frame = pl.DataFrame({"item_id": IDS, "v": VALUES.tolist(), "title": IDS})
    frame.write_parquet(folder / "t.parquet")
    return {"embeddings": str(folder / "t.parquet")}


def _parquet_columns(folder: Path) -> dict[str, str]:
    columns = {f"v{i}": VALUES[:, i] for i in range(6)}
    pl.DataFrame({**columns, "item_id": IDS}).write_parquet(folder / "t.parquet")
    return {"embeddings": str(folder / "t.parquet")}


TABLES = {
    "npy": _npy,
    "npy and txt": _npy_with("ids.txt", "a\nb\nc\nd\n"),
    "npy and json": _npy_with("ids.json", '["a", "b", "c", "d"]'),
    "npy and csv": _npy_with("ids.csv", 'row,item_id\n0,a\n1,b\n2,"c"\n3,d\n'),
    "safetensors": _safetensors,
    "parquet list": _parquet_list,
    "parquet columns": _parquet_columns,
}


def test_the_plugin_is_usable_and_third_in_the_prompt() -> None:
    spec = plugins.get("behavior").spec
    assert (spec.order, spec.slot_token) == (30, "<behavior>")


@pytest.mark.parametrize("module", ["earec_behavior.spec", "earec_behavior.cli"])
def test_listing_it_imports_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print([m for m in ('torch','polars','transformers') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


@pytest.mark.parametrize("kind", TABLES)
def test_every_kind_of_table_gives_the_same_vectors(kind: str, tmp_path: Path) -> None:
    modality = make(**TABLES[kind](tmp_path), standardise=False)
    for index in range(4):
        assert np.array_equal(modality.read(item(index)), VALUES[index])
    if "ids" in modality.config.model_fields_set or kind.startswith("parquet"):
        assert modality.read(item(0, "unknown")) is None
        assert np.array_equal(modality.read(item(3, "a")), VALUES[0])


def test_the_catalogs_own_embeddings_are_found_by_themselves(registry: Path) -> None:
    for reference in ("", "embeddings/books", "embeddings/books:latest"):
        modality = make(registry=registry, embeddings=reference, standardise=False)
        assert np.array_equal(modality.read(item(1)), VALUES[1])
    resolved = modality.resolved_config()
    assert (resolved.embeddings,) == modality.sources()
    assert make(registry=registry, **resolved.model_dump(mode="json")).read(item(1)) is not None


def test_standardised_dimensions_have_mean_0_and_deviation_1(tmp_path: Path) -> None:
    values = np.concatenate([VALUES, np.full((4, 1), 0.3, dtype=np.float32)], axis=1)
    values = np.concatenate([values, np.full((1, 7), np.nan, dtype=np.float32)])
    np.save(tmp_path / "t.npy", values)
    modality = make(embeddings=str(tmp_path / "t.npy"))
    raws = np.stack([modality.read(item(i)) for i in range(4)])
    assert np.allclose(raws.mean(0), 0, atol=1e-6)
    assert np.allclose(raws.std(0), [1] * 6 + [0], atol=1e-5)
    assert modality.read(item(4, "e")) is None


def test_a_partly_broken_row_is_damaged(tmp_path: Path) -> None:
    values = VALUES.copy()
    values[1, 2], values[2, 0] = np.nan, np.inf
    np.save(tmp_path / "t.npy", values)
    modality = make(embeddings=str(tmp_path / "t.npy"))
    for index in (1, 2):
        with pytest.raises(DamagedInputError, match=IDS[index]):
            modality.read(item(index))
    assert np.isfinite(modality.read(item(0))).all()
    assert modality.describe(item(1))


def test_an_item_beyond_a_table_without_ids_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="4 rows"):
        make(**_npy(tmp_path)).read(item(4, "e"))


def test_embeddings_of_another_catalog_are_refused_by_name(registry: Path) -> None:
    with pytest.raises(UsageError, match=r"'books'.*'films'.*--set behavior.embeddings=embeddings/films"):
        make(catalog="films", registry=registry, embeddings="embeddings/books").read(item(0))


@pytest.mark.parametrize("reference", ["", "embeddings/none", "t.csv"])
def test_missing_embeddings_say_how_to_make_them(reference: str, registry: Path) -> None:
    with pytest.raises(UsageError, match="earec behavior fit"):
        make(catalog="films", registry=registry, embeddings=reference).read(item(0))


def test_an_artifact_of_another_kind_is_refused(registry: Path, tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    manifest = {"kind": "adapter", "modality": "behavior"}
    Registry.open(registry).add(manifest, {"f": tmp_path / "f"}, name="behavior/books")
    with pytest.raises(UsageError, match="kind adapter"):
        make(registry=registry, embeddings="behavior/books").read(item(0))


def _broken(folder: Path, kind: str) -> dict[str, str]:
    npy, parquet, tensors = (folder / f"t.{s}" for s in ("npy", "parquet", "safetensors"))
    ids = folder / "ids.txt"
    frames = {
        "no item_id": pl.DataFrame({"id": IDS, "v": VALUES.tolist()}),
        "ragged": pl.DataFrame({"item_id": IDS, "v": [[1.0]] * 3 + [[1.0, 2.0]]}),
        "two lists": pl.DataFrame({"item_id": IDS, "v": VALUES.tolist(), "w": VALUES.tolist()}),
        "words": pl.DataFrame({"item_id": IDS, "v": IDS}),
        "id twice": pl.DataFrame({"item_id": ["a"] * 4, "v": VALUES.tolist()}),
        "no id": pl.DataFrame({"item_id": ["a", "b", "c", None], "v": VALUES.tolist()}),
    }
    if kind in frames:
        frames[kind].write_parquet(parquet)
        return {"embeddings": str(parquet)}
    match kind:
        case "pickle":
            np.save(npy, np.array([{"a": 1}] * 4, dtype=object), allow_pickle=True)
        case "one dimension":
            np.save(npy, VALUES[0])
        case "empty":
            np.save(npy, VALUES[:0])
        case "cut":
            np.save(npy, VALUES)
            npy.write_bytes(npy.read_bytes()[:-20])
        case "not there":
            pass
        case "cut parquet":
            parquet.write_bytes(b"PAR1")
            return {"embeddings": str(parquet)}
        case "cut safetensors":
            tensors.write_bytes(b"{}")
            return {"embeddings": str(tensors)}
        case "unnamed tensors":
            save_file({"x": VALUES, "y": VALUES}, tensors)
            return {"embeddings": str(tensors)}
        case "short ids":
            ids.write_text("a\nb\n")
            np.save(npy, VALUES)
            return {"embeddings": str(npy), "ids": str(ids)}
        case "no ids":
            np.save(npy, VALUES)
            return {"embeddings": str(npy), "ids": str(ids)}
    return {"embeddings": str(npy)}


@pytest.mark.parametrize(
    "kind",
    [
        *("pickle", "one dimension", "empty", "cut", "not there", "cut parquet", "cut safetensors"),
        *("unnamed tensors", "short ids", "no ids", "no item_id", "ragged", "two lists", "words"),
        *("id twice", "no id"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"t\.(npy|parquet|safetensors)|ids\.txt"):
        make(**_broken(tmp_path, kind)).read(item(0))


def test_a_null_vector_is_no_behavior(tmp_path: Path) -> None:
    vectors = [None, *VALUES[1:].tolist()]
    pl.DataFrame({"item_id": IDS, "v": vectors}).write_parquet(tmp_path / "t.parquet")
    modality = make(embeddings=str(tmp_path / "t.parquet"))
    assert modality.read(item(0)) is None
    assert modality.describe(item(0)) == ""
    assert modality.read(item(1)) is not None


def test_a_stored_model_notices_a_changed_file(tmp_path: Path) -> None:
    settings = _npy(tmp_path)
    pinned = make(**settings).resolved_config().model_dump(mode="json")
    assert make(**pinned).read(item(0)) is not None
    np.save(tmp_path / "t.npy", VALUES + 1)
    with pytest.raises(IntegrityError, match=r"t\.npy"):
        make(**pinned).read(item(0))
    assert make(**{**pinned, **settings}).read(item(0)) is not None


def test_the_configuration_refuses_unknown_keys_and_round_trips(registry: Path) -> None:
    with pytest.raises(UsageError, match="embedding"):
        make(embedding="x")
    config = make(registry=registry).resolved_config()
    assert type(config).model_validate_json(config.model_dump_json()) == config


def test_encoder_stacks_and_projector_fills_the_slot(tmp_path: Path) -> None:
    modality = make(**_npy(tmp_path), tokens=3)
    encoder = modality.build_encoder(None)
    raws = [modality.read(item(i)) for i in range(4)]
    h, mask = encoder(raws)
    assert (h.shape, encoder.d_enc, h.dtype) == ((4, 1, 6), 6, torch.float32)
    assert mask.all()
    assert not encoder.state_dict()
    assert torch.equal(encoder(raws[::-1]).h, h.flip(0))
    assert torch.equal(encoder(raws[:1]).h, h[:1])
    out = modality.build_projector(6, 32)(encoder(raws))
    assert out.h.shape == (4, modality.positions(), 32)


def test_describe_names_the_nearest_items(tmp_path: Path) -> None:
    values = np.array([[1, 0], [0, 1], [0.9, 0.1], [-1, 0]], dtype=np.float32)
    pl.DataFrame({"item_id": IDS, "v": values.tolist()}).write_parquet(tmp_path / "t.parquet")
    shown = make(embeddings=str(tmp_path / "t.parquet"), standardise=False).describe(item(0))
    assert "d=2" in shown
    assert shown.endswith("nearest items: c; b; d")
    titles = {"a": "Not itself", "b": "A lamp", "d": "Red, green"}
    context = Context("c", titles=lambda ids: {id_: titles[id_] for id_ in ids if id_ in titles})
    settings = {"embeddings": str(tmp_path / "t.parquet"), "standardise": False}
    assert create("behavior", settings, context).describe(item(0)).endswith("items: c; A lamp; Red, green")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Users who walk around one of two rings of items; x occurs as a last item only."""
    folder = tmp_path_factory.mktemp("source")
    ids = [f"{ring}{i}" for ring in "pq" for i in range(10)] + ["x"]
    pl.DataFrame({"item_id": ids, "title": ids}).write_csv(folder / "items.csv")
    rows = []
    for user in range(60):
        walk = [f"{'pq'[user % 2]}{(user + step) % 10}" for step in range(8)] + (["x"] if user < 3 else [])
        rows += [{"user_id": f"u{user}", "item_id": i, "timestamp": t} for t, i in enumerate(walk)]
    pl.DataFrame(rows).write_csv(folder / "interactions.csv")
    out = folder / "dataset"
    import_dataset(folder, out, name="rings", core=1)
    return out


def _fit(data: Path, *options: str) -> int:
    return run(["behavior", "fit", "--data", str(data), "--epochs", "6", "--dim", "8", *options])


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EAREC_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("EAREC_REGISTRY", raising=False)
    return tmp_path / "home"


def test_fit_registers_what_the_modality_reads(
    data: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _fit(data, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    registry = Registry.open(home / "registry")
    assert registry.resolve("embeddings/rings") == result["id"]
    assert result["items"] == {"embedded": 20, "without_interactions": 1}
    assert result["metrics"]["test"]["users"] == 60
    catalog = Catalog.open(data)
    stored = registry.manifest(result["id"]).data
    assert (stored["kind"], stored["modality"]) == ("embeddings", "behavior")
    assert stored["data"] == {"name": "rings", "digest": catalog.digest}
    folder = registry.materialize(result["id"])
    values = load_file(folder / "embeddings.safetensors")["embeddings"]
    assert (values.shape, values.dtype) == ((20, 8), np.float32)
    modality = make(catalog="rings", registry=home / "registry", standardise=False)
    ids = json.loads((folder / "item_ids.json").read_text())
    for one in catalog.all_items():
        raw = modality.read(one)
        assert raw is None if one.id == "x" else np.array_equal(raw, values[ids.index(one.id)])


def test_fit_is_not_repeated_and_its_id_is_the_same_anywhere(
    data: Path,
    home: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    assert _fit(data) == 0
    first = capsys.readouterr().out.strip()
    with monkeypatch.context() as patch:
        training = importlib.import_module("earec_core.recommend.train")
        patch.setattr(training, "_epoch", lambda *_: pytest.fail("trained again"))
        assert _fit(data, "--name", "other/name") == 0
    again = capsys.readouterr()
    assert again.out.strip() == first
    assert Registry.open(home / "registry").resolve("other/name") == first
    epochs, whole = [], training._epoch
    with monkeypatch.context() as patch:
        patch.setattr(training, "_epoch", lambda *args: epochs.append(args[-1]) or whole(*args))
        assert _fit(data, "--force") == 0
    assert epochs[0] == 1
    assert capsys.readouterr().out.strip() == first
    assert _fit(data, "--registry", str(home / "elsewhere")) == 0
    assert capsys.readouterr().out.strip() == first


def test_an_interrupted_fit_goes_on_to_the_same_result(
    data: Path, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # By name: the package exports a function of the same name.
    training = importlib.import_module("earec_core.recommend.train")
    whole, epochs = training._epoch, []

    def stop(*args: Any) -> float:
        epochs.append(args[-1])
        if len(epochs) == 4:
            raise KeyboardInterrupt
        return whole(*args)

    monkeypatch.setattr(training, "_epoch", stop)
    assert _fit(data) == 130
    assert _fit(data) == 0
    assert epochs[:5] == [1, 2, 3, 4, 4]
    resumed = capsys.readouterr().out.strip()
    monkeypatch.setenv("EAREC_HOME", str(home / "another"))
    assert _fit(data) == 0
    assert capsys.readouterr().out.strip() == resumed


@pytest.mark.parametrize(
    "options", [["--heads", "3"], ["--dropout", "1"], ["--lr", "0"], ["--epochs", "0"], ["--nonsense"]]
)
def test_options_out_of_range_are_usage_errors(options: list[str], data: Path, home: Path) -> None:
    assert _fit(data, *options) == 2
