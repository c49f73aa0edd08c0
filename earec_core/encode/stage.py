"""`encode`: every item of a catalog as a vector, registered."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import numpy as np
import torch
from jaxtyping import Float

from earec_core.aligned.build import model_run, new_model
from earec_core.aligned.model import AlignedModel
from earec_core.aligned.stored import adapter_of, open_model, stored_model
from earec_core.artifacts import ItemVectors
from earec_core.catalog import Catalog
from earec_core.config import EncodeConfig, RunConfig
from earec_core.encode.readouts import get_readout
from earec_core.errors import UsageError
from earec_core.llm.backbone import Backbone
from earec_core.types import Show
from earec_core.workspace import Workspace


@torch.inference_mode()
def item_vectors(
    model: AlignedModel,
    rows: Sequence[int],
    config: EncodeConfig | None = None,
    *,
    show: Show = lambda *_: None,
) -> Float[np.ndarray, "n d_llm"]:
    """Vectors of the items of `rows`, in that order (Eq. 5).

    Batches hold prompts of similar length and at most `batch_tokens` positions, padding included; a vector
    depends on the batch it was computed in by floating-point rounding only.
    """
    config = config or EncodeConfig()
    readout = get_readout(config.readout)
    prompts = [model.prompts.prompt(row) for row in rows]
    lengths = [model.prompts.length(prompt) for prompt in prompts]
    order = sorted(range(len(rows)), key=lambda i: -lengths[i])
    vectors = np.empty((len(rows), model.backbone.d_llm), dtype=np.float32)
    done = 0
    while done < len(order):
        # Longest first: the first prompt's length is the whole batch's.
        size = max(1, config.batch_tokens // max(1, lengths[order[done]]))
        chunk = order[done : done + size]
        vectors[chunk] = readout.read(*model.hidden([prompts[i] for i in chunk])).cpu().numpy()
        done += len(chunk)
        show(done, len(order), "items")
    return vectors


def encode(
    workspace: Workspace,
    catalog: Catalog,
    model: str | None,
    config: RunConfig,
    *,
    names: Sequence[str] | None = None,
    name: str | None = None,
    backbone: Backbone | None = None,
) -> ItemVectors:
    """Encode every item of a catalog, from whichever modalities it has, and register the vectors.

    Args:
        model: an adapter or composite; None for the un-aligned backbone with untrained projectors.
        names: modalities to feed; default: all of the model's. Needed without a model.
        name: what to register them as; default `vectors/<catalog>`.
        backbone: one already loaded, without adapter.

    Raises:
        UsageError, PluginError, IntegrityError: see `earec_core.aligned.stored.stored_model`.
    """
    name = name or f"vectors/{catalog.name}"
    workspace.registry.check_name(name)
    readout = get_readout(config.encode.readout)
    stored = open_model(workspace.registry, model) if model else None
    if stored is None and not names:
        raise UsageError("Without a model, the modalities are not known.", "Name them: --modalities text")
    backbone = backbone or Backbone.load(config.backbone, workspace)
    if stored is not None:
        aligned = stored_model(workspace, catalog, backbone, stored, names=names, overrides=config.modalities)
    else:
        settings = {m: config.modalities.get(m, {}) for m in names or ()}
        aligned = new_model(workspace, catalog, backbone, settings, config.prompt, seed=config.run.seed)
    beside = {"model": stored.id if stored else None}
    run = model_run(workspace, "encode", catalog, aligned, config, beside).start()
    rows = range(len(catalog))
    with backbone.adapted(adapter_of(stored)) if stored else nullcontext():
        vectors = item_vectors(aligned, rows, config.encode, show=workspace.progress)
    none = sum(not aligned.prompts.has(row) for row in rows)
    if none:
        modalities = ", ".join(aligned.inputs)
        workspace.note(
            f"{none} of {len(rows)} items have none of {modalities}; their vector is the bare prompt's."
        )
    sources = [source for inputs in aligned.inputs.values() for source in inputs.modality.sources()]
    stored_vectors = ItemVectors.save(
        workspace.registry,
        vectors,
        catalog,
        name=name,
        why="encode",
        method=readout.method,
        modalities={m: inputs.resolved_config() for m, inputs in aligned.inputs.items()},
        base=backbone.info,
        prompt=aligned.prompts.config,
        parents=(*([stored.id] if stored else []), *sources),
        coverage={m: len(inputs.rows) for m, inputs in aligned.inputs.items()} | {"none": none},
    )
    run.finish({"id": stored_vectors.id}, step=len(rows))
    return stored_vectors
