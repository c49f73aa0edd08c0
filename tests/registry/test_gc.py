"""What no tag reaches is removed, and nothing else."""

from __future__ import annotations

import pytest

from earec_registry import DamagedError, NotFoundError, Registry

from .conftest import age, flip, snapshot


def test_gc_removes_what_no_tag_reaches_and_keeps_parents_and_shared_blobs(registry, store) -> None:
    old = store("old", seed=1)
    registry.materialize(old)
    shared = store("old", seed=2)  # the same files
    parent = store("parent", name="parent")
    child = store("child", name="child", parents=[parent])
    lone = store("lone", name="parent")  # the parent loses its own tag
    (registry.root / "tmp/add-killed").mkdir()
    (registry.root / "tmp/add-killed/0").write_bytes(b"x" * 100)
    age(registry.root)
    before = snapshot(registry.root)
    planned = registry.gc(dry_run=True)
    assert snapshot(registry.root) == before
    report = registry.gc()
    assert (report.manifests, report.blobs, report.views, report.tmp) == (
        (old,),
        (),
        (old[:12],),
        ("add-killed",),
    )
    assert (planned.manifests, planned.views, planned.tmp) == (report.manifests, report.views, report.tmp)
    assert planned.freed_bytes == report.freed_bytes > 100
    for kept in (shared, parent, child, lone):
        registry.materialize(kept)
    assert registry.verify().ok
    assert registry.log("text/demo")[0].new == old


def test_gc_takes_the_blobs_of_a_model_that_goes(registry, store) -> None:
    gone = registry.manifest(store("gone"))
    store("stays")
    age(registry.root)
    report = registry.gc()
    assert set(report.blobs) == {f.sha256 for f in gone.files.values()}
    with pytest.raises(NotFoundError):
        registry.resolve(gone.id)
    assert registry.verify().ok
    assert registry.gc().freed_bytes == 0


def test_gc_leaves_what_is_younger_than_its_grace_and_what_was_just_used_again(registry, store) -> None:
    first = store("first")
    store("second")
    assert registry.gc().manifests == ()
    assert registry.resolve(first) == first
    age(registry.root)
    registry.tag(first, "again", "latest")
    (registry.root / "refs/again/latest").unlink()
    assert registry.gc().manifests == ()
    assert registry.gc(grace_s=0).manifests == (first,)


def damage_ref(registry: Registry, id_: str) -> None:
    (registry.root / "refs/text/demo/latest").write_text("?")


def damage_manifest(registry: Registry, id_: str) -> None:
    flip(registry.root / f"manifests/sha256/{id_}.json")


def lose_parent(registry: Registry, id_: str) -> None:
    (registry.root / f"manifests/sha256/{registry.manifest(id_).parents[0].id}.json").unlink()


@pytest.mark.parametrize("harm", [damage_ref, damage_manifest, lose_parent])
def test_gc_refuses_when_it_cannot_read_what_it_must_trace(registry, store, harm) -> None:
    store("unreachable", name="u")
    store("reachable", name="u")
    id_ = store(parents=[store("parent", name="parent")])
    age(registry.root)
    harm(registry, id_)
    before = snapshot(registry.root)
    with pytest.raises(DamagedError, match="Nothing was removed"):
        registry.gc(grace_s=0)
    assert snapshot(registry.root) == before


def test_what_a_killed_gc_had_in_its_hands_is_found_and_brought_back(registry, store) -> None:
    id_ = store()
    blob = registry.manifest(id_).files["sub/w.txt"].sha256
    for kind, digest, suffix in (("manifests", id_, ".json"), ("blobs", blob, "")):
        path = registry.root / kind / "sha256" / f"{digest}{suffix}"
        path.rename(registry.root / "tmp" / f"gc-run-{kind}-{digest}")
    assert registry.verify().ok
    (registry.root / f"manifests/sha256/{id_}.json").rename(registry.root / f"tmp/gc-run-manifests-{id_}")
    age(registry.root)
    assert registry.gc().manifests == ()
    registry.materialize(id_)
    assert list((registry.root / "tmp").iterdir()) == []


@pytest.mark.parametrize("moment", ["manifests listed", "blobs listed"])
def test_what_a_gc_removes_meanwhile_is_not_missing(registry, store, monkeypatch, moment) -> None:
    from earec_registry import check
    from earec_registry.objects import Objects

    old, new = store("old"), store("new")
    age(registry.root)
    listed, hashed, removed = Objects.all, check.blob_fault, []

    def clean_up() -> None:
        if not removed:
            removed.append(True)
            assert Registry.open(registry.root).gc().manifests == (old,)

    def list_then_remove(self, kind):
        digests = listed(self, kind)
        if kind == "manifests" and moment == "manifests listed":
            monkeypatch.setattr(Objects, "all", listed)
            clean_up()
        return digests

    def remove_then_hash(*args):
        if moment == "blobs listed":
            clean_up()
        return hashed(*args)

    monkeypatch.setattr(Objects, "all", list_then_remove)
    monkeypatch.setattr(check, "blob_fault", remove_then_hash)
    assert registry.verify().problems == ()
    assert removed == [True]
    (registry.root / f"manifests/sha256/{new}.json").unlink()
    assert [p.fault for p in registry.verify().problems if "manifests" in p.path] == ["missing"]
