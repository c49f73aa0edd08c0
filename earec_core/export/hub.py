"""A model as a directory of the Hugging Face hub: a PEFT adapter, its projectors, and a model card."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from huggingface_hub import ModelCardData

from earec_core.aligned.importing import MANIFEST
from earec_core.aligned.stored import StoredModel
from earec_core.artifacts import AdapterManifest, CompositeManifest
from earec_core.artifacts.base import read
from earec_core.files import copy_file, new_directory, write_json
from earec_core.llm.peft_adapter import CONFIG
from earec_core.llm.store import hub_id
from earec_registry import Registry


def write_hub(registry: Registry, model: StoredModel, out: Path) -> None:
    """Write a model's files, its manifest, and a README.md that says what the manifests of it and its parts say.

    Args:
        model: an adapter, or a composite that is one adapter.
        out: the directory to write; it must not exist, or be empty.

    Raises:
        UsageError: something is at `out`.
        RegistryError: a part is missing or damaged.
        EarecError: it cannot be written.
    """
    stored = registry.manifest(model.id)
    parts: dict[str, AdapterManifest] = {}
    if isinstance(model.manifest, CompositeManifest):
        for modality, id_ in model.manifest.adapters.items():
            parts[modality] = read(registry.manifest(id_), AdapterManifest)
    else:
        parts[model.manifest.modality] = model.manifest
    base = hub_id(model.manifest.base.id)
    with new_directory(out, "model") as folder:
        for path in stored.files:
            copy_file(model.folder / path, folder / path)
        if base is not None:  # by the name that others find it by
            config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
            write_json(folder / CONFIG, {**config, "base_model_name_or_path": base})
        write_json(folder / MANIFEST, dict(stored.data))
        (folder / "README.md").write_text(model_card(model, parts), encoding="utf-8")


def model_card(model: StoredModel, parts: Mapping[str, AdapterManifest]) -> str:
    """The README.md of a model.

    Args:
        parts: the manifest of each modality's adapter; of an adapter its own.
    """
    manifest, names = model.manifest, ", ".join(model.manifest.modalities)
    data = ModelCardData(
        base_model=hub_id(model.manifest.base.id),
        library_name="peft",
        tags=["earec", "lora", *model.manifest.modalities],
    )
    return "\n".join(
        [
            f"---\n{data.to_yaml()}\n---\n",
            f"# EAREC {manifest.kind}: {names}\n",
            f"A LoRA adapter for `{manifest.base.id}` that makes it say what an item is, from {names}.\n",
            *_facts(model),
            "\n## Parts\n",
            *_parts(model, parts),
            "\n## Use\n",
            *_use(model),
            "",
        ]
    )


def _facts(model: StoredModel) -> Iterator[str]:
    manifest = model.manifest
    facts = {
        "id": f"`{model.id}`",
        "anchor (what it says)": ", ".join(f"`{name}`" for name in manifest.prompt.anchor),
        "base": f"`{manifest.base.id}`",
        "digest of the base's weights": f"`{manifest.base.weights}`",
        "digest of the base's tokenizer": f"`{manifest.base.tokenizer}`",
    }
    if isinstance(manifest, CompositeManifest):
        facts["weights"] = ", ".join(f"{name} {weight:g}" for name, weight in manifest.weights.items())
        if manifest.layer_weights is not None:
            facts["weights of single layers"] = f"in `{MANIFEST}`"
        facts["method"] = manifest.method.name
    yield from _table(["", ""], [[name, value] for name, value in facts.items()])


def _parts(model: StoredModel, parts: Mapping[str, AdapterManifest]) -> Iterator[str]:
    """Each modality's plugin, projector, training data and metrics."""
    rows = []
    for modality, part in parts.items():
        plugin, training = part.record.plugin, part.training
        metrics = ", ".join(f"{name} {value:.4g}" for name, value in part.metrics.items())
        rows.append(
            [
                modality,
                f"{plugin.distribution} {plugin.version}",
                f"`{model.manifest.modalities[modality].projector}`",
                f"r {part.lora.r}, alpha {part.lora.alpha:g}",
                f"{training.data.name} `{training.data.digest}`" if training else "not known: imported",
                metrics,
            ]
        )
    yield from _table(["modality", "plugin", "projector", "LoRA", "data and its digest", "metrics"], rows)


def _use(model: StoredModel) -> Iterator[str]:
    base = hub_id(model.manifest.base.id) or f"the directory of {model.manifest.base.id}"
    yield "With PEFT alone, the LLM with the adapter; what the projectors map into its prompt is left out:\n"
    yield "```python"
    yield "from peft import PeftModel"
    yield "from transformers import AutoModelForCausalLM\n"
    yield f'base = AutoModelForCausalLM.from_pretrained("{base}")'
    yield 'model = PeftModel.from_pretrained(base, "path or id of this repository")'
    yield "```\n"
    yield "With EAREC, which reads items of every modality, from a registry that has the model:\n"
    yield "```"
    yield f"earec registry pull {model.id} URL --as {model.manifest.kind}"
    yield f"earec explain {model.manifest.kind} --data DATA"
    yield f"earec encode {model.manifest.kind} --data DATA"
    yield "```\n"
    if isinstance(model.manifest, AdapterManifest):
        yield "Or from this directory, if what its encoder reads is in the registry:\n"
        yield "```"
        yield "earec registry import DIRECTORY --name NAME"
        yield "```\n"
    yield f"All that is known of it is in `{MANIFEST}`."


def _table(head: list[str], rows: list[list[str]]) -> Iterator[str]:
    for cells in (head, ["---"] * len(head), *rows):
        yield "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"
