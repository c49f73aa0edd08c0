"""The registry's promises: identity, names, views, damage found, nothing needed removed."""

from __future__ import annotations

import ast
import errno
import hashlib
import json
import os
import pickle
import string
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import earec_registry
from earec_registry import (
    DamagedError,
    InvalidError,
    LayoutError,
    NotFoundError,
    Registry,
    RegistryError,
    StorageError,
)
from earec_registry.manifest import canonical

BIG = 65


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setattr("earec_registry.views.LINK_FROM", BIG)
    return Registry.open(tmp_path / "registry")


@pytest.fixture
def store(tmp_path: Path, registry: Registry) -> Callable[..., str]:
    """Store a small model; its one file's text is `text`."""

    def add(text: str = "weights", name: str = "text/demo", tag: str = "latest", **said: Any) -> str:
        source = tmp_path / "source"
        source.mkdir(exist_ok=True)
        (source / "w").write_text(text)
        (source / "big").write_bytes(text.encode() * (BIG // len(text) + 1))
        files = {"sub/w.txt": source / "w", "big.bin": source / "big"}
        return registry.add({"kind": "adapter", **said}, files, name=name, tag=tag, why="test")

    return add


def snapshot(root: Path) -> dict[str, tuple[int, bytes]]:
    return {
        p.relative_to(root).as_posix(): (p.stat().st_ino, p.read_bytes())
        for p in root.rglob("*")
        if p.is_file()
    }


def age(root: Path, seconds: float = 7200) -> None:
    """Make everything stored look as if written long ago."""
    then = time.time() - seconds
    for path in [p for kind in ("blobs", "manifests", "views", "tmp") for p in (root / kind).rglob("*")]:
        os.utime(path, (then, then))


def flip(path: Path, at: int = 0) -> None:
    """Change one byte in place, keeping the size."""
    path.chmod(0o644)
    with path.open("r+b") as stream:
        stream.seek(at)
        byte = stream.read(1)[0]
        stream.seek(at)
        stream.write(bytes([byte ^ 1]))


# --- identity ---------------------------------------------------------------------------------------------


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


# --- names, tags, ids -------------------------------------------------------------------------------------


def test_every_way_to_mean_a_model(registry, store) -> None:
    one, two = store("one"), store("two", tag="v2")
    assert registry.resolve("text/demo") == registry.resolve("text/demo:latest") == one
    assert registry.resolve("text/demo:v2") == registry.resolve(two) == registry.resolve(two[:6]) == two


def test_an_ambiguous_or_unknown_or_too_short_id_is_said_to_be_so(registry, store) -> None:
    id_ = store()
    twin = registry.root / f"manifests/sha256/{id_[:8]}{'0' * 56}.json"
    twin.write_bytes(b"{}")
    with pytest.raises(NotFoundError, match="the start of 2 models") as caught:
        registry.resolve(id_[:8])
    assert caught.value.exit_code == 2
    assert registry.resolve(id_[:12]) == id_
    for ref in (
        id_[:5],
        "f" * 64,
        "ffffff" if not id_.startswith("ffffff") else "eeeeee",
        "../x",
        "",
        ":",
        "a:b:c",
    ):
        with pytest.raises(NotFoundError):
            registry.resolve(ref)


def test_an_unknown_name_suggests_a_close_one_and_an_unknown_tag_the_tags(registry, store) -> None:
    store(tag="v1")
    with pytest.raises(NotFoundError, match="Did you mean text/demo"):
        registry.resolve("text/dmo")
    for ref in ("text/demo", "text/demo:v9"):
        with pytest.raises(NotFoundError, match="v1"):
            registry.resolve(ref)


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        ("", "t"),
        ("A", "t"),
        ("-a", "t"),
        ("a/../b", "t"),
        ("a..b", "t"),
        ("/a", "t"),
        ("a/", "t"),
        ("a//b", "t"),
        ("a/.log", "t"),
        ("a b", "t"),
        ("a\n", "t"),
        ("abcdef", "t"),
        ("0" * 64, "t"),
        ("a" * 201, "t"),
        ("a", ""),
        ("a", ".log"),
        ("a", "b/c"),
        ("a", "B"),
        ("a", ".."),
        ("a", "t\n"),
    ],
)
def test_a_name_or_tag_that_cannot_be_stored_is_refused(registry, store, name, tag) -> None:
    with pytest.raises(InvalidError):
        store(name=name, tag=tag)
    assert list((registry.root / "refs").iterdir()) == []


