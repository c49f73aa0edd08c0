"""Names, tags and ids: which model is meant, and what the log tells of it."""

from __future__ import annotations

import json
import string

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from earec_registry import InvalidError, NotFoundError


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
