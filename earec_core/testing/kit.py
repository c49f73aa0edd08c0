"""A modality set up to be checked: its examples as a catalog, its parts, a tiny LLM. Made once, on demand."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
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
from earec_core.testing.clauses import expecting, require, seeded
from earec_core.testing.compare import shaped
from earec_core.testing.examples import catalog_of
from earec_registry import Registry

FEWEST = 3
"""Examples that a check needs: fewer cannot show that rows mix."""

Given = tuple[PluginConfig, Sequence[Item]] | None


class Kit:
    """What the checks of one modality share.

    Args:
        name: an installed modality.
        folder: an empty folder to work in.
        given: gives examples in place of the plugin's own (`Modality.examples`); None for the latter.
    """

    def __init__(self, name: str, folder: Path, given: Callable[[Path], Given] | None = None) -> None:
        self.name, self.folder, self._given = name, folder, given

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
    def examples(self) -> tuple[PluginConfig, Sequence[Item]]:
        """Configuration and items that the plugin gives to be checked with."""
        folder = self.new_folder("examples")
        with expecting("examples(folder) must give a configuration and items"):
            found = (self._given or self.factory.examples)(folder)
            require(
                found is not None,
                "The kit needs items to check with: add to the Modality a classmethod examples(cls, folder) "
                f"that returns a configuration and at least {FEWEST} items that have the modality, their "
                "inputs different.",
            )
            assert found is not None  # noqa: S101 - for mypy
            config, items = found
            require(
                isinstance(config, self.config_model)
                and len({item.id for item in items}) == len(items) >= FEWEST,
                f"examples(folder) must give a {self.config_model.__name__} and at least {FEWEST} items with "
                f"different ids, but it gives a {type(config).__name__} and {len(items)} items with "
                f"{len({item.id for item in items})} ids.",
            )
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
        return create(self.name, self.config.model_dump(mode="json"), self._context)

    @cached_property
    def modality(self) -> Modality[Any]:
        """The modality, made once."""
        with expecting("The factory must take the configuration that examples(folder) gives"):
            return self.new_modality()

    @cached_property
    def raws(self) -> list[Any]:
        """Raw input of every example."""
        raws = []
        for item in self.items:
            with expecting(f"read must give the input of every example, item {item.id} among them"):
                raws.append(self.modality.read(item))
            require(
                raws[-1] is not None,
                f"Every example must have the modality, but read gives None for item {item.id}.",
            )
        return raws

    @cached_property
    def backbone(self) -> Backbone:
        """A tiny LLM that the checks leave as it was loaded."""
        with self._own_home():
            return Backbone.load(self._tiny)

    @cached_property
    def encoder(self) -> Encoder:
        """The encoder as the plugin gives it."""
        return self.new_encoder(0)

    def new_encoder(self, seed: int) -> Encoder:
        """Another encoder, built with torch's generator at `seed`."""
        with seeded(seed), expecting("build_encoder(llm) must give an Encoder"):
            encoder = self.modality.build_encoder(self.backbone)
            require(
                isinstance(encoder, Encoder),
                f"build_encoder must give an earec_core.modality.Encoder, not a {type(encoder).__name__}.",
            )
        return encoder

    @cached_property
    def encoded(self) -> Encoded:
        """All examples, encoded in one batch."""
        return self.encode(self.raws)

    @torch.no_grad()
    def encode(self, raws: Sequence[Any], encoder: Encoder | None = None) -> Encoded:
        """Raw inputs through the encoder, shapes checked."""
        with expecting("The encoder must take what read gives"):
            encoded = (encoder or self.encoder)(list(raws))
        shaped(encoded, len(raws), self.encoder.d_enc, "encoder")
        return Encoded(*encoded)

    def new_projector(self, seed: int = 0) -> Projector:
        """A projector, built with torch's generator at `seed`."""
        with seeded(seed), expecting("build_projector(d_enc, d_llm) must give a Projector"):
            projector = self.modality.build_projector(self.encoder.d_enc, self.backbone.d_llm)
            require(
                isinstance(projector, Projector),
                f"build_projector must give an earec_core.modality.Projector, not a "
                f"{type(projector).__name__}.",
            )
        return projector

    def calibrated_projector(self, seed: int = 0) -> Projector:
        """A projector as training starts with it."""
        projector = self.new_projector(seed)
        with expecting("calibrate(x, rms) must take the encoded examples"):
            projector.calibrate(self.encoded, self.backbone.embedding_rms)
        return projector

    @torch.no_grad()
    def project(self, projector: Projector, encoded: Encoded) -> Encoded:
        """An encoded batch through a projector, shapes checked."""
        with expecting("The projector must take what the encoder gives"):
            projected = projector(encoded)
        shaped(projected, len(encoded.h), self.backbone.d_llm, "projector")
        return Encoded(*projected)

    @cached_property
    def catalog(self) -> Catalog:
        """The examples as a catalog."""
        _, items = self.examples
        with expecting("The examples' fields must be what a catalog's columns can hold"):
            return catalog_of(items, self.new_folder("examples"))

    @cached_property
    def registry(self) -> Registry:
        """A registry of the kit's own."""
        return Registry.open(self.folder / "registry")

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
        with self._own_home(), seeded(0), expecting("The modality must align on its own examples"):
            return align(self.catalog, self.name, self.run_config, self.registry, backbone=self.backbone)

    def vectors(self, reference: str) -> Float[np.ndarray, "n d"]:
        """Item vectors of the examples by a model of the registry (Eq. 5)."""
        with self._own_home(), expecting("The stored model must encode the examples"):
            return encode(
                self.catalog, reference, self.run_config, self.registry, backbone=self.backbone
            ).vectors

    @property
    def _context(self) -> Context:
        return Context("examples", self.registry.root, self._home)

    @property
    def _home(self) -> Path:
        return self.folder / "home"

    @cached_property
    def _tiny(self) -> BackboneConfig:
        return BackboneConfig(model=str(tiny_backbone(self.folder / "llm")), dtype="float32", device="cpu")

    def new_folder(self, name: str) -> Path:
        """A folder of the kit's own."""
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @contextmanager
    def _own_home(self) -> Iterator[None]:
        """Runs and caches of the checks stay out of the user's home."""
        before = os.environ.get("EAREC_HOME")
        os.environ["EAREC_HOME"] = str(self._home)
        try:
            yield
        finally:
            if before is None:
                del os.environ["EAREC_HOME"]
            else:
                os.environ["EAREC_HOME"] = before
