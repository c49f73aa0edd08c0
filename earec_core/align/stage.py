"""`align`: from a catalog to a registered adapter, finished runs not repeated, killed ones resumed."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file

import earec_core
from earec_core.align import samples
from earec_core.align.train import Point, Trainer
from earec_core.aligned.build import new_model
from earec_core.aligned.features import Damaged
from earec_core.aligned.model import AlignedModel
from earec_core.aligned.stored import StoredModel, load_projector, plugin_record
from earec_core.catalog import Catalog
from earec_core.config import LoraSettings, RunConfig
from earec_core.errors import DataError, UsageError
from earec_core.home import home
from earec_core.llm.backbone import Backbone
from earec_core.llm.lora import TrainableLora
from earec_core.modality import Context
from earec_core.plugins.hooks import Observers
from earec_core.types import Show
from earec_registry import Registry


@dataclass(frozen=True)
class Alignment:
    """A finished alignment.

    Attributes:
        id: the adapter's id in the registry; `name` points to it.
        run: the run's folder (resolved configuration, checkpoint, history).
        history: a point per step and validation: `step` and `loss`, `tokens_per_s`, `valid_loss`, ...
        metrics: validation loss and ROUGE-L before training and at the step kept.
        counts: items trained and validated on, and those left out, by reason.
        damaged: items whose input could not be read.
    """

    id: str
    name: str
    run: Path
    history: Sequence[Point]
    metrics: Mapping[str, float]
    counts: Mapping[str, int]
    damaged: Sequence[Damaged] = field(default_factory=tuple)
    minutes: float = 0.0


def align(
    catalog: Catalog,
    modality: str,
    config: RunConfig,
    registry: Registry,
    *,
    name: str | None = None,
    continue_from: str | None = None,
    backbone: Backbone | None = None,
    observers: Observers | None = None,
    note: Callable[[str], None] = lambda _: None,
    show: Show = lambda *_: None,
) -> Alignment:
    """Align one modality of a catalog to the anchor and register the adapter.

    Args:
        catalog: the items; their 80/10/10 split is by item id.
        modality: an installed plugin's name.
        config: the resolved configuration.
        name: what to register it as; default `<modality>/<catalog>`.
        continue_from: an adapter to go on from, on this catalog (the paper does so for behavior).
        backbone: one already loaded, without adapter; default: loaded from the configuration.
        observers: told of start, steps and end; the registry tells of the adapter (`Registry.open`).

    Raises:
        DataError: no item has both anchor and modality.
        UsageError, PluginError, IntegrityError: see the parts.
    """
    name = name or f"{modality}/{catalog.name}"
    registry.check_name(name)
    record = plugin_record(modality)
    parent = StoredModel.open(registry, continue_from) if continue_from else None
    if parent is not None and (parent.data["kind"] != "adapter" or modality not in parent.modalities):
        raise UsageError(
            f"{continue_from!r} is no {modality} adapter.", "Give one to --from, or leave it out."
        )
    settings = dict(config.modalities.get(modality, {}))
    if parent is not None:
        settings = {**parent.modalities[modality]["config"], **settings}
        config = config.model_copy(update={"lora": LoraSettings(**parent.data["lora"])})
    backbone = backbone or Backbone.load(config.backbone, note)
    if parent is not None:
        parent.check_base(backbone)
    items = catalog.all_items()
    context = Context(catalog.name, registry.root, home())
    note(f"Reading the {modality} inputs of {len(items)} items ...")
    model = new_model(
        [modality],
        {modality: settings},
        items,
        backbone,
        context,
        config.prompt,
        seed=config.align.seed,
        show=show,
    )
    one = model.inputs[modality]
    if parent is None:
        config = config.model_copy(update={"lora": one.modality.adapter_config(config.lora)})
    for damaged in one.damaged[:10]:
        note(f"Item {damaged.item} loses its {modality}: {damaged.why}")
    if len(one.damaged) > 10:
        note(f"... and {len(one.damaged) - 10} more items lose their {modality}.")

    resolved = {
        "modality": modality,
        "modality_config": one.modality.resolved_config().model_dump(mode="json"),
        **config.model_dump(mode="json", include={"prompt", "lora", "align"}),
        "base": backbone.info.as_manifest(),
        "dtype": str(backbone.dtype).removeprefix("torch."),
        "data": {"name": catalog.name, "digest": catalog.digest},
        "continue_from": parent.id if parent else None,
        "plugin": record,
        "earec": earec_core.__version__,
    }
    digest = hashlib.sha256(json.dumps(resolved, sort_keys=True).encode()).hexdigest()
    run = home() / "runs" / f"align-{modality}-{digest[:12]}"
    finished = _finished(run, registry, name)
    if finished is not None:
        note(f"Already aligned: {finished.id[:12]} (run {run.name}).")
        return finished

    train, valid = (
        samples.build(model.prompts, modality, catalog.item_split(part).tolist())
        for part in ("train", "valid")
    )
    chosen = train.samples
    if config.align.max_items is not None and len(chosen) > config.align.max_items:
        rng = np.random.default_rng(config.align.seed)
        picked = np.sort(rng.choice(len(chosen), config.align.max_items, replace=False))
        chosen = tuple(chosen[i] for i in picked)
    if not chosen:
        raise DataError(
            f"No item of {catalog.name} has both an anchor ({', '.join(config.prompt.anchor)}) "
            f"and {modality}.",
            "Import the missing columns (`earec data import --column`) or choose another modality.",
        )
    if train.dropped_relations:
        note(f"{train.dropped_relations} relation slots dropped so that anchors fit prompt.max_tokens.")
    counts = {
        "train": len(chosen),
        "valid": len(valid.samples),
        "without_anchor": train.without_anchor + valid.without_anchor,
        "without_input": train.without_input + valid.without_input,
        "damaged": len(one.damaged),
    }
    with backbone.adapted(TrainableLora(config.lora)) as lora:
        if parent is not None:
            lora.load(parent.folder / "adapter_model.safetensors")
            load_projector(one, parent.folder / parent.modalities[modality]["projector"])
        run.mkdir(parents=True, exist_ok=True)
        _write_json(run / "config.json", resolved)
        watch = observers or Observers()
        watch.fire("earec_run_start", stage="align", run=str(run), config=resolved)
        trainer = Trainer(
            model,
            lora.parameters,
            chosen,
            valid.samples,
            config.align,
            run,
            lambda step, metrics: watch.fire(
                "earec_run_step", stage="align", run=str(run), step=step, metrics=metrics
            ),
        )
        note(f"Aligning {modality}: {counts['train']} items, {trainer.steps} steps at most, run {run.name}.")
        progress = trainer.run(show)
        metrics = _metrics(progress.history, progress.best_step)
        watch.fire("earec_run_end", stage="align", run=str(run), step=progress.step, metrics=metrics)
        files = _export(run / "model", model, modality, lora)
    manifest = {
        "kind": "adapter",
        "modality": modality,
        "modalities": {
            modality: {
                "plugin": record,
                "config": resolved["modality_config"],
                "shapes": {"d_enc": one.encoder.d_enc, "d_llm": backbone.d_llm},
                "projector": f"projectors/{modality}.safetensors",
            }
        },
        "base": resolved["base"],
        "prompt": resolved["prompt"],
        "lora": resolved["lora"],
        "parents": [*([parent.id] if parent else []), *one.modality.sources()],
        "method": "lora",
        "training": {
            "config": digest,
            "data": resolved["data"],
            "seed": config.align.seed,
            "steps": progress.step,
            "kept_step": progress.best_step,
            "items": counts,
        },
        "metrics": metrics,
    }
    identity = registry.add(manifest, files, name=name, why=f"align {modality} on {catalog.name}")
    result = {
        "id": identity,
        "history": progress.history,
        "metrics": metrics,
        "counts": counts,
        "damaged": [[d.item, d.why] for d in one.damaged],
        "minutes": progress.elapsed / 60,
    }
    _write_json(run / "result.json", result)
    # The registry holds the result; the checkpoint and the export have served.
    trainer.file.unlink(missing_ok=True)
    for file in files.values():
        file.unlink(missing_ok=True)
    return _alignment(result, name, run)


def _export(folder: Path, model: AlignedModel, modality: str, lora: TrainableLora) -> dict[str, Path]:
    lora.save(folder)
    projector = folder / f"{modality}.safetensors"
    state = model.projectors[modality].state_dict()
    save_file({k: v.detach().cpu().contiguous() for k, v in sorted(state.items())}, projector)
    return {
        "adapter_config.json": folder / "adapter_config.json",
        "adapter_model.safetensors": folder / "adapter_model.safetensors",
        f"projectors/{modality}.safetensors": projector,
    }


def _metrics(history: Sequence[Point], kept: int) -> dict[str, float]:
    """The validation figures at step 0 and at the step kept."""
    found = {}
    for point in history:
        for key in ("valid_loss", "valid_rouge_l"):
            if key in point and point["step"] in (0, kept):
                found[f"{key}_before" if point["step"] == 0 else key] = round(point[key], 6)
    return found


def _finished(run: Path, registry: Registry, name: str) -> Alignment | None:
    try:
        result = json.loads((run / "result.json").read_text())
        registry.manifest(result["id"])
    except Exception:  # noqa: BLE001 - whatever is wrong with it, the run is done again
        return None
    registry.tag(result["id"], name, "latest", "aligned before")
    return _alignment(result, name, run)


def _alignment(result: Mapping[str, Any], name: str, run: Path) -> Alignment:
    damaged = tuple(Damaged(*pair) for pair in result["damaged"])
    return Alignment(
        result["id"],
        name,
        run,
        result["history"],
        result["metrics"],
        result["counts"],
        damaged,
        result["minutes"],
    )


def _write_json(file: Path, value: Any) -> None:
    temp = file.with_name(f".{file.name}.{os.getpid()}.{time.monotonic_ns()}")
    temp.write_text(json.dumps(value, indent=1, ensure_ascii=False))
    temp.replace(file)
