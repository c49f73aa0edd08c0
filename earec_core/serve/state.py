"""What answers are made from: a model with what belongs to it, and a snapshot of its catalog's items.

Nothing here changes once it is made: a request works with one snapshot to its end; an added item makes a new one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from jaxtyping import Float

from earec_core.aligned.stored import StoredModel, open_model
from earec_core.artifacts import ItemVectors
from earec_core.catalog import Catalog, GrownCatalog
from earec_core.config import RunConfig
from earec_core.encode.store import VectorStore
from earec_core.encode.windows import Job, encode_window
from earec_core.errors import UsageError
from earec_core.llm.backbone import Backbone
from earec_core.recommend.retriever import Retriever
from earec_core.recommend.similar import Neighbours
from earec_core.recommend.snapshots import over_vectors, with_new_items
from earec_core.recommend.transfer import Source
from earec_core.serve.beside import BesideVectors, open_beside
from earec_core.serve.encoding import are_of, encoding
from earec_core.workspace import Workspace
from earec_registry import RegistryError


@dataclass(frozen=True)
class References:
    """What is to be served, by name, tag or id.

    Attributes:
        model: an adapter or composite.
        recommender: over vectors of that model, if there is one.
        vectors: of that model; None: those that the recommender was trained on if they are of this catalog, else
            `vectors/CATALOG`.
        beside: further vectors of the catalog's items, of any model.
    """

    model: str
    recommender: str | None = None
    vectors: str | None = None
    beside: tuple[str, ...] = ()


@dataclass(frozen=True)
class Found:
    """What the references mean now, everything checked that takes no time.

    Attributes:
        model: the stored model.
        vectors: the items' vectors, made by it.
        recommender: the stored recommender, if there is one.
        beside: further vectors, by what they are asked for by.
    """

    model: StoredModel
    vectors: ItemVectors
    recommender: Source | None
    beside: Mapping[str, ItemVectors]

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of all of them."""
        beside = [vectors.id for vectors in self.beside.values()]
        return (self.model.id, self.vectors.id, *([self.recommender.id] if self.recommender else []), *beside)


def find(workspace: Workspace, catalog: Catalog, references: References) -> Found:
    """Open what is to be served.

    Raises:
        UsageError: something is of another kind, model or catalog, or there is no such.
        IntegrityError, RegistryError: something is damaged.
    """
    registry = workspace.registry
    model = open_model(registry, references.model)
    recommender = Source.open(registry, references.recommender) if references.recommender else None
    reference = references.vectors or _vectors_of(catalog, recommender)
    vectors = ItemVectors.open(registry, reference, catalog)
    if not are_of(vectors.manifest, model):
        raise UsageError(
            f"The vectors {reference!r} are not of the model {references.model!r} as it is now.",
            f"Make them: earec encode {references.model} --data {catalog.path} --name {reference}",
        )
    if recommender is not None:
        recommender.check([reference], [vectors])
    return Found(model, vectors, recommender, open_beside(workspace, catalog, references.beside, vectors))


def meant(workspace: Workspace, catalog: Catalog, references: References) -> tuple[str | None, ...]:
    """The ids that the references name now, None for one that names nothing; no more is read than the tags."""
    vectors = references.vectors or f"vectors/{catalog.name}"
    named = (references.model, references.recommender, vectors, *references.beside)
    found: list[str | None] = []
    for reference in named:
        try:
            found.append(workspace.registry.resolve(reference) if reference else None)
        except RegistryError:
            found.append(None)
    return tuple(found)


def _vectors_of(catalog: Catalog, recommender: Source | None) -> str:
    """The vectors that a recommender of this catalog was trained on, else those named after it."""
    if recommender is not None and len(recommender.vectors) == 1:
        identity, manifest = recommender.vectors[0]
        if manifest.data.digest == catalog.digest:
            return identity
    return f"vectors/{catalog.name}"


