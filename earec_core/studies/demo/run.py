"""Running the demo's stages: each an `earec` command whose JSON result is kept; none is repeated."""

from __future__ import annotations

import hashlib
import json
import os
import time
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import earec_core
from earec_core.studies.demo import sources

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


def stages(folder: Path) -> list[Stage]:
    """The demo's stages with paths inside `folder`."""
    places = {
        "sources": folder / "sources",
        "catalog": folder / "data" / "movielens-100k",
        "pictures": folder / "data" / "openmoji",
        "texts": folder / "texts",
        "settings": folder / "settings.toml",
    }
    recipe = tomllib.loads(resources.files(__package__).joinpath("recipe.toml").read_text())
    return [
        Stage(one["name"], one["title"], tuple(part.format(**places) for part in one["command"]))
        for one in recipe["stage"]
    ]


def run(folder: Path, runner: Runner, note: Callable[[str], None]) -> list[Done]:
    """Run every stage that is not finished yet.

    Args:
        folder: the demo's folder: data, settings, registry, stage results.
        runner: runs one command.
        note: told what happens.
    """
    (folder / "stages").mkdir(parents=True, exist_ok=True)
    (folder / "texts").mkdir(exist_ok=True)
    settings = resources.files(__package__).joinpath("settings.toml").read_text()
    (folder / "settings.toml").write_text(settings)
    sources.movielens_100k(folder / "sources" / "movielens-100k", note)
    sources.openmoji(folder / "sources" / "openmoji", note)
    key = hashlib.sha256(f"{earec_core.__version__}{settings}".encode()).hexdigest()
    done: list[Done] = []
    all_stages = stages(folder)
    for number, stage in enumerate(all_stages, 1):
        key = hashlib.sha256(f"{key}{stage.command}".encode()).hexdigest()
        file = folder / "stages" / f"{stage.name}.json"
        kept = _kept(file, key)
        if kept is not None:
            done.append(Done(stage, kept["seconds"], False, kept["result"]))
            continue
        note(f"\n[{number}/{len(all_stages)}] {stage.title}\n$ {stage.line}")
        started = time.monotonic()
        result = runner(stage.command)
        seconds = time.monotonic() - started
        _keep(file, {"key": key, "seconds": seconds, "result": result, "stage": asdict(stage)})
        done.append(Done(stage, seconds, True, result))
    return done


def _kept(file: Path, key: str) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    return found if found.get("key") == key else None


def _keep(file: Path, value: dict[str, Any]) -> None:
    temp = file.with_name(f".{file.name}.{os.getpid()}")
    temp.write_text(json.dumps(value))
    temp.replace(file)
