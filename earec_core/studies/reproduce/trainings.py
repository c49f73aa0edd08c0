"""The trainings of a table, several at once: in processes, since each draws from torch's generator."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any, TypeAlias

from earec_core.catalog import Catalog
from earec_core.config import RunConfig
from earec_core.plugins.hooks import Observers
from earec_core.studies.processes import Submit, running
from earec_core.studies.reproduce.rows import RowMaker
from earec_core.workspace import Reporter, Workspace

Told: TypeAlias = "Queue[tuple[str, Any] | None]"
"""What the other processes have to say: a note, or a hook with its event; None is the end of it."""


@contextmanager
def trainings(maker: RowMaker, at_once: int) -> Iterator[Submit]:
    """Within it `submit(method, *arguments)` calls a method of the maker, in other processes where several run.

    What those note, and their events, are the maker's workspace's; of their progress nothing is said.

    Raises:
        EarecError: see `running`.
        Exception: what a strict observer raised.
    """
    if at_once == 1:
        yield partial(here, maker)
        return
    workspace = maker.workspace
    told: Told = multiprocessing.get_context("spawn").Queue()
    adapters = {modality: model.id for modality, model in maker.models.items()}
    place = _Place(
        workspace.home, workspace.registry.root, maker.catalog.path, maker.config, adapters, maker.encoder
    )
    with ThreadPoolExecutor(1, "listener") as listener:
        heard = listener.submit(_listen, told, workspace)
        try:
            with running(at_once, partial(_settle, place, told)) as submit:
                yield partial(submit, _call)
        finally:
            told.put(None)
        heard.result()


def here(maker: RowMaker, method: str, *arguments: Any) -> Future[Any]:
    """Calls a method of the maker in this process; what fails is raised before anything else is begun."""
    future: Future[Any] = Future()
    future.set_result(getattr(maker, method)(*arguments))
    return future


@dataclass(frozen=True)
class _Place:
    """What another process makes the same `RowMaker` of."""

    home: Path
    registry: Path
    catalog: Path
    config: RunConfig
    adapters: Mapping[str, str]
    encoder: str

    def maker(self, told: Told) -> RowMaker:
        """The maker, telling what it notes, and events, to the queue."""
        quiet = Workspace.open(self.home, self.registry, watch=partial(_Relay, told))
        maker = RowMaker(quiet, Catalog.open(self.catalog), self.config, self.adapters, self.encoder)
        # What is to be said of the adapters has been said.
        reporter = Reporter(lambda text: told.put(("note", text)))
        maker.workspace = Workspace(quiet.home, quiet.registry, reporter, quiet.watch)
        return maker


class _Relay(Observers):
    """Hands events over to the process that has observers."""

    def __init__(self, told: Told) -> None:
        super().__init__()
        self._told = told

    def fire(self, hook: str, /, **arguments: Any) -> None:
        self._told.put((hook, arguments))


def _listen(told: Told, workspace: Workspace) -> None:
    while (message := told.get()) is not None:
        kind, content = message
        if kind == "note":
            workspace.note(content)
        else:
            workspace.fire(kind, **content)


_settled: dict[str, Any] = {}


def _settle(place: _Place, told: Told) -> None:
    """What each process keeps of what it is to work on."""
    _settled.update(place=place, told=told)


@cache
def _maker() -> RowMaker:
    """Made at the first call, so that what is wrong is its error."""
    place: _Place = _settled["place"]
    return place.maker(_settled["told"])


def _call(method: str, *arguments: Any) -> Any:
    return getattr(_maker(), method)(*arguments)
