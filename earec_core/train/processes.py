"""The processes that a training is spread over, as torchrun starts them; one by default.

Every process goes through all batches and trains on its own part of each, so that all of them hold the same
parameters after every step. The first one alone validates, tells people, and writes; the others follow what it
decides.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import distributed

T = TypeVar("T")


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
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
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
        if self.size == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float64)
        distributed.all_reduce(tensor)
        return float(tensor)