part = st.text(string.ascii_lowercase + string.digits + "_-", min_size=1, max_size=6).filter(
    lambda s: s[0] not in "_-"
)
names = st.lists(part, min_size=1, max_size=3).map("/".join)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names, part)
def test_any_allowed_name_resolves_and_is_listed_or_is_refused_whole(
    registry, store, name: str, tag: str
) -> None:
    try:
        id_ = store(name=name, tag=tag)
    except InvalidError:
        assert all((e.name, e.tag) != (name, tag) for e in registry.list().entries)
    else:
        assert registry.resolve(f"{name}:{tag}") == id_
        assert (name, tag, id_) in {(e.name, e.tag, e.id) for e in registry.list().entries}
    assert registry.list().problems == ()


def test_a_tag_and_a_name_cannot_take_the_same_place(store) -> None:
    store(name="a", tag="b")
    with pytest.raises(InvalidError, match="has a tag 'b'"):
        store(name="a/b")
    store(name="c/d")
    with pytest.raises(InvalidError, match="models named c/d"):
        store(name="c", tag="d")


def test_the_log_tells_every_move_and_outlives_the_models(registry, store) -> None:
    one, two = store("one"), store("two")
    registry.tag(one, "text/demo", "best", why="NDCG@10 0.05")
    entries = registry.log("text/demo")
    assert [(e.old, e.new, e.tag) for e in entries] == [
        (None, one, "latest"),
        (one, two, "latest"),
        (None, one, "best"),
    ]
    assert entries[-1].why == "NDCG@10 0.05"
    assert all(e.when.endswith("Z") and e.when.startswith("2") for e in entries)
    registry.tag(one, "text/demo", "best", why="the same again is no move")
    assert len(registry.log("text/demo")) == 3
    with pytest.raises(NotFoundError):
        registry.log("text/dem")


def test_a_log_line_torn_by_a_kill_costs_no_other_line(registry, store) -> None:
    one = store("one")
    with (registry.root / "refs/text/demo/.log").open("a") as log:
        log.write('{"old": "to')
    two = store("two")
    assert [e.new for e in registry.log("text/demo")] == [one, two]


# --- views ------------------------------------------------------------------------------------------------


def test_a_view_is_a_plain_directory_with_the_same_bytes_and_making_it_again_changes_nothing(
    registry, store, tmp_path
) -> None:
    id_ = store()
    view = registry.materialize("text/demo")
    assert view == registry.root / "views" / id_[:12]
    assert (view / "sub/w.txt").read_text() == "weights"
    assert (view / "big.bin").read_bytes() == (tmp_path / "source/big").read_bytes()
    assert {p.name for p in view.rglob("*")} == {"sub", "w.txt", "big.bin"}
    before = snapshot(view)
    assert registry.materialize(id_) == view
    assert snapshot(view) == before


def test_a_copied_file_edited_in_a_view_is_noticed_and_the_blob_is_untouched(registry, store) -> None:
    id_ = store()
    flip(registry.materialize(id_) / "sub/w.txt")
    report = registry.verify()
    assert [(p.path, p.used_by) for p in report.problems] == [
        (f"views/{id_[:12]}/sub/w.txt", ("text/demo:latest",))
    ]
    assert (registry.materialize(id_) / "sub/w.txt").read_text() == "weights"
    assert registry.verify().ok


def test_a_half_written_or_meddled_view_is_made_again(registry, store, tmp_path) -> None:
    view = registry.materialize(store())
    whole = (tmp_path / "source/big").read_bytes()
    (view / "big.bin").unlink()
    (view / "extra.json").write_text("{}")
    (view / "sub/w.txt").chmod(0o644)
    (view / "sub/w.txt").write_text("w")
    registry.materialize("text/demo")
    assert not (view / "extra.json").exists()
    assert (view / "big.bin").read_bytes() == whole
    assert (view / "sub/w.txt").read_text() == "weights"
    assert list((registry.root / "tmp").iterdir()) == []


