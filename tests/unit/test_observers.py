"""Observers: what they get, and that none of them stops a run."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from earec_core.cli import run
from earec_core.cli.options import open_registry
from earec_core.errors import MissingDependencyError, UsageError
from earec_core.plugins import observers
from earec_core.plugins.hooks import Hooks, Observers, PluginValidationError, hookimpl

MANIFEST = {"kind": "index", "method": "none"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_holds_what_was_observed(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    told = observers.manager(tmp_path)
    told.fire("earec_run_step", stage="align", run="somewhere/run-1", step=0, metrics={"valid_loss": 4.0})
    told.fire(
        "earec_run_step",
        stage="align",
        run="somewhere/run-1",
        step=1,
        metrics={"loss": 3.5, "tokens_per_s": 100.0},
    )
    told.fire("earec_run_step", stage="recommend", run="somewhere/run-2", step=3, metrics={"ndcg@10": 0.25})
    for stage, run_ in (("align", "somewhere/run-1"), ("recommend", "somewhere/run-2")):
        told.fire("earec_run_end", stage=stage, run=run_, step=3, metrics={})
    events = EventAccumulator(str(tmp_path / "run-1"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"valid_loss", "loss", "tokens_per_s"}
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 3.5)]
    events = EventAccumulator(str(tmp_path / "run-2"))
    events.Reload()
    assert {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]} == {
        "ndcg@10": [(3, 0.25)]
    }


def test_tensorboard_that_is_not_there_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'earec\[tensorboard\]'"):
        observers.manager(tmp_path)


def test_json_lines_are_whole_lines_in_order(tmp_path: Path) -> None:
    file = tmp_path / "new" / "events.jsonl"
    told = observers.manager(jsonl=file)
    told.fire("earec_run_start", stage="align", run="runs/a", config={"align": {"lr": 1e-4}, "modality": "m"})
    # Each line is there before the run goes on: nothing is kept back that a kill would lose.
    assert len(file.read_text().splitlines()) == 1
    told.fire(
        "earec_run_step", stage="align", run="runs/a", step=1, metrics={"loss": 3.5, "odd": float("nan")}
    )
    told.fire("earec_run_end", stage="align", run="runs/a", step=1, metrics={"valid_loss": 3.0})
    told.fire("earec_registered", name="m/a:latest", digest="0" * 64, manifest={"kind": "adapter"})
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    times = [datetime.fromisoformat(line.pop("time")) for line in lines]
    assert lines == [
        {
            "event": "start",
            "stage": "align",
            "run": "runs/a",
            "config": {"align": {"lr": 1e-4}, "modality": "m"},
        },
        {
            "event": "step",
            "stage": "align",
            "run": "runs/a",
            "step": 1,
            "metrics": {"loss": 3.5, "odd": None},
        },
        {"event": "end", "stage": "align", "run": "runs/a", "step": 1, "metrics": {"valid_loss": 3.0}},
        {"event": "registered", "name": "m/a:latest", "digest": "0" * 64, "manifest": {"kind": "adapter"}},
    ]
    assert times == sorted(times)
    assert all(time.utcoffset() == timedelta(0) for time in times)
    assert datetime.now(UTC) - times[0] < timedelta(minutes=1)


def test_json_lines_go_on_after_a_line_that_was_cut(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    file.write_text('{"event": "start"}\n{"event": "st')
    observers.manager(jsonl=file).fire("earec_run_end", stage="align", run="r", step=1, metrics={})
    first, cut, last = file.read_text().splitlines()
    assert (json.loads(first)["event"], cut, json.loads(last)["event"]) == ("start", '{"event": "st', "end")


def test_json_lines_that_cannot_be_written_are_said_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--jsonl"):
        observers.manager(jsonl=tmp_path)


def test_a_disk_that_fills_up_costs_the_events_and_not_the_run(tmp_path: Path) -> None:
    if not Path("/dev/full").is_char_device():
        pytest.skip("no /dev/full here")
    notes: list[str] = []
    told = Observers(notes.append)
    told.register(observers.JsonLines(tmp_path / "events.jsonl"), "jsonl")
    (tmp_path / "events.jsonl").unlink()
    (tmp_path / "events.jsonl").symlink_to("/dev/full")
    for step in (1, 2):
        told.fire("earec_run_step", stage="align", run="r", step=step, metrics={})
    assert len(notes) == 1
    assert "'jsonl' raised in earec_run_step" in notes[0]
    assert "No space left" in notes[0]


class Steps:
    def __init__(self) -> None:
        self.seen: list[int] = []

    @hookimpl
    def earec_run_step(self, step: int) -> None:
        self.seen.append(step)


def test_an_observer_takes_only_the_arguments_it_names() -> None:
    steps, told = Steps(), Observers()
    told.register(steps)
    told.fire("earec_run_step", stage="align", run="r", step=7, metrics={})
    told.fire("earec_run_end", stage="align", run="r", step=7, metrics={})
    assert steps.seen == [7]


class Failing:
    def __init__(self, error: BaseException) -> None:
        self.error, self.calls = error, 0

    @hookimpl
    def earec_run_step(self, step: int) -> None:
        self.calls += 1
        raise self.error


@pytest.mark.parametrize("error", [ValueError("no\nluck"), SystemExit(3)])
def test_an_observer_that_raises_is_named_once_and_left_out(error: BaseException) -> None:
    notes: list[str] = []
    told = Observers(notes.append)
    before, failing, after = Steps(), Failing(error), Steps()
    for one in (before, failing, after):
        told.register(one)
    for step in (1, 2, 3):
        told.fire("earec_run_step", stage="align", run="r", step=step, metrics={})
    assert before.seen == after.seen == [1, 2, 3]
    assert failing.calls == 1
    assert len(notes) == 1
    assert "'Failing' raised in earec_run_step" in notes[0]
    assert "\n" not in notes[0]


def test_strict_and_ctrl_c_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    told = Observers()
    told.register(Failing(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        told.fire("earec_run_step", stage="align", run="r", step=1, metrics={})
    monkeypatch.setenv("EAREC_STRICT_PLUGINS", "1")
    told = Observers()
    told.register(Failing(ValueError("no luck")))
    with pytest.raises(ValueError, match="no luck"):
        told.fire("earec_run_step", stage="align", run="r", step=1, metrics={})


def test_what_an_observer_does_to_its_arguments_stays_with_it() -> None:
    class Rude:
        @hookimpl
        def earec_run_start(self, config: dict[str, Any]) -> None:
            config["align"].clear()

    config = {"align": {"lr": 1.0}}
    told = Observers()
    told.register(Rude())
    told.fire("earec_run_start", stage="align", run="r", config=config)
    assert config == {"align": {"lr": 1.0}}


def test_an_observer_that_fits_no_hook_is_refused() -> None:
    class Misspelt:
        @hookimpl
        def earec_run_stop(self) -> None: ...

    class Argued:
        @hookimpl
        def earec_run_end(self, mood: str) -> None: ...

    for observer, said in ((Misspelt(), "earec_run_stop"), (Argued(), "mood"), (object(), "no @hookimpl")):
        with pytest.raises(PluginValidationError, match=said):
            Observers().register(observer)


def test_an_observer_of_the_former_hooks_is_told_the_new_ones() -> None:
    class Former:
        @hookimpl
        def earec_align_start(self, run: str) -> None: ...

        @hookimpl
        def earec_align_step(self, step: int) -> None: ...

    with pytest.raises(PluginValidationError) as caught:
        Observers().register(Former(), "former")
    assert str(caught.value) == (
        "'former' implements earec_align_start, earec_align_step, now earec_run_start, earec_run_step: called "
        "for every stage, with the new argument stage ('align' for an alignment)"
    )
    for hook in ("earec_run_start", "earec_run_step"):
        assert "stage" in inspect.signature(getattr(Hooks, hook)).parameters


OBSERVER = """
from pathlib import Path
from earec_core.plugins.hooks import hookimpl


