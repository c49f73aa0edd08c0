"""What the LLM would read of a catalog, written for another engine to encode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from earec_core.aligned.model import AlignedModel
from earec_core.catalog import Catalog
from earec_core.config import RunConfig
from earec_core.encode.stage import opened
from earec_core.errors import UsageError
from earec_core.files import check_new, new_directory, write_json
from earec_core.llm.prompts import Prompt
from earec_core.workspace import Workspace

EMBEDDINGS, STARTS = "embeddings", "starts"
_ITEMS = 1024
"""Of a file."""


@dataclass(frozen=True)
class WrittenPrompts:
    """Prompts in a directory.

    Attributes:
        folder: holds `prompts.json` and files of 1,024 items each.
        items, positions: how many there are.
    """

    folder: Path
    items: int
    positions: int


@torch.inference_mode()
def write_prompts(
    workspace: Workspace,
    catalog: Catalog,
    model: str | None,
    config: RunConfig,
    out: Path,
    *,
    names: Sequence[str] | None = None,
) -> WrittenPrompts:
    """Write every item's prompt as embeddings, in the catalog's order; an engine that reads them with the model
    merged into its base (`earec export --as merged`) has the item's vector at the last position, after the norm.

    Each safetensors file holds `embeddings` [positions, d_llm], items one after the other, and `starts`
    [items + 1].

    Args:
        model, names: as of `earec_core.encode.encode`.
        out: the directory to write; it must not exist, or be empty. It appears complete or not at all.

    Raises:
        UsageError: the model's parts cannot be one weight, or its vectors are not of the last position.
        EarecError: the directory cannot be written.
    """
    check_new(out)
    if config.encode.readout != "last" or config.encode.layer is not None:
        raise UsageError(
            "Other engines read the last position of the last layer.",
            "Leave encode.readout at last and encode.layer out.",
        )
    job = opened(workspace, catalog, model, config, names=names)
    stored, backbone = job.stored, job.model.backbone
    if stored is not None and (stored.folder / "adapters").is_dir():
        raise UsageError(
            "A routed composite cannot be merged into the LLM's weights.", "Compose with --method delta."
        )
    positions = 0
    with new_directory(out, "prompts") as folder:
        for number, rows in enumerate(job.windows(_ITEMS)):
            over = job.over(rows)
            each = _embedded(over, [over.prompts.prompt(row) for row in rows])
            lengths = torch.tensor([0, *map(len, each)])
            tensors = {EMBEDDINGS: torch.cat(each).contiguous(), STARTS: lengths.cumsum(0)}
            save_file(tensors, folder / f"{number:05}.safetensors")
            positions += int(lengths.sum())
            workspace.progress(rows.stop, len(catalog), "items")
        ids = [item for part in catalog.ids() for item in part]
        facts = {"model": stored.id if stored else None, "base": backbone.info.id, "readout": "last"}
        write_json(folder / "prompts.json", {**facts, "d": backbone.d_llm, "item_ids": ids})
    return WrittenPrompts(out, len(catalog), positions)


def _embedded(model: AlignedModel, prompts: Sequence[Prompt]) -> list[Tensor]:
    """Each prompt's embeddings, whole."""
    llm, batch = model.backbone, model.splice(prompts)
    prefix = llm.embed(batch.prefix)
    rows = zip(batch.body, batch.lengths.tolist(), strict=True)
    return [torch.cat([prefix, body[:length]]).to(llm.dtype).cpu() for body, length in rows]
