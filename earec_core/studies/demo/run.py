"""Running the demo's stages: each an `earec` command whose JSON result is kept; none is repeated."""

from __future__ import annotations

import json
import time
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import earec_core
from earec_core.files import digest, write_atomic, write_json
from earec_core.studies.demo import sources
from earec_core.workspace import Workspace

Runner = Callable[[Sequence[str]], Any]
"""Runs one `earec` command and returns what it printed, parsed where it is JSON."""


@dataclass(frozen=True)
class Stage:
    """One command of the demo."""

    name: str
    title: str
    command: tuple[str, ...]

    @property
    def line(self) -> str:
        """The command as typed into a shell."""
        return " ".join(["earec", *(f"'{part}'" if " " in part else part for part in self.command)])


@dataclass(frozen=True)
class Done:
    """A stage and what came out.

    Attributes:
        seconds: how long it took when it was run.
        repeated: False when the result of an earlier run was taken.
        result: the command's JSON result, or text.
    """

    stage: Stage
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
        Stage(row["name"], row["title"], tuple(part.format(**places) for part in row["command"]))
        for row in recipe()["stage"]
    ]


def run(folder: Path, workspace: Workspace, runner: Runner) -> list[Done]:
    """Run every stage that is not finished yet.

    Args:
        folder: the demo's folder: data, settings, registry, stage results.
        workspace: where downloads are kept, and who is told what happens.
        runner: runs one command.
    """
    (folder / "texts").mkdir(parents=True, exist_ok=True)
    settings = resources.files(__package__).joinpath("settings.toml").read_text()
    write_atomic(folder / "settings.toml", settings)
    sources.movielens_100k(folder / "sources" / "movielens-100k", workspace)
    sources.openmoji(folder / "sources" / "openmoji", workspace)
    key = digest([earec_core.__version__, settings])
    done: list[Done] = []
    planned = stages(folder)
    for number, stage in enumerate(planned, 1):
        key = digest([key, stage.command])
        file = folder / "stages" / f"{stage.name}.json"
        kept = _kept(file, key)
        if kept is not None:
            done.append(Done(stage, kept["seconds"], False, kept["result"]))
            continue
        workspace.note(f"\n[{number}/{len(planned)}] {stage.title}\n$ {stage.line}")
        started = time.monotonic()
        result = runner(stage.command)
        seconds = time.monotonic() - started
        write_json(file, {"key": key, "seconds": seconds, "result": result, "stage": asdict(stage)})
        done.append(Done(stage, seconds, True, result))
    return done


def _kept(file: Path, key: str) -> dict[str, Any] | None:
    try:
        kept: dict[str, Any] = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    return kept if kept.get("key") == key else None
