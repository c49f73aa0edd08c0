"""Passes side by side: the same results as one after another, and the process as it was afterwards."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from earec_core.config import BackboneConfig
from earec_core.llm import architecture
from earec_core.llm.backbone import Abilities, Backbone
from earec_core.llm.lanes import lanes, side_by_side


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@given(inputs=st.lists(st.integers()), number=st.integers(1, 4))
def test_results_come_in_the_order_of_the_inputs(inputs: list[int], number: int) -> None:
    assert list(side_by_side(lambda x: 2 * x, inputs, number)) == [2 * x for x in inputs]


def test_passes_run_at_once_each_with_its_share_of_the_cores(two_threads: None) -> None:
    together = threading.Barrier(2, timeout=30)  # breaks where one waits for the other's end

    def run(_: int) -> int:
        together.wait()
        return torch.get_num_threads()

    assert list(side_by_side(run, range(4), 2)) == [1] * 4


def test_inputs_are_drawn_as_they_are_needed() -> None:
    drawn = []

    def inputs() -> Iterator[int]:
        for i in range(100):
            drawn.append((i, threading.current_thread() is threading.main_thread()))
            yield i

    results = side_by_side(lambda x: x, inputs(), 2)
    assert next(results) == 0
    assert drawn == [(0, True), (1, True), (2, True)]
    results.close()
    assert len(drawn) == 3


def test_the_process_is_as_it_was_when_a_pass_fails(two_threads: None) -> None:
    before = sys.getswitchinterval(), torch.get_num_threads(), threading.active_count()

    def fail(x: int) -> int:
        if x == 2:
            raise ArithmeticError("two")
        return x

    with pytest.raises(ArithmeticError, match="two"):
        list(side_by_side(fail, range(9), 2))
    assert (sys.getswitchinterval(), torch.get_num_threads(), threading.active_count()) == before
    counts: list[int] = []
    later = threading.Thread(target=lambda: counts.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert counts == [2]


@pytest.mark.parametrize(
    ("threads", "positions", "able", "expected"),
    [(2, 2048, True, 2), (2, 2047, True, 1), (2, 10, True, 1), (64, 10**6, True, 8), (2, 4096, False, 1)],
)
def test_lanes_follow_from_cores_and_positions(
    tiny_llm: Path, monkeypatch: pytest.MonkeyPatch, threads: int, positions: int, able: bool, expected: int
) -> None:
    backbone = Backbone.load(BackboneConfig(model=str(tiny_llm), dtype="float32", device="cpu"))
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    backbone.abilities = Abilities(side_by_side=able)
    assert lanes(backbone, positions, least=1024) == expected


class Counting(nn.Module):
    """Counts its calls."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.calls = inner, 0

    def forward(self, *arguments: object, **options: object) -> object:
        self.calls += 1
        return self.inner(*arguments, **options)


def test_an_llm_that_keeps_something_of_a_pass_runs_alone(tiny_llm: Path) -> None:
    backbone = Backbone.load(BackboneConfig(model=str(tiny_llm), dtype="float32", device="cpu"))
    assert backbone.abilities.side_by_side
    layer = backbone.model.model.layers[0]
    layer.mlp = Counting(layer.mlp)
    assert not architecture.tried(backbone).side_by_side


@pytest.mark.parametrize(("kind", "alone"), [("linear", False), ("dynamic", True)])
def test_an_llm_whose_positions_follow_from_the_longest_row_runs_alone(
    tiny_llm: Path, tmp_path: Path, kind: str, alone: bool
) -> None:
    folder = shutil.copytree(tiny_llm, tmp_path / kind)
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": kind, "factor": 2.0, "rope_theta": 10000.0}
    (folder / "config.json").write_text(json.dumps(config))
    backbone = Backbone.load(BackboneConfig(model=str(folder), dtype="float32", device="cpu"))
    assert backbone.abilities.side_by_side is not alone


ONE_PLACE = """
import ctypes, threading
from earec_core import processor
processor.prepare()
import numpy as np
def work():
    for _ in range(20):
        np.ones(200_000)
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p
file = libc.fopen(b"/dev/stdout", b"w")
libc.malloc_info(0, ctypes.c_void_p(file))
libc.fflush(ctypes.c_void_p(file))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
@pytest.mark.parametrize(("environment", "one"), [({}, True), ({"MALLOC_ARENA_MAX": "4"}, False)])
def test_threads_take_memory_from_one_place_unless_told_otherwise(
    environment: dict[str, str], one: bool
) -> None:
    known = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", ONE_PLACE], env=known | environment, capture_output=True, text=True, check=True
    )
    places = done.stdout.count("<heap nr=")
    assert places == 1 if one else places > 1
