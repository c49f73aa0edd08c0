"""What a request can come to beside what the stages refuse."""

from __future__ import annotations

from earec_core.errors import EarecError, UsageError


class UnknownIdError(UsageError):
    """There is no item or user of that id."""


class TakenError(UsageError):
    """There is an item of that id already, and it is another."""


class BusyError(EarecError):
    """Too many requests wait, or what is needed is being loaded; asked later, it is answered.

    Args:
        retry_s: after how many seconds.
    """

    def __init__(self, problem: str, next_step: str, retry_s: int = 5) -> None:
        super().__init__(problem, next_step)
        self.retry_s = retry_s


class SlowError(EarecError):
    """The answer took longer than a request may."""
