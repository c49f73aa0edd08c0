"""The registry under kills at every step, a full disk, and several processes at once."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fsspec.implementations.local import LocalFileSystem

import earec_registry
from earec_core.remote import FileSystemRemote, pull, push
from earec_registry import Registry, StorageError, send

# Python >= 3.12 warns of a fork beside threads; the child only touches files.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

WATCHED = {
    "open",
    "os.mkdir",
    "os.rename",
    "os.link",
    "os.remove",
    "os.rmdir",
    "os.utime",
    "os.chmod",
    "os.scandir",
    "shutil.rmtree",
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    for name in ("a", "b", "c"):
        (folder / name).write_bytes(name.encode() * 3000)
    return folder


def files(source: Path, *names: str) -> dict[str, Path]:
    return {f"sub/{name}": source / name for name in names}


def killed_at(step: int, act: Callable[[], object]) -> bool:
    """Run `act` in a child that is killed just before its `step`-th file operation; False if it got through.

    The interpreter's audit events tell of the operations, so the test does not know how `act` is written, and
    no `finally` of it runs.
    """
    child = os.fork()
    if child == 0:
        seen = 0

        def hook(event: str, args: tuple[object, ...]) -> None:
            nonlocal seen
            if event in WATCHED:
                seen += 1
                if seen == step:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        try:
            act()
        except BaseException:  # noqa: BLE001  (a child must never return into pytest)
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return True
    assert os.WEXITSTATUS(status) == 0, "the operation failed instead of being killed"
    return False


def assert_sound(registry: Registry, *ids: str) -> None:
    assert registry.list().problems == ()
    assert registry.verify().problems == ()
    for id_ in ids:
        assert registry.materialize(id_).is_dir()


def test_add_survives_a_kill_before_any_step(tmp_path: Path, source: Path) -> None:
    registry = Registry.open(tmp_path / "registry")
    old = registry.add({"kind": "index"}, files(source, "a"), name="m")
    step, killed = 0, True
    expected = ""
    while killed:
        step += 1
        said = {"kind": "adapter", "seed": step}
        killed = killed_at(
            step, lambda said=said: registry.add(said, files(source, "a", "b"), name=f"n/{said['seed']}")
        )
        assert_sound(registry, old)
        before = {e.name for e in registry.list().entries}
        expected = registry.add(said, files(source, "a", "b"), name=f"n/{step}")
        assert registry.resolve(f"n/{step}") == expected
        assert f"n/{step}" in before or killed
    assert step > 15
    assert_sound(registry, old, expected)
    then = time.time() - 7200
    for left in (registry.root / "tmp").rglob("*"):
        os.utime(left, (then, then))
    registry.gc()
    assert list((registry.root / "tmp").iterdir()) == []
    assert_sound(registry, old, expected)


def test_moving_a_tag_survives_a_kill_before_any_step_and_never_moves_without_a_log_line(
    tmp_path: Path, source: Path
) -> None:
    registry = Registry.open(tmp_path / "registry")
    ids = [
        registry.add({"kind": "index", "i": i}, files(source, "a"), name="m", tag=f"t{i}") for i in range(2)
    ]
    registry.tag(ids[0], "m", "latest")
    step, killed = 0, True
    while killed:
        step += 1
        now = registry.resolve("m")
        other = ids[1 - ids.index(now)]
        killed = killed_at(step, lambda other=other: registry.tag(other, "m", "latest"))
        after = registry.resolve("m")
        assert after in ids
        moves = [e for e in registry.log("m") if e.tag == "latest"]
        assert after == now or (moves[-1].old, moves[-1].new) == (now, other)
        assert_sound(registry)
    assert step > 5


def test_materialise_survives_a_kill_before_any_step(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("earec_registry.views.LINK_FROM", 100)
    (source / "small").write_text("small")
    registry = Registry.open(tmp_path / "registry")
    step, killed = 0, True
    while killed:
        step += 1
        id_ = registry.add({"kind": "index", "step": step}, files(source, "a", "small"), name="m")
        killed = killed_at(step, lambda id_=id_: registry.materialize(id_))
        view = registry.materialize(id_)
        assert (view / "sub/a").read_bytes() == (source / "a").read_bytes()
        assert (view / "sub/small").read_text() == "small"
        assert registry.verify().ok
    assert step > 10


def test_gc_survives_a_kill_before_any_step(tmp_path: Path, source: Path) -> None:
    registry = Registry.open(tmp_path / "registry")
    step, killed = 0, True
    while killed:
        step += 1
        # an unreachable model with a view beside a reachable one that shares a file
        gone = registry.add({"kind": "index", "gone": step}, files(source, "a", "b"), name="m")
        registry.materialize(gone)
        kept = registry.add({"kind": "index"}, files(source, "a"), name="m")
        killed = killed_at(step, lambda: registry.gc(grace_s=-1))
        assert_sound(registry, kept)
        registry.gc(grace_s=-1)
        assert_sound(registry, kept)
        assert registry.objects.all("manifests") == [kept]
        assert len(registry.objects.all("blobs")) == 1
        assert list((registry.root / "tmp").iterdir()) == []
    assert step > 15


@pytest.fixture
def here(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """A model with a parent; one file is in both. Nobody waits for the disk: a kill loses nothing of it."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    registry = Registry.open(tmp_path / "here")
    parent = registry.add({"kind": "adapter"}, files(source, "a", "c"), name="p")
    registry.add({"kind": "index", "parents": [parent]}, files(source, "a", "b"), name="m")
    return registry


def assert_there_in_full_or_not_at_all(registry: Registry, model: str) -> None:
    assert [entry.id for entry in registry.list().entries] in ([], [model])
    assert registry.verify().problems == ()