@dataclass(frozen=True)
class Snapshot:
    """Items as they are known at a moment, and everything to answer from.

    Attributes:
        found: the model and what belongs to it.
        job: encodes items of `catalog`.
        store: of the vectors that the job encodes.
        catalog: with the items added so far.
        rows: of all items, by their ids.
        vectors: of the added items.
        neighbours: of all items.
        retriever: of all items, if there is a recommender.
        beside: what items are compared by, too, by what it is asked for by.
    """

    found: Found
    job: Job
    store: VectorStore
    catalog: GrownCatalog
    rows: Mapping[str, int]
    vectors: Float[np.ndarray, "m d"]
    neighbours: Neighbours
    retriever: Retriever | None
    beside: Mapping[str, BesideVectors]

    @classmethod
    def first(
        cls, workspace: Workspace, catalog: Catalog, found: Found, config: RunConfig, backbone: Backbone
    ) -> Snapshot:
        """That of a catalog's own items.

        Raises:
            UsageError, IntegrityError: see `over_vectors`, and `Neighbours.of`.
            PluginError: see `encoding`.
        """
        model, vectors = found.model, found.vectors
        job = encoding(workspace, catalog, model, vectors.manifest, config, backbone)
        beside = {}
        for name, one in found.beside.items():
            alike = are_of(one.manifest, model)
            further = encoding(workspace, catalog, model, one.manifest, config, backbone) if alike else None
            beside[name] = BesideVectors.of(name, one, further, config)
        retriever = None
        if (source := found.recommender) is not None:
            named = {vectors.id[:12]: vectors}
            retriever = over_vectors(
                workspace.registry, source.id, catalog, named, cache=workspace.indexes, note=workspace.note
            )
        return cls(
            found,
            job,
            job.store(check=False),
            GrownCatalog.of(catalog, []),
            {id_: row for row, id_ in enumerate(catalog.items["item_id"])},
            vectors.vectors[:0],
            Neighbours.of(vectors.vectors, config.recommender, cache=workspace.indexes),
            retriever,
            beside,
        )

    @property
    def added(self) -> int:
        """How many items were added."""
        return len(self.catalog) - len(self.catalog.first)

    def with_items(
        self,
        added: Sequence[pl.DataFrame],
        *,
        refuse: bool = False,
        check: Callable[[], None] = lambda: None,
    ) -> Snapshot:
        """The snapshot with further items, which are encoded; their model must be on the LLM.

        Args:
            added: a row of the catalog's item table each, see `earec_core.catalog.item_row`.
            refuse: items of which the model can read nothing, or whose input cannot be used; else their vector is
                the bare prompt's, as `encode` has it.
            check: called between the steps; what it raises ends the work.

        Raises:
            UsageError: an item is refused, or does not fit.
        """
        if not added:
            return self
        before = len(self.catalog)
        catalog = GrownCatalog.of(self.catalog.first, [*self._added_rows(), *added])
        job = replace(self.job, catalog=catalog)
        rows = range(before, len(catalog))
        if refuse:
            _refuse_unread(job, rows)
        check()
        new = self.store.read(encode_window(job, self.store, rows).keys)
        check()
        beside = {}
        for name, one in self.beside.items():
            beside[name] = one.with_items(catalog, rows)
            check()
        vectors = np.concatenate([self.vectors, new])
        ids = catalog.items["item_id"][before:].to_list()
        return replace(
            self,
            job=job,
            catalog=catalog,
            rows={**self.rows, **dict(zip(ids, rows, strict=True))},
            vectors=vectors,
            neighbours=self.neighbours.with_items(before, new),
            retriever=self._retriever_with(catalog, ids, new, vectors),
            beside=beside,
        )

    def _added_rows(self) -> list[pl.DataFrame]:
        rows = self.catalog.items[len(self.catalog.first) :]
        return [rows] if len(rows) else []

    def _retriever_with(
        self, catalog: GrownCatalog, ids: Sequence[str], new: np.ndarray, added: np.ndarray
    ) -> Retriever | None:
        """The retriever with further items, whose vectors are `new`; `added` are those of all that were added."""
        if self.retriever is None or (source := self.found.recommender) is None:
            return None
        stored = self.found.vectors
        grown = with_new_items(self.retriever, source, ids, replace(stored, vectors=new))
        if grown is None:
            whole = replace(stored, vectors=np.concatenate([stored.vectors, added]))
            registry = self.job.workspace.registry
            grown = over_vectors(registry, source.id, catalog, {stored.id[:12]: whole})
        return grown


def _refuse_unread(job: Job, rows: range) -> None:
    """Raises UsageError for an item of which an input cannot be used, or of which there is nothing to read."""
    model = job.over(rows)
    for name, inputs in model.inputs.items():
        for item, reason in inputs.damaged.items():
            raise UsageError(
                f"The {name} of item {item!r} cannot be used: {reason}", "Mend the field, or leave it out."
            )
    for row in rows:
        if not model.prompts.has(row):
            raise UsageError(
                f"The model can read nothing of item {job.catalog.item(row).id!r}: "
                f"it has no {_listed(model.inputs)}.",
                "Give a field that one of them reads.",
            )


def _listed(names: Mapping[str, object]) -> str:
    return ", ".join(names) if len(names) < 2 else " and no ".join(names)
