"""`encode --encoder`: every item as the vector that an encoder of text gives its words, without an LLM."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from earec_core.aligned.words import ItemWords
from earec_core.artifacts import ItemVectors
from earec_core.artifacts.tables import write_table
from earec_core.catalog import Catalog
from earec_core.config import RunConfig
from earec_core.llm import store
from earec_core.modality.sentences import SentenceEncoder, encoder_folder
from earec_core.workspace import Workspace

_WINDOW = 512


def encode_words(
    workspace: Workspace,
    catalog: Catalog,
    encoder: str,
    config: RunConfig,
    *,
    names: Sequence[str] = (),
    name: str | None = None,
) -> ItemVectors:
    """Encode the words of every item of a catalog and register the vectors.

    An item without words gets the vector of the empty text, and is counted.

    Args:
        encoder: a key of `earec_core.modality.sentences.NAMED`, or a model directory.
        names: the modalities whose words are read, one at least.
        name: what to register them as; default `vectors/<catalog>`.

    Raises:
        UsageError: see `encoder_folder`, `SentenceEncoder.load` and `ItemWords.open`; or no item has words.
    """
    name = name or f"vectors/{catalog.name}"
    workspace.registry.check_name(name)
    words = ItemWords.open(workspace, catalog, names, config.modalities)
    folder = encoder_folder(encoder, workspace)
    model = SentenceEncoder.load(folder)
    base = store.info(encoder, folder, workspace)
    key = {
        "base": base.model_dump(),
        "method": model.method,
        "modalities": words.resolved(),
        "code": words.code(),
        "data": {"name": catalog.name, "digest": catalog.digest},
        "batch_tokens": config.encode.batch_tokens,
    }
    run = workspace.run("encode", key).start()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(config.backbone.device if config.backbone.device != "auto" else device)
    scratch = run.scratch()
    try:
        file = scratch / "vectors.safetensors"
        coverage = _write_table(workspace, words, model, config.encode.batch_tokens, file)
        vectors = ItemVectors.save(
            workspace.registry,
            file,
            catalog,
            name=name,
            why="encode",
            method=model.method,
            modalities=words.resolved(),
            code=words.code(),
            base=base,
            coverage=coverage,
        )
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    run.finish({"id": vectors.id}, step=len(catalog))
    return vectors


def _write_table(
    workspace: Workspace, words: ItemWords, model: SentenceEncoder, positions: int, file: Path
) -> Counter[str]:
    """Write the vectors of all items in the catalog's order; how many have words, by modality."""
    total, coverage = len(words.catalog), Counter[str]()

    def parts() -> Iterator[Float[np.ndarray, "m d"]]:
        done = 0
        for texts in words.windows(_WINDOW, coverage):
            with torch.inference_mode():
                yield model.batched(model.tokens(texts), positions).cpu().numpy()
            done += len(texts)
            workspace.progress(done, total, "items")

    write_table(file, "vectors", total, parts())
    if without := coverage["none"]:
        workspace.note(f"{without} of {total} items have no words; their vector is the empty text's.")
    return coverage
