"""Identity: what is stored, under which name, and what is refused."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import earec_registry
from earec_registry import InvalidError, NotFoundError, Registry, RegistryError
from earec_registry.manifest import canonical

from .conftest import snapshot


def test_id_is_the_sha256_of_the_stored_manifest_and_blobs_are_named_by_theirs(registry, store) -> None:
    id_ = store()
    assert hashlib.sha256((registry.root / f"manifests/sha256/{id_}.json").read_bytes()).hexdigest() == id_
    for blob in (registry.root / "blobs/sha256").iterdir():
        assert hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name
        assert blob.stat().st_mode & 0o777 == 0o444
    assert list((registry.root / "tmp").iterdir()) == []


def test_the_same_input_gives_the_same_id_and_rewrites_nothing(registry, store, tmp_path) -> None:
    id_ = store(metrics={"a": 1, "b": [0.5, None]})
    before = snapshot(registry.root)
    assert store(metrics={"b": (0.5, None), "a": 1}) == id_
    assert snapshot(registry.root) == before
    other = Registry.open(tmp_path / "elsewhere")
    source = tmp_path / "source"
    files = {"big.bin": source / "big", "sub/w.txt": source / "w"}
    said = {"metrics": {"a": 1, "b": [0.5, None]}, "kind": "adapter"}
    assert other.add(said, files, name="another/name", tag="v1") == id_


def test_any_difference_in_manifest_or_bytes_or_paths_is_another_id(registry, store, tmp_path) -> None:
    ids = {store(), store("other"), store(seed=1), store(seed=2)}
    ids.add(registry.add({"kind": "adapter"}, {"w.txt": tmp_path / "source/w"}, name="text/demo"))
    assert len(ids) == 5


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=5), json_values, max_size=4), st.randoms())
def test_canonical_json_keeps_the_value_and_forgets_the_order(value: dict[str, Any], random: Any) -> None:
    raw = canonical(value)
    assert json.loads(raw) == value
    items = list(value.items())
    random.shuffle(items)
    assert canonical(dict(items)) == raw
    assert canonical(json.loads(raw)) == raw


@pytest.mark.parametrize(
    "said",
    [
        {"metrics": {"ndcg": float("nan")}},
        {"metrics": [float("inf")]},
        {"metrics": {1: "a"}},
        {"where": Path("/tmp")},
        {"note": "\ud800"},
        {"kind": "A model"},
        {"kind": None},
        {"files": {}},
        {"parents": ["text/demo"]},
        {"parents": "0" * 64},
        {"parents": [{"id": "0" * 64, "weight": "half"}]},
    ],
)
def test_a_manifest_that_cannot_be_stored_is_refused_and_leaves_nothing(registry, store, said) -> None:
    before = snapshot(registry.root)
    with pytest.raises(InvalidError) as caught:
        store(**{"kind": "adapter", **said})
    assert caught.value.exit_code == 2
    assert snapshot(registry.root) == before


def test_a_manifest_that_contains_itself_is_refused(store) -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(InvalidError, match="nested"):
        store(loop=loop)


@pytest.mark.parametrize(
    "path", ["", "/etc/x", "../x", "a/../b", "a//b", "./a", "a/", "a\\b", "a\x00b", "a\nb"]
)
def test_a_path_that_leaves_the_model_is_refused(registry, tmp_path, path) -> None:
    (tmp_path / "f").touch()
    with pytest.raises(InvalidError):
        registry.add({"kind": "index"}, {path: tmp_path / "f"}, name="a")


def test_a_file_that_is_also_a_folder_and_a_missing_source_are_refused(registry, tmp_path) -> None:
    (tmp_path / "f").touch()
    with pytest.raises(InvalidError, match="both a file and the folder"):
        registry.add({"kind": "index"}, {"a": tmp_path / "f", "a/b": tmp_path / "f"}, name="a")
    with pytest.raises(InvalidError, match="is not a file"):
        registry.add({"kind": "index"}, {"a": tmp_path / "none"}, name="a")
    assert registry.list().entries == ()


def test_a_parent_must_be_there_and_is_given_back_with_its_weight(registry, store) -> None:
    with pytest.raises(NotFoundError, match="parent"):
        store(parents=["0" * 64])
    parent, other = store(), store("other", name="other")
    child = store("child", name="child", parents=[{"id": parent, "weight": 0.25}, other])
    assert [(p.id, p.weight) for p in registry.manifest(child).parents] == [(parent, 0.25), (other, None)]


def test_a_manifest_reads_back_frozen_and_as_given(registry, store) -> None:
    id_ = store(shapes={"lora_A": [8, 64]})
    manifest = registry.manifest("text/demo")
    assert (manifest.id, manifest.kind) == (id_, "adapter")
    assert manifest.data["shapes"] == {"lora_A": [8, 64]}
    assert manifest.files["sub/w.txt"].size == len("weights")
    with pytest.raises(TypeError):
        manifest.data["kind"] = "index"
    with pytest.raises(AttributeError):
        manifest.kind = "index"


def test_errors_say_what_and_the_next_step(registry) -> None:
    with pytest.raises(RegistryError) as caught:
        registry.manifest("nothing")
    assert caught.value.problem.endswith(".")
    assert caught.value.next_step.endswith(".")
    assert str(caught.value) == f"{caught.value.problem} {caught.value.next_step}"


def test_the_registry_needs_the_standard_library_only() -> None:
    folder = Path(earec_registry.__file__).parent
    for file in folder.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                modules = [node.module or ""]
            else:
                continue
            assert all(module.split(".")[0] in sys.stdlib_module_names for module in modules), file
    code = "import earec_registry, sys; print(*{'numpy', 'torch', 'earec_core'} & set(sys.modules))"
    env: Mapping[str, str] = {**os.environ, "PYTHONPATH": str(folder.parent)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
