"""A model over a catalog: its modalities' inputs, projectors as they start, and the run of a stage with it."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any, Literal

import torch

from earec_core import plugins
from earec_core.aligned.features import ModalityInputs, read_inputs
from earec_core.aligned.model import AlignedModel
from earec_core.aligned.prompts import ItemPrompts
from earec_core.catalog import Catalog
from earec_core.config import PromptConfig, RunConfig
from earec_core.llm.backbone import Backbone
from earec_core.modality import Context, create
from earec_core.workspace import Run, Workspace

_NAMED = 10
"""The most damaged items that are named one by one."""


def context(workspace: Workspace, catalog: Catalog) -> Context:
    """Where a modality finds what it needs beyond an item's fields."""
    return Context(catalog.name, workspace.registry.root, workspace.home)


def new_model(
    workspace: Workspace,
    catalog: Catalog,
    backbone: Backbone,
    settings: Mapping[str, Mapping[str, Any]],
    prompt: PromptConfig,
    *,
    seed: int | None = None,
) -> AlignedModel:
    """A model over a catalog, its projectors calibrated and untrained.

    Args:
        settings: each plugin's configuration by modality, in any order.
        seed: projectors follow from it alone; None leaves torch's generator as it is.

    Raises:
        PluginError, UsageError: see `create` and `PromptBuilder`.
    """
    if seed is not None:
        torch.manual_seed(seed)
    specs = [spec for name in settings if (spec := plugins.get(name).spec)]
    items = catalog.all_items()
    inputs: dict[str, ModalityInputs] = {}
    for name in [spec.name for spec in sorted(specs, key=lambda spec: (spec.order, spec.name))]:
        modality = create(name, settings[name], context(workspace, catalog))
        cache, progress = workspace.features, workspace.progress
        inputs[name] = read_inputs(name, modality, items, backbone, cache=cache, progress=progress)
        inputs[name].calibrate(backbone.embedding_rms)
        _note_damaged(workspace, inputs[name])
    prompts = ItemPrompts(items, inputs, prompt, backbone.tokenizer, catalog.name)
    return AlignedModel(backbone, inputs, prompts)


def model_run(
    workspace: Workspace,
    stage: Literal["align", "encode", "explain"],
    catalog: Catalog,
    model: AlignedModel,
    config: RunConfig,
    beside: Mapping[str, Any],
    *,
    label: str = "",
) -> Run:
    """The run of a stage that works with a model over a catalog, not started.

    Args:
        stage: the command's word, which is also its section of the configuration.
        beside: what else the result depends on, as JSON has it.
        label: see `Workspace.run`.
    """
    key = {
        "base": model.backbone.info.model_dump(),
        "dtype": str(model.backbone.dtype).removeprefix("torch."),
        "prompt": model.prompts.config.model_dump(mode="json"),
        "modalities": {name: inputs.resolved_config() for name, inputs in model.inputs.items()},
        "data": {"name": catalog.name, "digest": catalog.digest},
        **config.model_dump(mode="json", include={"run", stage}),
        **beside,
    }
    return workspace.run(stage, key, label=label)


def _note_damaged(workspace: Workspace, inputs: ModalityInputs) -> None:
    for item, reason in islice(inputs.damaged.items(), _NAMED):
        workspace.note(f"Item {item} loses its {inputs.name}: {reason}")
    if len(inputs.damaged) > _NAMED:
        workspace.note(f"... and {len(inputs.damaged) - _NAMED} more items lose their {inputs.name}.")
