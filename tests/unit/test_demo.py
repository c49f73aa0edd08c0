"""The demo's stages: each once those before it are done, two at once, none twice, whatever fails beside it."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from earec_core.errors import EarecError, UsageError
from earec_core.studies.demo import Done, Stage, run, stages
from earec_core.workspace import Reporter, Workspace

ROWS = {"a": [], "b": [], "c": ["a", "b"], "d": ["a"], "e": ["c", "d"]}
LONG = {"a", "b", "d"}
TOGETHER = {"a", "b"}


def fake(command: Sequence[str]) -> Any:
    """Leaves when it began and ended; waits for the other of two, or fails, where a file says so."""
    name, folder = command[0], Path(command[1])
    began = time.time()
    (folder / f"begun-{name}").touch()
    while name in TOGETHER and (folder / "together").exists() and time.time() < began + 60:
        if all((folder / f"begun-{other}").exists() for other in TOGETHER):
            break
        time.sleep(0.01)
    time.sleep(0.6 if name in LONG else 0)
    if (folder / f"fail-{name}").exists():
        raise UsageError(f"{name} fails.", "Mend it.")
    if (folder / f"die-{name}").exists():
        os._exit(9)
    with (folder / "log").open("a") as log:
        log.write(
            json.dumps({"name": name, "began": began, "ended": time.time(), "process": os.getpid()}) + "\n"
        )
    return {"name": name}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The demo's, with a recipe of five stages and nothing to download."""
    rows = [
        {"name": name, "title": name, "command": [name, str(tmp_path)], "after": ROWS[name]} for name in ROWS
    ]
    module = sys.modules["earec_core.studies.demo.run"]  # its name is also the function's
    monkeypatch.setattr(module, "recipe", lambda: {"stage": rows})
    for source in ("movielens_100k", "openmoji"):
        monkeypatch.setattr(f"earec_core.studies.demo.sources.{source}", lambda *_: None)
    return tmp_path


def _run(folder: Path, at_once: int, said: list[str] | None = None) -> list[Done]:
    said = [] if said is None else said
    workspace = Workspace.open(folder / "home", reporter=Reporter(said.append))
    return run(folder, workspace, fake, at_once=at_once)


def _log(folder: Path) -> dict[str, dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "log").read_text().splitlines()]
    assert len({row["name"] for row in rows}) == len(rows)
    return {row["name"]: row for row in rows}


@pytest.mark.parametrize("at_once", [1, 2])
def test_each_begins_once_those_before_it_are_done_and_none_is_repeated(folder: Path, at_once: int) -> None:
    if at_once == 2:
        (folder / "together").touch()
    done = _run(folder, at_once)
    assert [(one.stage.name, one.result, one.repeated) for one in done] == [
        (name, {"name": name}, True) for name in ROWS
    ]
    log = _log(folder)
    for name, after in ROWS.items():
        assert all(log[before]["ended"] <= log[name]["began"] for before in after)
    processes = {row["process"] for row in log.values()}
    assert (processes == {os.getpid()}) == (at_once == 1)
    assert len(processes) == at_once
    assert (log["b"]["began"] < log["a"]["ended"]) == (at_once == 2)
    assert not any(one.repeated for one in _run(folder, at_once))


def test_the_time_of_stages_beside_each_other_counts_once() -> None:
    from earec_core.studies.demo.summary import _seconds

    spans = [(20.0, 5.0), (0.0, 10.0), (21.0, 1.0), (5.0, 10.0)]
    done = [Done(Stage("x", "x", ()), began, seconds, True, None) for began, seconds in spans]
    grid = np.arange(0, 30, 0.5) + 0.25
    busy = np.any([(grid > began) & (grid < began + seconds) for began, seconds in spans], axis=0)
    assert _seconds(done) == busy.sum() * 0.5


@pytest.mark.parametrize("at_once", [1, 2])
def test_where_one_fails_those_beside_it_are_kept_and_it_goes_on_there(folder: Path, at_once: int) -> None:
    (folder / "fail-b").touch()
    with pytest.raises(UsageError, match=r"b fails\. Mend it\.") as raised:
        _run(folder, at_once)
    assert (raised.value.problem, raised.value.next_step) == ("b fails.", "Mend it.")
    finished = set(_log(folder))
    assert "a" in finished <= {"a", "d"}
    (folder / "fail-b").unlink()
    assert {one.stage.name for one in _run(folder, at_once) if one.repeated} == set(ROWS) - finished
    assert set(_log(folder)) == set(ROWS)


def test_a_process_that_is_killed_is_one_sentence(folder: Path) -> None:
    (folder / "die-a").touch()
    with pytest.raises(EarecError, match="--at-once 1"):
        _run(folder, 2)


def test_the_recipe_waits_for_what_its_commands_read(tmp_path: Path) -> None:
    before: dict[str, set[str]] = {}
    for stage in stages(tmp_path):
        before[stage.name] = {*stage.after}.union(*(before[name] for name in stage.after))
        command, options = stage.command, dict(zip(stage.command, stage.command[1:], strict=False))
        reads = set()
        if "--data" in options:
            reads.add("catalog" if options["--data"].endswith("movielens-100k") else "pictures")
        if command[0] in ("align", "explain", "encode"):
            reads.add("backbone")
        if command[:2] in (("explain", "composite"), ("encode", "composite")):
            reads.add("compose")
        if command[:2] == ("explain", "vision/openmoji"):
            reads.add("align-vision")
        if "--vectors" in options:
            reads.add(options["--vectors"].replace("vectors/", "encode-"))
        if options.get("--modality") == "behavior":
            reads.add("behavior")
        if command[0] == "compose":
            reads |= {"align-text", "align-vision", "align-behavior"}
        assert reads <= before[stage.name], stage.name