def test_a_large_file_edited_in_a_view_is_reported_not_served_and_mended_by_adding_again(
    registry, store
) -> None:
    view = registry.materialize(store())
    flip(view / "big.bin", at=BIG // 2)
    with pytest.raises(DamagedError, match="big"):
        registry.materialize("text/demo")
    store()
    assert registry.materialize("text/demo") == view
    assert registry.verify().ok


# --- damage -----------------------------------------------------------------------------------------------


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


# --- gc ---------------------------------------------------------------------------------------------------


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


# --- the folder itself ------------------------------------------------------------------------------------


def test_open_refuses_what_is_not_a_registry_it_can_read(tmp_path) -> None:
    with pytest.raises(NotFoundError):
        Registry.open(tmp_path / "none", create=False)
    assert not (tmp_path / "none").exists()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/cat.jpg").touch()
    with pytest.raises(LayoutError, match="not empty"):
        Registry.open(tmp_path / "photos")
    assert [p.name for p in (tmp_path / "photos").iterdir()] == ["cat.jpg"]
    with pytest.raises(LayoutError, match="not a folder"):
        Registry.open(tmp_path / "photos/cat.jpg")
    root = Registry.open(tmp_path / "r").root
    for text, match in (
        ('{"format": "earec-registry", "layout": 2}', "layout 2"),
        ("{", "damaged"),
        ("7", "damaged"),
    ):
        (root / "earec-registry.json").write_text(text)
        with pytest.raises(LayoutError, match=match) as caught:
            Registry.open(root)
        assert caught.value.exit_code == 4


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


# --- logs, parents, and what is done already --------------------------------------------------------------


def test_every_flipped_byte_of_a_log_is_found_or_looks_like_a_killed_writers_line(registry, store) -> None:
    store("one")
    store("two")
    log = registry.root / "refs/text/demo/.log"
    whole, ids = log.read_bytes(), {e.new for e in registry.log("text/demo")}
    missed = []
    for at in range(len(whole)):
        log.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        if not any(p.path == "refs/text/demo/.log" for p in registry.verify().problems):
            missed.append(at)
        assert {e.new for e in registry.log("text/demo")} <= ids
    # The closing brace of a line that is not the tag's last: what remains is the beginning of a line.
    assert missed == [whole.index(b"}")]
    log.write_bytes(whole)
    assert registry.verify().ok


@pytest.mark.parametrize("harm", ["remove", "directory", "foreign"])
def test_a_log_that_is_not_one_is_found_and_the_last_move_is_written_anew(registry, store, harm) -> None:
    id_ = store()
    log = registry.root / "refs/text/demo/.log"
    log.unlink()
    if harm == "directory":
        log.mkdir()
    elif harm == "foreign":
        log.write_bytes(b'{"new": "\xff\xfe"}\n')
    problems = registry.verify().problems
    assert {p.path for p in problems} == {"refs/text/demo/.log"}
    if harm == "remove":
        registry.tag(id_, "text/demo", "latest")
        assert registry.verify().ok


def test_log_lines_of_earlier_versions_have_no_digest_and_are_read(registry, store) -> None:
    one, two = store("one"), store("two")
    log = registry.root / "refs/text/demo/.log"
    lines = [json.loads(line) for line in log.read_bytes().splitlines()]
    assert all(line.pop("sum") for line in lines)
    log.write_text("".join(json.dumps(line, sort_keys=True) + "\n" for line in lines))
    assert [e.new for e in registry.log("text/demo")] == [one, two]
    assert registry.verify().ok


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


def test_a_registry_that_can_only_be_read_gives_whole_views(registry, store, monkeypatch) -> None:
    import errno

    import earec_registry.views

    id_ = store()
    view = registry.materialize(id_)

    def refused(*_: Any, **__: Any) -> Any:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "utime", refused)
    monkeypatch.setattr(earec_registry.views, "staging", refused)
    opened = Registry.open(registry.root)
    assert opened.materialize("text/demo") == view
    view.with_name(f"{view.name}.json").unlink()  # nothing says that it is whole: it is hashed
    assert opened.materialize("text/demo") == view
    flip(view / "sub/w.txt")
    with pytest.raises(RegistryError, match="Read-only file system"):
        opened.materialize("text/demo")


# --- a quota, and a folder that can only be read ----------------------------------------------------------


