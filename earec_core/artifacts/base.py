"""Manifests, and the one way to store an artifact with its manifest and to open it.

A kind is a frozen model of its manifest, one module a kind. Manifests that earlier versions stored are read through
`upgrade`; what is stored is never rewritten.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from earec_core.errors import IntegrityError, UsageError, one_line
from earec_registry import InvalidError, Registry, check_paths
from earec_registry import Manifest as StoredManifest

Digest = str
"""64 hexadecimal digits."""


def _inside(path: str) -> str:
    try:
        check_paths([path])
    except InvalidError as error:
        raise ValueError(error.problem.rstrip(".")) from None
    return path


def _part(name: str) -> str:
    if "/" in name:
        raise ValueError(f"{name!r} is not one part of a path")
    return _inside(name)


FilePath = Annotated[str, AfterValidator(_inside)]
"""Path of a file inside a model: relative, without `..`."""
ModalityName = Annotated[str, AfterValidator(_part)]
"""A modality's name, which is a part of paths."""


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


class ChatRecord(Record):
    """The text before and after the user's message, as the chat template gave it on the day of the alignment."""

    before: str
    after: str


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
    projector: FilePath


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
    doubt = f"Was it made by a later earec? {kind.remedy}"
    data = {key: value for key, value in stored.data.items() if key != "files"}
    data["parents"] = [parent.id for parent in stored.parents]
    try:
        if "schema" not in data:
            data = {**kind.upgrade(data), "schema": 1}
        manifest = kind.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise IntegrityError(
            f"The manifest {stored.id[:12]} is not that of {kind.title}: {place}: {first['msg']}.", doubt
        ) from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:  # from `upgrade`
        raise IntegrityError(
            f"The manifest {stored.id[:12]} is not that of {kind.title}: {one_line(error)}.", doubt
        ) from None
    _check_files(manifest, stored.files, f"The manifest {stored.id[:12]}")
    return manifest


def _check_files(manifest: Manifest, files: Container[str], subject: str) -> None:
    """Refuse a manifest that names a file which is none of the model's, whose digest nothing would check."""
    for modality in getattr(manifest, "modalities", {}).values():
        if isinstance(modality, ModalityRecord) and modality.projector not in files:
            raise IntegrityError(
                f"{subject} names the projector {modality.projector!r}, which is none of its files.",
                manifest.remedy,
            )


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
    """Store a manifest with its files and point a name to it; gives the id.

    Raises:
        IntegrityError: it names a file that is none of `files`.
        RegistryError: see `Registry.add`.
    """
    _check_files(manifest, files, f"The manifest of {name}")
    return registry.add(manifest.model_dump(mode="json", by_alias=True), files, name=name, why=why)