@pytest.mark.parametrize("way", ["pull", "push"])
def test_copying_to_a_directory_survives_a_kill_before_any_step(
    tmp_path: Path, here: Registry, way: str
) -> None:
    model, step, killed, resumed = here.resolve("m"), 0, True, 0

    def copy(there: Path) -> list[str]:
        if way == "push":
            return push(here, "m", str(there)).there
        return pull(Registry.open(there), "m", str(here.root)).there

    while killed:
        step += 1
        there = tmp_path / str(step)
        killed = killed_at(step, lambda there=there: copy(there))
        assert_there_in_full_or_not_at_all(Registry.open(there), model)
        resumed += len(copy(there)) in range(1, 5)
        assert Registry.open(there).resolve("m") == model
        assert_there_in_full_or_not_at_all(Registry.open(there), model)
    assert_sound(here, model)
    assert step > 50
    assert resumed > 10  # what had arrived was not copied again


class Store(LocalFileSystem):
    """A store of objects whose files can be looked at: no registry works on it."""

    protocol = "store"


def test_sending_to_a_store_survives_a_kill_before_any_step(tmp_path: Path, here: Registry) -> None:
    model, step, killed = here.resolve("m"), 0, True
    while killed:
        step += 1
        there = tmp_path / str(step)
        remote = FileSystemRemote(Store(), str(there), "store://there")
        killed = killed_at(step, lambda remote=remote: send(here, remote, "m"))
        kept = {str(path.relative_to(there)) for path in there.glob("*/sha256/*")}
        assert_there_in_full_or_not_at_all(Registry.open(there), model)
        assert set(send(here, remote, "m").there) == kept
        assert Registry.open(there).resolve("m") == model
    assert_sound(here, model)
    assert step > 50


def test_opening_a_new_registry_survives_a_kill_before_any_step(tmp_path: Path) -> None:
    step, killed = 0, True
    while killed:
        step += 1
        root = tmp_path / str(step)
        killed = killed_at(step, lambda root=root: Registry.open(root))
        assert Registry.open(root).list().entries == ()
    assert step > 5


def test_a_full_disk_gives_one_sentence_and_leaves_nothing(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry.open(tmp_path / "registry")
    kept = registry.add({"kind": "index"}, files(source, "a"), name="m")
    before = {p: p.stat().st_ino for p in registry.root.rglob("*")}
    write, room = os.write, 0

    def nearly_full(fd: int, data: memoryview) -> int:
        nonlocal room
        if room <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done = write(fd, data[:room])
        room -= done
        return done

    for room_at_first in (0, 1, 2999, 3000, 4000, 6000, 6200, 10000, 20000):
        room = room_at_first
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", nearly_full)
            with pytest.raises(StorageError, match="is full") as caught:
                registry.add({"kind": "index", "x": 1}, files(source, "b", "c"), name="new/name")
        assert caught.value.exit_code == 1
        assert {p: p.stat().st_ino for p in registry.root.rglob("*")} == before
    room = 0
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", nearly_full)
        with pytest.raises(StorageError, match="is full"):
            registry.materialize("m")
    assert list((registry.root / "views").iterdir()) == []
    assert_sound(registry, kept)


def test_ctrl_c_leaves_nothing(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry.open(tmp_path / "registry")
    before = sorted(registry.root.rglob("*"))

    def interrupt(fd: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        registry.add({"kind": "index"}, files(source, "a"), name="m")
    assert sorted(registry.root.rglob("*")) == before


WRITER = """
import random, sys
from pathlib import Path
from earec_registry import Registry
root, source, me, rounds = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
random.seed(me)
registry = Registry.open(root)
for i in range(rounds):
    names = random.sample("abc", 2)
    said = {"kind": "index", "i": random.randrange(3)}
    id_ = registry.add(said, {n: source / n for n in names}, name=f"w/{random.randrange(2)}", tag=f"t{me}")
    view = registry.materialize(id_)
    for n in names:
        assert (view / n).read_bytes() == (source / n).read_bytes()
    registry.tag(id_, "shared", "latest", why=f"{me} {i}")
    if me == 0:
        registry.gc(grace_s=5)
"""


def test_several_processes_may_open_add_tag_materialise_and_clean_at_once(
    tmp_path: Path, source: Path
) -> None:
    root, rounds = tmp_path / "registry", 8
    env = {**os.environ, "PYTHONPATH": str(Path(earec_registry.__file__).parents[1])}
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(root), str(source), str(me), str(rounds)],
            env=env,
            stderr=subprocess.PIPE,
            text=True,
        )
        for me in range(4)
    ]
    for writer in writers:
        _, said = writer.communicate(timeout=120)
        assert writer.returncode == 0, said
    registry = Registry.open(root, create=False)
    assert_sound(registry, *(e.id for e in registry.list().entries))
    lines = registry.log("shared")
    moves = [e.why.split() for e in lines]
    for me in range(4):  # each process's moves are there in its order; a move to the same model is none
        mine = [int(i) for who, i in moves if int(who) == me]
        assert mine == sorted(mine)
    assert registry.resolve("shared") in {e.new for e in lines}
    assert list((root / "tmp").iterdir()) == []


def test_add_stores_again_what_a_gc_without_grace_takes_from_under_it(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry.open(tmp_path / "registry")
    cleaned = []
    sync = registry.objects.sync

    def sync_then_gc(kind: str) -> None:
        sync(kind)
        if len(cleaned) < 3:
            cleaned.append(Registry.open(registry.root).gc(grace_s=-1))

    monkeypatch.setattr(registry.objects, "sync", sync_then_gc)
    id_ = registry.add({"kind": "index"}, files(source, "a", "b"), name="m")
    assert sum(len(report.blobs) for report in cleaned) >= 2
    assert_sound(registry, id_)
