"""An alignment that is ready to run: its inputs opened and checked, its samples, its trainer, its manifest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from earec_core.align import samples
from earec_core.align.contrast import Companions, Contrast, inputs_alike
from earec_core.align.samples import Samples
from earec_core.align.train import Progress, Trainer
from earec_core.aligned.build import model_run, new_model
from earec_core.aligned.features import ModalityInputs
from earec_core.aligned.model import AlignedModel
from earec_core.aligned.prompts import Sample
from earec_core.aligned.readouts import get_readout
from earec_core.aligned.stored import check_base, load_projector, plugin_record
from earec_core.artifacts import (
    AdapterManifest,
    DataRecord,
    EngineRecord,
    ModalityRecord,
    Shapes,
    Stored,
    TrainingRecord,
    open_as,
)
from earec_core.catalog import Catalog, random_part
from earec_core.catalog.formats.files import several
from earec_core.config import RunConfig
from earec_core.errors import DataError, PluginError, UsageError
from earec_core.llm import layers
from earec_core.llm.backbone import Backbone
from earec_core.llm.lora import TrainableLora
from earec_core.llm.peft_adapter import CONFIG, WEIGHTS
from earec_core.train.checkpoint import not_finite
from earec_core.train.engine import MakeEngine, TorchEngine, engine_of
from earec_core.train.processes import Processes
from earec_core.workspace import Run, Workspace

_WORTH_SAYING = 0.05
"""From this part on: of the anchors' words that can be copied."""


def open_job(
    workspace: Workspace,
    catalog: Catalog,
    modality: str,
    config: RunConfig,
    *,
    continue_from: str | None = None,
    backbone: Backbone | None = None,
    processes: Processes | None = None,
) -> Job:
    """Open and check everything that an alignment needs; its arguments are those of `align`.

    Raises:
        UsageError, PluginError, IntegrityError: see the parts.
    """
    # Before the backbone is loaded, which may take minutes.
    plugin_record(modality)
    engine = engine_of(config.engine)
    if config.align.quantization != "none" and config.engine.name != "torch":
        raise UsageError(
            f"The engine {config.engine.name} does not train behind weights in 4 bits.",
            "Leave align.quantization out, or say --engine torch.",
        )
    settings, parent = config.modalities.get(modality, {}), None
    if continue_from:
        parent = open_as(workspace.registry, continue_from, AdapterManifest)
        if parent.manifest.modality != modality:
            raise UsageError(
                f"{continue_from!r} is no {modality} adapter.", "Give one to --from, or leave it out."
            )
        settings = {**parent.manifest.record.config, **settings}
        config = config.model_copy(update={"lora": parent.manifest.lora})
    backbone = backbone or Backbone.load(config.backbone, workspace, quantization=config.align.quantization)
    if parent is not None:
        check_base(parent, backbone.info)
    workspace.note(f"Reading the {modality} inputs of {len(catalog)} items ...")
    model = new_model(workspace, catalog, backbone, {modality: settings}, config.prompt, seed=config.run.seed)
    if parent is None:
        lora = model.inputs[modality].modality.adapter_config(config.lora)
        config = config.model_copy(update={"lora": lora})
    processes = processes or Processes()
    if config.align.pairs and processes.size > 1:
        raise UsageError(
            "align.pairs compares the items of a batch, which several processes do not have together.",
            "Train in one process, or leave align.pairs at 0.",
        )
    return Job(workspace, catalog, modality, config, model, parent, processes, engine)


