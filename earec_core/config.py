"""Run configuration: TOML files and flags into frozen models, unknown keys refused.

Precedence: flag > environment (`EAREC_SECTION__KEY`) > file (`--config`) > preset (`--preset`).
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from earec_core.errors import UsageError
from earec_core.plugins import MODALITY, names

Model = TypeVar("Model", bound=BaseModel)


class Section(BaseModel):
    """A frozen part of the configuration that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class BackboneConfig(Section):
    """The LLM."""

    model: str = Field("smollm2-135m", description="A named default, a local directory, or a hub id.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto: bfloat16 where the hardware multiplies it natively, else float32."
    )
    device: str = Field("auto", description="auto: cuda if there is one, else cpu; or any torch device.")


class PromptConfig(Section):
    """What the LLM reads of an item (Figure 3 of the paper); see `earec_core.llm.prompts`."""

    chat: Literal["backbone", "v1"] = Field(
        "backbone", description="backbone: the tokenizer's own chat template; v1: the paper's Vicuna v1."
    )
    system: str = Field("", description="The system message; empty: the chat format's own.")
    item: str = Field(
        "{item} is a product in the {domain} category.", description="Needs {item}; may use {domain}."
    )
    relations: str = Field(
        "{related} are often bought together with this product.",
        description="Needs {related}; dropped for an item without relations.",
    )
    request: str = Field("Please describe the product.", description="The closing request.")
    domain: str = Field("", description="What {domain} becomes; empty: what the catalog was imported with.")
    anchor: tuple[str, ...] = Field(
        ("title",),
        min_length=1,
        description="Item fields joined by '. ' to the anchor; the first must be present.",
    )
    max_relations: int = Field(2, ge=0, description="Most related items shown in a prompt.")
    relation_positions: int = Field(
        16,
        ge=0,
        description="A related item is shown by modalities whose slot takes at most so many positions.",
    )
    max_tokens: int = Field(1024, ge=16, description="Most positions of prompt and anchor together.")
    too_long: Literal["leave-out", "stop"] = Field(
        "leave-out",
        description="An item that does not fit even without relations and with its slots shortened: leave it out "
        "and count it, or stop.",
    )


class LoraSettings(Section):
    """The adapter: plain LoRA on the linear layers of the LLM's blocks."""

    r: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    seed: int = Field(0, description="Seed of LoRA's A; one for all modalities that are to be composed.")


class AlignConfig(Section):
    """Training of stage 1 (Eq. 3)."""

    epochs: float = Field(2.0, gt=0, description="Passes over the training items.")
    max_steps: int | None = Field(None, ge=1, description="Optimizer steps at most.")
    max_minutes: float | None = Field(
        None, gt=0, description="Training time at most; the schedule follows it."
    )
    batch_size: int = Field(16, ge=1, description="Global batch, items.")
    micro_batch: int | None = Field(None, ge=1, description="Items per forward pass; None: the whole batch.")
    micro_tokens: int | None = Field(
        None,
        ge=1,
        description="Positions per forward pass at most, padding included, but one item's; None: any.",
    )
    gradient_checkpointing: bool = Field(
        False, description="Keep each block's input alone and compute the rest again: less memory, more time."
    )
    quantization: Literal["none", "nf4"] = Field(
        "none",
        description="nf4: the LLM's frozen linear layers in 4 bits while an adapter is trained (QLoRA), for a "
        "large LLM on a small GPU; every other stage has plain weights.",
    )
    lr: float = Field(1e-3, gt=0, description="Learning rate of LoRA.")
    projector_lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    warmup: float = Field(0.03, ge=0, lt=1, description="Part of the steps with rising learning rate.")
    projector_warmup_epochs: float = Field(
        0.0, ge=0, description="Passes that train the projector alone first."
    )
    projector_warmup_lr: float = Field(1e-3, gt=0)
    clip: float = Field(1.0, gt=0, description="Largest gradient norm.")
    eval_every: int = Field(50, ge=1, description="Optimizer steps between validations.")
    eval_items: int = Field(128, ge=1, description="Validation items for the loss, at most.")
    rouge_items: int = Field(32, ge=0, description="Validation items generated for ROUGE-L, at most.")
    patience: int = Field(5, ge=1, description="Validations without a lower loss before stopping.")
    checkpoint_every: int = Field(50, ge=1, description="Optimizer steps between checkpoints, at most.")
    checkpoint_minutes: float = Field(5.0, gt=0, description="Minutes of training between them, at most.")
    max_items: int | None = Field(None, ge=1, description="Train on a random part of the items.")
    catalog_temperature: float = Field(
        1.0, gt=0, description="Of joined catalogs each has a part of size^(1/T) in an epoch."
    )
    pairs: float = Field(
        0.0, ge=0, description="Weight of InfoNCE on items that follow each other; 0 is the paper."
    )
    pairs_temperature: float = Field(0.2, gt=0, description="Divides the cosine of a pair's vectors.")


