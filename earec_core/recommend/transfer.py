"""Transfer: a recommender of a target catalog starts from a stored one of a source catalog (`--from`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from earec_core.artifacts import ItemVectors, Manifest, RecommenderManifest, VectorsManifest, open_as
from earec_core.config import RecommenderConfig
from earec_core.errors import IntegrityError, UsageError, one_line
from earec_core.recommend.tables import PLUS_IDS
from earec_core.recommend.trained import TRANSFER
from earec_registry import Registry

_KEPT = (
    "layers",
    "heads",
    "dim",
    "inner",
    "max_len",
    "similarity",
    "temperature",
    "scaling",
    "soften",
    "table",
    "interests",
    "interest_neighbours",
    "fusion",
)


@dataclass(frozen=True)
class Source:
    """A stored recommender that one of another catalog starts from.

    Attributes:
        reference: what it was asked for by.
        id: its id in the registry.
        model: its name in the table of models.
        config: its settings.
        vectors: the ids of its item vectors, and their manifests; none for one without.
        tensors: `Recommender.to_transfer` of it.
    """

    reference: str
    id: str
    model: str
    config: RecommenderConfig
    vectors: tuple[tuple[str, VectorsManifest], ...]
    tensors: Mapping[str, Tensor]

    @classmethod
    def open(cls, registry: Registry, reference: str) -> Source:
        """The recommender that a reference names.

        Raises:
            UsageError: it is none, or has nothing that another catalog could start from.
            IntegrityError: it cannot be read.
        """
        stored = open_as(registry, reference, RecommenderManifest)
        file, manifest = stored.folder / TRANSFER, stored.manifest
        if not file.exists():
            raise UsageError(
                f"The recommender {reference!r} is stored without anything that another catalog could start from.",
                "Train one on item vectors: earec recommend train --vectors REF.",
            )
        try:
            tensors = load_file(file)
        except (OSError, SafetensorError) as error:
            raise IntegrityError(
                f"The recommender {reference!r} cannot be read: {one_line(error)}.", "Train it again."
            ) from error
        kinds: tuple[type[Manifest], ...] = (VectorsManifest, RecommenderManifest)
        parents = [open_as(registry, parent, *kinds) for parent in manifest.parents]
        read = tuple((p.id, p.manifest) for p in parents if isinstance(p.manifest, VectorsManifest))
        return cls(reference, stored.id, manifest.model, manifest.training.config, read, tensors)

    def check(self, references: Sequence[str], vectors: Sequence[ItemVectors]) -> None:
        """Refuse vectors that are not in the space which the source's map reads.

        Args:
            references: what the vectors were asked for by.

        Raises:
            UsageError: they come from another model, or were prompted or read off otherwise, or are not as many.
        """
        if not vectors:
            return  # a model that needs some says so
        if len(vectors) != len(self.vectors):
            raise UsageError(
                f"The recommender {self.reference!r} reads {len(self.vectors)} item vectors, not {len(vectors)}.",
                "Give as many --vectors, in the same order.",
            )
        for reference, given, (identity, manifest) in zip(references, vectors, self.vectors, strict=True):
            others = given.manifest.other_space(manifest)
            if others:
                raise UsageError(
                    f"The vectors {reference!r} are not in the space of those that {self.reference!r} was trained "
                    f"on: their {', '.join(others)} differ.",
                    f"Encode with the model and the settings of {identity[:12]}.",
                )

    def settings(self, config: RecommenderConfig) -> RecommenderConfig:
        """Settings of the target's training: what the model is made of is as in the source, but for `+ids`.

        Raises:
            UsageError: one of these is set, and is another.
        """
        kept = {name: getattr(self.config, name) for name in _KEPT}
        for name in config.model_fields_set & set(_KEPT):
            value = getattr(config, name)
            if name == "table" and value.removesuffix(PLUS_IDS) == self.config.table.removesuffix(PLUS_IDS):
                kept[name] = value
            elif value != kept[name]:
                raise UsageError(
                    f"The recommender {self.reference!r} has recommender.{name} = {kept[name]}, not {value}.",
                    "Leave the setting out: it comes with --from.",
                )
        return config.model_copy(update=kept)
