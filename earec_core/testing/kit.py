"""A modality set up to be checked: its examples as a catalog, its parts, a tiny LLM. Made once, on demand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float

from earec_core import plugins
from earec_core.align import Alignment, align
from earec_core.catalog import Catalog
from earec_core.config import AlignConfig, BackboneConfig, LoraSettings, PromptConfig, RunConfig
from earec_core.encode import encode
from earec_core.llm.backbone import Backbone
from earec_core.modality import Context, Encoded, Encoder, Item, Modality, PluginConfig, Projector, create
from earec_core.plugins import Plugin
from earec_core.plugins.spec import ModalitySpec
from earec_core.testing import tiny_backbone
from earec_core.testing.clauses import ContractError, clause, seeded
from earec_core.testing.compare import forward
from earec_core.testing.examples import catalog_of
from earec_core.workspace import Workspace

FEWEST = 3
"""Examples that a check needs: fewer cannot show that rows mix."""

Examples = tuple[PluginConfig, Sequence[Item]]
Source = Callable[[Path], Examples | None]
Part = TypeVar("Part", Encoder, Projector)


class Kit:
    """What the checks of one modality share.

    Args:
        name: an installed modality.
        folder: an empty folder to work in.
        given: gives examples in place of the plugin's own (`Modality.examples`), or None for the latter.
        settings: of the plugin, in place of those that the examples' configuration has.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        given: Source = lambda _: None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.name, self.folder, self._given, self._settings = name, folder, given, dict(settings or {})

    @cached_property
    def plugin(self) -> Plugin:
        """The usable plugin; PluginError says why it is not."""
        return plugins.get(self.name)

    @property
    def spec(self) -> ModalitySpec:
        """What it declares."""
        spec = self.plugin.spec
        assert spec is not None  # noqa: S101 - `get` returns usable plugins only
        return spec

    @property
    def config_model(self) -> type[PluginConfig]:
        """The class of its configuration."""
        model: type[PluginConfig] = plugins.part(self.plugin, "config", PluginConfig)
        return model

    @property
    def factory(self) -> type[Modality[Any]]:
        """The class of the modality."""
        factory: type[Modality[Any]] = plugins.part(self.plugin, "factory", Modality)
        return factory

    @cached_property
    def examples(self) -> Examples:
        """Configuration and items that the plugin gives to be checked with."""
        folder = self.new_folder("examples")
        with clause(
            f"examples(folder) must give a config and {FEWEST} items or more of different ids"
        ) as require:
            examples = self._given(folder) or self.factory.examples(folder)
            if examples is None:
                raise ContractError(
                    "The kit needs items to check with: add to the Modality a classmethod examples(cls, folder) "
                    f"that returns a configuration and at least {FEWEST} items that have the modality, their "
                    "inputs different."
                )
            config, items = examples
            ids = {item.id for item in items}
            require(
                isinstance(config, self.config_model) and len(ids) == len(items) >= FEWEST,
                f"it gives a {type(config).__name__} and {len(items)} items with {len(ids)} ids",
            )
        with clause("The configuration must take the settings given") as require:
            config = type(config).model_validate({**config.model_dump(), **self._settings})
        return config, items

    @property
    def config(self) -> PluginConfig:
        """The configuration that reads the examples."""
        return self.examples[0]

    @property
    def items(self) -> Sequence[Item]:
        """The examples as a catalog gives them."""
        return self.catalog.all_items()

    @property
    def bare(self) -> Item:
        """An item that has no modality at all."""
        return Item(len(self.items), "an item without input", None)

    def new_modality(self) -> Modality[Any]:
        """The modality as the core makes it from its stored configuration."""
        context = Context("examples", self.workspace.registry.root, self.workspace.home)
        return create(self.name, self.config.model_dump(mode="json"), context)

    @cached_property
    def modality(self) -> Modality[Any]:
        """The modality, made once."""
        with clause("The factory must take the configuration that examples(folder) gives"):
            return self.new_modality()

    @cached_property
    def raws(self) -> list[Any]:
        """Raw input of every example."""
        raws = []
        for item in self.items:
            with clause(f"read must give the input of every example, item {item.id} included") as require:
                raws.append(self.modality.read(item))
                require(raws[-1] is not None, "it gives None")
        return raws

    @cached_property
    def backbone(self) -> Backbone:
        """A tiny LLM that the checks leave as it was loaded."""
        return Backbone.load(self._tiny)

    @cached_property
    def encoder(self) -> Encoder:
        """The encoder as the plugin gives it."""
        return self.new_encoder(0)

    def new_encoder(self, seed: int) -> Encoder:
        """Another encoder, built with torch's generator at `seed`."""
        return _build(seed, Encoder, lambda: self.modality.build_encoder(self.backbone))

    @cached_property
    def encoded(self) -> Encoded:
        """All examples, encoded in one batch."""
        return self.encode(self.raws)

    def encode(self, raws: Sequence[Any], encoder: Encoder | None = None) -> Encoded:
        """Raw inputs through the encoder, shapes checked."""
        return forward(encoder or self.encoder, list(raws), len(raws), self.encoder.d_enc)

    def new_projector(self, seed: int = 0) -> Projector:
        """A projector, built with torch's generator at `seed`."""
        widths = self.encoder.d_enc, self.backbone.d_llm
        return _build(seed, Projector, lambda: self.modality.build_projector(*widths))

    def calibrated_projector(self, seed: int = 0) -> Projector:
        """A projector as training starts with it."""
        projector = self.new_projector(seed)
        with clause("calibrate(x, rms) must take the encoded examples"):
            projector.calibrate(self.encoded, self.backbone.embedding_rms)
        return projector

    def project(self, projector: Projector, encoded: Encoded) -> Encoded:
        """An encoded batch through a projector, shapes checked."""
        return forward(projector, encoded, len(encoded.h), self.backbone.d_llm)

    @cached_property
    def catalog(self) -> Catalog:
        """The examples as a catalog."""
        _, items = self.examples
        with clause("The examples' fields must be what a catalog's columns can hold"):
            return catalog_of(items, self.new_folder("examples"))

    @cached_property
    def workspace(self) -> Workspace:
        """A workspace of the kit's own: runs and caches of the checks stay out of the user's home."""
        return Workspace.open(self.folder / "home")

    @property
    def run_config(self) -> RunConfig:
        """Settings of an alignment that takes a second."""
        return RunConfig(
            backbone=self._tiny,
            prompt=PromptConfig(item="{item}", request="Say it.", max_relations=0, max_tokens=4096),
            lora=LoraSettings(r=4, alpha=8),
            align=AlignConfig(
                epochs=12,
                batch_size=8,
                lr=1e-2,
                projector_lr=1e-2,
                schedule="constant",
                warmup=0.0,
                eval_every=1000,
                rouge_items=0,
            ),
            modalities={self.name: self.config.model_dump(mode="json")},
        )

    @cached_property
    def alignment(self) -> Alignment:
        """A tiny alignment of the modality, its adapter registered."""
        with seeded(0), clause("The modality must align on its own examples"):
            return align(self.workspace, self.catalog, self.name, self.run_config, backbone=self.backbone)

    def vectors(self, reference: str) -> Float[np.ndarray, "n d"]:
        """Item vectors of the examples by a model of the registry (Eq. 5)."""
        with clause("The stored model must encode the examples"):
            return encode(
                self.workspace, self.catalog, reference, self.run_config, backbone=self.backbone
            ).vectors

    @cached_property
    def _tiny(self) -> BackboneConfig:
        return BackboneConfig(model=str(tiny_backbone(self.folder / "llm")), dtype="float32", device="cpu")

    def new_folder(self, name: str) -> Path:
        """A folder of the kit's own."""
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def _build(seed: int, kind: type, build: Callable[[], Part]) -> Part:
    """A part of the modality, built with torch's generator at `seed`."""
    name = kind.__name__
    with seeded(seed), clause(f"build_{name.lower()} must give an earec_core.modality.{name}") as require:
        part = build()
        require(isinstance(part, kind), f"it gives a {type(part).__name__}")
    return part
