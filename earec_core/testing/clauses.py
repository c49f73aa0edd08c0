"""How a check speaks: a clause of the contract that is not met is one sentence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


class ContractError(AssertionError):
    """The plugin does not keep the contract: what it wants and what was found, in one sentence."""


@contextmanager
def clause(contract: str) -> Iterator[Callable[[bool, str], None]]:
    """A clause of the contract, without full stop, that the block checks.

    Whatever the plugin raises in the block fails the clause.

    Yields:
        A function `require(met, finding)` that fails the clause with what was found instead, unless `met`.
    """

    def require(met: bool, finding: str) -> None:
        __tracebackhide__ = True
        if not met:
            raise ContractError(f"{contract}, but {finding}.")

    try:
        yield require
    except ContractError:
        raise
    except Exception as error:
        raise ContractError(f"{contract}, but it raised {one_line(error)}.") from error


def one_line(error: BaseException) -> str:
    """An exception in one line, without full stop."""
    return " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".: ")


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's global generator seeded, and put back afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
