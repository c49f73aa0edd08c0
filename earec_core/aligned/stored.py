"""Stored adapters and composites, put back to work: checked against backbone and plugins before use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from earec_core import config as configuration
from earec_core import plugins
from earec_core.aligned.build import inputs_for
from earec_core.aligned.features import ModalityInputs
from earec_core.aligned.model import AlignedModel
from earec_core.aligned.prompts import ItemPrompts
from earec_core.config import PromptConfig
from earec_core.errors import IntegrityError, PluginError, UsageError
from earec_core.home import home
from earec_core.llm.backbone import Adapter, Backbone
from earec_core.llm.lora import MergedLora, Mixture
from earec_core.modality import Context
from earec_core.types import Item, Show
from earec_registry import Registry

_MERGED = "(merged)"


@dataclass(frozen=True)
class StoredModel:
    """An adapter (one modality) or a composite (several) of the registry.

    Attributes:
        id: its digest.
        data: its manifest.
        folder: its files as a plain directory.
    """

    id: str
    data: Mapping[str, Any]
    folder: Path

    @classmethod
    def open(cls, registry: Registry, reference: str) -> StoredModel:
        """The model that a name, `name:tag` or id refers to, its files verified.

        Raises:
            UsageError: it is of another kind.
            RegistryError: it is not there, or damaged.
        """
        manifest = registry.manifest(reference)
        if manifest.kind not in ("adapter", "composite"):
            raise UsageError(
                f"{reference!r} is a {manifest.kind}, not an adapter or composite.",
                "See `earec registry list` for those there are.",
            )
        return cls(manifest.id, manifest.data, registry.materialize(reference))

    @property
    def modalities(self) -> Mapping[str, Mapping[str, Any]]:
        """By name: plugin, configuration, shapes and projector file of each modality."""
        found: Mapping[str, Mapping[str, Any]] = self.data["modalities"]
        return found

    @property
    def prompt(self) -> PromptConfig:
        """The template it was aligned with."""
        return configuration.validate(PromptConfig, self.data["prompt"], "stored template")

    def adapter(self) -> Adapter:
        """What puts the model's adapters on its backbone (`Backbone.adapted`).

        A routed composite runs its adapters side by side, every other model is merged into the weights.

        Raises:
            IntegrityError: an adapter is damaged; on the backbone: it was made for a model of other shapes.
        """
        folders = {m: self.folder / "adapters" / m for m in self.modalities}
        if not any(folder.is_dir() for folder in folders.values()):
            return MergedLora(self.folder)
        mixture = Mixture({**folders, _MERGED: self.folder})
        mixture.set({_MERGED: 1.0}, own={m: m for m in folders})
        return mixture

    def check_base(self, backbone: Backbone) -> None:
        """Refuse a backbone that is not the one the model was aligned on.

        Raises:
            IntegrityError: weights or tokenizer differ; both are named.
        """
        have, want = backbone.info.as_manifest(), self.data["base"]
        for part in ("weights", "tokenizer"):
            if have[part] != want[part]:
                raise IntegrityError(
                    f"Model {self.id[:12]} was aligned on {want['id']} ({part} {want[part][:12]}…), "
                    f"this backbone is {have['id']} ({have[part][:12]}…).",
                    f"Use --backbone {want['id']}.",
                )


def plugin_record(name: str) -> dict[str, Any]:
    """What a manifest says of the plugin that made a model."""
    plugin = plugins.get(name)
    assert plugin.spec is not None  # noqa: S101 - `get` returns usable plugins only
    return {
        "distribution": plugin.distribution,
        "version": plugin.version,
        "api": ".".join(map(str, plugin.spec.api_version)),
    }


def stored_model(
    stored: StoredModel,
    items: Sequence[Item],
    catalog: str,
    backbone: Backbone,
    registry: Registry,
    *,
    names: Sequence[str] | None = None,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    show: Show = lambda *_: None,
) -> AlignedModel:
    """A stored model over a catalog, its projectors loaded; `stored.adapter()` is what its backbone needs.

    Args:
        names: modalities to feed; default: all of the model's.
        overrides: plugin settings that differ on this catalog, by modality.

    Raises:
        UsageError: `names` holds one that the model was not aligned for.
        PluginError: a plugin is missing, or of another major version than the one that made the model.
        IntegrityError: the backbone is not the model's, or a projector does not fit.
    """
    stored.check_base(backbone)
    unknown = sorted(set(names or ()) - set(stored.modalities))
    if unknown:
        raise UsageError(
            f"Model {stored.id[:12]} was not aligned for {', '.join(unknown)}; "
            f"it has {', '.join(stored.modalities)}.",
            "Choose among those, or compose a model with that modality.",
        )
    wanted = [name for name in stored.modalities if names is None or name in names]
    for name in wanted:
        _check_plugin(name, _accepted_plugin(stored, name))
    settings = {n: {**stored.modalities[n]["config"], **(overrides or {}).get(n, {})} for n in wanted}
    inputs = inputs_for(wanted, settings, items, backbone, Context(catalog, registry.root, home()), show)
    for name, one in inputs.items():
        load_projector(one, stored.folder / stored.modalities[name]["projector"])
    prompts = ItemPrompts(items, inputs, stored.prompt, backbone.tokenizer, catalog)
    return AlignedModel(backbone, inputs, prompts)


def load_projector(inputs: ModalityInputs, file: Path) -> None:
    """Load a stored projector into a modality.

    Raises:
        IntegrityError: damaged, or of other shapes.
    """
    try:
        inputs.projector.load_state_dict(load_file(file))
    except (SafetensorError, OSError, RuntimeError) as error:
        raise IntegrityError(
            f"The projector {file.name} of {inputs.name} does not fit: {str(error).splitlines()[0]}",
            "Use the configuration it was aligned with, or align again.",
        ) from error


def _accepted_plugin(model: StoredModel, name: str) -> Mapping[str, Any]:
    """The plugin that made the modality; the version that composition was told to accept, if it was."""
    record: Mapping[str, Any] = model.modalities[name]["plugin"]
    known = model.data.get("overridden", {}).get("plugin", {}).get(f"{name}.version")
    return {**record, "version": known["installed"]} if known else record


def _check_plugin(name: str, recorded: Mapping[str, Any]) -> None:
    have = plugin_record(name)
    old, new = (str(r["version"]).partition(".")[0] for r in (recorded, have))
    if old != new:
        raise PluginError(
            f"The model's modality {name!r} was made by {recorded['distribution']} {recorded['version']}; "
            f"installed is {have['version']}.",
            f"Install the version it was made with: pip install '{recorded['distribution']}=={old}.*'",
        )
