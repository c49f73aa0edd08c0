"""Item vectors beside those of the served model: items are compared by them, too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from earec_core.artifacts import ItemVectors
from earec_core.catalog import Catalog
from earec_core.config import RunConfig
from earec_core.encode.store import VectorStore
from earec_core.encode.windows import Job, encode_window
from earec_core.errors import UsageError
from earec_core.recommend.similar import Neighbours
from earec_core.serve.models import VectorsLine
from earec_core.workspace import Workspace


@dataclass(frozen=True)
class BesideVectors:
    """Item vectors of the same dataset, and the items as these compare them.

    Attributes:
        name: what they are asked for by.
        stored: of the dataset's items.
        neighbours: of all items that have such a vector.
        job: encodes further items alike, where the served model made the vectors, of some of its modalities.
        store: of the vectors that the job encodes.
    """

    name: str
    stored: ItemVectors
    neighbours: Neighbours
    job: Job | None
    store: VectorStore | None

    @classmethod
    def of(cls, name: str, stored: ItemVectors, job: Job | None, config: RunConfig) -> BesideVectors:
        """Those of a catalog's own items.

        Raises:
            UsageError: see `Neighbours.of`.
        """
        store = job.store(check=False) if job else None
        return cls(name, stored, Neighbours.of(stored.vectors, config.recommender), job, store)

    @property
    def line(self) -> VectorsLine:
        """What they are, as answers have it."""
        return VectorsLine(
            name=self.name,
            id=self.stored.id,
            modalities=list(self.stored.manifest.modalities),
            takes_new=self.job is not None,
        )

    def with_items(self, catalog: Catalog, rows: range) -> BesideVectors:
        """The same with further items, of which there is something to read; their model must be on the LLM.

        Args:
            catalog: with the further items.
            rows: theirs.
        """
        if self.job is None or self.store is None:
            return self
        job = replace(self.job, catalog=catalog)
        vectors = self.store.read(encode_window(job, self.store, rows).keys)
        prompts = job.over(rows).prompts
        having = np.array([prompts.has(row) for row in rows])
        # Zeros take no part, see `Neighbours`; the bare prompt says nothing of an item.
        vectors = np.where(having[:, None], vectors, np.float32(0))
        return replace(self, job=job, neighbours=self.neighbours.with_items(rows.start, vectors))

    def nearest(self, catalog: Catalog, row: int, k: int) -> list[tuple[int, float]]:
        """The rows of the k items of the largest cosine to an item, and these, best first.

        Args:
            catalog: of all items.

        Raises:
            UsageError: the item has no such vector, or one that says nothing of it.
        """
        id_ = catalog.items["item_id"][row]
        if self.job is not None and not self.job.over([row]).prompts.has(row):
            read = " and no ".join(self.job.model.inputs)
            raise UsageError(
                f"The item {id_!r} has no {read}, which {self.name!r} is made of.",
                "Compare it by other vectors.",
            )
        if self.job is None and row >= self.stored.manifest.shapes.items:
            raise UsageError(
                f"The item {id_!r} was added, and {self.name!r} is not of the model that is served.",
                "Compare it by other vectors, or import it with the source and encode again.",
            )
        return self.neighbours.nearest(row, k)


def open_beside(
    workspace: Workspace, catalog: Catalog, references: Sequence[str], own: ItemVectors
) -> dict[str, ItemVectors]:
    """Vectors to serve beside the model's own, by what they are asked for by.

    Raises:
        UsageError: they are of another kind or dataset, or are there already.
        IntegrityError, RegistryError: they are not there, or damaged.
    """
    found: dict[str, ItemVectors] = {}
    for reference in references:
        vectors = ItemVectors.open(workspace.registry, reference, catalog)
        if vectors.id in {own.id, *(other.id for other in found.values())}:
            raise UsageError(
                f"The vectors {reference!r} are served already.",
                "Give each --beside once, and not the model's own.",
            )
        found[reference] = vectors
    return found
