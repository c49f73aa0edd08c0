"""`encode`: every item of a catalog as a vector, registered."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext

import numpy as np
import torch
from jaxtyping import Float

from earec_core.aligned.build import model_run, new_model
from earec_core.aligned.model import AlignedModel
from earec_core.aligned.readouts import get_readout
from earec_core.aligned.stored import StoredModel, adapter_of, open_model, stored_model
from earec_core.artifacts import ItemVectors
from earec_core.catalog import Catalog
from earec_core.config import EncodeConfig, RunConfig
from earec_core.errors import EarecError, UsageError
from earec_core.llm.backbone import Backbone
from earec_core.llm.prompts import Prompt
from earec_core.types import Show
from earec_core.workspace import Workspace


@torch.inference_mode()
def item_vectors(
    model: AlignedModel,
    rows: Sequence[int],
    config: EncodeConfig | None = None,
    *,
    show: Show = lambda *_: None,
) -> Float[np.ndarray, "n d"]:
    """Vectors of the items of `rows`, in that order (Eq. 5).

    Batches hold prompts of similar length and at most `batch_tokens` positions, padding included; a vector
    depends on the batch it was computed in by floating-point rounding only.

    Raises:
        EarecError: a vector is not finite; its item is named.
    """
    config = config or EncodeConfig()
    readout = get_readout(config.readout)
    prompts = [model.prompts.prompt(row) for row in rows]
    lengths = [model.prompts.length(prompt) for prompt in prompts]
    vectors = np.empty((len(rows), 0), dtype=np.float32)
    done = 0
    for chunk in batched(lengths, config):
        states = model.states([prompts[i] for i in chunk], layer=config.layer)
        read = readout.read(states).cpu().numpy()
        if not vectors.shape[1]:
            vectors = np.empty((len(rows), read.shape[1]), dtype=np.float32)
        vectors[chunk] = read
        unusable = [model.prompts.items[rows[i]].id for i in chunk if not np.isfinite(vectors[i]).all()]
        if unusable:
            raise EarecError(
                f"The vector of item {unusable[0]!r} holds NaN or infinity.",
                "Check the weights of the backbone and of the model's adapter and projectors; with float16, use "
                "--set backbone.dtype=float32.",
            )
        done += len(chunk)
        show(done, len(rows), "items")
    return vectors


def batched(lengths: Sequence[int], config: EncodeConfig) -> Iterator[list[int]]:
    """Places of prompts that are run together, of similar length, the longest first in every batch."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    done = 0
    while done < len(order):
        # The first prompt's length is the whole batch's.
        size = max(1, config.batch_tokens // max(1, lengths[order[done]]))
        yield order[done : done + size]
        done += size


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
    stored, aligned = opened(workspace, catalog, model, config, names=names, backbone=backbone)
    readout, backbone = get_readout(config.encode.readout), aligned.backbone
    sources = [source for inputs in aligned.inputs.values() for source in inputs.modality.sources()]
    parents = (*([stored.id] if stored else []), *sources)
    workspace.registry.require(*parents)
    beside = {"model": stored.id if stored else None}
    run = model_run(workspace, "encode", catalog, aligned, config, beside).start()
    rows = range(len(catalog))
    prompts = [aligned.prompts.prompt(row) for row in rows]
    with backbone.adapted(adapter_of(stored)) if stored else nullcontext():
        vectors = item_vectors(aligned, rows, config.encode, show=workspace.progress)
    covered = coverage(aligned, prompts)
    _note(workspace, aligned, covered, cut=sum(prompt.cut > 0 for prompt in prompts))
    stored_vectors = ItemVectors.save(
        workspace.registry,
        vectors,
        catalog,
        name=name,
        why="encode",
        method=readout.method,
        layer=config.encode.layer,
        modalities={m: inputs.resolved_config() for m, inputs in aligned.inputs.items()},
        base=backbone.info,
        prompt=aligned.prompts.config,
        chat=aligned.prompts.chat,
        parents=parents,
        coverage=covered,
    )
    run.finish({"id": stored_vectors.id}, step=len(rows))
    return stored_vectors


def opened(
    workspace: Workspace,
    catalog: Catalog,
    model: str | None,
    config: RunConfig,
    *,
    names: Sequence[str] | None,
    backbone: Backbone | None,
) -> tuple[StoredModel | None, AlignedModel]:
    """What encodes, everything checked: the stored model, if it is one, and the model over the catalog.

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
        return stored, stored_model(workspace, catalog, backbone, stored, names=names, overrides=overrides)
    settings = {m: config.modalities.get(m, {}) for m in names or ()}
    return None, new_model(workspace, catalog, backbone, settings, config.prompt, seed=config.run.seed)


def _check_layer(layer: int | None, backbone: Backbone) -> None:
    """Raises UsageError where the LLM has no such layer."""
    layers = backbone.model.config.get_text_config().num_hidden_layers
    if layer is not None and layer > layers:
        raise UsageError(
            f"The backbone has {layers} layers, encode.layer is {layer}.", "Set encode.layer to one of them."
        )


def coverage(model: AlignedModel, prompts: Sequence[Prompt]) -> dict[str, int]:
    """How many of all items, whose prompts these are, have each modality, `none`, and are `too_long`, if any is."""
    none = sum(not model.prompts.has(prompt.item) for prompt in prompts)
    too_long = sum(prompt.too_long for prompt in prompts)
    having = {m: len(inputs.rows) for m, inputs in model.inputs.items()} | {"none": none}
    return having | ({"too_long": too_long} if too_long else {})


def _note(workspace: Workspace, model: AlignedModel, covered: Mapping[str, int], *, cut: int) -> None:
    """Say which items are not shown as they are, where there are any."""
    n, bare = len(model.prompts.items), "their vector is the bare prompt's."
    if none := covered["none"]:
        workspace.note(f"{none} of {n} items have none of {', '.join(model.inputs)}; {bare}")
    if too_long := covered.get("too_long"):
        workspace.note(f"{too_long} of {n} items do not fit; {bare}")
    if cut:
        workspace.note(f"{cut} of {n} items do not fit; they are shown by the start of their input.")
