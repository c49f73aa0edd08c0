"""Who encodes the windows of a catalog; another engine is added as a row of `ENGINES`."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

from earec_core.encode.store import VectorStore
from earec_core.encode.windows import Job, Window, encode_window
from earec_core.errors import MissingDependencyError, UsageError

Windows = Callable[[Job, VectorStore], Generator[Window, None, None]]
"""Gives a job's windows in the catalog's order, each once its vectors are in the store; it is closed in the end."""


@dataclass(frozen=True)
class Engine:
    """A way to encode windows.

    Attributes:
        encode: takes the job, the store and, if it has several, how many workers (None: its own choice).
        several: whether it takes a number of workers.
        extra: the library it needs and the extra of `earec` that brings it.
    """

    encode: Callable[..., Generator[Window, None, None]]
    several: bool = False
    extra: tuple[str, str] | None = None


def _local(job: Job, store: VectorStore) -> Generator[Window, None, None]:
    """One window after another, in this process."""
    with job.adapted():
        for rows in job.windows():
            yield encode_window(job, store, rows, show=job.workspace.progress)


def _on_ray(job: Job, store: VectorStore, workers: int | None) -> Generator[Window, None, None]:
    """By the actors of a Ray cluster; see `earec_core.encode.on_ray`."""
    from earec_core.encode.on_ray import windows

    return windows(job, store, workers)


ENGINES: Mapping[str, Engine] = {
    "local": Engine(_local),
    "ray": Engine(_on_ray, several=True, extra=("ray", "ray")),
}
"""By the option `--engine`."""


def get_engine(name: str, workers: int | None = None) -> Windows:
    """The engine of that name, with so many workers.

    Raises:
        UsageError: there is none, or it has no workers to be counted.
        MissingDependencyError: its library is not installed.
    """
    if name not in ENGINES:
        raise UsageError(f"There is no engine {name!r}.", f"Choose one of: {', '.join(ENGINES)}.")
    engine = ENGINES[name]
    if engine.extra and find_spec(engine.extra[0]) is None:
        library, extra = engine.extra
        raise MissingDependencyError(f"The engine {name} needs {library}.", f"pip install 'earec[{extra}]'")
    if engine.several:
        return partial(engine.encode, workers=workers)
    if workers is not None:
        raise UsageError(f"The engine {name} works in one process.", "Leave the number of workers out.")
    return engine.encode
