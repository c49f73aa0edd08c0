"""A model over a catalog: its modalities' inputs, and projectors as they start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from earec_core import plugins
from earec_core.aligned.features import ModalityInputs, read_inputs
from earec_core.aligned.model import AlignedModel
from earec_core.aligned.prompts import ItemPrompts
from earec_core.catalog import Catalog
from earec_core.config import PromptConfig
from earec_core.llm.backbone import Backbone
from earec_core.modality import Context, create
from earec_core.workspace import Workspace

_NAMED = 10
"""Damaged items that are named one by one."""


def context(workspace: Workspace, catalog: Catalog) -> Context:
    """Where a modality finds what it needs beyond an item's fields."""
    return Context(catalog.name, workspace.registry.root, workspace.home)


def new_model(
    workspace: Workspace,
    catalog: Catalog,
    backbone: Backbone,
    names: Sequence[str],
    settings: Mapping[str, Mapping[str, Any]],
    prompt: PromptConfig,
    *,
    seed: int | None = None,
) -> AlignedModel:
    """A model over a catalog, its projectors calibrated and untrained.

    Args:
        names: the modalities, in any order.
        settings: each plugin's configuration, by modality.
        seed: projectors follow from it alone; None leaves torch's generator as it is.

    Raises:
        PluginError, UsageError: see `create` and `PromptBuilder`.
    """
    if seed is not None:
        torch.manual_seed(seed)
    specs = [spec for name in names if (spec := plugins.get(name).spec)]
    items = catalog.all_items()
    inputs: dict[str, ModalityInputs] = {}
    for name in [spec.name for spec in sorted(specs, key=lambda spec: (spec.order, spec.name))]:
        modality = create(name, settings.get(name, {}), context(workspace, catalog))
        inputs[name] = read_inputs(
            name,
            modality,
            items,
            backbone,
            cache=workspace.features,
            progress=workspace.reporter.progress,
        )
        inputs[name].calibrate(backbone.embedding_rms)
        _note_damaged(workspace, inputs[name])
    prompts = ItemPrompts(items, inputs, prompt, backbone.tokenizer, catalog.name)
    return AlignedModel(backbone, inputs, prompts)


def _note_damaged(workspace: Workspace, inputs: ModalityInputs) -> None:
    for damaged in inputs.damaged[:_NAMED]:
        workspace.note(f"Item {damaged.item} loses its {inputs.name}: {damaged.why}")
    if len(inputs.damaged) > _NAMED:
        workspace.note(f"... and {len(inputs.damaged) - _NAMED} more items lose their {inputs.name}.")
