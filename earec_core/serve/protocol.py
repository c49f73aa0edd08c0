"""A connection as uvicorn has it, which is closed where a request's head does not come to its end."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol


class BoundedProtocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type, unused-ignore]
    """uvicorn waits without end for the rest of a request's head, and a connection is one of few.

    Args:
        head_s: seconds from the connection, or from the first byte of a further request, to the end of its head.
    """

    def __init__(self, *args: Any, head_s: float, **options: Any) -> None:
        super().__init__(*args, **options)
        self._head_s = head_s
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._tend()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._tend()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)

    @property
    def _waits(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or bool(self.cycle.response_complete)

    def _tend(self) -> None:
        if not self._waits:
            self._forget()
        elif self._timer is None:
            self._timer = self.loop.call_later(self._head_s, self._give_up)

    def _forget(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        self._timer = None
        if self._waits:
            self.transport.close()