@dataclass(frozen=True)
class Job:
    """An alignment that is ready to run."""

    workspace: Workspace
    catalog: Catalog
    modality: str
    config: RunConfig
    model: AlignedModel
    parent: Stored[AdapterManifest] | None
    processes: Processes
    engine: MakeEngine

    @property
    def inputs(self) -> ModalityInputs:
        return self.model.inputs[self.modality]

    @property
    def parents(self) -> tuple[str, ...]:
        """Ids of what the adapter is made from."""
        return (*([self.parent.id] if self.parent else []), *self.inputs.modality.sources())

    def run(self) -> Run:
        """The run that these inputs and this configuration are."""
        beside = {
            "lora": self.config.lora.model_dump(mode="json"),
            "continue_from": self.parent.id if self.parent else None,
            "plugin": plugin_record(self.modality).model_dump(),
        }
        if self.config.align.pairs:
            beside["readout"] = self.config.encode.readout
        return model_run(
            self.workspace, "align", self.catalog, self.model, self.config, beside, label=self.modality
        )

    def samples(self) -> tuple[Sequence[Sample], Sequence[Sample], dict[str, int]]:
        """Samples to train on and to validate on, and how many items were left out.

        Raises:
            DataError: there is nothing to train on.
        """
        train, valid = (
            samples.build(self.model.prompts, self.modality, self.catalog.item_split(split).tolist())
            for split in ("train", "valid")
        )
        part = random_part(len(train.samples), self.config.align.max_items, self.config.run.seed)
        chosen = [train.samples[i] for i in part]
        if not chosen and train.too_long:
            raise DataError(
                f"All {train.too_long} items to train on are longer than the model or prompt.max_tokens "
                f"({self.config.prompt.max_tokens}) allows.",
                "Raise prompt.max_tokens as far as the model allows, or shorten the template.",
            )
        if not chosen:
            raise DataError(
                f"No item of {self.catalog.name} has both an anchor ({', '.join(self.config.prompt.anchor)}) "
                f"and {self.modality}; the columns are {several(self.catalog.items.columns)}.",
                "Name others, import the missing ones (`earec data import --column`), or choose another modality.",
            )
        self._note_unfit(train, valid)
        copied = samples.copied(self.model.prompts, chosen)
        if copied >= _WORTH_SAYING:
            self.workspace.note(
                f"{copied:.0%} of the anchors' words stand in what the LLM reads of {self.modality}: they can be "
                "copied. `earec explain` scores the others apart."
            )
        counts = {
            "train": len(chosen),
            "valid": len(valid.samples),
            "without_anchor": train.without_anchor + valid.without_anchor,
            "without_input": train.without_input + valid.without_input,
            "damaged": len(self.inputs.damaged),
        }
        unfit = {"too_long": train.too_long + valid.too_long, "shortened": train.shortened + valid.shortened}
        counts |= {reason: number for reason, number in unfit.items() if number}
        return chosen, valid.samples, counts

    def _note_unfit(self, train: Samples, valid: Samples) -> None:
        notes = {
            "relation slots dropped": train.dropped_relations,
            f"items show the start of their {self.modality} alone": train.shortened + valid.shortened,
            "items left out": train.too_long + valid.too_long,
        }
        for words, number in notes.items():
            if number:
                self.workspace.note(
                    f"{number} {words}, since prompts must fit the model and prompt.max_tokens."
                )

    def train(
        self, run: Run, train: Sequence[Sample], valid: Sequence[Sample]
    ) -> tuple[Progress, dict[str, Path]]:
        """Train to the end; where it stands then, and the adapter's files."""
        several = f" in {self.processes.size} processes" if self.processes.size > 1 else ""
        with self.trainer(train, valid, run) as (trainer, adapter):
            if self.processes.first:
                run.start()
            self.workspace.note(
                f"Aligning {self.modality}{several}: {len(train)} items, {trainer.steps} steps at most, "
                f"run {run.name}."
            )
            progress = trainer.run(self.workspace.progress)
            return progress, _export(run.scratch(), self.inputs, adapter) if self.processes.first else {}

    @contextmanager
    def trainer(
        self, train: Sequence[Sample], valid: Sequence[Sample], run: Run | None = None
    ) -> Iterator[tuple[Trainer, TrainableLora]]:
        """What trains, the adapter being on the backbone within the block; without a run it has no checkpoint."""
        model, config = self.model, self.config
        if left_out := model.backbone.left_out():
            self.workspace.note(f"LoRA leaves out what it cannot adapt: {', '.join(left_out)}.")
        with model.backbone.adapted(TrainableLora(config.lora)) as adapter, self._checkpointing():
            if self.parent is not None:
                adapter.load(self.parent.folder / WEIGHTS)
                load_projector(self.inputs, self.parent.folder / self.parent.manifest.record.projector)
            yield (
                Trainer(
                    model,
                    adapter.parameters,
                    train,
                    valid,
                    config.align,
                    run.checkpoint if run else Path(),
                    run.step if run and self.processes.first else lambda *_: None,
                    seed=config.run.seed,
                    engine=self.engine if run else TorchEngine,
                    processes=self.processes,
                    **self._contrast(train),
                ),
                adapter,
            )

    @contextmanager
    def _checkpointing(self) -> Iterator[None]:
        """The LLM's blocks computed again on the way back, if it is asked for.

        Raises:
            UsageError: the architecture has no such blocks.
        """
        backbone, asked = self.model.backbone, self.config.align.gradient_checkpointing
        if asked and not layers.blocks(backbone.model):
            raise UsageError(
                f"The blocks of {backbone.info.id} cannot be computed again.",
                "Leave align.gradient_checkpointing off; align.micro_tokens takes less memory, too.",
            )
        backbone.checkpointing = asked
        try:
            yield
        finally:
            backbone.checkpointing = False

    def _contrast(self, train: Sequence[Sample]) -> dict[str, Any]:
        """What `Trainer` needs for pairs; nothing where they have no weight.

        Raises:
            DataError: no two items to train on follow each other.
            UsageError: catalogs are to be sampled otherwise than by size, or another layer is to be read.
        """
        if not self.config.align.pairs:
            return {}
        if self.config.align.catalog_temperature != 1:
            raise UsageError(
                "With align.pairs every item comes once in an epoch.", "Leave align.catalog_temperature at 1."
            )
        if self.config.encode.layer is not None:
            raise UsageError(
                "align.pairs draws together what the last layer says.",
                "Leave encode.layer out while aligning.",
            )
        rows = [sample.prompt.item for sample in train]
        companions = Companions.read(self.catalog.leave_one_out().train, rows)
        if not companions.of:
            raise DataError(
                f"No two items to train on follow each other in a sequence of {self.catalog.name}.",
                "Import interactions, or set align.pairs to 0.",
            )
        self.workspace.note(f"{len(companions.of)} of {len(rows)} items have others that follow them.")
        readout, temperature = get_readout(self.config.encode.readout), self.config.align.pairs_temperature
        contrast = Contrast(train, companions, readout, temperature)
        return {"contrast": contrast, "alike": inputs_alike(self.model, self.modality, rows)}

    def manifest(
        self, run: Run, progress: Progress, counts: Mapping[str, int], metrics: Mapping[str, float]
    ) -> AdapterManifest:
        """The adapter's manifest."""
        record = ModalityRecord(
            plugin=plugin_record(self.modality),
            config=self.inputs.resolved_config(),
            shapes=Shapes(d_enc=self.inputs.encoder.d_enc, d_llm=self.model.backbone.d_llm),
            projector=f"projectors/{self.modality}.safetensors",
        )
        training = TrainingRecord(
            config=run.digest,
            data=DataRecord(name=self.catalog.name, digest=self.catalog.digest),
            seed=self.config.run.seed,
            steps=progress.step,
            kept_step=progress.best_step,
            items=counts,
            engines=tuple(EngineRecord(**engine) for engine in progress.engines),
        )
        return AdapterManifest(
            modality=self.modality,
            modalities={self.modality: record},
            base=self.model.backbone.info,
            prompt=self.config.prompt,
            chat=self.model.prompts.chat,
            lora=self.config.lora,
            parents=self.parents,
            training=training,
            metrics=metrics,
        )


def _export(folder: Path, inputs: ModalityInputs, adapter: TrainableLora) -> dict[str, Path]:
    """The adapter's files by their paths in the registry: a PEFT directory and the projector.

    Raises:
        PluginError: the projector holds what is not finite, in a buffer that is not trained.
    """
    adapter.save(folder)
    projector = f"{inputs.name}.safetensors"
    state = inputs.projector.state_dict()
    if unusable := not_finite(state):
        raise PluginError(
            f"{unusable} of the projector of {inputs.name} holds NaN or infinity after training.",
            f"Mend the modality's projector (earec plugins check {inputs.name}).",
        )
    tensors = {key: value.detach().cpu().contiguous() for key, value in sorted(state.items())}
    save_file(tensors, folder / projector)
    return {
        CONFIG: folder / CONFIG,
        WEIGHTS: folder / WEIGHTS,
        f"projectors/{projector}": folder / projector,
    }
