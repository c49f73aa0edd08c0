"""What stored adapters must share to be composed: backbone, prompt, seed and their plugins' majors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from earec_core.aligned.stored import open_model
from earec_core.artifacts import AdapterManifest, Stored
from earec_core.errors import UsageError
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
MISMATCHES = (*_SAME, "plugin")
"""What `--allow-mismatch` takes."""


def open_adapters(
    registry: Registry, adapters: Mapping[str, str], allow: frozenset[str] = frozenset()
) -> tuple[dict[str, Stored[AdapterManifest]], dict[str, Any]]:
    """The adapters by modality, sorted, and what they differ in as far as `allow` names it.

    Args:
        adapters: reference of each modality's adapter.
        allow: of `MISMATCHES`.

    Raises:
        UsageError: a reference is no adapter of that modality, or the adapters differ in what they must share.
    """
    if unknown := allow - {*MISMATCHES}:
        raise UsageError(
            f"--allow-mismatch knows no {', '.join(sorted(unknown))}.", f"It knows: {', '.join(MISMATCHES)}."
        )
    models = {m: _adapter(registry, m, reference) for m, reference in sorted(adapters.items())}
    overridden: dict[str, Any] = {}
    for flag, (places, what) in _SAME.items():
        for section, key in places:
            values = {m: getattr(getattr(model.manifest, section), key) for m, model in models.items()}
            if len({repr(value) for value in values.values()}) == 1:
                continue
            if flag not in allow:
                _refuse(what, f"{section}.{key}", values, flag, "Align them alike,")
            overridden.setdefault(flag, {})[f"{section}.{key}"] = values
    for where, values in _differing_plugins(models).items():
        if "plugin" not in allow:
            step = "Install the version that the adapter was made with, align it again,"
            _refuse("plugins", where, values, "plugin", step)
        overridden.setdefault("plugin", {})[where] = values
    return models, overridden


def _adapter(registry: Registry, modality: str, reference: str) -> Stored[AdapterManifest]:
    model = open_model(registry, reference)
    manifest = model.manifest
    if not isinstance(manifest, AdapterManifest) or manifest.modality != modality:
        raise UsageError(
            f"{reference!r} is aligned for {', '.join(manifest.modalities)}, not {modality}.",
            f"Give --adapter {modality}=REF with a {modality} adapter.",
        )
    return Stored(model.id, manifest, model.folder)


def _refuse(what: str, where: str, values: Mapping[str, Any], flag: str, step: str) -> None:
    said = ", ".join(f"{name}: {str(value)[:60]}" for name, value in values.items())
    raise UsageError(
        f"The adapters' {what} differ in {where} ({said}).",
        f"{step} or say --allow-mismatch {flag} if that is meant.",
    )


def _differing_plugins(models: Mapping[str, Stored[AdapterManifest]]) -> dict[str, dict[str, str]]:
    """Where majors differ: of a modality's plugin, as recorded and as installed; of the API, between the parts."""
    installed = {entry.name: entry.version for entry in entry_points(MODALITY.group) if not entry.problem}
    differing, plugins = {}, {m: model.manifest.record.plugin for m, model in models.items()}
    for m, plugin in plugins.items():
        versions = {"recorded": plugin.version, "installed": installed.get(m, plugin.version)}
        differing[f"{m}.version"] = versions
    differing["plugin.api"] = {m: plugin.api for m, plugin in plugins.items()}
    return {
        where: versions
        for where, versions in differing.items()
        if len({version.partition(".")[0] for version in versions.values()}) > 1
    }
