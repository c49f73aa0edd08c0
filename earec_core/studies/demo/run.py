"""Running the demo's stages: each an `earec` command whose JSON result is kept; none is repeated."""

from __future__ import annotations

import json
import time
import tomllib
from collections.abc import Callable, Container, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import earec_core
from earec_core.files import digest, write_atomic, write_json
from earec_core.studies.demo import sources
from earec_core.studies.processes import running
from earec_core.workspace import Workspace

Runner = Callable[[Sequence[str]], Any]
"""Runs one `earec` command and returns what it printed, parsed where it is JSON."""
Timed = tuple[float, float, Any]
"""When a command began, in Unix time, the seconds that it took, and what the runner gave."""


@dataclass(frozen=True)
class Stage:
    """One command of the demo, and the names of the stages that must be done before it."""

    name: str
    title: str
    command: tuple[str, ...]
    after: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        """The command as typed into a shell."""
        return " ".join(["earec", *(f"'{part}'" if " " in part else part for part in self.command)])


@dataclass(frozen=True)
class Done:
    """A stage and what came out.

    Attributes:
        began, seconds: when it was run, in Unix time, and how long it took.
        repeated: False when the result of an earlier run was taken.
        result: the command's JSON result, or text.
    """

    stage: Stage
    began: float
    seconds: float
    repeated: bool
    result: Any


def recipe() -> dict[str, Any]:
    """The demo's recipe: its stages in order, and the texts of its report."""
    return tomllib.loads(resources.files(__package__).joinpath("recipe.toml").read_text())


def stages(folder: Path) -> list[Stage]:
    """The demo's stages with paths inside `folder`."""
    places = {
        "sources": folder / "sources",
        "catalog": folder / "data" / "movielens-100k",
        "pictures": folder / "data" / "openmoji",
        "texts": folder / "texts",
        "settings": folder / "settings.toml",
        "registry": folder / "registry",
    }
    return [
        Stage(
            row["name"],
            row["title"],
            tuple(part.format(**places) for part in row["command"]),
            tuple(row["after"]),
        )
        for row in recipe()["stage"]
    ]


def run(folder: Path, workspace: Workspace, runner: Runner, *, at_once: int = 1) -> list[Done]:
    """Run every stage that is not finished yet, each once those before it are.

    Args:
        folder: the demo's folder: data, settings, registry, stage results.
        workspace: where downloads are kept, and who is told what happens.
        runner: runs one command; a function of a module where several run at once.
        at_once: stages that run at once, in processes of their own.

    Returns:
        All stages in the recipe's order.

    Raises:
        Exception: what a stage raised; those that ran beside it are finished first.
    """
    (folder / "texts").mkdir(parents=True, exist_ok=True)
    settings = resources.files(__package__).joinpath("settings.toml").read_text()
    write_atomic(folder / "settings.toml", settings)
    sources.movielens_100k(folder / "sources" / "movielens-100k", workspace)
    sources.openmoji(folder / "sources" / "openmoji", workspace)
    planned, key = stages(folder), digest([earec_core.__version__, settings])
    keys: dict[str, str] = {}
    for stage in planned:
        keys[stage.name] = key = digest([key, stage.command])
    done: dict[str, Done] = {}
    for stage in planned:
        kept = _kept(folder / "stages" / f"{stage.name}.json", keys[stage.name])
        if kept is not None:
            done[stage.name] = Done(stage, kept["began"], kept["seconds"], False, kept["result"])
    numbers = {stage.name: number for number, stage in enumerate(planned, 1)}

    def keep(stage: Stage, began: float, seconds: float, result: Any) -> None:
        times = {"began": began, "seconds": seconds}
        about = {"key": keys[stage.name], **times, "result": result, "stage": asdict(stage)}
        write_json(folder / "stages" / f"{stage.name}.json", about)
        done[stage.name] = Done(stage, began, seconds, True, result)

    failed: BaseException | None = None
    begun: dict[Future[Timed], Stage] = {}
    with running(at_once) as submit:
        while begun or (failed is None and len(done) < len(planned)):
            for stage in _ready(planned, done, begun.values()) if failed is None else ():
                if len(begun) < at_once:
                    head = f"[{numbers[stage.name]}/{len(planned)}] {stage.title}"
                    workspace.note(f"\n{head}\n$ {stage.line}")
                    begun[submit(_timed, runner, stage.command)] = stage
            for future in wait(begun, return_when=FIRST_COMPLETED).done:
                stage = begun.pop(future)
                failed = failed or future.exception()
                if future.exception() is None:
                    keep(stage, *future.result())
        if failed is not None:
            raise failed
    return [done[stage.name] for stage in planned]


def _timed(runner: Runner, command: Sequence[str]) -> Timed:
    began, started = time.time(), time.monotonic()
    result = runner(command)
    return began, time.monotonic() - started, result


def _ready(planned: Sequence[Stage], done: Container[str], begun: Container[Stage]) -> list[Stage]:
    """Stages that can begin: those before them are done."""
    waiting = [stage for stage in planned if stage.name not in done and stage not in begun]
    return [stage for stage in waiting if all(name in done for name in stage.after)]


def _kept(file: Path, key: str) -> dict[str, Any] | None:
    try:
        kept: dict[str, Any] = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    return kept if kept.get("key") == key and "began" in kept else None
