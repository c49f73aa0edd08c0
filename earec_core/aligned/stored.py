"""Stored adapters and composites, put back to work: checked against backbone and plugins before use."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from earec_core import config as configuration
from earec_core import plugins
from earec_core.aligned.features import ModalityInputs
from earec_core.aligned.instructions import Instructions
from earec_core.config import PromptConfig
from earec_core.errors import IntegrityError, PluginError, UsageError
from earec_core.home import home
from earec_core.llm.backbone import Backbone
from earec_core.llm.lora import MERGED, Mixture, merge
from earec_core.modality import Context, create
from earec_core.types import Item
from earec_registry import Registry

Show = Callable[[int, int, str], None]


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


def adapt(backbone: Backbone, stored: StoredModel) -> None:
    """Put a stored model's adapters to work; **the backbone is changed**.

    A routed composite runs its adapters side by side, every other model is merged into the weights.

    Raises:
        IntegrityError: the adapter is damaged or was made for a model of other shapes.
    """
    folders = {m: stored.folder / "adapters" / m for m in stored.modalities}
    if not any(folder.is_dir() for folder in folders.values()):
        merge(backbone, stored.folder)
        return
    mixture = Mixture(backbone, {**folders, MERGED: stored.folder})
    mixture.set({MERGED: 1.0}, own={m: m for m in folders})


def plugin_record(name: str) -> dict[str, Any]:
    """What a manifest says of the plugin that made a model."""
    plugin = plugins.get(name)
    assert plugin.spec is not None  # noqa: S101 - `get` returns usable plugins only
    return {
        "distribution": plugin.distribution,
        "version": plugin.version,
        "api": ".".join(map(str, plugin.spec.api_version)),
    }


def inputs_for(
    names: Sequence[str],
    settings: Mapping[str, Mapping[str, Any]],
    items: Sequence[Item],
    backbone: Backbone,
    context: Context,
    show: Show,
) -> dict[str, ModalityInputs]:
    """The modalities' inputs over a catalog, in slot order, projectors new and calibrated."""
    specs = [spec for name in names if (spec := plugins.get(name).spec)]
    made = {}
    for name in [spec.name for spec in sorted(specs, key=lambda s: (s.order, s.name))]:
        modality = create(name, settings.get(name, {}), context)
        one = ModalityInputs(
            name, modality, items, backbone, cache=home() / "cache" / "features", progress=show
        )
        one.calibrate(backbone.embedding_rms)
        made[name] = one
    return made


def instructions_for(
    model: StoredModel,
    items: Sequence[Item],
    catalog: str,
    backbone: Backbone,
    registry: Registry,
    *,
    names: Sequence[str] | None = None,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    show: Show = lambda *_: None,
) -> Instructions:
    """The catalog's prompts as this model reads them; its adapter is not yet applied to the backbone.

    Args:
        names: modalities to feed; default: all of the model's.
        overrides: plugin settings that differ on this catalog, by modality.

    Raises:
        UsageError: `names` holds one that the model was not aligned for.
        PluginError: a plugin is missing, or of another major version than the one that made the model.
        IntegrityError: the backbone is not the model's, or a projector does not fit.
    """
    model.check_base(backbone)
    unknown = sorted(set(names or ()) - set(model.modalities))
    if unknown:
        raise UsageError(
            f"Model {model.id[:12]} was not aligned for {', '.join(unknown)}; "
            f"it has {', '.join(model.modalities)}.",
            "Choose among those, or compose a model with that modality.",
        )
    wanted = [name for name in model.modalities if names is None or name in names]
    for name in wanted:
        _check_plugin(name, _accepted_plugin(model, name))
    settings = {n: {**model.modalities[n]["config"], **(overrides or {}).get(n, {})} for n in wanted}
    context = Context(catalog, registry.root, home())
    inputs = inputs_for(wanted, settings, items, backbone, context, show)
    for name, one in inputs.items():
        load_projector(one, model.folder / model.modalities[name]["projector"])
    return Instructions(items, backbone, inputs, model.prompt, catalog)


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
