"""How a check speaks: a clause of the contract that is not met is one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class ContractError(AssertionError):
    """The plugin does not keep the contract: what it wants and what was found, in one sentence."""


def require(met: bool, sentence: str) -> None:
    """Fail with `sentence` unless `met`."""
    __tracebackhide__ = True
    if not met:
        raise ContractError(sentence)


@contextmanager
def expecting(contract: str) -> Iterator[None]:
    """Turn whatever the plugin raises in this block into a failure of `contract`, a clause without full stop."""
    try:
        yield
    except ContractError:
        raise
    except Exception as error:
        raise ContractError(f"{contract}, but it raised {said(error)}.") from error


def said(error: BaseException) -> str:
    """An exception in one line, without full stop."""
    return " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".: ")


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's global generator seeded, and put back afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
