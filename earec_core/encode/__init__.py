"""Stage 2: an item's vector is the LLM's last hidden state at the prompt's last position (Eq. 5)."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from earec_core.aligned.build import new_model
from earec_core.aligned.model import AlignedModel
from earec_core.aligned.stored import StoredModel, stored_model
from earec_core.catalog import Catalog
from earec_core.config import RunConfig
from earec_core.errors import IntegrityError, UsageError
from earec_core.home import home
from earec_core.llm.backbone import Backbone
from earec_core.modality import Context
from earec_core.types import Show
from earec_registry import Registry


@dataclass(frozen=True)
class ItemVectors:
    """Vectors of a catalog's items.

    Attributes:
        id: their id in the registry.
        vectors: one row an item, in the catalog's order.
        item_ids: the items' ids, by row.
        data: the manifest.
    """

    id: str
    vectors: Float[np.ndarray, "n d"]
    item_ids: Sequence[str]
    data: Mapping[str, Any]

    @classmethod
    def open(cls, registry: Registry, reference: str, catalog: Catalog) -> ItemVectors:
        """Stored vectors, checked against the catalog they are to be used with.

        Raises:
            UsageError: they are of another kind or another catalog.
            IntegrityError: they cannot be read.
        """
        manifest = registry.manifest(reference)
        if manifest.kind != "features" or "vectors.safetensors" not in manifest.files:
            raise UsageError(f"{reference!r} holds no item vectors.", "Make them with `earec encode`.")
        folder = registry.materialize(reference)
        try:
            item_ids = json.loads((folder / "item_ids.json").read_text())
            with safe_open(str(folder / "vectors.safetensors"), framework="np") as stored:
                vectors = stored.get_tensor("vectors")
        except (OSError, ValueError, SafetensorError) as error:
            raise IntegrityError(
                f"The vectors {reference!r} cannot be read: {error}.", "Encode again."
            ) from error
        if item_ids != catalog.items["item_id"].to_list():
            raise UsageError(
                f"The vectors {reference!r} are of {manifest.data['data']['name']!r}, whose items are not "
                f"those of {catalog.name!r}.",
                f"Run `earec encode --data {catalog.path}`.",
            )
        return cls(manifest.id, vectors, item_ids, manifest.data)


@torch.inference_mode()
def item_vectors(
    model: AlignedModel,
    rows: Sequence[int],
    *,
    batch_tokens: int = 4096,
    show: Show = lambda *_: None,
) -> Float[np.ndarray, "n d_llm"]:
    """Vectors of the items of `rows`, in that order (Eq. 5).

    Batches hold prompts of similar length and at most `batch_tokens` positions, padding included; a vector
    depends on the batch it was computed in by floating-point rounding only.
    """
    prompts = [model.prompts.prompt(row) for row in rows]
    lengths = [model.prompts.length(prompt) for prompt in prompts]
    order = sorted(range(len(rows)), key=lambda i: -lengths[i])
    vectors = np.empty((len(rows), model.backbone.d_llm), dtype=np.float32)
    done = 0
    while done < len(order):
        # Longest first: the first prompt's length is the whole batch's.
        size = max(1, batch_tokens // max(1, lengths[order[done]]))
        chunk = order[done : done + size]
        vectors[chunk] = model.vectors([prompts[i] for i in chunk]).cpu().numpy()
        done += len(chunk)
        show(done, len(order), "items")
    return vectors


def encode(
    catalog: Catalog,
    model: str | None,
    config: RunConfig,
    registry: Registry,
    *,
    names: Sequence[str] | None = None,
    name: str | None = None,
    backbone: Backbone | None = None,
    note: Callable[[str], None] = lambda _: None,
    show: Show = lambda *_: None,
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
    registry.check_name(name)
    stored = StoredModel.open(registry, model) if model else None
    if stored is None and not names:
        raise UsageError("Without a model, the modalities are not known.", "Name them: --modalities text")
    backbone = backbone or Backbone.load(config.backbone, note)
    items = catalog.all_items()
    if stored is None:
        aligned = new_model(
            names or (),
            config.modalities,
            items,
            backbone,
            Context(catalog.name, registry.root, home()),
            config.prompt,
            seed=config.align.seed,
            show=show,
        )
    else:
        aligned = stored_model(
            stored,
            items,
            catalog.name,
            backbone,
            registry,
            names=names,
            overrides=config.modalities,
            show=show,
        )
    used = aligned.inputs
    for one in used.values():
        for damaged in one.damaged[:10]:
            note(f"Item {damaged.item} loses its {one.name}: {damaged.why}")
    with backbone.adapted(stored.adapter()) if stored else nullcontext():
        vectors = item_vectors(aligned, range(len(items)), batch_tokens=config.encode.batch_tokens, show=show)
    none = sum(not aligned.prompts.has(row) for row in range(len(items)))
    if none:
        note(
            f"{none} of {len(items)} items have none of {', '.join(used)}; their vector is the bare prompt's."
        )
    manifest = {
        "kind": "features",
        "method": "last-hidden-state",
        "modalities": {n: one.modality.resolved_config().model_dump(mode="json") for n, one in used.items()},
        "base": backbone.info.as_manifest(),
        "prompt": aligned.prompts.config.model_dump(mode="json"),
        "parents": [
            *([stored.id] if stored else []),
            *(s for o in used.values() for s in o.modality.sources()),
        ],
        "data": {"name": catalog.name, "digest": catalog.digest},
        "shapes": {"items": len(items), "d": int(vectors.shape[1])},
        "coverage": {n: len(one.rows) for n, one in used.items()} | {"none": none},
    }
    item_ids = [item.id for item in items]
    with tempfile.TemporaryDirectory() as folder:
        files = {"vectors.safetensors": Path(folder) / "v", "item_ids.json": Path(folder) / "i"}
        save_file({"vectors": vectors}, files["vectors.safetensors"])
        files["item_ids.json"].write_text(json.dumps(item_ids))
        identity = registry.add(manifest, files, name=name, why="encode")
    return ItemVectors(identity, vectors, item_ids, manifest)
