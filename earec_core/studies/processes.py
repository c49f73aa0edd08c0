"""Work in processes that live as long as a study does, each with its share of the processor."""

from __future__ import annotations

import io
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import connection
from typing import Any

from earec_core.errors import EarecError

Submit = Callable[..., "Future[Any]"]
"""Begins a function of a module with some arguments."""
Prepare = Callable[[], None]


def sensible(most: int) -> int:
    """How many pieces of work at once: each alone fills a few cores badly; a GPU is one's own."""
    import torch

    return 1 if torch.cuda.is_available() else max(1, min(cores(), most))


@contextmanager
def running(at_once: int, prepare: Prepare | None = None) -> Iterator[Submit]:
    """Within it work can be begun; one at a time it runs in this process, and is done when `submit` returns.

    Args:
        at_once: processes; each has its share of the cores as threads.
        prepare: what each of several processes calls first.

    Raises:
        EarecError: a process was killed.
    """
    if at_once == 1:
        yield _Here().submit
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(at_once, context, _begin, (max(1, cores() // at_once), prepare))
    try:
        yield pool.submit
        pool.shutdown()
    except BrokenProcessPool as error:
        raise EarecError(
            "A process that did a part of the work was killed, most likely for its memory.",
            "Run it again with one at a time: --at-once 1. What is finished is not repeated.",
        ) from error
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.terminate()
        raise


def cores() -> int:
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


def _begin(threads: int, prepare: Prepare | None) -> None:
    """What a process does first."""
    import torch

    class Log(io.TextIOWrapper):
        """Several write to one terminal: lines, no bars."""

        def isatty(self) -> bool:
            return False

    torch.set_num_threads(threads)
    sys.stderr = Log(sys.stderr.buffer, line_buffering=True)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if prepare is not None:
        prepare()


def _end_with_parent() -> None:
    """End this process once the one that began it has: killed, it cannot end others."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
