"""`compare`: two models on one catalog."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from earec_core import files
from earec_core.aligned.readouts import get_readout
from earec_core.aligned.stored import StoredModel, check_base, open_model
from earec_core.artifacts import ItemVectors, VectorsManifest
from earec_core.artifacts.base import read
from earec_core.catalog import Catalog, Split
from earec_core.compare.manifests import differences
from earec_core.compare.neighbours import neighbours
from earec_core.compare.recommenders import recommended
from earec_core.compare.rows import Row
from earec_core.compare.texts import Said, cards, scores
from earec_core.config import RunConfig
from earec_core.encode import encode
from earec_core.errors import UsageError
from earec_core.explain import Explanation, explain
from earec_core.llm.backbone import Backbone
from earec_core.workspace import Workspace
from earec_registry import Registry


@dataclass(frozen=True)
class Compared:
    """One of the two models, and what it gave.

    Attributes:
        reference: as it was asked for.
        id: its id in the registry.
        vectors: its item vectors' name or id.
    """

    reference: str
    id: str
    vectors: str


@dataclass(frozen=True)
class Comparison:
    """Two models on one catalog.

    Attributes:
        a, b: the models.
        rows: differences of the manifests, then what was measured.
        said: what both say of a few items.
    """

    a: Compared
    b: Compared
    rows: tuple[Row, ...]
    said: tuple[Said, ...]

    def as_json(self) -> dict[str, Any]:
        """The whole as plain data."""
        rows, said = [row.as_json() for row in self.rows], [asdict(one) for one in self.said]
        return {"a": asdict(self.a), "b": asdict(self.b), "rows": rows, "said": said}

    def metrics(self) -> dict[str, float]:
        """What observers are told: each difference and overlap by what it is of."""
        found = {
            f"{row.part} {row.what}": row.overlap if row.difference is None else row.difference
            for row in self.rows
        }
        return {name: value for name, value in found.items() if value is not None}


def compare(
    workspace: Workspace,
    catalog: Catalog,
    a: str,
    b: str,
    config: RunConfig,
    *,
    split: Split = "test",
    max_items: int | None = None,
    recommenders: tuple[str, str] | None = None,
    other_backbone: str | None = None,
) -> Comparison:
    """Compare two models: manifests, item vectors, texts of held-back items, and recommenders where they are given.

    Vectors that are registered are taken, others encoded and registered; texts that `explain` generated before, in
    the same way, are not generated again. A killed comparison goes on where these stages do.

    Args:
        a, b: adapters or composites.
        split, max_items: of which items texts are generated; see `earec_core.explain.explain`.
        recommenders: references to one trained for A and one for B.
        other_backbone: B's LLM, where it is another than that of the configuration.

    Raises:
        UsageError: both are the same model; or see `explain`, `encode` and `earec_core.recommend.compare.compare`.
        PluginError, IntegrityError: see `earec_core.aligned.stored.stored_model`.
    """
    registry = workspace.registry
    lists = recommended(registry, catalog, *recommenders) if recommenders else []
    models = _opened(workspace, a, b, config, other_backbone)
    key = {
        "models": [model.stored.id for model in models],
        "recommenders": [registry.resolve(one) for one in recommenders or ()],
        "data": catalog.digest,
        "split": split,
        "items": max_items,
        **config.model_dump(mode="json", include={"run", "explain", "encode", "recommender"}),
    }
    run = workspace.run("compare", key).start()
    texts = [model.explain(catalog, split, max_items) for model in models]
    names = [model.vectors(catalog, said) for model, said in zip(models, texts, strict=True)]
    first, second = (ItemVectors.open(registry, name, catalog) for name in names)
    rows = [
        *differences(registry, models[0].stored, models[1].stored),
        *neighbours(first, second, config.recommender, config.run.seed),
        *scores(texts[0], texts[1]),
        *lists,
    ]
    comparison = Comparison(
        Compared(a, models[0].stored.id, names[0]),
        Compared(b, models[1].stored.id, names[1]),
        tuple(rows),
        tuple(cards(texts[0], texts[1], catalog)),
    )
    run.finish(comparison.as_json(), metrics=comparison.metrics())
    return comparison


@dataclass(frozen=True)
class _Model:
    """One of the two at work; `workspace` says of whom it reports."""

    workspace: Workspace
    stored: StoredModel
    config: RunConfig
    backbone: Backbone

    def explain(self, catalog: Catalog, split: Split, max_items: int | None) -> Explanation:
        """What it says of the items of a split."""
        return explain(
            self.workspace,
            catalog,
            self.stored.id,
            self.config,
            split=split,
            max_items=max_items,
            variants=("aligned",),
            backbone=self.backbone,
        )

    def vectors(self, catalog: Catalog, explained: Explanation) -> str:
        """A reference to its vectors of the catalog: those that are registered, else encoded now."""
        wanted = _Way(
            get_readout(self.config.encode.readout).method,
            self.config.encode.layer,
            files.digest({name: one.resolved_config() for name, one in explained.inputs.items()}),
            files.digest({name: one.code() for name, one in explained.inputs.items()}),
        )
        short = self.stored.id[:12]
        registered = _registered(self.workspace.registry, catalog, self.stored.id, wanted)
        if registered is not None:
            self.workspace.note(f"The vectors {registered} are of {short} and are not encoded again.")
            return registered
        name = f"vectors/{catalog.name}-{short}"
        encode(self.workspace, catalog, self.stored.id, self.config, name=name, backbone=self.backbone)
        return name


def _opened(
    workspace: Workspace, a: str, b: str, config: RunConfig, other_backbone: str | None
) -> tuple[_Model, _Model]:
    """The models, each checked against its LLM, which is loaded once where both have the same."""
    first, second = (open_model(workspace.registry, reference) for reference in (a, b))
    if first.id == second.id:
        raise UsageError(f"{a!r} and {b!r} are the same model.", "Name two that differ.")
    backbone = other = Backbone.load(config.backbone, workspace)
    check_base(first, backbone.info)
    config_b = config
    if other_backbone is not None:
        section = config.backbone.model_copy(update={"model": other_backbone})
        config_b = config.model_copy(update={"backbone": section})
        other = Backbone.load(section, workspace)
    check_base(second, other.info)
    return (
        _Model(workspace.about("A"), first, config, backbone),
        _Model(workspace.about("B"), second, config_b, other),
    )


@dataclass(frozen=True)
class _Way:
    """How vectors were made: method, layer, digests of the modalities' settings and of their plugins' code."""

    method: str
    layer: int | None
    modalities: str
    code: str


def _registered(registry: Registry, catalog: Catalog, model: str, wanted: _Way) -> str | None:
    """The name of vectors that a model made of a catalog in a certain way."""
    for entry in registry.list().entries:
        if entry.kind != VectorsManifest.model_fields["kind"].default:
            continue
        stored = registry.manifest(entry.id)
        if [parent.id for parent in stored.parents][:1] != [model]:
            continue
        manifest = read(stored, VectorsManifest)
        dumped = manifest.model_dump(mode="json", include={"modalities", "code"})
        digests = [files.digest(dumped[part]) for part in ("modalities", "code")]
        if manifest.data.digest == catalog.digest and wanted == _Way(
            manifest.method, manifest.layer, *digests
        ):
            return f"{entry.name}:{entry.tag}"
    return None
