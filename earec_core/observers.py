"""Observers that come with the core."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pluggy

from earec_core.errors import MissingDependencyError
from earec_core.hookspecs import hook_manager, hookimpl


def manager(tensorboard: Path | None = None) -> pluggy.PluginManager:
    """A hook manager with the observers asked for.

    Args:
        tensorboard: folder for TensorBoard event files, one subfolder a run.

    Raises:
        MissingDependencyError: TensorBoard is asked for and not installed.
    """
    hooks = hook_manager()
    if tensorboard is not None:
        hooks.register(TensorBoard(tensorboard))
    return hooks


class TensorBoard:
    """Writes every figure of an alignment as a scalar."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingDependencyError(
                "TensorBoard is not installed.", "Run: pip install 'earec[tensorboard]'"
            ) from error
        self._folder, self._open = folder, SummaryWriter
        self._writers: dict[str, Any] = {}

    @hookimpl
    def earec_align_step(self, run: str, step: int, metrics: Mapping[str, float]) -> None:
        if run not in self._writers:
            # Events after the step where a resumed run starts again are dropped by TensorBoard.
            self._writers[run] = self._open(str(self._folder / Path(run).name), purge_step=step)
        for name, value in metrics.items():
            self._writers[run].add_scalar(name, value, step)

    @hookimpl
    def earec_align_end(self, run: str) -> None:
        if run in self._writers:
            self._writers.pop(run).close()
