"""From adapters to a table: composites, item vectors, recommenders over seeds, comparisons.

Everything made is registered under `reproduce/<catalog>/<row>/` and taken from there while its inputs are the
same.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from safetensors.numpy import load_file, save_file

from earec_core.aligned.build import inputs_for
from earec_core.aligned.stored import StoredModel
from earec_core.catalog import Catalog
from earec_core.compose import Recipe
from earec_core.compose.stage import choose_adapters, compose_models
from earec_core.config import AlignConfig, RecommenderConfig, RunConfig
from earec_core.encode import ItemVectors, encode
from earec_core.errors import DataError
from earec_core.home import home
from earec_core.llm.backbone import Backbone
from earec_core.metrics import statistics
from earec_core.metrics.ranking import KS, Metrics
from earec_core.modality import Context, create
from earec_core.recommend.stage import train_registered
from earec_core.studies.reproduce import compare, controls
from earec_core.studies.reproduce.plan import Row, label
from earec_core.types import Show
from earec_registry import Manifest, NotFoundError, Registry

METRICS = tuple(f"{name}@{k}" for name in ("hr", "ndcg") for k in KS)


@dataclass(frozen=True)
class Result:
    """A measured row.

    Attributes:
        row: what it is.
        ids: what was made: composite, vectors, one recommender a seed.
        test: `mean`, `sd` over the recommender's seeds (None with one seed), and the `seeds`' figures, by metric.
        size: of a composite: ||dW||_F `composed` and `exact`, their `ratio`, `relative_error` to the exact sum.
        versus: `difference` of NDCG@10 to the reference, paired over users, its `se`, `p` and `p_holm`; None for
            the reference.
    """

    row: Row
    ids: Mapping[str, Any]
    test: Mapping[str, Mapping[str, Any]]
    size: Mapping[str, float | None] | None
    versus: Mapping[str, float] | None


@dataclass(frozen=True)
class Report:
    """A measured table.

    Attributes:
        catalog, users, items: what it was measured on; `users` are those that have a test target.
        adapters: id of each modality's adapter.
        recommender: its configuration, the seed left out.
        seeds: how many trainings of the recommender a row.
        reference: the row that the others are compared with.
        resolution: see `statistics.resolution`, for HR@10 of the reference.
        results: by row.
        effects: of `method` and `weighting`, see `compare.main_effects`; empty where the rows are too few.
    """

    catalog: str
    users: int
    items: int
    adapters: Mapping[str, str]
    recommender: Mapping[str, Any]
    seeds: int
    reference: str
    resolution: Mapping[str, float]
    results: tuple[Result, ...]
    effects: Mapping[str, tuple[compare.Effect, ...]]

    def as_json(self) -> dict[str, Any]:
        """Everything, plain."""
        return asdict(self)


def reproduce(
    catalog: Catalog,
    rows: Sequence[Row],
    reference: str,
    registry: Registry,
    config: RunConfig,
    recommender: RecommenderConfig,
    *,
    adapters: Mapping[str, str] | None = None,
    seeds: int = 3,
    note: Callable[[str], None] = lambda _: None,
    show: Show = lambda *_: None,
) -> Report:
    """Measure the rows of `plan`; what is already in the registry is not made again.

    Args:
        rows, reference: of `plan`.
        config: backbone, and plugin settings that differ from the adapters' own.
        recommender: its hyper-parameters; seeds are 0 to `seeds` - 1.
        adapters: references by modality; default: the only one registered.

    Raises:
        UsageError: an adapter is missing, or the adapters cannot be composed.
        DataError: no user has a test target.
        IntegrityError: the backbone is not the adapters'.
    """
    users = len(catalog.leave_one_out().eval_users)
    if not users:
        raise DataError(
            f"No user of {catalog.name!r} has three interactions.", "Import a dataset with interactions."
        )
    needed = list(dict.fromkeys(m for row in rows for m in row.modalities))
    chosen = choose_adapters(registry, needed, {m: r for m, r in (adapters or {}).items() if m in needed})
    work = _Work(catalog, registry, config, chosen, note, show)
    # All of them first: adapters that do not fit are then found before hours of training.
    composites = {row.name: work.composite(row) for row in rows if row.kind == "composite"}
    ids, measured = {}, {}
    for row in rows:
        vectors = None if row.kind == "ids" else work.vectors(row, composites.get(row.name))
        trained = [
            work.trained(row, vectors, recommender.model_copy(update={"seed": seed})) for seed in range(seeds)
        ]
        ids[row.name] = {
            "composite": composites.get(row.name),
            "vectors": vectors,
            "recommenders": [identity for identity, _ in trained],
        }
        measured[row.name] = [metrics for _, metrics in trained]
        hits = [metrics.hr(10) for metrics in measured[row.name]]
        note(f"{row.name}: HR@10 {np.mean(hits):.4f} ({', '.join(f'{hit:.4f}' for hit in hits)})")
    gains = {name: np.mean([m.gains(10) for m in runs], axis=0) for name, runs in measured.items()}
    versus = statistics.versus(gains, reference)
    results = tuple(
        Result(
            row,
            ids[row.name],
            _over_seeds(measured[row.name]),
            work.size(composites[row.name]) if row.kind == "composite" else None,
            versus.get(row.name),
        )
        for row in rows
    )
    rate = float(np.mean([metrics.hr(10) for metrics in measured[reference]]))
    return Report(
        catalog.name,
        users,
        len(catalog),
        {m: model.id for m, model in work.models.items()},
        recommender.model_dump(mode="json", exclude={"seed"}),
        seeds,
        reference,
        statistics.resolution(rate, users),
        results,
        _effects(rows, gains, reference),
    )


def _over_seeds(measured: Sequence[Metrics]) -> dict[str, dict[str, Any]]:
    found = {}
    for metric in METRICS:
        name, _, k = metric.partition("@")
        values = [float(getattr(metrics, name)(int(k))) for metrics in measured]
        sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
        found[metric] = {"mean": float(np.mean(values)), "sd": sd, "seeds": values}
    return found


def _effects(
    rows: Sequence[Row], gains: Mapping[str, Float[np.ndarray, " users"]], reference: str
) -> dict[str, tuple[compare.Effect, ...]]:
    cells = {
        row.name: (row.method, label(row.weights)) for row in rows if row.kind == "composite" and row.method
    }
    if reference not in cells:
        return {}
    by_cell = {cell: gains[name] for name, cell in cells.items()}
    found = {
        factor: compare.main_effects(by_cell, axis, cells[reference][axis])
        for axis, factor in enumerate(("method", "weighting"))
    }
    return {factor: effects for factor, effects in found.items() if effects}


@dataclass
class _Work:
    """The steps of a row; each takes what the registry has where its inputs are the same."""

    catalog: Catalog
    registry: Registry
    config: RunConfig
    adapters: Mapping[str, str]
    note: Callable[[str], None]
    show: Show
    models: dict[str, StoredModel] = field(init=False)

    def __post_init__(self) -> None:
        self.models = {m: StoredModel.open(self.registry, ref) for m, ref in self.adapters.items()}
        for modality, model in self.models.items():
            if model.data["training"]["data"]["digest"] != self.catalog.digest:
                self.note(
                    f"The adapter of {modality} was aligned on {model.data['data']['name']!r}, not on this "
                    f"version of {self.catalog.name!r}."
                )

    def composite(self, row: Row) -> str:
        """Id of the row's composite."""
        assert row.method is not None  # noqa: S101 - composites have one
        name, recipe = self._name(row, "composite"), Recipe(row.weights, method=row.method)
        stored = self._stored(name)
        if (
            stored is not None
            and stored.data["method"] == {"name": row.method, "rank": None, **recipe.options}
            and stored.data["weights"] == recipe.used
            and stored.data["report"].get("composed_norm") is not None
            and {self.models[m].id for m in row.modalities} <= {parent.id for parent in stored.parents}
        ):
            return stored.id
        chosen = {m: self.models[m].id for m in row.modalities}
        return compose_models(self.registry, chosen, recipe, name=name)[0]

    def vectors(self, row: Row, composite: str | None = None) -> str:
        """Id of the row's item vectors."""
        if row.kind in ("mean", "concatenation"):
            return self._combined(row)
        if row.kind == "unaligned":
            return self._encoded(row, None)
        return self._encoded(row, composite or self.models[row.modalities[0]].id)

    def trained(self, row: Row, vectors: str | None, config: RecommenderConfig) -> tuple[str, Metrics]:
        """Id of a recommender over the vectors (over ids without), and its test ranks."""
        name = self._name(row, f"recommender-{config.seed}")
        parents = [vectors] if vectors else []
        stored = self._stored(name)
        if (
            stored is not None
            and stored.data["parents"] == parents
            and stored.data["training"]["config"] == config.model_dump(mode="json")
            and stored.data["data"]["digest"] == self.catalog.digest
        ):
            identity = stored.id
        else:
            identity = train_registered(
                self.catalog,
                vectors,
                config,
                self.registry,
                name=name,
                show=lambda done, total, text: self.show(
                    done, total, f"{row.name}, seed {config.seed}: {text}"
                ),
            )["id"]
        ranks = load_file(self.registry.materialize(identity) / "test_ranks.safetensors")
        return identity, Metrics(ranks["ranks"], ranks["users"])

    def size(self, composite: str) -> dict[str, float | None]:
        """How large the composite's change of the weights is, beside that of the exact sum."""
        report = self.registry.manifest(composite).data["report"]
        exact, composed = report["norm"], report["composed_norm"]
        return {
            "exact": exact,
            "composed": composed,
            "ratio": composed / exact if exact else None,
            "relative_error": report["relative_error"],
        }

    def _encoded(self, row: Row, model: str | None) -> str:
        """Vectors by the LLM: the stored model's, or the un-aligned backbone's on the adapters' template."""
        name = self._name(row, "vectors")
        stored = self._stored(name)
        configs, sources = self._inputs
        parents = [*([model] if model else []), *(s for m in row.modalities for s in sources[m])]
        first = next(iter(self.models.values()))
        prompt = first.prompt.model_dump(mode="json")
        if (
            stored is not None
            and sorted(stored.data["parents"]) == sorted(parents)
            and stored.data["modalities"] == {m: configs[m] for m in row.modalities}
            and stored.data["prompt"] == prompt
            and stored.data["base"]["weights"] == first.data["base"]["weights"]
            and stored.data["data"]["digest"] == self.catalog.digest
        ):
            return stored.id
        config = self.config
        if model is None:
            # Untrained projectors are drawn from the default seed, whatever the adapters were aligned with.
            update = {"prompt": first.prompt, "modalities": self._settings, "align": AlignConfig()}
            config = config.model_copy(update=update)
        first.check_base(self._backbone)
        made = encode(
            self.catalog,
            model,
            config,
            self.registry,
            names=row.modalities,
            name=name,
            backbone=self._backbone,
            note=self.note,
            show=lambda done, total, text: self.show(done, total, f"{row.name}: {text}"),
        )
        return made.id

    def _combined(self, row: Row) -> str:
        """Vectors made of those of each modality's own adapter."""
        parts = {m: self.vectors(Row(m, "single", (m,))) for m in row.modalities}
        name, method = self._name(row, "vectors"), f"{row.kind} of single modalities"
        stored = self._stored(name)
        if (
            stored is not None
            and stored.data["parents"] == list(parts.values())
            and stored.data["method"] == method
        ):
            return stored.id
        opened = {m: ItemVectors.open(self.registry, ref, self.catalog) for m, ref in parts.items()}
        vectors = {m: one.vectors for m, one in opened.items()}
        if row.kind == "mean":
            made = controls.mean(vectors, self._present)
        else:
            made = controls.concatenation(vectors, self._present, next(iter(vectors.values())).shape[1])
        manifest = {
            "kind": "features",
            "method": method,
            "parents": list(parts.values()),
            "data": {"name": self.catalog.name, "digest": self.catalog.digest},
            "shapes": {"items": len(made), "d": int(made.shape[1])},
        }
        with tempfile.TemporaryDirectory() as folder:
            files = {"vectors.safetensors": Path(folder) / "v", "item_ids.json": Path(folder) / "i"}
            save_file({"vectors": np.ascontiguousarray(made)}, files["vectors.safetensors"])
            files["item_ids.json"].write_text(json.dumps(self.catalog.items["item_id"].to_list()))
            return self.registry.add(manifest, files, name=name, why="reproduce")

    @cached_property
    def _backbone(self) -> Backbone:
        return Backbone.load(self.config.backbone, self.note)

    @cached_property
    def _settings(self) -> dict[str, dict[str, Any]]:
        """Each plugin's configuration: the adapter's own, with what differs here."""
        return {
            m: {**model.modalities[m]["config"], **self.config.modalities.get(m, {})}
            for m, model in self.models.items()
        }

    @cached_property
    def _inputs(self) -> tuple[dict[str, Any], dict[str, tuple[str, ...]]]:
        """What `encode` will record of each modality: its exact configuration, and what it reads."""
        context = Context(self.catalog.name, self.registry.root, home())
        made = {m: create(m, settings, context) for m, settings in self._settings.items()}
        return (
            {m: one.resolved_config().model_dump(mode="json") for m, one in made.items()},
            {m: one.sources() for m, one in made.items()},
        )

    @cached_property
    def _present(self) -> dict[str, Bool[np.ndarray, " n"]]:
        """Which items have each modality."""
        context = Context(self.catalog.name, self.registry.root, home())
        items = self.catalog.all_items()
        inputs = inputs_for(list(self.models), self._settings, items, self._backbone, context, self.show)
        return {m: np.array([row in inputs[m] for row in range(len(items))]) for m in self.models}

    def _name(self, row: Row, part: str) -> str:
        return f"reproduce/{self.catalog.name}/{row.name}/{part}"

    def _stored(self, name: str) -> Manifest | None:
        try:
            return self.registry.manifest(name)
        except NotFoundError:
            return None
