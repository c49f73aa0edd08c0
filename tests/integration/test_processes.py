"""Alignment in several processes and by each engine: its curve, its adapter, and going on in one process."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from earec_core.align.job import open_job
from earec_core.artifacts import AdapterManifest, open_as
from earec_core.config import resolve
from earec_core.errors import UsageError
from earec_core.train.processes import Processes
from earec_core.workspace import Workspace
from tests.forks import Forks

from .conftest import Pipeline

SETTINGS = {
    "align__epochs": 5,
    "align__batch_size": 11,
    "align__micro_batch": 2,
    "align__eval_every": 4,
    "lora__dropout": 0.0,
}

KILLED = """
import os, signal
from earec_core.align.train import Trainer
step, calls = Trainer._step, []

def killed(self, batch):
    calls.append(1)
    if len(calls) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, batch)

Trainer._step = killed
"""


def _command(pipeline: Pipeline, home: Path, *options: str) -> list[str]:
    on = ["--data", str(pipeline.data), *pipeline.settings(**SETTINGS), "--registry", str(home / "registry")]
    return ["align", "--modality", "text", *on, *options, "--json"]


def _environment(home: Path) -> dict[str, str]:
    """Nothing is to be compiled: there is no compiler, and nowhere to keep what it makes."""
    folders = {"EAREC_HOME": str(home), "TORCH_EXTENSIONS_DIR": str(home / "compiled")}
    return {**os.environ, **folders, "OMP_NUM_THREADS": "1", "CXX": "/bin/false"}


def _run(pipeline: Pipeline, home: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """The command as it is typed; it starts the processes itself, by torchrun's launcher."""
    return subprocess.run(
        [sys.executable, "-m", "earec_core", *_command(pipeline, home, *options)],
        capture_output=True,
        text=True,
        env=_environment(home),
    )


def _result(home: Path, done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert not (home / "compiled").exists()
    return found


@pytest.fixture(scope="module")
def forked() -> Iterator[Forks]:
    """Runs `earec` in processes of its own that need not import it, nor DeepSpeed."""
    forks = Forks(modules=["deepspeed"])
    yield forks
    forks.close()


def _two(
    forked: Forks, pipeline: Pipeline, home: Path, *options: str, before: str = ""
) -> list[subprocess.CompletedProcess[str]]:
    """Two processes, with what torchrun tells each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    ranks = [{**_environment(home), **address, "RANK": rank, "LOCAL_RANK": rank} for rank in ("0", "1")]
    return forked.together(_command(pipeline, home, *options), ranks, before=before)


def _engines(home: Path, found: dict[str, Any]) -> list[tuple[str, int, Mapping[str, Any]]]:
    """What the manifest says ran it: name, processes, settings."""
    manifest = open_as(Workspace.open(home).registry, found["id"], AdapterManifest).manifest
    return [(engine.name, engine.processes, engine.settings) for engine in manifest.training.engines]


def _adapter(home: Path, found: dict[str, Any]) -> dict[str, torch.Tensor]:
    stored = open_as(Workspace.open(home).registry, found["id"], AdapterManifest)
    return load_file(stored.folder / "adapter_model.safetensors")


def _losses(found: dict[str, Any]) -> list[float]:
    history = json.loads((Path(found["run"]) / "result.json").read_text())["history"]
    return [point[key] for point in history for key in ("loss", "valid_loss") if key in point]


@pytest.fixture(scope="module")
def alone(
    forked: Forks, pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """The home of one process, and what it made."""
    home = tmp_path_factory.mktemp("alone")
    return home, _result(home, forked.run(_command(pipeline, home), _environment(home)))


def _same(home: Path, found: dict[str, Any], alone: tuple[Path, dict[str, Any]]) -> None:
    assert _losses(found) == pytest.approx(_losses(alone[1]), rel=1e-4)
    expected, own = _adapter(*alone), _adapter(home, found)
    assert own.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(own[name], tensor, rtol=1e-3, atol=1e-4)


def test_two_processes_train_as_one_does(
    forked: Forks, in_home: Pipeline, tmp_path: Path, alone: tuple[Path, dict[str, Any]]
) -> None:
    # So in the last batch the second process has no sample.
    assert alone[1]["items"]["train"] % SETTINGS["align__batch_size"] == 1
    first, second = _two(forked, in_home, tmp_path)
    assert (second.returncode, second.stdout) == (0, "")
    found = _result(tmp_path, first)
    assert len(_losses(found)) > 8
    _same(tmp_path, found, alone)
    assert _engines(*alone) == [("torch", 1, {})]
    assert _engines(tmp_path, found) == [("torch", 2, {})]


def test_zero_in_two_processes_that_the_command_starts_trains_as_one_process_does(
    in_home: Pipeline, tmp_path: Path, alone: tuple[Path, dict[str, Any]]
) -> None:
    found = _result(tmp_path, _run(in_home, tmp_path, "--processes", "2", "--engine", "deepspeed"))
    assert found["run"].rpartition("/")[2] == alone[1]["run"].rpartition("/")[2]
    _same(tmp_path, found, alone)
    assert _engines(tmp_path, found) == [("deepspeed", 2, {"stage": 2, "offload": "nothing"})]


def test_zero_3_with_everything_offloaded_trains_as_one_process_does(
    forked: Forks, in_home: Pipeline, tmp_path: Path, alone: tuple[Path, dict[str, Any]]
) -> None:
    settings = ("--engine", "deepspeed", "--set", "engine.stage=3", "--set", "engine.offload=all")
    first, second = _two(forked, in_home, tmp_path, *settings)
    assert (second.returncode, second.stdout) == (0, "")
    found = _result(tmp_path, first)
    _same(tmp_path, found, alone)
    assert _engines(tmp_path, found) == [("deepspeed", 2, {"stage": 3, "offload": "all"})]


def test_two_that_are_killed_go_on_as_one(
    forked: Forks, in_home: Pipeline, tmp_path: Path, alone: tuple[Path, dict[str, Any]]
) -> None:
    """And from ZeRO to plain torch."""
    killed = _two(forked, in_home, tmp_path, "--engine", "deepspeed", before=KILLED)
    assert [done.returncode for done in killed] == [-9, -9], killed[0].stderr
    assert list((tmp_path / "runs").glob("*/checkpoint.safetensors")), killed[0].stderr
    found = _result(tmp_path, forked.run(_command(in_home, tmp_path), _environment(tmp_path)))
    _same(tmp_path, found, alone)
    zero = {"stage": 2, "offload": "nothing"}
    assert _engines(tmp_path, found) == [("deepspeed", 2, zero), ("torch", 1, {})]


def test_what_stops_all_processes_is_one_exit_code(in_home: Pipeline, tmp_path: Path) -> None:
    done = _run(in_home, tmp_path, "--processes", "2", "--set", "align.pairs=0.5")
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert "align.pairs compares the items of a batch" in done.stderr


def test_pairs_are_refused_in_several_processes(in_home: Pipeline) -> None:
    config = resolve(flags={"align.pairs": 0.5, "backbone.model": str(in_home.llm)})
    with pytest.raises(UsageError, match=r"align\.pairs compares the items of a batch"):
        open_job(in_home.workspace, in_home.catalog, "text", config, processes=Processes(0, 2))
