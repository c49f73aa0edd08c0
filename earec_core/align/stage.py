"""`align`: from a catalog to a registered adapter, finished runs not repeated, killed ones resumed."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from earec_core.align.job import Job, open_job
from earec_core.align.train import Point, Progress
from earec_core.artifacts import save
from earec_core.catalog import Catalog
from earec_core.config import RunConfig
from earec_core.llm.backbone import Backbone
from earec_core.llm.peft_adapter import CONFIG
from earec_core.train.processes import Processes
from earec_core.workspace import Reporter, Run, Workspace


@dataclass(frozen=True)
class Alignment:
    """A finished alignment.

    Attributes:
        id: the adapter's id in the registry; `name` points to it.
        run: the run's folder (resolved configuration, checkpoint, history).
        history: a point per step and validation: `step` and `loss`, `tokens_per_s`, `valid_loss`, ...
        metrics: validation loss and ROUGE-L before training and at the step kept.
        counts: items trained and validated on, and those left out, by reason.
        damaged: why an item's input could not be read, by the item's id.
        minutes: of training.
    """

    id: str
    name: str
    run: Path
    history: Sequence[Point]
    metrics: Mapping[str, float]
    counts: Mapping[str, int]
    damaged: Mapping[str, str]
    minutes: float


def align(
    workspace: Workspace,
    catalog: Catalog,
    modality: str,
    config: RunConfig,
    *,
    name: str | None = None,
    continue_from: str | None = None,
    backbone: Backbone | None = None,
    force: bool = False,
) -> Alignment:
    """Align one modality of a catalog to the anchor and register the adapter.

    Started by torchrun, all processes train together; the first one alone writes and tells, all return the same.

    Args:
        catalog: the items; their 80/10/10 split is by item id.
        modality: an installed plugin's name.
        config: the resolved configuration.
        name: what to register it as; default `<modality>/<catalog>`.
        continue_from: an adapter to go on from, on this catalog (the paper does so for behavior).
        backbone: one already loaded, without adapter; default: loaded from the configuration.
        force: begin anew, whatever this run has come to before.

    Raises:
        DataError: no item has both anchor and modality.
        UsageError, PluginError, IntegrityError: see the parts.
    """
    name = name or f"{modality}/{catalog.name}"
    workspace.registry.check_name(name)
    with Processes.joined() as processes:
        workspace = workspace if processes.first else replace(workspace, reporter=Reporter())
        job = open_job(
            workspace,
            catalog,
            modality,
            config,
            continue_from=continue_from,
            backbone=backbone,
            processes=processes,
        )
        # Refused before training what could not be stored after it; another process may be at the same.
        workspace.registry.require(*job.parents)
        run = job.run()
        if processes.first and force:
            run.own().forget()
        finished = processes.broadcast(_finished(run.own(), name) if processes.first else None)
        if finished is not None:
            run.leave()
            workspace.note(f"Already aligned: {finished.id[:12]} (run {run.name}).")
            return finished
        train, valid, counts = job.samples()
        progress, files = job.train(run, train, valid)
        stored = _stored(job, run, progress, files, counts, name) if processes.first else None
        alignment = processes.broadcast(stored)
        assert alignment is not None  # noqa: S101 - the first process has it
        return alignment


def _stored(
    job: Job, run: Run, progress: Progress, files: Mapping[str, Path], counts: Mapping[str, int], name: str
) -> Alignment:
    """Register what a training has made, and end its run."""
    metrics = _metrics(progress.history, progress.best_step)
    why = f"align {job.modality} on {job.catalog.name}"
    manifest = job.manifest(run, progress, counts, metrics)
    alignment = Alignment(
        id=save(job.workspace.registry, manifest, files, name=name, why=why),
        name=name,
        run=run.folder,
        history=progress.history,
        metrics=metrics,
        counts=counts,
        damaged=job.inputs.damaged,
        minutes=progress.elapsed / 60,
    )
    result = {key: value for key, value in asdict(alignment).items() if key not in ("name", "run")}
    run.finish(result, step=progress.step, metrics=metrics)
    # The registry holds the result; the checkpoint and the export have served.
    run.checkpoint.unlink(missing_ok=True)
    shutil.rmtree(files[CONFIG].parent, ignore_errors=True)
    return alignment


def _metrics(history: Sequence[Point], kept: int) -> dict[str, float]:
    """The validation figures at step 0 and at the step kept."""
    metrics = {}
    for point in history:
        for key in ("valid_loss", "valid_rouge_l"):
            if key in point and point["step"] in (0, kept):
                metrics[f"{key}_before" if point["step"] == 0 else key] = round(point[key], 6)
    return metrics


def _finished(run: Run, name: str) -> Alignment | None:
    """The run's alignment, if it ended and its adapter is stored whole; `name` then points to it."""
    registry = run.workspace.registry
    try:
        alignment = Alignment(name=name, run=run.folder, **run.result())  # type: ignore[arg-type]
        whole = registry.is_whole(alignment.id)
    except Exception:  # noqa: BLE001 - whatever is wrong with it, the run is done again
        return None
    if not whole:
        run.workspace.note(
            f"The adapter {alignment.id[:12]} of the run {run.name} is not whole; aligning again."
        )
        return None
    registry.tag(alignment.id, name, "latest", "aligned before")
    return alignment
