"""Commands in processes that live as long as the demo does, each with its share of the processor."""

from __future__ import annotations

import io
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from earec_core.errors import EarecError

Runner = Callable[[Sequence[str]], Any]
"""Runs one `earec` command and returns what it printed, parsed where it is JSON."""
Timed = tuple[float, float, Any]
"""When a command began, in Unix time, the seconds that it took, and what the runner gave."""
Submit = Callable[[Sequence[str]], "Future[Timed]"]
"""Begins a command."""


def sensible() -> int:
    """Commands at once: two share a processor better than one alone fills it; a GPU is one's own."""
    import torch

    return 1 if torch.cuda.is_available() or _cores() < 2 else 2


@contextmanager
def running(at_once: int, runner: Runner) -> Iterator[Submit]:
    """Within it commands can be begun; one at a time they run in this process, and are done when `submit` returns.

    Args:
        at_once: processes; each has its share of the cores as threads.
        runner: a function of a module, which other processes can import.

    Raises:
        EarecError: a process was killed.
    """
    if at_once == 1:
        yield lambda command: _Here().submit(_timed, runner, command)
        return
    threads = max(1, _cores() // at_once)
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(at_once, context, _begin, (threads,))
    try:
        yield lambda command: pool.submit(_timed, runner, command)
        pool.shutdown()
    except BrokenProcessPool as error:
        raise EarecError(
            "A process that ran a stage was killed, most likely for its memory.",
            "Run it again one stage at a time: --at-once 1. What is finished is not repeated.",
        ) from error
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.terminate()
        raise


def _cores() -> int:
    """Cores that this process may use."""
    # macOS and Windows have no affinity.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Here(Executor):
    """Runs what is submitted at once, in this process."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - whoever asks for the result gets it
            future.set_exception(error)
        return future


def _begin(threads: int) -> None:
    """What a process does first."""
    import torch

    class Log(io.TextIOWrapper):
        """Several write to one terminal: lines, no bars."""

        def isatty(self) -> bool:
            return False

    torch.set_num_threads(threads)
    sys.stderr = Log(sys.stderr.buffer, line_buffering=True)


def _timed(runner: Runner, command: Sequence[str]) -> Timed:
    began, started = time.time(), time.monotonic()
    result = runner(command)
    return began, time.monotonic() - started, result
