"""What a row of a table needs: its composite, its item vectors, its recommenders.

Everything made is registered under `reproduce/<catalog>/<row>/` and taken from there while its inputs are the same.
The LLM is loaded once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self, TypeVar

import numpy as np
from jaxtyping import Bool
from safetensors.numpy import load_file

from earec_core.aligned.build import context, new_model
from earec_core.aligned.model import AlignedModel
from earec_core.aligned.readouts import get_readout
from earec_core.aligned.stored import check_base
from earec_core.aligned.words import ItemWords
from earec_core.artifacts import (
    AdapterManifest,
    CompositeManifest,
    ItemVectors,
    Manifest,
    MethodRecord,
    RecommenderManifest,
    Stored,
    VectorsManifest,
    open_as,
)
from earec_core.artifacts.recommender import RANKS
from earec_core.catalog import Catalog
from earec_core.compose import Recipe
from earec_core.compose.stage import choose_adapters, compose_models
from earec_core.config import RecommenderConfig, RunConfig, RunSettings
from earec_core.encode import encode, encode_words, plan_words
from earec_core.encode import plan as plan_encoding
from earec_core.errors import IntegrityError
from earec_core.llm import store
from earec_core.llm.backbone import Backbone
from earec_core.metrics.ranking import Metrics
from earec_core.modality import Modality, create
from earec_core.modality.sentences import encoder_folder
from earec_core.plugins import code_digest
from earec_core.recommend.models import get_recommender
from earec_core.recommend.models.base import RecommenderModel
from earec_core.recommend.stage import evaluate_registered, train_registered
from earec_core.recommend.tables import PLUS_IDS
from earec_core.recommend.texts import ItemTexts
from earec_core.recommend.tune import tune
from earec_core.studies.reproduce import controls
from earec_core.studies.reproduce.plan import Row
from earec_core.workspace import Workspace
from earec_registry import DamagedError, NotFoundError

M = TypeVar("M", bound=Manifest)
DEFAULT_ENCODER = "all-minilm-l6-v2"
_WINDOW = 256


@dataclass(frozen=True)
class Protocol:
    """How every row is measured.

    Attributes:
        seeds: trainings of the recommender, whose seeds are 0 to `seeds` - 1.
        trials: settings that it is tuned over on validation, those given the first.
        minutes: of tuning: no trial starts later.
        encoder: of text, for baselines.
        grid: the settings are those of the paper's grid.
        exclude_seen: items of a user's history do not compete with the test target; on validation they always do.
    """

    seeds: int = 3
    trials: int = 1
    minutes: float | None = None
    encoder: str = DEFAULT_ENCODER
    grid: bool = False
    exclude_seen: bool = False


@dataclass
class RowMaker:
    """Makes what rows need.

    Attributes:
        adapters: reference of each modality's adapter.
        encoder: of text, for baselines; see `earec_core.encode.encode_words`.
        models: the same, opened.
    """

    workspace: Workspace
    catalog: Catalog
    config: RunConfig
    adapters: Mapping[str, str]
    encoder: str = DEFAULT_ENCODER

    def __post_init__(self) -> None:
        self._worded: dict[tuple[str, ...], str] = {}
        self._planned: dict[str, float] = {}
        self._pooled: dict[str, str] = {}
        self.models: dict[str, Stored[AdapterManifest]] = {
            modality: open_as(self.workspace.registry, reference, AdapterManifest)
            for modality, reference in self.adapters.items()
        }
        self.workspace.registry.require(*(model.id for model in self.models.values()))
        for modality, model in self.models.items():
            data = model.manifest.training.data if model.manifest.training else None
            if data is not None and data.digest != self.catalog.digest:
                self.workspace.note(
                    f"The adapter of {modality} was aligned on {data.name!r}, not on this version of "
                    f"{self.catalog.name!r}."
                )

    @classmethod
    def over(
        cls,
        workspace: Workspace,
        catalog: Catalog,
        rows: Sequence[Row],
        config: RunConfig,
        adapters: Mapping[str, str],
        encoder: str,
    ) -> Self:
        """For some rows, with the adapters that they need.

        Args:
            adapters: references by modality; default: see `choose_adapters`.

        Raises:
            UsageError: one is missing.
        """
        needed = list(dict.fromkeys(m for row in rows for m in row.modalities))
        given = {m: reference for m, reference in adapters.items() if m in needed}
        return cls(
            workspace,
            catalog,
            config,
            choose_adapters(workspace.registry, needed, given, catalog.name),
            encoder,
        )

    def composite(self, row: Row) -> str:
        """Id of the row's composite."""
        assert row.method is not None  # noqa: S101 - composites have one
        name, recipe = self._name(row, "composite", row.shares), Recipe(row.weights, method=row.method)
        stored = self._stored(name, CompositeManifest)
        if (
            stored is not None
            and stored.manifest.method == MethodRecord(name=row.method, options=recipe.options)
            and stored.manifest.weights == recipe.used
            and stored.manifest.report.get("composed_norm") is not None
            and {self.models[m].id for m in row.modalities} <= {*stored.manifest.parents}
        ):
            return stored.id
        chosen = {m: self.models[m].id for m in row.modalities}
        return compose_models(self.workspace, chosen, recipe, name=name).id

    def inputs(self, row: Row, composite: str | None = None) -> tuple[str, ...]:
        """Ids of the item vectors that the row's recommender reads; none: it is on ids, or counts."""
        if row.kind in ("ids", "baseline"):
            read = (self._words(row.words),) if row.words and not self._trains_encoder(row) else ()
            return (*read, *(self._features(modality) for modality in row.features))
        return (self.vectors(row, composite),)

    def vectors(self, row: Row, composite: str | None = None) -> str:
        """Id of the row's item vectors, of one that has its own."""
        if row.kind in ("mean", "concatenation"):
            return self._combined(row)
        if row.kind == "unaligned":
            return self._encoded(row, None)
        return self._encoded(row, composite or self.models[row.modalities[0]].id)

    def encoding_minutes(self, row: Row) -> dict[str, float]:
        """What the row's item vectors that are not there would take here, by their names.

        What a modality's own encoder computes is left out; it is kept from then on.
        """
        if row.kind in ("mean", "concatenation"):
            singles = (self.encoding_minutes(Row(m, "single", (m,))) for m in row.modalities)
            return {name: minutes for single in singles for name, minutes in single.items()}
        if row.kind == "ids" or (row.kind == "baseline" and (not row.words or self._trains_encoder(row))):
            return {}
        baseline = row.kind == "baseline"
        name = self._words_name(row.words) if baseline else self._name(row, "vectors", row.shares)
        if self._stored(name, VectorsManifest) is not None:
            return {}
        if name not in self._planned:
            self._planned[name] = self._words_minutes(row) if baseline else self._llm_minutes(row)
        return {name: self._planned[name]}

    def _llm_minutes(self, row: Row) -> float:
        """Adapters take nothing: the un-aligned backbone reads as many positions."""
        config, names = self._unaligned_config, row.modalities
        plan = plan_encoding(self.workspace, self.catalog, None, config, names=names, backbone=self._backbone)
        return plan.minutes

    def _words_minutes(self, row: Row) -> float:
        config = self.config.model_copy(update={"modalities": self._settings})
        return plan_words(self.workspace, self.catalog, self.encoder, config, names=row.words)

    def settings(
        self, row: Row, vectors: Sequence[str], config: RecommenderConfig, protocol: Protocol
    ) -> RecommenderConfig:
        """The row's hyper-parameters: the best of some trials on validation, the first of them as given."""
        config = self.given(row, config)
        if protocol.trials < 2 or not self.kind(row).tunable:
            return config
        workspace = self.workspace.about(row.name)
        return tune(
            workspace,
            self.catalog,
            config,
            trials=protocol.trials,
            minutes=protocol.minutes,
            model=row.model,
            vectors=vectors,
            together=True,
            grid=protocol.grid,
        ).config

    def given(self, row: Row, config: RecommenderConfig) -> RecommenderConfig:
        """The row's hyper-parameters before any tuning."""
        reads_vectors = row.kind != "baseline" or row.words or row.features
        if not (row.ids and reads_vectors):
            return config
        return config.model_copy(update={"table": f"{config.table.removesuffix(PLUS_IDS)}{PLUS_IDS}"})

    def texts(self, row: Row, config: RecommenderConfig) -> ItemTexts | None:
        """The words that the row's recommender reads itself; None: it reads vectors, or none."""
        if not self._trains_encoder(row):
            return None
        return ItemTexts.open(self.workspace, self.catalog, config, row.words, self._settings)

    def made(self, row: Row, vectors: Sequence[str], config: RecommenderConfig) -> str | None:
        """Id of the row's recommender of this configuration, if it has been trained."""
        stored = self._stored(self._name(row, f"recommender-{config.seed}"), RecommenderManifest)
        if (
            stored is not None
            and stored.manifest.parents == tuple(vectors)
            and stored.manifest.model == self.kind(row).name
            and stored.manifest.training.config == self.kind(row).resolved(config)
            and stored.manifest.data.digest == self.catalog.digest
        ):
            return stored.id
        return None

    def recommender(self, row: Row, vectors: Sequence[str], config: RecommenderConfig) -> str:
        """Train a recommender over the vectors, over ids without; its id."""
        return train_registered(
            self.workspace.about(f"{row.name}, seed {config.seed}"),
            self.catalog,
            config,
            name=self._name(row, f"recommender-{config.seed}"),
            vectors=vectors,
            model=row.model,
            words=row.words if self._trains_encoder(row) else (),
            settings=self._settings,
        ).id

    def tested(self, recommender: str, exclude_seen: bool) -> Metrics:
        """The ranks of a recommender's test targets; see `evaluate`."""
        registry = self.workspace.registry
        if exclude_seen:
            return evaluate_registered(registry, recommender, self.catalog, "test", exclude_seen=True)
        ranks = load_file(registry.materialize(recommender) / RANKS)
        return Metrics(ranks["ranks"], ranks["users"])

    def valid(self, recommender: str) -> float:
        """A recommender's NDCG@10 on the validation targets."""
        manifest = open_as(self.workspace.registry, recommender, RecommenderManifest).manifest
        return manifest.metrics["valid"]["ndcg@10"]

    def kind(self, row: Row) -> RecommenderModel:
        """Which recommender the row's is."""
        return get_recommender(row.model or ("sasrec" if row.kind == "ids" else "earec"))

    def _trains_encoder(self, row: Row) -> bool:
        return row.model is not None and get_recommender(row.model).needs_words

    def size(self, composite: str) -> dict[str, float | None]:
        """How large the composite's change of the weights is, beside that of the exact sum."""
        report = open_as(self.workspace.registry, composite, CompositeManifest).manifest.report
        exact, composed = report["norm"], report["composed_norm"]
        return {
            "exact": exact,
            "composed": composed,
            "ratio": composed / exact if exact else None,
            "relative_error": report["relative_error"],
        }

    def _encoded(self, row: Row, model: str | None) -> str:
        """Vectors by the LLM: the stored model's, or the un-aligned backbone's on the adapters' template."""
        name = self._name(row, "vectors", row.shares)
        stored = self._stored(name, VectorsManifest)
        shown = {m: self._modalities[m] for m in row.modalities}
        parents = [
            *([model] if model else []),
            *(s for modality in shown.values() for s in modality.sources()),
        ]
        first = next(iter(self.models.values()))
        if (
            stored is not None
            and sorted(stored.manifest.parents) == sorted(parents)
            and stored.manifest.modalities
            == {m: modality.resolved_config().model_dump(mode="json") for m, modality in shown.items()}
            and stored.manifest.code == {m: code_digest(type(modality)) for m, modality in shown.items()}
            and stored.manifest.prompt == first.manifest.prompt
            and stored.manifest.method == get_readout(self.config.encode.readout).method
            and stored.manifest.layer == self.config.encode.layer
            and stored.manifest.base is not None
            and stored.manifest.base.weights == first.manifest.base.weights
            and stored.manifest.data.digest == self.catalog.digest
        ):
            return stored.id
        config = self._unaligned_config if model is None else self.config
        check_base(first, self._backbone.info)
        workspace, names = self.workspace.about(row.name), row.modalities
        return encode(
            workspace, self.catalog, model, config, names=names, name=name, backbone=self._backbone
        ).id

    def _combined(self, row: Row) -> str:
        """Vectors made of those of each modality's own adapter."""
        parts = {m: self.vectors(Row(m, "single", (m,))) for m in row.modalities}
        parents = tuple(parts.values())
        name, method = self._name(row, "vectors"), f"{row.kind} of single modalities"
        stored = self._stored(name, VectorsManifest)
        if stored is not None and (stored.manifest.parents, stored.manifest.method) == (parents, method):
            return stored.id
        registry = self.workspace.registry
        vectors = {m: ItemVectors.open(registry, ref, self.catalog).vectors for m, ref in parts.items()}
        if row.kind == "mean":
            combined = controls.mean(vectors, self._present)
        else:
            width = next(iter(vectors.values())).shape[1]
            combined = controls.concatenation(vectors, self._present, width)
        return ItemVectors.save(
            registry, combined, self.catalog, name=name, why="reproduce", method=method, parents=parents
        ).id

    def _words(self, modalities: tuple[str, ...]) -> str:
        """Vectors by an encoder of text of the words that the adapters' templates show."""
        if modalities not in self._worded:
            config = self.config.model_copy(update={"modalities": self._settings})
            name = self._words_name(modalities)
            stored = self._stored(name, VectorsManifest)
            if stored is not None and self._says_the_same(stored.manifest, modalities):
                self._worded[modalities] = stored.id
            else:
                self._worded[modalities] = encode_words(
                    self.workspace, self.catalog, self.encoder, config, names=modalities, name=name
                ).id
        return self._worded[modalities]

    def _says_the_same(self, stored: VectorsManifest, modalities: Sequence[str]) -> bool:
        """Whether vectors are of these modalities' words by this encoder."""
        words = ItemWords.open(self.workspace, self.catalog, modalities, self._settings)
        base = store.info(self.encoder, encoder_folder(self.encoder, self.workspace), self.workspace)
        return (
            stored.base is not None
            and stored.base.model_copy(update={"id": base.id}) == base
            and stored.modalities == words.resolved()
            and stored.code == words.code()
            and stored.data.digest == self.catalog.digest
        )

    def _features(self, modality: str) -> str:
        """Each item's mean over what the modality's own encoder gives; zeros where it lacks the modality."""
        if modality in self._pooled:
            return self._pooled[modality]
        inputs = self._model.inputs[modality]
        name, method = f"reproduce/{self.catalog.name}/features-{modality}", "mean of the encoder's output"
        rows = list(inputs.rows)
        parts = []
        for start in range(0, len(rows), _WINDOW):
            h, mask = inputs.encoded(rows[start : start + _WINDOW])
            parts.append(((h * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)).float().cpu().numpy())
        known = np.concatenate(parts)
        table = np.zeros((len(self.catalog), known.shape[1]), dtype=np.float32)
        table[rows] = known
        self._pooled[modality] = ItemVectors.save(
            self.workspace.registry, table, self.catalog, name=name, why="reproduce", method=method
        ).id
        return self._pooled[modality]

    @cached_property
    def _unaligned_config(self) -> RunConfig:
        """As the adapters were aligned, for the backbone without them."""
        first = next(iter(self.models.values()))
        # Untrained projectors are drawn from the default seed, whatever the adapters were aligned with.
        settings = {"prompt": first.manifest.prompt, "modalities": self._settings, "run": RunSettings()}
        return self.config.model_copy(update=settings)

    @cached_property
    def _backbone(self) -> Backbone:
        return Backbone.load(self.config.backbone, self.workspace)

    @cached_property
    def _settings(self) -> dict[str, dict[str, Any]]:
        """Each plugin's configuration: the adapter's own, with what differs here."""
        return {
            m: {**model.manifest.record.config, **self.config.modalities.get(m, {})}
            for m, model in self.models.items()
        }

    @cached_property
    def _modalities(self) -> dict[str, Modality[Any]]:
        here = context(self.workspace, self.catalog)
        return {m: create(m, settings, here) for m, settings in self._settings.items()}

    @cached_property
    def _present(self) -> dict[str, Bool[np.ndarray, " n"]]:
        """Which items have each modality."""
        every = range(len(self.catalog))
        return {m: np.array([row in self._model.inputs[m] for row in every]) for m in self.models}

    @cached_property
    def _model(self) -> AlignedModel:
        """The un-aligned model over every modality's inputs."""
        prompt = next(iter(self.models.values())).manifest.prompt
        return new_model(self.workspace, self.catalog, self._backbone, self._settings, prompt)

    def _name(self, row: Row, part: str, shared: str | None = None) -> str:
        return f"reproduce/{self.catalog.name}/{shared or row.name}/{part}"

    def _words_name(self, modalities: Sequence[str]) -> str:
        return f"reproduce/{self.catalog.name}/words-{'-'.join(modalities)}"

    def _stored(self, name: str, kind: type[M]) -> Stored[M] | None:
        """What is stored under a name; None, so that it is made again, where it is not whole."""
        try:
            stored = open_as(self.workspace.registry, name, kind)
        except NotFoundError:
            return None
        except (DamagedError, IntegrityError) as error:
            self.workspace.note(f"{name} is made again: {error.problem}")
            return None
        if not self.workspace.registry.is_whole(stored.id):
            self.workspace.note(f"{name} is made again: a file of it is damaged or missing.")
            return None
        return stored
