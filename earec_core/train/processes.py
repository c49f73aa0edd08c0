"""The processes that a training is spread over, as torchrun starts them; one by default.

Every process goes through all batches and trains on its own part of each, so that all of them hold the same
parameters after every step. The first one alone validates, tells people, and writes; the others follow what it
decides.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import distributed

from earec_core.errors import UsageError

T = TypeVar("T")


def started() -> int | None:
    """How many processes torchrun, or another launcher, has started; None where none did."""
    size = os.environ.get("WORLD_SIZE")
    return int(size) if size else None


def launch(number: int, arguments: Sequence[str]) -> int:
    """Run `earec` in several processes of this machine, by torchrun's own launcher.

    Args:
        arguments: behind `earec`.

    Returns:
        The exit code of the process that failed first, or 0.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    # torchrun's own choice is one thread a process.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // number)))
    with suppress(AttributeError, OSError, ValueError):
        # What the processes inherit; this one's own went elsewhere (`own_stdout`).
        os.dup2(sys.stdout.fileno(), 1)
    command = ["--standalone", f"--nproc-per-node={number}", "-m", "earec_core", *arguments]
    try:
        run(parse_args(command))  # type: ignore[no-untyped-call]
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        return code if code > 0 else 128 - code
    except SignalException as stopped:
        return 128 + int(stopped.sigval)
    return 0


def is_first() -> bool:
    """Whether this process is the one of torchrun's that tells people what came out, or the only one."""
    return os.environ.get("RANK", "0") == "0"


@dataclass(frozen=True)
class Processes:
    """The processes of a training, and which of them this is.

    Attributes:
        rank: this one's number, from 0.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    @contextmanager
    def joined(cls) -> Iterator[Processes]:
        """Those of torchrun, connected for as long as the block lasts; this one alone where it did not start it.

        With GPUs each process takes the one of its local rank.
        """
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size < 2 or distributed.is_initialized():
            yield cls()
            return
        if torch.cuda.is_available():
            own, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
            if own >= there:
                raise UsageError(
                    f"Process {own + 1} of this machine has no GPU: there are {there}.",
                    "Start as many processes as there are GPUs.",
                )
            torch.cuda.set_device(own)
        distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        try:
            yield cls(distributed.get_rank(), size)
        finally:
            distributed.destroy_process_group()

    @property
    def first(self) -> bool:
        """Whether this is the one that validates, tells and writes."""
        return self.rank == 0

    def share_of(self, batch: Sequence[T]) -> Sequence[T]:
        """This process's part of a batch: every size-th sample; possibly none."""
        return batch[self.rank :: self.size]

    def broadcast(self, value: T) -> T:
        """What the first process has."""
        if self.size == 1:
            return value
        values = [value]
        distributed.broadcast_object_list(values, src=0)
        return values[0]

    def sum(self, value: float) -> float:
        """The sum over all processes."""
        return self._reduced(value, distributed.ReduceOp.SUM)

    def most(self, value: int) -> int:
        """The largest of all processes."""
        return int(self._reduced(value, distributed.ReduceOp.MAX))

    def _reduced(self, value: float, by: distributed.ReduceOp.RedOpType) -> float:
        if self.size == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float64)
        distributed.all_reduce(tensor, by)
        return float(tensor)
