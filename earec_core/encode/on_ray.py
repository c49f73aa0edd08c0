"""Encoding on a Ray cluster: actors of a Ray Data pool open the model and encode windows into the shared store.

Home, registry and dataset directory must be the same folders for all of them. An actor that dies is started again
and its window encoded again, but for what is in the store already.
"""

from __future__ import annotations

import json
import logging
import math
import os
import platform
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from earec_core import errors
from earec_core.catalog import Catalog
from earec_core.config import RunConfig
from earec_core.encode.store import VectorStore
from earec_core.encode.windows import WINDOW, Coverage, Job, Window, encode_window
from earec_core.errors import EarecError, UsageError
from earec_core.workspace import Workspace

_LEAST, _EACH = 256, 4
"""The fewest items of a window, and how many windows a worker gets at least, if they are not too small for that."""
_OBJECTS = 1 << 27
"""Bytes of a local cluster's object store: what goes through it are keys."""
_DIGEST = 32
_QUIET = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
"""Warnings about what is meant to be so."""


@dataclass(frozen=True)
class Order:
    """What a worker needs to know to open a job.

    Attributes:
        key: `Job.key`, which the worker's job must have, too.
    """

    home: Path
    registry: Path
    data: Path
    model: str | None
    names: tuple[str, ...] | None
    config: RunConfig
    key: str

    @classmethod
    def of(cls, job: Job) -> Order:
        """That of a job."""
        workspace, model = job.workspace, job.stored.id if job.stored else None
        home, registry, data = workspace.home.absolute(), workspace.registry.root, job.catalog.path.absolute()
        return cls(home, registry, data, model, job.names, job.config, job.key)

    def opened(self) -> Job:
        """The job.

        Raises:
            UsageError: its vectors would be others.
        """
        from earec_core.encode.stage import opened

        workspace, catalog = Workspace.open(self.home, self.registry), Catalog.open(self.data)
        job = opened(workspace, catalog, self.model, self.config, names=self.names)
        if job.key != self.key:
            dtype = str(job.model.backbone.dtype).removeprefix("torch.")
            raise UsageError(
                f"A worker on {platform.node()} would make other vectors: it computes in {dtype}, or has another "
                "version of something.",
                "Set backbone.dtype, and install the same versions everywhere.",
            )
        return job


class Worker:
    """Encodes windows one after another; what it was given is opened at the first."""

    def __init__(self, order: Order) -> None:
        self._order, self._open = order, ExitStack()
        self._job: Job | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """A window encoded, or the error that stopped it, as a row."""
        try:
            if self._job is None:
                job = self._order.opened()
                self._store = self._open.enter_context(job.store(check=False))
                self._open.enter_context(job.adapted())
                self._job = job
            self._store.refresh()
            window = encode_window(self._job, self._store, range(row["start"], row["stop"]))
        except EarecError as error:
            told = {"kind": type(error).__name__, "problem": error.problem, "next_step": error.next_step}
            return {**row, "keys": b"", "about": json.dumps({"error": told})}
        about = {"coverage": asdict(window.coverage), "damaged": window.damaged}
        return {**row, "keys": b"".join(window.keys), "about": json.dumps(about)}


def windows(job: Job, store: VectorStore, workers: int | None) -> Generator[Window, None, None]:
    """The job's windows in the catalog's order, encoded by so many actors.

    Args:
        workers: default: one a GPU of the cluster, without any one a machine.

    Raises:
        EarecError: what stopped a worker.
    """
    with _cluster(workers) as ray:
        resources = ray.cluster_resources()
        gpus, machines = int(resources.get("GPU", 0)), sum(node["Alive"] for node in ray.nodes())
        workers = workers or gpus or machines
        size = min(WINDOW, max(_LEAST, math.ceil(len(job.catalog) / (_EACH * workers))))
        rows = [{"start": rows.start, "stop": rows.stop} for rows in job.windows(size)]
        encoded = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            Worker,
            fn_constructor_args=(Order.of(job),),
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_cpus=_share(resources.get("CPU", 1), workers),
            num_gpus=_share(gpus, workers) if gpus else None,
        )
        for row in encoded.iter_rows():
            window = _window(row)
            store.refresh()
            yield window
            job.workspace.progress(window.rows.stop, len(job.catalog), "items")


def _window(row: dict[str, Any]) -> Window:
    """What a worker gave, its error raised."""
    about, keys = json.loads(row["about"]), row["keys"]
    if "error" in about:
        told = about["error"]
        raise getattr(errors, told["kind"], EarecError)(told["problem"], told["next_step"])
    split = [keys[i : i + _DIGEST] for i in range(0, len(keys), _DIGEST)]
    return Window(range(row["start"], row["stop"]), split, Coverage(**about["coverage"]), about["damaged"])


def _share(number: float, workers: int) -> float:
    """What one worker gets of the cluster's processors or GPUs: whole ones, or a part of one."""
    return max(1, number // workers) if number >= workers else number / workers


@contextmanager
def _cluster(workers: int | None) -> Iterator[Any]:
    """Ray, connected to the cluster of RAY_ADDRESS, else to one of this machine, which ends with the block."""
    # Read when Ray is imported and started. Nothing of what runs here is reported to anybody.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    for variable, value in _QUIET.items():
        os.environ.setdefault(variable, value)
    import ray
    import ray.data

    own = not ray.is_initialized()
    if own:
        address = os.environ.get("RAY_ADDRESS")
        local: dict[str, Any] = {
            "num_cpus": max(os.cpu_count() or 1, workers or 1),
            "object_store_memory": _OBJECTS,
            "include_dashboard": False,
        }
        ray.init(
            address=address, log_to_driver=False, logging_level=logging.ERROR, **({} if address else local)
        )
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = True
    try:
        yield ray
    finally:
        if own:
            ray.shutdown()
