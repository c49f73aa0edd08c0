"""Passes side by side on a processor: each in a thread of its own, with its share of the cores.

A matrix product uses several cores well; the many small steps between products do not, and each of them waits for
all cores. Two passes on a core each wait for nothing but Python's lock, which is held between steps only.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

from earec_core.llm.backbone import Backbone

T = TypeVar("T")
R = TypeVar("R")

_MOST = 8
"""Lanes at most: more would wait for Python's lock, which a pass holds for some hundredth of its time."""
_SWITCH_S = 5e-4
"""How soon a thread that waits for Python's lock gets it, where Python's default is ten times as long as a step."""


def lanes(backbone: Backbone, positions: int, *, least: int) -> int:
    """How many passes to run side by side.

    Args:
        positions: that all of them read together.
        least: that one of them should read.
    """
    if backbone.device.type != "cpu" or not backbone.abilities.side_by_side:
        return 1
    return max(1, min(torch.get_num_threads(), positions // least, _MOST))


def side_by_side(function: Callable[[T], R], inputs: Iterable[T], number: int) -> Iterator[R]:
    """What a function gives for inputs, in their order, so many at a time; the inputs are drawn in this thread.

    The threads know nothing of this one's modes: the function itself enters `torch.inference_mode` and the like.

    Raises:
        Exception: what the function raised, once those beside it have ended.
    """
    if number == 1:
        yield from map(function, inputs)
        return
    running: deque[Future[R]] = deque()
    share = max(1, torch.get_num_threads() // number)
    with _settings_kept(), ThreadPoolExecutor(number, "lane", torch.set_num_threads, (share,)) as pool:
        sys.setswitchinterval(_SWITCH_S)
        try:
            for one in inputs:
                running.append(pool.submit(function, one))
                if len(running) > number:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            for future in running:
                future.cancel()


@contextmanager
def _settings_kept() -> Iterator[None]:
    """The process's settings are afterwards what they were: threads to come would begin with a lane's share."""
    interval, threads = sys.getswitchinterval(), torch.get_num_threads()
    try:
        yield
    finally:
        sys.setswitchinterval(interval)
        torch.set_num_threads(threads)
