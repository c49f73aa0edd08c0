"""`encode`: every item of a catalog as a vector, registered."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from earec_core.aligned.build import DamageNotes, model_run, new_model
from earec_core.aligned.readouts import get_readout
from earec_core.aligned.stored import open_model, stored_model
from earec_core.artifacts import ItemVectors
from earec_core.artifacts.tables import write_table
from earec_core.catalog import Catalog
from earec_core.config import RunConfig
from earec_core.encode.engines import Windows, get_engine
from earec_core.encode.store import VectorStore
from earec_core.encode.windows import WINDOW, Coverage, Job, Window
from earec_core.errors import UsageError
from earec_core.llm.backbone import Backbone
from earec_core.workspace import Workspace


def encode(
    workspace: Workspace,
    catalog: Catalog,
    model: str | None,
    config: RunConfig,
    *,
    names: Sequence[str] | None = None,
    name: str | None = None,
    backbone: Backbone | None = None,
    engine: str = "local",
    workers: int | None = None,
    force: bool = False,
) -> ItemVectors:
    """Encode every item of a catalog, from whichever modalities it has, and register the vectors.

    What was encoded before, by the same model in the same way, is not encoded again (`VectorStore`).

    Args:
        model: an adapter or composite; None for the un-aligned backbone with untrained projectors.
        names: modalities to feed; default: all of the model's. Needed without a model.
        name: what to register them as; default `vectors/<catalog>`.
        backbone: one already loaded, without adapter.
        engine: who encodes; a key of `earec_core.encode.engines.ENGINES`.
        workers: processes of an engine that has several.
        force: encode anew what was encoded before.

    Raises:
        UsageError, PluginError, IntegrityError: see `earec_core.aligned.stored.stored_model`.
        UsageError, MissingDependencyError: of the engine.
    """
    name = name or f"vectors/{catalog.name}"
    workspace.registry.check_name(name)
    windows = get_engine(engine, workers)
    job = opened(workspace, catalog, model, config, names=names, backbone=backbone)
    workspace.registry.require(*job.parents)
    model_id = job.stored.id if job.stored else None
    run = model_run(workspace, "encode", catalog, job.model, config, {"model": model_id}).start()
    scratch = run.scratch()
    try:
        coverage, reused = _write_table(job, windows, scratch / "vectors.safetensors", force)
        _note(workspace, len(catalog), coverage, reused)
        vectors = ItemVectors.save(
            workspace.registry,
            scratch / "vectors.safetensors",
            catalog,
            name=name,
            why="encode",
            **_read_off(config),
            modalities={m: one.resolved_config() for m, one in job.model.inputs.items()},
            code={m: one.code() for m, one in job.model.inputs.items()},
            base=job.model.backbone.info,
            prompt=job.model.prompts.config,
            chat=job.model.prompts.chat,
            parents=job.parents,
            coverage=coverage.recorded(),
        )
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    run.finish({"id": vectors.id}, step=len(catalog))
    return vectors


def _read_off(config: RunConfig) -> dict[str, Any]:
    """How the vectors are read off, as their manifest has it."""
    return {"method": get_readout(config.encode.readout).method, "layer": config.encode.layer}


def _write_table(job: Job, windows: Windows, file: Path, force: bool) -> tuple[Coverage, int]:
    """Have the windows encoded, anew if forced, and write the vectors of all items, in the catalog's order.

    Returns what is in them, and how many items were encoded before.
    """
    if force:
        job.forget()
    coverage, damage = Coverage(dict.fromkeys(job.model.inputs, 0)), DamageNotes(job.workspace)
    reused = 0

    def parts(store: VectorStore, encoded: Iterator[Window]) -> Iterator[Float[np.ndarray, "m d"]]:
        nonlocal coverage, reused
        for window in encoded:
            for modality, damaged in window.damaged.items():
                damage.tell(modality, damaged)
            coverage += window.coverage
            reused += store.standing(window.keys)
            yield store.read(window.keys)

    with job.store() as store, closing(windows(job, store)) as encoded:
        write_table(file, "vectors", len(job.catalog), parts(store, encoded))
    damage.end()
    return coverage, reused


def opened(
    workspace: Workspace,
    catalog: Catalog,
    model: str | None,
    config: RunConfig,
    *,
    names: Sequence[str] | None,
    backbone: Backbone | None = None,
) -> Job:
    """What encodes, everything checked; no more of the catalog is read than it takes to calibrate projectors.

    Args, Raises: as `encode`.
    """
    get_readout(config.encode.readout)
    stored = open_model(workspace.registry, model) if model else None
    if stored is None and not names:
        raise UsageError("Without a model, the modalities are not known.", "Name them: --modalities text")
    backbone = backbone or Backbone.load(config.backbone, workspace)
    _check_layer(config.encode.layer, backbone)
    if stored is not None:
        overrides = config.modalities
        aligned = stored_model(
            workspace, catalog, backbone, stored, names=names, overrides=overrides, window=WINDOW
        )
    else:
        settings = {m: config.modalities.get(m, {}) for m in names or ()}
        aligned = new_model(
            workspace, catalog, backbone, settings, config.prompt, seed=config.run.seed, window=WINDOW
        )
    return Job(workspace, catalog, stored, aligned, config, tuple(names) if names else None)


def _check_layer(layer: int | None, backbone: Backbone) -> None:
    """Raises UsageError where the LLM has no such layer."""
    layers = backbone.model.config.get_text_config().num_hidden_layers
    if layer is not None and layer > layers:
        raise UsageError(
            f"The backbone has {layers} layers, encode.layer is {layer}.", "Set encode.layer to one of them."
        )


def _note(
    workspace: Workspace,
    n: int,
    coverage: Coverage,
    reused: int,
) -> None:
    """Say which items were encoded before and which are not shown as they are, where there are any."""
    bare = "their vector is the bare prompt's."
    if reused:
        workspace.note(f"{reused} of {n} items were encoded before and are not encoded again.")
    if coverage.none:
        workspace.note(f"{coverage.none} of {n} items have none of {', '.join(coverage.having)}; {bare}")
    if coverage.too_long:
        workspace.note(f"{coverage.too_long} of {n} items do not fit; {bare}")
    if coverage.cut:
        workspace.note(f"{coverage.cut} of {n} items do not fit; they are shown by the start of their input.")
