"""A new model over a catalog: its modalities' inputs, projectors untrained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from earec_core import plugins
from earec_core.aligned.features import ModalityInputs, read_inputs
from earec_core.aligned.model import AlignedModel
from earec_core.aligned.prompts import ItemPrompts
from earec_core.config import PromptConfig
from earec_core.home import home
from earec_core.llm.backbone import Backbone
from earec_core.modality import Context, create
from earec_core.types import Item, Show


def inputs_for(
    names: Sequence[str],
    settings: Mapping[str, Mapping[str, Any]],
    items: Sequence[Item],
    backbone: Backbone,
    context: Context,
    show: Show,
) -> dict[str, ModalityInputs]:
    """The modalities' inputs over a catalog, in slot order, projectors new and calibrated.

    Raises:
        PluginError, UsageError: see `create`.
    """
    specs = [spec for name in names if (spec := plugins.get(name).spec)]
    inputs = {}
    for name in [spec.name for spec in sorted(specs, key=lambda s: (s.order, s.name))]:
        modality = create(name, settings.get(name, {}), context)
        one = read_inputs(name, modality, items, backbone, cache=home() / "cache" / "features", progress=show)
        one.calibrate(backbone.embedding_rms)
        inputs[name] = one
    return inputs


def new_model(
    names: Sequence[str],
    settings: Mapping[str, Mapping[str, Any]],
    items: Sequence[Item],
    backbone: Backbone,
    context: Context,
    prompt: PromptConfig,
    *,
    seed: int,
    show: Show = lambda *_: None,
) -> AlignedModel:
    """A model over a catalog whose projectors follow from the seed alone.

    Args:
        names, settings: the modalities, and each plugin's configuration.
        context: its catalog is what `{domain}` becomes in prompts.

    Raises:
        PluginError, UsageError: see `create` and `PromptBuilder`.
    """
    torch.manual_seed(seed)
    inputs = inputs_for(names, settings, items, backbone, context, show)
    return AlignedModel(
        backbone, inputs, ItemPrompts(items, inputs, prompt, backbone.tokenizer, context.catalog)
    )
