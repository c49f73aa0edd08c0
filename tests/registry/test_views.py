"""Views: plain directories with a model's files, made again where they were meddled with."""

from __future__ import annotations

import errno
import os
from typing import Any

import pytest

import earec_registry.views
from earec_registry import DamagedError, Registry, RegistryError

from .conftest import BIG, flip, snapshot


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


def test_a_file_edited_within_the_tick_of_the_clock_in_which_it_was_checked_is_noticed(
    registry, store
) -> None:
    view = registry.materialize(store())
    file, stamp = view / "sub/w.txt", view.with_name(f"{view.name}.json")
    tick = stamp.stat().st_mtime_ns
    os.utime(file, ns=(tick, tick))
    registry.materialize("text/demo")  # checks it again, and says so
    os.utime(stamp, ns=(tick, tick))
    file.chmod(0o644)
    flip(file)
    os.utime(file, ns=(tick, tick))
    assert (registry.materialize("text/demo") / "sub/w.txt").read_text() == "weights"


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


def test_a_registry_that_can_only_be_read_gives_whole_views(registry, store, monkeypatch) -> None:
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
