"""`compose`: stored adapters of several modalities into one registered composite."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from earec_core.artifacts import AdapterManifest, CompositeManifest, MethodRecord, Stored, save
from earec_core.compose.guards import open_adapters
from earec_core.compose.measure import ComposeReport
from earec_core.compose.merge import compose
from earec_core.compose.recipe import Recipe
from earec_core.errors import UsageError
from earec_core.llm.peft_adapter import CONFIG, WEIGHTS
from earec_core.workspace import Workspace
from earec_registry import Registry


@dataclass(frozen=True)
class Composed:
    """A registered composite: its id and name, and what the merge did."""

    id: str
    name: str
    report: ComposeReport


def compose_models(
    workspace: Workspace,
    adapters: Mapping[str, str],
    recipe: Recipe,
    *,
    name: str | None = None,
    allow: frozenset[str] = frozenset(),
    search: Mapping[str, Any] | None = None,
) -> Composed:
    """Merge adapters by weight (Eq. 4), keep every projector, and register the composite.

    A routed composite also stores each modality's own adapter, in `adapters/<modality>/`.

    Args:
        adapters: reference of each modality's adapter.
        recipe: weights by modality, method and options.
        name: what to register the composite as; default `composite/<catalog>` if all were aligned on one catalog,
            else `composite`.
        allow: mismatches that the user knows of (`guards.MISMATCHES`); recorded in the manifest.
        search: how the weights were found, for the manifest; None where they were given.

    Raises:
        UsageError: a reference is no adapter of that modality, the weights do not fit, or the adapters differ
            in what they must share.
        PluginError: the method is a plugin's and fails.
    """
    registry = workspace.registry
    if name is not None:
        registry.check_name(name)
    models, overridden = open_adapters(registry, adapters, allow)
    trainings = [model.manifest.training for model in models.values()]
    catalogs = {training.data.name for training in trainings if training}
    name = name or "/".join(["composite", *(catalogs if len(catalogs) == 1 else ())])
    registry.require(*(model.id for model in models.values()))
    key = {
        "adapters": {modality: model.id for modality, model in models.items()},
        "recipe": recipe.as_json(),
        "allow": sorted(allow),
    }
    run = workspace.run("compose", key).start()
    with tempfile.TemporaryDirectory() as scratch:
        merged = Path(scratch) / "adapter"
        report = compose({m: model.folder for m, model in models.items()}, recipe, merged)
        manifest = _manifest(models, recipe, report, overridden, search)
        files = _files(models, merged, routed=recipe.arithmetic.routed)
        identity = save(registry, manifest, files, name=name, why=f"compose {recipe.method}")
    figures = {"relative_error": report.relative_error, "norm": report.norm}
    metrics = {figure: value for figure, value in figures.items() if value is not None}
    run.finish({"id": identity, **report.summary()}, metrics=metrics)
    return Composed(identity, name, report)


def _manifest(
    models: Mapping[str, Stored[AdapterManifest]],
    recipe: Recipe,
    report: ComposeReport,
    overridden: Mapping[str, Any],
    search: Mapping[str, Any] | None,
) -> CompositeManifest:
    summary, first = report.summary(), next(iter(models.values())).manifest
    return CompositeManifest(
        modalities={m: model.manifest.record for m, model in models.items()},
        base=first.base,
        prompt=first.prompt,
        chat=next((model.manifest.chat for model in models.values() if model.manifest.chat), None),
        parents=(
            *(model.id for model in models.values()),
            *(parent for model in models.values() for parent in model.manifest.parents),
        ),
        weights=summary["weights"],
        layer_weights=summary["layer_weights"] if recipe.layer_weights else None,
        method=MethodRecord(name=recipe.method, rank=recipe.rank, options=recipe.options),
        overridden=overridden,
        report=summary,
        search=dict(search) if search else None,
    )


def _files(models: Mapping[str, Stored[AdapterManifest]], merged: Path, *, routed: bool) -> dict[str, Path]:
    """The composite's files by their path in it."""
    files = {file.name: file for file in merged.iterdir()}
    for modality, model in models.items():
        files[model.manifest.record.projector] = model.folder / model.manifest.record.projector
        if routed:
            files |= {f"adapters/{modality}/{file}": model.folder / file for file in (CONFIG, WEIGHTS)}
    return files


def choose_adapters(
    registry: Registry, modalities: Sequence[str], given: Mapping[str, str], catalog: str | None = None
) -> dict[str, str]:
    """The adapter of each modality: as given, else `<modality>/<catalog>`, else the only one that is registered.

    Args:
        catalog: the name of the catalog that is meant.

    Raises:
        UsageError: there is none, or more than one to choose from.
    """
    return {**{m: given.get(m) or _adapter(registry, m, catalog) for m in modalities}, **given}


def _adapter(registry: Registry, modality: str, catalog: str | None) -> str:
    names = {
        entry.name
        for entry in registry.list().entries
        if entry.kind == "adapter" and registry.manifest(entry.id).data.get("modality") == modality
    }
    if not names:
        raise UsageError(
            f"The registry holds no adapter of {modality}.", f"Make one: earec align --modality {modality}"
        )
    if f"{modality}/{catalog}" in names:
        return f"{modality}/{catalog}"
    if len(names) > 1:
        raise UsageError(
            f"The registry holds several adapters of {modality}: {', '.join(sorted(names))}.",
            f"Say which: --adapter {modality}=REF, or --data for those of its catalog.",
        )
    return names.pop()
