"""The folder: what is opened, how much goes into it, and that it may be one which can only be read."""

from __future__ import annotations

import errno
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from earec_registry import LayoutError, NotFoundError, Registry, RegistryError, StorageError


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