class Diary:
    @hookimpl
    def earec_registered(self, name, manifest):
        with Path({file!r}).open("a") as out:
            out.write(f"{{name}} {{manifest['kind']}}\\n")
"""


@pytest.fixture
def diary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A distribution with an observer of what is registered, installed; the file that it writes."""
    site, file = tmp_path / "site", tmp_path / "diary.txt"
    info = site / "earec_diary-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: earec-diary\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[earec.observers]\ndiary = kit_diary:Diary\n")
    (site / "kit_diary.py").write_text(OBSERVER.format(file=str(file)))
    monkeypatch.syspath_prepend(str(site))
    yield file
    sys.modules.pop("kit_diary", None)


def test_a_plugins_observer_hears_of_whatever_is_registered(
    diary: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "weights").write_text("w")
    registry = open_registry(tmp_path / "registry")
    assert "kit_diary" not in sys.modules
    registry.add(MANIFEST, {"w": tmp_path / "weights"}, name="some/model")
    assert diary.read_text() == "some/model:latest index\n"
    assert capsys.readouterr().err == ""


def test_a_disabled_observer_is_silent(
    diary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EAREC_DISABLE_PLUGINS", "diary")
    (tmp_path / "weights").write_text("w")
    open_registry(tmp_path / "registry").add(MANIFEST, {"w": tmp_path / "weights"}, name="some/model")
    assert not diary.exists()
    assert capsys.readouterr().err == ""


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names told to an observer that is there for every command."""
    names: list[str] = []

    class Listener:
        @hookimpl
        def earec_registered(self, name: str, digest: str, manifest: Mapping[str, Any]) -> None:
            assert len(digest) == 64
            names.append(f"{manifest['kind']} {name}")

    real = observers.manager

    def manager(*args: Any, **kwargs: Any) -> Observers:
        made = real(*args, **kwargs)
        made.register(Listener())
        return made

    monkeypatch.setattr(observers, "manager", manager)
    return names


def test_every_command_that_registers_tells(
    told: list[str], tiny_llm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("source").mkdir()
    rows = [{"item_id": f"i{n}", "title": f"thing {n}", "description": f"number {n}"} for n in range(12)]
    Path("source/items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = [f"u{u},i{(u + t) % 12},{t}\n" for u in range(8) for t in range(5)]
    Path("source/interactions.csv").write_text("user_id,item_id,timestamp\n" + "".join(pairs))
    llm = ["--backbone", str(tiny_llm)]
    few = ["align.max_steps=1", "align.rouge_items=1", "align.eval_items=2", "lora.r=2"]
    for argv in (
        ["data", "import", "source", "--out", "d", "--core", "1"],
        ["behavior", "fit", "--data", "d", "--epochs", "1", "--dim", "4"],
        ["align", "--modality", "text", "--data", "d", *llm, *(p for f in few for p in ("--set", f))],
        ["compose", "--weights", "text=1", "--name", "composite"],
        ["encode", "composite", "--data", "d", *llm],
        [
            "recommend",
            "train",
            "--data",
            "d",
            "--vectors",
            "vectors/d",
            "--set",
            "recommender.epochs=1",
            "--set",
            "recommender.dim=4",
        ],
    ):
        assert run(argv) == 0, argv
    assert told == [
        "embeddings embeddings/d:latest",
        "adapter text/d:latest",
        "composite composite:latest",
        "vectors vectors/d:latest",
        "recommender recommender/d:latest",
    ]
