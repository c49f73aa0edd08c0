"""Hooks that observers implement. Every argument is plain data; a hook names only those it wants."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pluggy

PROJECT = "earec"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class Hooks:
    """The hooks of version 1."""

    @hookspec
    def earec_align_start(self, run: str, config: Mapping[str, Any]) -> None:
        """An alignment begins or resumes.

        Args:
            run: path of the run's folder.
            config: the resolved configuration.
        """

    @hookspec
    def earec_align_step(self, run: str, step: int, metrics: Mapping[str, float]) -> None:
        """A training step or a validation ended.

        Args:
            run: path of the run's folder.
            step: optimizer steps done.
            metrics: by name: `loss`, `tokens_per_s`, `valid_loss`, `valid_rouge_l`, ...
        """

    @hookspec
    def earec_align_end(self, run: str, step: int, metrics: Mapping[str, float]) -> None:
        """An alignment ended.

        Args:
            run: path of the run's folder.
            step: optimizer steps done.
            metrics: the final metrics.
        """

    @hookspec
    def earec_registered(self, name: str, digest: str, manifest: Mapping[str, Any]) -> None:
        """A model was stored in the registry.

        Args:
            name: the name and tag that now point to it.
            digest: its id, 64 hexadecimal digits.
            manifest: what it is.
        """


def hook_manager() -> pluggy.PluginManager:
    """A pluggy manager that knows the hooks; observers are registered on it."""
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(Hooks)
    return manager
