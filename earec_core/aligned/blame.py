"""Where a plugin's code is called: its exceptions become one sentence, and what it gives is checked."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import Any

from earec_core.errors import EarecError, PluginError, one_line
from earec_core.modality import Encoded, Modality
from earec_core.types import Item

_METHODS = (
    "read", "describe", "words", "positions", "build_encoder", "build_projector", "adapter_config",
    "resolved_config", "sources", "fingerprint",
)  # fmt: skip


@contextmanager
def blamed(name: str, part: str) -> Iterator[None]:
    """Within it an exception is the modality's.

    Args:
        part: what is called, e.g. `read of item i3`.

    Raises:
        PluginError: it raised; the sentence says what, where and of which item. Errors of EAREC's own pass, and
            those that tell of no memory; with `EAREC_STRICT_PLUGINS` all do.
    """
    try:
        yield
    except (EarecError, MemoryError):
        raise
    except Exception as error:
        if os.environ.get("EAREC_STRICT_PLUGINS") or "OutOfMemory" in type(error).__name__:
            raise
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise PluginError(
            f"The modality {name!r} failed in {part}: {one_line(error)} "
            f"({Path(place.filename).name}, line {place.lineno}).",
            f"Mend the plugin (earec plugins check {name}); EAREC_STRICT_PLUGINS=1 shows the traceback.",
        ) from error


def guarded(name: str, modality: Modality[Any]) -> Modality[Any]:
    """The same modality; from now on what its methods raise is `blamed` on it."""

    def guard(method: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(call)
        def guarded_call(*given: Any, **named: Any) -> Any:
            item = next((f" of item {one.id}" for one in given if isinstance(one, Item)), "")
            with blamed(name, f"{method}{item}"):
                return call(*given, **named)

        return guarded_call

    for method in _METHODS:
        with suppress(AttributeError, TypeError):  # a class with slots
            setattr(modality, method, guard(method, getattr(modality, method)))
    return modality


def embedded(name: str, part: str, call: Callable[[], Encoded], rows: int, width: int) -> Encoded:
    """What a plugin's encoder or projector gives for some items.

    Args:
        part: which of them.
        rows, width: how many rows it must have, and how wide they must be.

    Raises:
        PluginError: it raised, or gave something of another shape.
    """
    with blamed(name, part):
        encoded = call()
        h, mask = encoded
        shapes = (tuple(h.shape), tuple(mask.shape))
    if len(shapes[0]) != 3 or shapes != ((rows, shapes[0][1], width), (rows, shapes[0][1])):
        raise PluginError(
            f"The modality {name!r} gives embeddings of shape {shapes[0]} and a mask of {shapes[1]} in {part}, "
            f"of {rows} inputs; it must be ({rows}, t, {width}) and ({rows}, t).",
            f"Mend the plugin (earec plugins check {name}).",
        )
    return Encoded(h, mask)
