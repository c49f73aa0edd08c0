"""Damage: found, named with who uses it, mended by adding again."""

from __future__ import annotations

import hashlib
import json

import pytest

from earec_registry import DamagedError

from .conftest import flip


@pytest.mark.parametrize("kind", ["blobs", "manifests"])
@pytest.mark.parametrize("harm", ["flip", "truncate", "remove"])
def test_harm_is_found_named_with_who_uses_it_and_mended_by_adding_again(registry, store, kind, harm) -> None:
    child = store("child", name="child", parents=[store()])
    store("bystander", name="bystander")
    manifest = registry.manifest("text/demo")
    target = {
        "blobs": registry.root / "blobs/sha256" / manifest.files["sub/w.txt"].sha256,
        "manifests": registry.root / f"manifests/sha256/{manifest.id}.json",
    }[kind]
    if harm == "flip":
        flip(target)
    elif harm == "truncate":
        target.chmod(0o644)
        target.write_bytes(target.read_bytes()[:-1])
    else:
        target.unlink()
    report = registry.verify()
    assert [(p.path, p.used_by) for p in report.problems] == [
        (target.relative_to(registry.root).as_posix(), ("child:latest", "text/demo:latest"))
    ]
    assert report.problems[0].fault.startswith("missing" if harm == "remove" else "damaged")
    assert not registry.verify(child).ok
    assert registry.verify("bystander").ok
    with pytest.raises(DamagedError) as caught:
        registry.materialize("text/demo")
    assert caught.value.exit_code == 4
    store()
    assert registry.verify().ok
    registry.materialize("text/demo")


def test_one_bad_file_never_blocks_the_others(registry, store) -> None:
    store(name="good")
    for bad in ("one", "two", "three"):
        store(bad, name=bad)
    (registry.root / "refs/one/latest").write_text("not an id\n")
    flip(registry.root / f"manifests/sha256/{registry.resolve('two')}.json")
    (registry.root / "refs/three/latest").write_bytes(b"\xff\xfe")
    (registry.root / "refs/stray").write_text("?")
    found = registry.list()
    assert [e.name for e in found.entries] == ["good"]
    assert len(found.problems) == 4
    assert registry.materialize("good").is_dir()
    with pytest.raises(DamagedError, match="refs/one/latest"):
        registry.resolve("one")
    registry.tag("good", "one", "latest")
    assert registry.resolve("one") == registry.resolve("good")


def test_a_manifest_with_a_true_digest_but_a_path_outside_is_never_followed(registry, tmp_path) -> None:
    entry = {"sha256": hashlib.sha256(b"").hexdigest(), "size": 0}
    raw = json.dumps({"files": {"../../escaped": entry}, "kind": "adapter"}).encode()
    id_ = hashlib.sha256(raw).hexdigest()
    (registry.root / f"manifests/sha256/{id_}.json").write_bytes(raw)
    with pytest.raises(DamagedError, match="not a path inside a model"):
        registry.materialize(id_)
    assert not list(tmp_path.rglob("escaped"))


@pytest.mark.parametrize("harm", ["remove", "truncate", "manifest"])
def test_a_model_whose_parent_lacks_a_file_is_refused_as_parent_though_its_view_is_whole(
    registry, store, harm
) -> None:
    parent = store("parent", name="parent")
    child = store("child", name="child", parents=[parent])
    registry.require("child", "parent")
    registry.materialize("parent")
    blob = registry.root / "blobs/sha256" / registry.manifest("parent").files["sub/w.txt"].sha256
    if harm == "remove":
        blob.unlink()
    elif harm == "truncate":
        blob.chmod(0o644)
        blob.write_bytes(b"")
    else:
        (registry.root / f"manifests/sha256/{parent}.json").unlink()
    with pytest.raises(DamagedError, match="is not whole") as caught:
        registry.require("child")
    assert caught.value.exit_code == 4
    store("parent", name="parent")
    registry.require(child)


@pytest.mark.parametrize("harm", ["none", "flip", "remove", "manifest", "parent"])
def test_whole_is_what_has_its_digests_whatever_the_view_says(registry, store, harm) -> None:
    parent = store("parent", name="parent")
    id_ = store("child", name="child", parents=[parent])
    registry.materialize(id_)
    blobs = registry.root / "blobs/sha256"
    blob = blobs / registry.manifest(id_).files["sub/w.txt"].sha256
    if harm == "flip":
        flip(blob)
    elif harm == "remove":
        blob.unlink()
    elif harm == "manifest":
        flip(registry.root / f"manifests/sha256/{id_}.json")
    elif harm == "parent":
        (blobs / registry.manifest(parent).files["sub/w.txt"].sha256).unlink()
    assert registry.is_whole(id_) == (harm in ("none", "parent"))
    assert not registry.is_whole("nothing")
