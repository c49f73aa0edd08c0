"""How a process uses the processor: what must stand before numpy or torch starts its first thread."""

from __future__ import annotations

import ctypes
import os
import sys

_ARENA_MAX = -8
"""`M_ARENA_MAX` of glibc's malloc.h."""


def prepare() -> None:
    """Let waiting threads sleep, and let all threads take memory from one place.

    Else glibc gives each thread a place of its own, and large tensors back to the system as soon as they are free;
    passes side by side (`earec_core.llm.lanes`) would wait for the same pages again and again, a third of their
    time. Neither undoes what the environment says.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if sys.platform == "linux" and "MALLOC_ARENA_MAX" not in os.environ:
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
        if mallopt is not None:
            mallopt(_ARENA_MAX, 1)