class EngineConfig(Section):
    """What runs a training, and how it is spread over processes; what comes out does not depend on it."""

    name: Literal["torch", "deepspeed"] = Field(
        "torch", description="torch: DistributedDataParallel; deepspeed: ZeRO."
    )
    stage: Literal[1, 2, 3] | None = Field(
        None,
        description="What ZeRO divides among the processes: 1 the optimizer, 2 gradients too, 3 all weights too. "
        "None: as the file says, else 2.",
    )
    offload: Literal["nothing", "optimizer", "all"] | None = Field(
        None,
        description="What ZeRO keeps on the processor's side: the optimizer, or at stage 3 all weights too. "
        "None: as the file says, else nothing.",
    )
    file: str = Field("", description="A DeepSpeed configuration (JSON) with further settings of ZeRO.")


class ExplainConfig(Section):
    """Generation of anchors."""

    max_new_tokens: int = Field(64, ge=1)
    batch_size: int = Field(64, ge=1, description="Items generated together.")
    bootstrap: int = Field(2000, ge=100, description="Resamples for the confidence interval.")
    stemmer: bool = Field(True, description="Porter stemming in ROUGE-L, as the authors' release.")


class EncodeConfig(Section):
    """Item vectors (Eq. 5)."""

    batch_tokens: int = Field(4096, ge=64, description="Positions that are read at once, padding included.")
    shard_items: int = Field(
        1024, ge=1, description="Vectors that are written at once: a killed run encodes so many again, about."
    )
    readout: str = Field(
        "last",
        description="What of the hidden states an item's vector is: at the last position, the mean over the item's "
        "slots, or slots: one mean a modality, side by side.",
    )
    layer: int | None = Field(
        None, ge=1, description="Whose states are read, from 1. Default: the last, normed."
    )


class RecommenderConfig(Section):
    """Hyper-parameters; defaults are the paper's where it names them (section 4.1.4)."""

    layers: int = Field(2, ge=1)
    heads: int = Field(2, ge=1)
    dim: int = Field(64, ge=2)
    inner: int = Field(256, ge=2, description="Width inside the feed-forward layers.")
    dropout: float = Field(0.5, ge=0, lt=1)
    lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    batch_size: int = Field(2048, ge=1, description="Predicted positions per step, about.")
    max_len: int = Field(50, ge=2, description="Items of a sequence that the model sees.")
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="Of the products in training; parameters, sums and rankings stay float32. bfloat16 is up to "
        "twice as fast where the machine multiplies it.",
    )
    epochs: int = Field(
        200, ge=0, description="At most; 0, with --from: the source's parameters as they are."
    )
    patience: int = Field(10, ge=1, description="Epochs without a better validation NDCG@10.")
    valid_users: int | None = Field(None, ge=1, description="Validate on a fixed random part of the users.")
    train_users: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Train on a fixed random share of the users; a larger one holds a smaller.",
    )
    similarity: Literal["inner", "cosine"] = Field("inner", description="inner: Eq. 8; cosine: the release.")
    temperature: float = Field(0.07, gt=0, description="Divides the cosine.")
    candidates: Literal["catalog", "trained"] = Field(
        "catalog",
        description="Whom a target competes with in training: all items (Eq. 8), or those with a training "
        "interaction, so that the others are not pushed down for never having been chosen.",
    )
    logit_adjustment: float = Field(
        0.0,
        ge=0,
        description="Of the log of an item's share of the training interactions, what its score has more in "
        "training than when items are ranked. 0: Eq. 8; more lets items with few interactions come up.",
    )
    negatives: int | None = Field(
        None,
        ge=1,
        description="How many of the candidates, drawn anew for each batch, stand for all in training (a sampled "
        "softmax); all by default. esasrec: drawn for each prediction, 256 by default.",
    )
    table: str = Field(
        "mlp",
        description="How frozen vectors become items: linear, mlp, moe, a plugin's; with +ids a trained embedding "
        "per id is added (mlp+ids).",
    )
    table_dropout: float = Field(0.0, ge=0, lt=1, description="Of the vectors that a table reads.")
    id_dropout: float = Field(0.5, ge=0, lt=1, description="+ids: of an item's whole embedding.")
    scaling: str = Field(
        "whiten",
        description="Of frozen vectors: whiten makes their dimensions uncorrelated with deviation 1, soften the "
        "smaller ones less so, pca keeps the leading ones in proportion, standardise gives each mean 0 and "
        "deviation 1, none leaves them.",
    )
    soften: float = Field(0.1, ge=0, description="What soften adds to a variance, in mean variances.")
    pretrain: bool = Field(
        False,
        description="unisrec: train by its contrastive losses, for other catalogs to start from (--from).",
    )
    contrast_weight: float = Field(
        1e-3, ge=0, description="unisrec's pre-training: weight of the sequence-sequence loss."
    )
    item_drop: float = Field(
        0.2,
        ge=0,
        lt=1,
        description="unisrec's pre-training: share of a sequence's items that its second view lacks.",
    )
    interests: float = Field(
        0.5, gt=0, le=1, description="missrec: interests, as a part of all vectors of all items' modalities."
    )
    interest_neighbours: float = Field(
        0.1,
        gt=0,
        le=1,
        description="missrec: of a vector, as a part of all, for the density that finds interests.",
    )
    interest_penalty: float = Field(0.05, ge=0, description="missrec: on a sequence's interests being alike.")
    fusion: Literal["dynamic", "static"] = Field(
        "dynamic",
        description="missrec: whether the modality that suits a user counts more in an item's score, or all alike.",
    )
    encoder: str = Field(
        "all-minilm-l6-v2", description="morec: the encoder of text, a name or a model's directory."
    )
    encoder_lr: float = Field(5e-5, gt=0, description="morec: learning rate of the encoder.")
    encoder_layers: int | None = Field(
        None, ge=1, description="morec: train so many last layers of the encoder; None: all of it."
    )
    encoder_tokens: int = Field(32, ge=3, description="morec: tokens read of an item's text at most.")
    seed: int = Field(0, ge=0, description="Where it is not given: run.seed.")

    @model_validator(mode="after")
    def _divides(self) -> RecommenderConfig:
        if self.dim % self.heads:
            raise ValueError(f"dim {self.dim} is no multiple of heads {self.heads}")
        return self


