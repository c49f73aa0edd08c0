"""Questions that come at once, answered at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import anyio

Question = TypeVar("Question")
Answer = TypeVar("Answer")


class Gathered(Generic[Question, Answer]):
    """Answers together what was asked while others were being answered; a lone question waits for nobody.

    All of it happens in one event loop, but for the answering.

    Args:
        answer: of several questions, in their order; called in a thread. What it raises is raised to all of them.
        most: questions that are answered together.
    """

    def __init__(self, answer: Callable[[Sequence[Question]], Sequence[Answer]], most: int = 64) -> None:
        self._answer, self._most = answer, most
        self._waiting: list[tuple[Question, asyncio.Future[Answer]]] = []
        self._work: asyncio.Task[None] | None = None

    async def __call__(self, question: Question) -> Answer:
        """The answer; who gives up before it is left out."""
        place: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((question, place))
        if self._work is None or self._work.done():
            self._work = asyncio.create_task(self._answer_all())
        return await place

    async def _answer_all(self) -> None:
        """Answer until nobody waits."""
        while self._waiting:
            batch, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
            batch = [(question, place) for question, place in batch if not place.done()]
            places = [place for _, place in batch]
            try:
                answers = await anyio.to_thread.run_sync(self._answer, [question for question, _ in batch])
            except Exception as error:  # noqa: BLE001 - it is raised to who asked
                for place in places:
                    if not place.done():
                        place.set_exception(error)
                continue
            for place, answer in zip(places, answers, strict=True):
                if not place.done():
                    place.set_result(answer)
