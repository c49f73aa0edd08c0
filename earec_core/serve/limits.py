"""What a request may ask for, and how long it may take."""

from __future__ import annotations

import time
from dataclasses import dataclass

from earec_core.errors import UsageError
from earec_core.serve.errors import SlowError


@dataclass(frozen=True)
class Limits:
    """The most that one request gets.

    Attributes:
        body_bytes: of a request's body.
        k: items of one answer.
        ids: ids, histories or new items of one request.
        history: items of one history; the recommender reads the last of them anyway.
        explained: items of one request for texts.
        candidates: items that are ranked again at other weights, of either kind.
        waiting: requests that wait for the LLM while another has it.
        timeout_s: seconds from the whole request to its answer.
        body_s: seconds that a body may take to arrive.
        poll_s: seconds between two looks at what the references mean.
    """

    body_bytes: int = 4 << 20
    k: int = 1000
    ids: int = 100
    history: int = 1000
    explained: int = 4
    candidates: int = 24
    waiting: int = 8
    timeout_s: float = 60.0
    body_s: float = 10.0
    poll_s: float = 5.0

    def check(self, name: str, given: int, what: str) -> None:
        """Raises UsageError where a request gives nothing, or more than the limit of that name."""
        most = int(getattr(self, name))
        if given > most:
            raise UsageError(
                f"A request may have {most} {what} at most, not {given}.", "Ask for fewer at once."
            )
        if given < 1:
            raise UsageError(f"The request has no {what}.", "Give one at least.")


class Deadline:
    """The moment at which a request must be answered.

    Args:
        seconds: from now.
    """

    def __init__(self, seconds: float) -> None:
        self._at = time.monotonic() + seconds
        self._seconds = seconds

    def left(self) -> float:
        """Seconds until then; 0 after it."""
        return max(0.0, self._at - time.monotonic())

    def check(self) -> None:
        """Raises SlowError after it."""
        if not self.left():
            raise self.missed()

    def missed(self) -> SlowError:
        """That it was."""
        return slow(self._seconds)


def slow(seconds: float) -> SlowError:
    """An answer that took longer."""
    return SlowError(
        f"The answer took more than {seconds:g} seconds.", "Ask for fewer items, or again later."
    )