class SearchConfig(Section):
    """Weights found on validation data."""

    step: float = Field(0.1, gt=0, le=1, description="Of the grid.")
    gradients: int = Field(4, ge=1, description="Gradients that `learn` takes; one evaluation follows.")
    per_layer: bool = Field(False, description="`learn` finds weights for every layer of the LLM.")
    max_evaluations: int | None = Field(None, ge=1, description="Budget.")
    max_minutes: float | None = Field(None, gt=0, description="Budget.")
    max_items: int | None = Field(None, ge=1, description="Search on a random part of the validation items.")
    batch_size: int = Field(16, ge=1, description="Validation items per forward pass.")


class RunSettings(Section):
    """What is common to every stage of a run."""

    seed: int = Field(0, ge=0, description="Of every random draw but LoRA's A (`lora.seed`).")


class RunConfig(Section):
    """Everything a run depends on beside its inputs."""

    run: RunSettings = RunSettings()
    backbone: BackboneConfig = BackboneConfig()
    prompt: PromptConfig = PromptConfig()
    lora: LoraSettings = LoraSettings()
    align: AlignConfig = AlignConfig()
    engine: EngineConfig = EngineConfig()
    explain: ExplainConfig = ExplainConfig()
    encode: EncodeConfig = EncodeConfig()
    search: SearchConfig = SearchConfig()
    recommender: RecommenderConfig = RecommenderConfig()
    modalities: Mapping[str, Mapping[str, Any]] = Field(
        default_factory=dict, description="Each plugin's own configuration, by modality."
    )


_V1_SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
_PAPER_PROMPT: Mapping[str, Any] = {
    "chat": "v1",
    "system": _V1_SYSTEM,
    "relation_positions": 4096,
    "item": "{item} is a product in the Amazon ecommerce platform, the category of this product is {domain}.",
}

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "recommended": {},
    "paper": {
        "backbone": {"model": "lmsys/vicuna-7b-v1.5"},
        "prompt": _PAPER_PROMPT,
        "lora": {"r": 128, "alpha": 256},
        "align": {"lr": 2e-4, "projector_lr": 2e-5, "batch_size": 16, "schedule": "constant", "warmup": 0.0},
        "recommender": {"table": "linear"},
    },
    "release": {
        "backbone": {"model": "lmsys/vicuna-7b-v1.5"},
        "prompt": {**_PAPER_PROMPT, "anchor": ("title", "category", "brand")},
        "lora": {"r": 128, "alpha": 256, "dropout": 0.05},
        "align": {
            "lr": 2e-4,
            "projector_lr": 2e-5,
            "batch_size": 64,
            "schedule": "cosine",
            "warmup": 0.03,
            "projector_warmup_epochs": 2,
            "epochs": 2,
        },
        "recommender": {"table": "linear"},
    },
}
"""The choices where the paper and its authors' release differ; docs/method.md says why ours."""


MOVED: Mapping[str, str] = {"align.seed": "run.seed"}
"""Settings that have another name now."""


