"""`compose`: stored adapters of several modalities into one registered composite."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from earec_core.aligned.stored import StoredModel
from earec_core.compose.merge import compose
from earec_core.compose.methods import get_method
from earec_core.compose.report import ComposeReport
from earec_core.errors import UsageError
from earec_core.llm.peft_adapter import CONFIG, WEIGHTS
from earec_core.plugins import MODALITY, entry_points
from earec_registry import Registry

_TEMPLATE = ("chat", "system", "item", "relations", "request")
_SAME = {
    "base": ((("base", "weights"),), "backbone weights"),
    "tokenizer": ((("base", "tokenizer"),), "tokenizers"),
    "anchor": ((("prompt", "anchor"),), "anchors"),
    "template": (tuple(("prompt", key) for key in _TEMPLATE), "templates"),
    "seed": ((("lora", "seed"),), "LoRA-A seeds"),
}
"""What adapters must share to be composed, by the name that `--allow-mismatch` takes; and `plugin`."""


def compose_models(
    registry: Registry,
    adapters: Mapping[str, str],
    weights: Mapping[str, float],
    *,
    name: str,
    method: str = "delta",
    rank: int | None = None,
    density: float | None = None,
    seed: int | None = None,
    layer_weights: Mapping[int, Mapping[str, float]] | None = None,
    sum_rule: str = "strict",
    measure: bool = True,
    allow: frozenset[str] = frozenset(),
    search: Mapping[str, Any] | None = None,
) -> tuple[str, ComposeReport]:
    """Merge adapters by weight (Eq. 4), keep every projector, and register the composite.

    Args:
        adapters: reference of each modality's adapter.
        weights: lambda of each modality.
        name: what to register the composite as.
        method, rank, density, seed, layer_weights, sum_rule, measure: see `earec_core.compose.merge.compose`.
            A routed composite also stores each modality's own adapter, in `adapters/<modality>/`.
        allow: names of mismatches that the user knows of (keys of `_SAME`, and `plugin`); recorded in the
            manifest.
        search: how the weights were found, for the manifest; None where they were given.

    Returns:
        Its id, and what the merge did.

    Raises:
        UsageError: a reference is no adapter of that modality, the weights do not fit, or the adapters differ
            in what they must share.
        PluginError: the method is a plugin's and unusable.
    """
    registry.check_name(name)
    routed = get_method(method).routed
    models, overridden = open_adapters(registry, adapters, allow)
    first = next(iter(models.values()))
    with tempfile.TemporaryDirectory() as scratch:
        merged = Path(scratch) / "adapter"
        report = compose(
            {m: model.folder for m, model in models.items()},
            dict(weights),
            merged,
            method=method,
            rank=rank,
            density=density,
            seed=seed,
            layer_weights=layer_weights,
            sum_rule=sum_rule,  # type: ignore[arg-type]
            measure=measure,
        )
        files = {f.name: f for f in merged.iterdir()}
        files |= {
            f"projectors/{m}.safetensors": model.folder / _record(model)["projector"]
            for m, model in models.items()
        }
        if routed:
            files |= {
                f"adapters/{m}/{file}": model.folder / file
                for m, model in models.items()
                for file in (CONFIG, WEIGHTS)
            }
        manifest: dict[str, Any] = {
            "kind": "composite",
            "modalities": {m: dict(_record(model)) for m, model in models.items()},
            "base": first.data["base"],
            "prompt": first.data["prompt"],
            "parents": [model.id for model in models.values()]
            + [p for model in models.values() for p in model.data["parents"]],
            "weights": {m: float(weights[m]) for m in models},
            "method": {"name": method, "rank": rank, **report.options},
            "overridden": overridden,
            "report": {
                "rank": report.rank,
                "relative_error": report.relative_error,
                "truncation_error": report.truncation_error,
            },
        }
        if search:
            manifest["search"] = dict(search)
        if layer_weights:
            manifest["layer_weights"] = {
                str(n): {m: float(w) for m, w in sorted(one.items())}
                for n, one in sorted(layer_weights.items())
            }
        identity = registry.add(manifest, files, name=name, why=f"compose {method}")
    return identity, report


def open_adapters(
    registry: Registry, adapters: Mapping[str, str], allow: frozenset[str] = frozenset()
) -> tuple[dict[str, StoredModel], dict[str, Any]]:
    """The adapters by modality, sorted, and what they differ in as far as `allow` names it.

    Raises:
        UsageError: a reference is no adapter of that modality, or the adapters differ in what they must share.
    """
    models = {m: StoredModel.open(registry, ref) for m, ref in sorted(adapters.items())}
    for modality, model in models.items():
        if list(model.modalities) != [modality]:
            raise UsageError(
                f"{adapters[modality]!r} is aligned for {', '.join(model.modalities)}, not {modality}.",
                f"Give --adapter {modality}=REF with a {modality} adapter.",
            )
    return models, _check_same(models, allow)


def _record(model: StoredModel) -> Mapping[str, Any]:
    return next(iter(model.modalities.values()))


def _check_same(models: Mapping[str, StoredModel], allow: frozenset[str]) -> dict[str, Any]:
    unknown = allow - {*_SAME, "plugin"}
    if unknown:
        raise UsageError(
            f"--allow-mismatch knows no {', '.join(sorted(unknown))}.",
            f"It knows: {', '.join([*_SAME, 'plugin'])}.",
        )
    overridden: dict[str, Any] = {}
    for flag, (places, what) in _SAME.items():
        for section, key in places:
            values = {m: model.data[section][key] for m, model in models.items()}
            if len({repr(v) for v in values.values()}) == 1:
                continue
            if flag not in allow:
                said = ", ".join(f"{m}: {str(v)[:60]}" for m, v in values.items())
                raise UsageError(
                    f"The adapters' {what} differ in {section}.{key} ({said}).",
                    f"Align them alike, or say --allow-mismatch {flag} if that is meant.",
                )
            overridden.setdefault(flag, {})[f"{section}.{key}"] = values
    if differing := _differing_plugins(models):
        if "plugin" not in allow:
            where, values = next(iter(differing.items()))
            said = ", ".join(f"{what}: {value}" for what, value in values.items())
            raise UsageError(
                f"The adapters' plugins differ in {where} ({said}).",
                "Install the version that the adapter was made with, align it again, or say "
                "--allow-mismatch plugin if that is meant.",
            )
        overridden["plugin"] = differing
    return overridden


def _differing_plugins(models: Mapping[str, StoredModel]) -> dict[str, dict[str, str]]:
    """Where majors differ: of a modality's plugin, as recorded and as installed; of the API, between the parts."""
    recorded = {m: _record(model)["plugin"] for m, model in models.items()}
    installed = {entry.name: entry.version for entry in entry_points(MODALITY.group) if not entry.problem}
    differing = {}
    for m, plugin in recorded.items():
        pair = {"recorded": str(plugin["version"]), "installed": installed.get(m, str(plugin["version"]))}
        if len({_major(version) for version in pair.values()}) > 1:
            differing[f"{m}.version"] = pair
    versions = {m: str(plugin["api"]) for m, plugin in recorded.items()}
    if len({_major(version) for version in versions.values()}) > 1:
        differing["plugin.api"] = versions
    return differing


def _major(version: str) -> str:
    return version.partition(".")[0]


def choose_adapters(
    registry: Registry, modalities: Sequence[str], given: Mapping[str, str]
) -> dict[str, str]:
    """The adapter of each modality: as given, else the only one that is registered.

    Raises:
        UsageError: there is none, or more than one to choose from.
    """
    chosen = {}
    for modality in modalities:
        if modality in given:
            chosen[modality] = given[modality]
            continue
        found = sorted(
            {
                entry.name
                for entry in registry.list().entries
                if entry.kind == "adapter" and registry.manifest(entry.id).data["modality"] == modality
            }
        )
        if len(found) != 1:
            what = (
                f"several adapters of {modality}: {', '.join(found)}"
                if found
                else f"no adapter of {modality}"
            )
            step = (
                f"Say which: --adapter {modality}=REF"
                if found
                else f"Make one: earec align --modality {modality}"
            )
            raise UsageError(f"The registry holds {what}.", step)
        chosen[modality] = found[0]
    return chosen | {m: ref for m, ref in given.items() if m not in chosen}
