"""In what the manifests of two models differ."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Set
from typing import Any

from earec_core.aligned.stored import StoredModel
from earec_core.artifacts import AdapterManifest, CompositeManifest
from earec_core.artifacts.base import read
from earec_core.compare.rows import Row
from earec_registry import Registry

_LEFT_OUT = {"schema_version", "parents", "modalities", "report", "search", "modality"}
"""What follows from the rest, or is a report of its own."""
_OF_AN_ADAPTER = ("training", "metrics", "lora")
_DIGEST = re.compile(r"[0-9a-f]{64}")


def differences(registry: Registry, a: StoredModel, b: StoredModel) -> list[Row]:
    """A row for each entry that the two do not have alike; one of an adapter has its modality before it."""
    both = a.manifest.modalities.keys() & b.manifest.modalities.keys()
    mine, theirs = (dict(_entries(registry, model, both)) for model in (a, b))
    return [
        Row("manifest", name, a=mine.get(name), b=theirs.get(name))
        for name in dict.fromkeys([*mine, *theirs])
        if mine.get(name) != theirs.get(name)
    ]


def _entries(registry: Registry, model: StoredModel, both: Set[str]) -> Iterator[tuple[str, str]]:
    """Every entry of a model's manifest by its dotted name, and how its adapters were trained.

    Args:
        both: the modalities that both models have; of others, the adapter's id says enough.
    """
    manifest = model.manifest
    adapters: dict[str, tuple[str, AdapterManifest]]
    if isinstance(manifest, CompositeManifest):
        adapters = {
            m: (id_, read(registry.manifest(id_), AdapterManifest)) for m, id_ in manifest.adapters.items()
        }
    else:
        adapters = {manifest.modality: (model.id, manifest)}
    own = manifest.model_dump(mode="json", exclude={*_LEFT_OUT, *_OF_AN_ADAPTER})
    yield from _flat("", own)
    for name, (id_, adapter) in adapters.items():
        yield f"{name}.adapter", id_[:12]
        if name not in both:
            continue
        yield from _flat(f"{name}.", adapter.model_dump(mode="json", include=set(_OF_AN_ADAPTER)))
        yield from _flat(f"{name}.plugin.", adapter.record.plugin.model_dump())
        yield from _flat(f"{name}.config.", adapter.record.config)


def _flat(before: str, entries: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in entries.items():
        if isinstance(value, Mapping):
            yield from _flat(f"{before}{key}.", value)
        elif value is not None:
            yield f"{before}{key}", _shown(value)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, str):
        return value[:12] if _DIGEST.fullmatch(value) else value
    return json.dumps(value, ensure_ascii=False)
