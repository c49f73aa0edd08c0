"""Questions that come while others are answered are answered together, each with its own answer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from earec_core.serve.gathering import Gathered


class Doubling:
    """Doubles numbers, a batch at a time; the first batch waits until `go`."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go = threading.Event()

    def __call__(self, numbers: Sequence[int]) -> list[int]:
        self.batches.append(list(numbers))
        assert self.go.wait(10)
        if 13 in numbers:
            raise ValueError("thirteen")
        return [2 * number for number in numbers]


async def _first_alone(ask: Gathered[int, int], double: Doubling) -> asyncio.Task[int]:
    """The first question, being answered."""
    first = asyncio.create_task(ask(0))
    while not double.batches:
        await asyncio.sleep(0)
    return first


def test_what_comes_meanwhile_is_answered_together_in_batches() -> None:
    async def ask_all() -> None:
        double = Doubling()
        ask = Gathered(double, most=4)
        first = await _first_alone(ask, double)
        others = [asyncio.create_task(ask(number)) for number in range(1, 8)]
        await asyncio.sleep(0)
        double.go.set()
        assert await asyncio.gather(first, *others) == [2 * number for number in range(8)]
        assert double.batches == [[0], [1, 2, 3, 4], [5, 6, 7]]
        assert await ask(8) == 16

    asyncio.run(ask_all())


def test_a_failure_is_that_of_its_batch_and_who_gave_up_is_left_out() -> None:
    async def ask_all() -> None:
        double = Doubling()
        ask = Gathered(double, most=2)
        first = await _first_alone(ask, double)
        others = [asyncio.create_task(ask(number)) for number in (1, 13, 3, 4)]
        await asyncio.sleep(0)
        others[3].cancel()
        await asyncio.sleep(0)
        double.go.set()
        assert await first == 0
        for failed in others[:2]:
            with pytest.raises(ValueError, match="thirteen"):
                await failed
        assert await others[2] == 6
        assert double.batches == [[0], [1, 13], [3]]

    asyncio.run(ask_all())
