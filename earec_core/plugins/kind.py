"""What a kind of plugin is. Whoever owns a kind says what its plugins must be, above this package or outside it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

from earec_core.plugins.entries import Entry
from earec_core.plugins.references import imported
from earec_core.plugins.state import Plugin, State, unusable

Check = Callable[[Entry, Plugin], Plugin]


@dataclass(frozen=True)
class Kind:
    """A kind of plugin.

    Attributes:
        name: what messages call it, e.g. `method`.
        group: its entry-point group, e.g. `earec.methods`.
        check: from an entry point and its plugin, `ok` so far, to the plugin with its object in `loaded`. It ends
            with `unusable(...)` where the object is not what the kind wants; whatever else it raises becomes the
            plugin's state.
        reserved: gives the names that the core itself uses: a plugin of such a name is `duplicate-name`.
    """

    name: str
    group: str
    check: Check
    reserved: Callable[[], Collection[str]] = tuple


def instance_check(base: type) -> Check:
    """A check: the entry point's object is an instance of `base`, and its `name` the entry point's."""

    def check(entry: Entry, plugin: Plugin) -> Plugin:
        instance = imported(entry, plugin)
        fits = isinstance(instance, base)
        if not fits or instance.name != entry.name:
            is_a = f"the {plugin.kind} {instance.name!r}" if fits else f"a {type(instance).__name__}"
            unusable(
                plugin,
                State.INVALID_SPEC,
                f"{entry.value} is {is_a}, not a {base.__name__} named {entry.name!r}.",
                f"Point the entry point {entry.name!r} of {entry.distribution} at an instance of "
                f"{base.__module__}.{base.__qualname__}.",
            )
        return replace(plugin, loaded=instance)

    return check
