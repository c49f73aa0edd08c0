"""Alignment in several processes and by each engine: its curve, its adapter, and going on in one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
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

from .conftest import Pipeline

SETTINGS = {
    "align__epochs": 5,
    "align__batch_size": 11,
    "align__micro_batch": 2,
    "align__eval_every": 4,
    "lora__dropout": 0.0,
}
DEEPSPEED = ("--processes", "2", "--engine", "deepspeed")

KILLED = """
import os
from earec_core.align.train import Trainer
from earec_core.cli import main
step, calls = Trainer._step, []

def killed(self, batch):
    calls.append(1)
    if len(calls) == 4:
        os._exit(9)
    return step(self, batch)

Trainer._step = killed
main()
"""


def _torchrun(number: int) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={number}", "--no-python"]
    return [sys.executable, *launcher]


def _run(
    pipeline: Pipeline,
    home: Path,
    *options: str,
    launcher: list[str] | None = None,
    program: str = "-mearec_core",
) -> subprocess.CompletedProcess[str]:
    on = ["--data", str(pipeline.data), *pipeline.settings(**SETTINGS), "--registry", str(home / "registry")]
    return subprocess.run(
        [*(launcher or []), sys.executable, program, "align", "--modality", "text", *on, *options, "--json"],
        capture_output=True,
        text=True,
        # Nothing is to be compiled: there is no compiler, and nowhere to keep what it makes.
        env={
            **os.environ,
            "EAREC_HOME": str(home),
            "OMP_NUM_THREADS": "1",
            "TORCH_EXTENSIONS_DIR": str(home / "compiled"),
            "CXX": "/bin/false",
        },
    )


def _aligned(
    pipeline: Pipeline, home: Path, *options: str, launcher: list[str] | None = None
) -> dict[str, Any]:
    done = _run(pipeline, home, *options, launcher=launcher)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert not (home / "compiled").exists()
    return found


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
def alone(pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The home of one process, and what it made."""
    home = tmp_path_factory.mktemp("alone")
    return home, _aligned(pipeline, home)


def _same(home: Path, found: dict[str, Any], alone: tuple[Path, dict[str, Any]]) -> None:
    assert _losses(found) == pytest.approx(_losses(alone[1]), rel=1e-4)
    expected, own = _adapter(*alone), _adapter(home, found)
    assert own.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(own[name], tensor, rtol=1e-3, atol=1e-4)


def test_two_processes_train_as_one_does(
    in_home: Pipeline, tmp_path: Path, alone: tuple[Path, dict[str, Any]]
) -> None:
    # So in the last batch the second process has no sample.
    assert alone[1]["items"]["train"] % SETTINGS["align__batch_size"] == 1
    found = _aligned(in_home, tmp_path, launcher=_torchrun(2))
    assert len(_losses(found)) > 8
    _same(tmp_path, found, alone)
    assert _engines(*alone) == [("torch", 1, {})]
    assert _engines(tmp_path, found) == [("torch", 2, {})]


@pytest.mark.parametrize(("stage", "offload"), [(2, "nothing"), (3, "all")])
def test_zero_in_two_processes_trains_as_one_process_does(
    stage: int, offload: str, in_home: Pipeline, tmp_path: Path, alone: tuple[Path, dict[str, Any]]
) -> None:
    settings = ("--set", f"engine.stage={stage}", "--set", f"engine.offload={offload}")
    found = _aligned(in_home, tmp_path, *DEEPSPEED, *settings)
    assert found["run"].rpartition("/")[2] == alone[1]["run"].rpartition("/")[2]
    _same(tmp_path, found, alone)
    assert _engines(tmp_path, found) == [("deepspeed", 2, {"stage": stage, "offload": offload})]


def test_two_that_are_killed_go_on_as_one(
    in_home: Pipeline, tmp_path: Path, alone: tuple[Path, dict[str, Any]]
) -> None:
    """And from ZeRO to plain torch."""
    program = tmp_path / "killed.py"
    program.write_text(KILLED)
    killed = _run(in_home, tmp_path, "--engine", "deepspeed", launcher=_torchrun(2), program=str(program))
    assert killed.returncode != 0
    assert list((tmp_path / "runs").glob("*/checkpoint.safetensors")), killed.stderr
    found = _aligned(in_home, tmp_path)
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
