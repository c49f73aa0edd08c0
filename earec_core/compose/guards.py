"""What stored adapters must share to be composed: backbone, prompt, seed and their plugins' majors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from operator import attrgetter
from typing import Any

from earec_core.aligned.stored import open_model
from earec_core.artifacts import AdapterManifest, Stored
from earec_core.errors import UsageError
from earec_core.plugins import MODALITY, entry_points
from earec_registry import Registry

_TEMPLATE = ("chat", "system", "item", "relations", "request")
_SHARED = {
    "base": ("backbone weights", ("base.weights",)),
    "tokenizer": ("tokenizers", ("base.tokenizer",)),
    "anchor": ("anchors", ("prompt.anchor",)),
    "template": ("templates", (*(f"prompt.{key}" for key in _TEMPLATE), "chat")),
    "seed": ("LoRA-A seeds", ("lora.seed",)),
}
MISMATCHES = (*_SHARED, "plugin")
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
    for flag, noun, field, values in _differences(models):
        if flag not in allow:
            listed = ", ".join(f"{name}: {str(value)[:60]}" for name, value in values.items())
            remedy = "Install the version that the adapter was made with, align it again,"
            raise UsageError(
                f"The adapters' {noun} differ in {field} ({listed}).",
                f"{remedy if flag == 'plugin' else 'Align them alike,'} or say --allow-mismatch {flag} if that "
                "is meant.",
            )
        overridden.setdefault(flag, {})[field] = values
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


def _differences(
    models: Mapping[str, Stored[AdapterManifest]],
) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """Yields flag, noun, field and the differing values; of plugins and their API only majors are compared."""
    for flag, (noun, fields) in _SHARED.items():
        for field in fields:
            values = {m: _value(model, field) for m, model in models.items()}
            # Adapters stored before there was a record of something are taken at their word.
            if len({repr(value) for value in values.values() if value is not None}) > 1:
                yield flag, noun, field, values
    installed = {entry.name: entry.version for entry in entry_points(MODALITY.group) if not entry.problem}
    plugins = {m: model.manifest.record.plugin for m, model in models.items()}
    versions = {
        f"{m}.version": {"recorded": plugin.version, "installed": installed.get(m, plugin.version)}
        for m, plugin in plugins.items()
    }
    versions["plugin.api"] = {m: plugin.api for m, plugin in plugins.items()}
    for field, values in versions.items():
        if len({version.partition(".")[0] for version in values.values()}) > 1:
            yield "plugin", "plugins", field, values


def _value(model: Stored[AdapterManifest], field: str) -> Any:
    """What an adapter's manifest has in a field; of an imported one, whose A nobody knows the start of, its own."""
    if field == "lora.seed" and model.manifest.training is None:
        return f"not known, since {model.id[:12]} was imported"
    return attrgetter(field)(model.manifest)