def test_a_quota_refuses_what_has_no_room_before_anything_is_written(registry, tmp_path) -> None:
    for name, size in (("a", 600), ("b", 700), ("c", 100)):
        (tmp_path / name).write_bytes(name.encode() * size)
    limited = Registry.open(registry.root, quota=1300)
    said, file = {"kind": "index"}, {name: tmp_path / name for name in "abc"}
    first = limited.add(said, {"a": file["a"]}, name="first")
    used = sum(path.stat().st_size for path in registry.root.glob("*/sha256/*"))
    before = sorted(registry.root.rglob("*"))
    with pytest.raises(StorageError, match=r"quota of 1\.3 kB") as caught:
        limited.add(said, {"again": file["a"], "b": file["b"], "twice": file["b"]}, name="second")
    assert f"{used} bytes are used; 700 bytes more are needed" in str(caught.value)
    assert "`earec registry rm`, then `earec registry gc`" in str(caught.value)
    assert caught.value.exit_code == 1
    assert sorted(registry.root.rglob("*")) == before
    # What is stored already needs no room, and what has room is stored.
    assert limited.add(said, {"a": file["a"]}, name="other") == first
    limited.add(said, {"again": file["a"], "c": file["c"], "twice": file["c"]}, name="third")
    with pytest.raises(StorageError, match="quota"):
        limited.add(said, {"b": file["b"]}, name="fourth")
    limited.untag("third")
    limited.gc(grace_s=-1)
    assert Registry.open(registry.root, quota=1600).add(said, {"b": file["b"]}, name="fourth")


def test_a_quota_is_for_what_is_pulled_too(registry, store, tmp_path) -> None:
    from earec_core.remote import pull

    store("weights" * 200)
    limited = Registry.open(tmp_path / "limited", quota=900)
    with pytest.raises(StorageError, match="0 bytes are used"):
        pull(limited, "text/demo", str(registry.root))
    assert not limited.objects.all("blobs")
    assert not list((limited.root / "tmp").iterdir())


def only_reading(root: Path, act: Callable[[], object]) -> object:
    """What `act` gives in a child to which the folder `root` is on a disk that can only be read.

    Raises:
        RegistryError: `act` did.
    """

    def refuse(event: str, args: tuple[Any, ...]) -> None:
        writes = (
            event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        )
        if not writes and event not in {
            "os.mkdir",
            "os.rename",
            "os.link",
            "os.remove",
            "os.utime",
            "os.chmod",
        }:
            return
        for path in args[:2]:
            inside = isinstance(path, str | os.PathLike) and Path(path).is_relative_to(root)
            if inside and not (event == "os.mkdir" and Path(path).exists()):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    reader, writer = os.pipe()
    if os.fork() == 0:
        sys.addaudithook(refuse)
        try:
            said: object = act()
        except BaseException as error:  # noqa: BLE001  (a child must never return into pytest)
            said = error
        os.write(writer, pickle.dumps(said))
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        said = pickle.loads(stream.read())  # noqa: S301  (our own child's)
    os.wait()
    if isinstance(said, BaseException):
        raise said
    return said


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_registry_in_a_folder_that_can_only_be_read_serves_and_refuses_to_be_written(
    registry, store, tmp_path
) -> None:
    id_, root = store(), registry.root
    for folder in ("views", "tmp"):  # as they are missing in what comes out of a bucket
        (root / folder).rmdir()
    before = sorted(root.rglob("*"))

    def opened() -> Registry:
        return Registry.open(root, scratch=tmp_path / "cache/views")

    for _ in range(2):
        view = only_reading(root, lambda: opened().materialize("text/demo"))
        assert (Path(str(view)) / "sub/w.txt").read_text() == "weights"
        assert Path(str(view)).is_relative_to(tmp_path / "cache/views")
    assert only_reading(root, lambda: [e.id for e in opened().list().entries]) == [id_]
    assert only_reading(root, lambda: opened().verify().problems) == ()
    for write in (
        lambda: opened().add({"kind": "index"}, {"w": tmp_path / "w"}, name="new"),
        lambda: opened().tag(id_, "new", "latest"),
        lambda: opened().untag("text/demo"),
        lambda: Registry.open(root).materialize("text/demo"),
    ):
        (tmp_path / "w").touch()
        with pytest.raises(RegistryError, match="Read-only file system") as caught:
            only_reading(root, write)
        assert caught.value.exit_code == 1
    assert sorted(root.rglob("*")) == before
