"""Specs of the plugins in `kit_parts`, all of one form."""

from earec_core.plugins.spec import ModalitySpec


def __getattr__(name):
    """good, wrong_x: all of one form."""
    if name != "good" and not name.startswith("wrong_"):
        raise AttributeError(name)
    return ModalitySpec(
        name,
        (2, 0),
        "A test.",
        f"kit_parts:{name}_config",
        f"kit_parts:{name}_factory",
        "n" if name == "wrong_token" else "<n>",
    )
