"""Observers: TensorBoard gets every figure; a missing library is one sentence."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from earec_core import observers
from earec_core.errors import MissingDependencyError
from earec_core.hookspecs import hook_manager, hookimpl


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_holds_what_was_observed(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    hook = observers.manager(tmp_path).hook
    hook.earec_align_step(run="somewhere/run-1", step=0, metrics={"valid_loss": 4.0})
    hook.earec_align_step(run="somewhere/run-1", step=1, metrics={"loss": 3.5, "tokens_per_s": 100.0})
    hook.earec_align_end(run="somewhere/run-1", step=1, metrics={})
    events = EventAccumulator(str(tmp_path / "run-1"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"valid_loss", "loss", "tokens_per_s"}
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 3.5)]


def test_an_observer_takes_only_the_arguments_it_names() -> None:
    seen = []

    class Steps:
        @hookimpl
        def earec_align_step(self, step: int) -> None:
            seen.append(step)

    manager = hook_manager()
    manager.register(Steps())
    manager.hook.earec_align_step(run="r", step=7, metrics={})
    assert seen == [7]


def test_tensorboard_that_is_not_there_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'earec\[tensorboard\]'"):
        observers.manager(tmp_path)