def resolve(
    preset: str = "recommended", file: str | Path | None = None, flags: Mapping[str, Any] | None = None
) -> RunConfig:
    """The configuration of a run.

    Args:
        preset: a key of `PRESETS`.
        file: a TOML file with sections as in `RunConfig`; a section named as an installed modality is that
            plugin's.
        flags: dotted keys (`align.lr`, `text.max_tokens`) to values; strings are read as TOML where they parse.

    Raises:
        UsageError: unknown preset, unreadable file, unknown key or value out of range, all named.
    """
    if preset not in PRESETS:
        raise UsageError(f"There is no preset {preset!r}.", f"Choose one of: {', '.join(PRESETS)}.")
    merged: dict[str, Any] = {}
    _merge(merged, PRESETS[preset])
    layers = [(_read_toml(Path(file)), str(file))] if file is not None else []
    for key, value in os.environ.items():
        if key.startswith("EAREC_") and "__" in key:
            layers.append((_nest(key.removeprefix("EAREC_").lower().split("__"), value), "the environment"))
    for key, value in (flags or {}).items():
        if value is not None:
            layers.append((_nest(key.split("."), value), "--set"))
    for values, source in layers:
        _merge(merged, _sorted_in(values, source))
    recommender = merged.setdefault("recommender", {})
    if isinstance(recommender, dict) and isinstance(merged.get("run"), dict):
        recommender.setdefault("seed", merged["run"].get("seed", 0))
    return validate(RunConfig, merged, "configuration")


def _sorted_in(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Settings under the sections that they belong to; a plugin's own under `modalities`.

    Raises:
        UsageError: a key has moved, or belongs to no section and no installed modality.
    """
    placed: dict[str, Any] = {}
    for name, value in values.items():
        is_section = isinstance(value, Mapping)
        for setting in (f"{name}.{key}" for key in (value if is_section else ())):
            if setting in MOVED:
                raise UsageError(f"{setting} in {source} is now {MOVED[setting]}.", "Use the new name.")
        if name in RunConfig.model_fields:
            _merge(placed, {name: value})
        elif is_section and name in names(MODALITY):
            _merge(placed, {"modalities": {name: value}})
        else:
            raise _no_section(name, source)
    return placed


def _no_section(name: str, source: str) -> UsageError:
    owners = [
        f"{section}.{name}"
        for section, info in RunConfig.model_fields.items()
        if isinstance(info.annotation, type)
        and issubclass(info.annotation, Section)
        and name in info.annotation.model_fields
    ]
    sections = ", ".join([*RunConfig.model_fields, *names(MODALITY)])
    return UsageError(
        f"{name} in {source} is no section of the configuration and no installed modality.",
        f"Write {' or '.join(owners)}." if owners else f"The sections are {sections}.",
    )


def validate(model: type[Model], values: Mapping[str, Any], subject: str) -> Model:
    """Validate `values`; UsageError that names each wrong key of `subject` in one sentence."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, e['loc'])) or subject}: {e['msg'].removeprefix('Value error, ').lower()}"
            for e in error.errors()
        )
        whose: str = "Its"
        section: type[BaseModel] = model
        for place in error.errors()[0]["loc"][:-1]:
            below = section.model_fields[str(place)].annotation if place in section.model_fields else None
            if isinstance(below, type) and issubclass(below, BaseModel):
                whose, section = f"{place}'s", below
        keys = ", ".join(section.model_fields)
        raise UsageError(f"The {subject} is not usable: {wrong}.", f"{whose} keys are: {keys}.") from None


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text())
    except OSError as error:
        raise UsageError(
            f"The configuration {file} cannot be read: {error.strerror}.", "Check --config."
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"The configuration {file} is not TOML: {error}.", "Mend that line.") from None


def _merge(into: dict[str, Any], other: Mapping[str, Any]) -> None:
    for key, value in other.items():
        if isinstance(value, Mapping):
            child = into.setdefault(key, {})
            if isinstance(child, dict):
                _merge(child, value)
                continue
        into[key] = value


def _nest(path: list[str], value: Any) -> dict[str, Any]:
    """The value under its path, a text read as TOML where it parses: `["a", "b"]` and `"1"` give `{a: {b: 1}}`.

    A setting that is a text stays one: a model in the folder `2024` is not a number.
    """
    if isinstance(value, str):
        with suppress(tomllib.TOMLDecodeError):
            read = tomllib.loads(f"v = {value}")["v"]
            if isinstance(read, str) or not _is_text(path):
                value = read
    for key in reversed(path):
        value = {key: value}
    return dict(value)


def _is_text(path: list[str]) -> bool:
    """Whether a setting of the core takes a text and nothing else."""
    section: Any = RunConfig
    for key in path:
        fields = getattr(section, "model_fields", {})
        section = fields[key].annotation if key in fields else None
    return section is str
