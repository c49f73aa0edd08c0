"""`compose`: stored adapters of several modalities into one registered composite."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from earec_core.aligned.stored import StoredModel
from earec_core.compose.guards import open_adapters
from earec_core.compose.measure import ComposeReport
from earec_core.compose.merge import compose
from earec_core.compose.recipe import Recipe
from earec_core.errors import UsageError
from earec_core.llm.peft_adapter import CONFIG, WEIGHTS
from earec_registry import Registry


def compose_models(
    registry: Registry,
    adapters: Mapping[str, str],
    recipe: Recipe,
    *,
    name: str,
    allow: frozenset[str] = frozenset(),
    search: Mapping[str, Any] | None = None,
) -> tuple[str, ComposeReport]:
    """Merge adapters by weight (Eq. 4), keep every projector, and register the composite.

    A routed composite also stores each modality's own adapter, in `adapters/<modality>/`.

    Args:
        adapters: reference of each modality's adapter.
        recipe: weights by modality, method and options.
        name: what to register the composite as.
        allow: mismatches that the user knows of (`guards.MISMATCHES`); recorded in the manifest.
        search: how the weights were found, for the manifest; None where they were given.

    Returns:
        Its id, and what the merge did.

    Raises:
        UsageError: a reference is no adapter of that modality, the weights do not fit, or the adapters differ
            in what they must share.
        PluginError: the method is a plugin's and fails.
    """
    registry.check_name(name)
    models, overridden = open_adapters(registry, adapters, allow)
    with tempfile.TemporaryDirectory() as scratch:
        merged = Path(scratch) / "adapter"
        report = compose({m: model.folder for m, model in models.items()}, recipe, merged)
        manifest = _manifest(models, recipe, report, overridden)
        if search:
            manifest["search"] = dict(search)
        files = _files(models, merged, routed=recipe.arithmetic.routed)
        identity = registry.add(manifest, files, name=name, why=f"compose {recipe.method}")
    return identity, report


def _manifest(
    models: Mapping[str, StoredModel],
    recipe: Recipe,
    report: ComposeReport,
    overridden: Mapping[str, Any],
) -> dict[str, Any]:
    """What the composite's manifest says; `parents` begins with the modalities' adapters, in their order."""
    summary, first = report.summary(), next(iter(models.values()))
    manifest: dict[str, Any] = {
        "kind": "composite",
        "modalities": {m: dict(model.modalities[m]) for m, model in models.items()},
        "base": first.data["base"],
        "prompt": first.data["prompt"],
        "parents": [model.id for model in models.values()]
        + [parent for model in models.values() for parent in model.data["parents"]],
        "weights": summary["weights"],
        "method": {"name": recipe.method, "rank": recipe.rank, **recipe.options},
        "overridden": overridden,
        "report": summary,
    }
    if recipe.layer_weights:
        manifest["layer_weights"] = summary["layer_weights"]
    return manifest


def _files(models: Mapping[str, StoredModel], merged: Path, *, routed: bool) -> dict[str, Path]:
    """The composite's files by their path in it."""
    files = {file.name: file for file in merged.iterdir()}
    for modality, model in models.items():
        files[f"projectors/{modality}.safetensors"] = model.folder / model.modalities[modality]["projector"]
        if routed:
            files |= {f"adapters/{modality}/{file}": model.folder / file for file in (CONFIG, WEIGHTS)}
    return files


def choose_adapters(
    registry: Registry, modalities: Sequence[str], given: Mapping[str, str]
) -> dict[str, str]:
    """The adapter of each modality: as given, else the only one that is registered.

    Raises:
        UsageError: there is none, or more than one to choose from.
    """
    chosen = {modality: given.get(modality, "") for modality in modalities}
    for modality in (modality for modality, ref in chosen.items() if not ref):
        names = {
            entry.name
            for entry in registry.list().entries
            if entry.kind == "adapter" and registry.manifest(entry.id).data["modality"] == modality
        }
        if not names:
            raise UsageError(
                f"The registry holds no adapter of {modality}.",
                f"Make one: earec align --modality {modality}",
            )
        if len(names) > 1:
            raise UsageError(
                f"The registry holds several adapters of {modality}: {', '.join(sorted(names))}.",
                f"Say which: --adapter {modality}=REF",
            )
        chosen[modality] = names.pop()
    return {**chosen, **given}
