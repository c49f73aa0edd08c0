"""One LLM for many requests: one at a time, a few waiting."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from earec_core.encode.windows import Job
from earec_core.llm.backbone import Adapter, Backbone
from earec_core.serve.errors import BusyError
from earec_core.serve.limits import Deadline


class LlmTurns:
    """Who has the LLM.

    The adapter of the model that had it last stays on it, since putting one on takes a pass over the weights.

    Args:
        waiting: how many may wait with a deadline; the next is refused.
    """

    def __init__(self, waiting: int) -> None:
        self._most = waiting
        self._turn, self._counting = threading.Lock(), threading.Lock()
        self._inside = 0
        self._on: str | None = None
        self._adapter = ExitStack()

    @property
    def inside(self) -> int:
        """How many have it or wait for it."""
        return self._inside

    @contextmanager
    def turn(self, job: Callable[[], Job], deadline: Deadline | None = None) -> Iterator[None]:
        """The LLM with the job's adapter on it, for nobody else as long as the block lasts.

        Args:
            job: asked once it is this one's turn.
            deadline: of the request; without, it is waited for however long it takes.

        Raises:
            BusyError: too many wait.
            SlowError: the deadline came first.
        """
        with self._counted(bounded=deadline is not None):
            if not self._turn.acquire(timeout=deadline.left() if deadline else -1):
                assert deadline is not None  # noqa: S101 - without one it is waited for
                raise deadline.missed()
            try:
                self._put_on(job())
                yield
            finally:
                self._turn.release()

    @contextmanager
    def aside(self, backbone: Backbone, adapter: Adapter) -> Iterator[None]:
        """Within a turn: another adapter in place of the job's for as long as the block lasts.

        The next turn puts its own on again.
        """
        self._take_off()
        with backbone.adapted(adapter):
            yield

    def close(self) -> None:
        """Take the adapter off."""
        with self._turn:
            self._take_off()

    @contextmanager
    def _counted(self, *, bounded: bool) -> Iterator[None]:
        with self._counting:
            if bounded and self._inside > self._most:
                raise BusyError(
                    f"The LLM is at work, and {self._inside - 1} requests wait for it.", "Ask again later."
                )
            self._inside += 1
        try:
            yield
        finally:
            with self._counting:
                self._inside -= 1

    def _put_on(self, job: Job) -> None:
        wanted = job.stored.id if job.stored else None
        if self._on != wanted:
            self._take_off()
            self._adapter.enter_context(job.adapted())
            self._on = wanted

    def _take_off(self) -> None:
        self._adapter.close()
        self._on = None
