"""From an installed plugin and its settings to a modality at work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from earec_core import config as configuration
from earec_core import plugins
from earec_core.errors import EarecError
from earec_core.modality.contract import Context, Modality, PluginConfig


def create(name: str, values: Mapping[str, Any], context: Context) -> Modality[Any]:
    """The modality of an installed plugin with its validated configuration.

    Raises:
        PluginError: it is not installed or not usable, its classes included.
        UsageError: its configuration is wrong; the keys are named.
    """
    plugin = plugins.get(name)
    model = plugins.part(plugin, "config", PluginConfig)
    factory = plugins.part(plugin, "factory", Modality)
    config = configuration.validate(model, values, f"configuration of {name}")
    try:
        modality: Modality[Any] = factory(config, context)
    except EarecError:
        raise
    except Exception as error:
        raise plugins.refusal(plugins.failed(plugin, f"Making {factory.__name__}", error)) from error
    return modality
