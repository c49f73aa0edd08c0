"""Files in one step, the workspace's folders, and runs: the same configuration is the same run."""

from __future__ import annotations

import hashlib
import json
import threading
from pathlib import Path
from typing import Any

import pytest

import earec_core
from earec_core import files
from earec_core.errors import EarecError, UsageError
from earec_core.plugins.hooks import Observers
from earec_core.workspace import Reporter, Workspace


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    target = tmp_path / "folder" / "file"
    files.write_atomic(target, "old")

    def fail() -> None:
        with files.replacing(target) as temporary:
            temporary.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert target.read_text() == "old"
    assert list(target.parent.iterdir()) == [target]


def test_a_device_is_written_to_and_stays_one(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("/dev/null")
    files.write_atomic(link, "gone")
    assert link.is_symlink()
    assert Path("/dev/null").is_char_device()


def test_many_writers_leave_one_whole_file(tmp_path: Path) -> None:
    target, texts = tmp_path / "file", [letter * 50_000 for letter in "abcdefgh"]
    threads = [threading.Thread(target=files.write_atomic, args=(target, text)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert target.read_text() in texts
    assert list(tmp_path.iterdir()) == [target]


def test_a_new_directory_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "a" / "out"

    def fail() -> None:
        with files.new_directory(out, "thing") as folder:
            (folder / "x").write_text("x")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not out.exists()
    assert list(out.parent.iterdir()) == []
    with files.new_directory(out, "thing") as folder:
        (folder / "x").write_text("x")
        assert not out.exists()
    assert (out / "x").read_text() == "x"
    with pytest.raises(UsageError, match="exists already"), files.new_directory(out, "thing"):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(EarecError, match="could not be written"):
        with files.new_directory(tmp_path / "file" / "out", "thing"):
            pass


def test_what_was_made_first_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def make(folder: Path) -> None:
        (folder / "mine").write_text("")
        out.mkdir()
        (out / "theirs").write_text("")

    files.make_once(out, make)
    files.make_once(out, lambda _: pytest.fail("it is there"))
    assert [path.name for path in out.iterdir()] == ["theirs"]
    assert list(tmp_path.iterdir()) == [out]


def test_the_digest_of_files_is_that_of_their_contents_together(tmp_path: Path) -> None:
    contents = [b"a" * 300_000, b"", b"bc"]
    for i, content in enumerate(contents):
        (tmp_path / str(i)).write_bytes(content)
    paths = [tmp_path / str(i) for i in range(3)]
    assert files.sha256(*paths) == hashlib.sha256(b"".join(contents)).hexdigest()
    assert files.sha256(paths[2]) == hashlib.sha256(b"bc").hexdigest()


def test_equal_values_have_equal_digests() -> None:
    assert files.digest({"a": 1, "b": [1.5, None]}) == files.digest({"b": [1.5, None], "a": 1})
    assert files.digest({"a": 1}) != files.digest({"a": 2})


class Told:
    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.asked = 0

    def fire(self, hook: str, **event: Any) -> None:
        self.events.append((hook, event))

    def watch(self) -> Any:
        self.asked += 1
        return self


def test_a_run_is_found_again_by_its_configuration(tmp_path: Path) -> None:
    told = Told()
    workspace = Workspace.open(tmp_path / "home", watch=told.watch)
    run = workspace.run("align", {"lr": 0.1, "data": "x"}, label="text")
    assert run.result() is None
    assert not run.folder.exists()
    run.start()
    run.step(1, {"loss": 2.0})
    run.finish({"id": "abc"}, step=1, metrics={"loss": 2.0})
    again = Workspace.open(tmp_path / "home").run("align", {"data": "x", "lr": 0.1}, label="text")
    assert again.folder == run.folder == tmp_path / "home" / "runs" / f"align-text-{run.digest[:12]}"
    assert again.result() == {"id": "abc"}
    config = {"lr": 0.1, "data": "x", "earec": earec_core.__version__}
    assert json.loads((run.folder / "config.json").read_text()) == config
    assert workspace.run("align", {"lr": 0.2, "data": "x"}, label="text").folder != run.folder
    assert [(hook, event["stage"], event["run"]) for hook, event in told.events] == [
        (hook, "align", str(run.folder)) for hook in ("earec_run_start", "earec_run_step", "earec_run_end")
    ]
    assert told.events[2][1]["metrics"] == {"loss": 2.0}


@pytest.mark.parametrize("damage", ["", "[1]", "{"])
def test_a_damaged_result_is_none(tmp_path: Path, damage: str) -> None:
    run = Workspace.open(tmp_path).run("encode", {}).start()
    run.finish({"id": "abc"})
    (run.folder / "result.json").write_text(damage)
    assert run.result() is None


def test_what_is_stored_is_told_and_observers_are_made_once_when_needed(tmp_path: Path) -> None:
    told = Told()
    workspace = Workspace.open(tmp_path, watch=told.watch)
    assert told.asked == 0
    (tmp_path / "w").write_text("w")
    workspace.registry.add({"kind": "thing"}, {"w": tmp_path / "w"}, name="a")
    workspace.about("row").run("encode", {}).start()
    assert [hook for hook, _ in told.events] == ["earec_registered", "earec_run_start"]
    assert told.asked == 1


def test_progress_says_what_it_is_about() -> None:
    said: list[Any] = []
    reporter = Reporter(progress=lambda *args: said.append(args))
    reporter.about("row 1").about("seed 0").progress(1, 2, "loss 3")
    assert said == [(1, 2, "row 1: seed 0: loss 3")]


def test_the_environment_says_where_home_and_registry_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EAREC_HOME", str(tmp_path / "home"))
    assert Workspace.open().registry.root == tmp_path / "home" / "registry"
    monkeypatch.setenv("EAREC_REGISTRY", str(tmp_path / "models"))
    workspace = Workspace.open()
    assert (workspace.home, workspace.registry.root) == (tmp_path / "home", tmp_path / "models")
    # A home that is given outright brings its own registry.
    assert Workspace.open(tmp_path / "other").registry.root == tmp_path / "other" / "registry"
    assert isinstance(workspace.watch(), Observers)
