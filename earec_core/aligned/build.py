"""A model over a catalog: its modalities' inputs, projectors as they start, and the run of a stage with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import islice
from typing import Any, Literal

import torch

from earec_core import plugins
from earec_core.aligned.features import EXAMPLES, ModalityInputs, read_inputs
from earec_core.aligned.model import AlignedModel
from earec_core.aligned.prompts import ItemPrompts
from earec_core.artifacts import ChatRecord
from earec_core.catalog import Catalog
from earec_core.config import PromptConfig, RunConfig
from earec_core.llm.backbone import Backbone
from earec_core.llm.prompts import PromptBuilder
from earec_core.modality import Context, create
from earec_core.types import Item
from earec_core.workspace import Run, Workspace

_NAMED = 10
"""The most damaged items that are named one by one."""


def context(workspace: Workspace, catalog: Catalog) -> Context:
    """Where a modality finds what it needs beyond an item's fields."""
    return Context(catalog.name, workspace.registry.root, workspace.home, catalog.titles)


def new_model(
    workspace: Workspace,
    catalog: Catalog,
    backbone: Backbone,
    settings: Mapping[str, Mapping[str, Any]],
    prompt: PromptConfig,
    *,
    seed: int | None = None,
    chat: ChatRecord | None = None,
    window: int | None = None,
) -> AlignedModel:
    """A model over a catalog, its projectors calibrated and untrained.

    Args:
        settings: each plugin's configuration by modality, in any order.
        seed: projectors follow from it alone; None leaves torch's generator as it is.
        chat: the text around the user's message; default: what the tokenizer's chat template gives.
        window: read no more items than it takes to calibrate, so many at a time, and keep none: for
            `AlignedModel.over`.

    Raises:
        PluginError, UsageError: see `create` and `PromptBuilder`.
    """
    # Before the inputs are encoded, which may take hours.
    builder = PromptBuilder(prompt, backbone.tokenizer, catalog.domain, chat=chat, limit=backbone.positions)
    if seed is not None:
        torch.manual_seed(seed)
    specs = [spec for name in settings if (spec := plugins.get(name).spec)]
    items = catalog.all_items() if window is None else []
    inputs: dict[str, ModalityInputs] = {}
    notes = DamageNotes(workspace)
    for name in [spec.name for spec in sorted(specs, key=lambda spec: (spec.order, spec.name))]:
        modality = create(name, settings[name], context(workspace, catalog))
        cache, progress = workspace.features, workspace.progress
        inputs[name] = read_inputs(name, modality, items, backbone, cache=cache, progress=progress)
        few = inputs[name] if window is None else _few(inputs[name], catalog, window)
        few.calibrate(backbone.embedding_rms)
        notes.tell(name, inputs[name].damaged)
    notes.end()
    return AlignedModel(backbone, inputs, ItemPrompts(items, inputs, builder))


def _few(inputs: ModalityInputs, catalog: Catalog, window: int) -> ModalityInputs:
    """A modality over the first items that have it, as many as calibration looks at."""
    found: list[Item] = []
    for start in range(0, len(catalog), window):
        items = catalog.items_at(range(start, min(start + window, len(catalog))))
        having = set(inputs.over(items).rows)
        found += [item for item in items if item.index in having]
        if len(found) >= EXAMPLES:
            break
    return inputs.over(found[:EXAMPLES])


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
        "chat": model.prompts.chat.model_dump(),
        "modalities": {name: inputs.resolved_config() for name, inputs in model.inputs.items()},
        "code": {name: inputs.code() for name, inputs in model.inputs.items()},
        "data": {"name": catalog.name, "domain": catalog.domain, "digest": catalog.digest},
        **config.model_dump(mode="json", include={"run", stage}),
        **beside,
    }
    damaged = {name: sorted(inputs.damaged) for name, inputs in model.inputs.items() if inputs.damaged}
    if damaged:
        # Once their files or the plugin are mended, the result is another.
        key["damaged"] = damaged
    return workspace.run(stage, key, label=label)


class DamageNotes:
    """Tells which items lose a modality, since their input cannot be used: the first by name, then how many."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._told: Counter[str] = Counter()

    def tell(self, modality: str, damaged: Mapping[str, str]) -> None:
        """More items that lose a modality, and why."""
        for item, reason in islice(damaged.items(), max(0, _NAMED - self._told[modality])):
            self._workspace.note(f"Item {item} loses its {modality}: {reason}")
        self._told[modality] += len(damaged)

    def end(self) -> None:
        """There are no more."""
        for modality, number in self._told.items():
            if number > _NAMED:
                self._workspace.note(f"... and {number - _NAMED} more items lose their {modality}.")
