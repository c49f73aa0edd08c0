"""Manifests, and the one way to store an artifact with its manifest and to open it.

A kind is a frozen model of its manifest, one module a kind. Manifests that earlier versions stored are read through
`upgrade`; what is stored is never rewritten.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from earec_core.errors import IntegrityError, UsageError
from earec_registry import Manifest as StoredManifest
from earec_registry import Registry

Digest = str
"""64 hexadecimal digits."""


class Record(BaseModel):
    """A part of a manifest: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class DataRecord(Record):
    """A catalog by its name and the digest of its rows."""

    name: str
    digest: Digest


class BaseRecord(Record):
    """A base model: the name it was asked for by, and the digests of its files."""

    id: str
    weights: Digest
    config: Digest
    tokenizer: Digest


class PluginRecord(Record):
    """The plugin that made something: distribution, version, and the contract's version that it was written for."""

    distribution: str
    version: str
    api: str


class Shapes(Record):
    """Widths of a modality's encoder output and of the LLM."""

    d_enc: int
    d_llm: int


class ModalityRecord(Record):
    """A modality inside a model.

    Attributes:
        plugin: what made it.
        config: the plugin's configuration with every name made exact.
        shapes: what the projector maps from and to.
        projector: path of the projector's file inside the model.
    """

    plugin: PluginRecord
    config: Mapping[str, Any]
    shapes: Shapes
    projector: str


class Manifest(Record):
    """The part that every kind's manifest has; `files` belongs to the registry."""

    schema_version: Literal[1] = Field(1, alias="schema")
    kind: str
    parents: tuple[Digest, ...] = ()

    title: ClassVar[str]
    """What the kind is, with its article, for messages."""
    remedy: ClassVar[str]
    """How to make one, a sentence."""

    @classmethod
    def upgrade(cls, data: dict[str, Any]) -> dict[str, Any]:
        """A manifest stored before there was a schema, as schema 1."""
        return data


M = TypeVar("M", bound=Manifest)


@dataclass(frozen=True)
class Stored(Generic[M]):
    """Something in the registry, opened.

    Attributes:
        id: its digest.
        manifest: of its kind.
        folder: its files as a plain directory, their digests checked.
    """

    id: Digest
    manifest: M
    folder: Path


def read(stored: StoredManifest, kind: type[M]) -> M:
    """The typed manifest of a stored one.

    Raises:
        IntegrityError: it lacks what its kind must have, or names a file that it does not have.
    """
    data = {key: value for key, value in stored.data.items() if key != "files"}
    data["parents"] = [parent.id for parent in stored.parents]
    if "schema" not in data:
        data = {**kind.upgrade(data), "schema": 1}
    try:
        manifest = kind.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise IntegrityError(
            f"The manifest {stored.id[:12]} is not that of {kind.title}: {place}: {first['msg']}.",
            f"Was it made by a later earec? {kind.remedy}",
        ) from None
    for modality in getattr(manifest, "modalities", {}).values():
        if isinstance(modality, ModalityRecord) and modality.projector not in stored.files:
            raise IntegrityError(
                f"The manifest {stored.id[:12]} names the projector {modality.projector!r}, which is none of "
                "its files.",
                kind.remedy,
            )
    return manifest


def open_as(registry: Registry, reference: str, *kinds: type[M]) -> Stored[M]:
    """The artifact that a name, `name:tag` or id refers to, as one of the kinds, its files verified.

    Raises:
        UsageError: it is of another kind.
        IntegrityError: its manifest is not what its kind says.
        RegistryError: it is not there, or damaged.
    """
    stored = registry.manifest(reference)
    for kind in kinds:
        if _kind(stored) == kind.model_fields["kind"].default:
            return Stored(stored.id, read(stored, kind), registry.materialize(stored.id))
    titles = " or ".join(kind.title for kind in kinds)
    raise UsageError(f"{reference!r} is of kind {_kind(stored)}, not {titles}.", kinds[0].remedy)


def _kind(stored: StoredManifest) -> str:
    """The kind of a stored manifest; `features` of earlier versions was two."""
    if stored.kind != "features":
        return stored.kind
    return "vectors" if "vectors.safetensors" in stored.files else "embeddings"


def save(registry: Registry, manifest: Manifest, files: Mapping[str, Path], *, name: str, why: str) -> Digest:
    """Store a manifest with its files and point a name to it; gives the id."""
    return registry.add(manifest.model_dump(mode="json", by_alias=True), files, name=name, why=why)
