"""Stored adapters and composites, put back to work: checked against backbone and plugins before use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError
from safetensors.torch import load_file

from earec_core import plugins
from earec_core.aligned.build import new_model
from earec_core.aligned.features import ModalityInputs
from earec_core.aligned.model import AlignedModel
from earec_core.artifacts import AdapterManifest, BaseRecord, CompositeManifest, PluginRecord, Stored, open_as
from earec_core.catalog import Catalog
from earec_core.errors import IntegrityError, PluginError, UsageError
from earec_core.llm.backbone import Adapter, Backbone
from earec_core.llm.lora import MergedLora, Mixture
from earec_core.llm.store import NAMED
from earec_core.workspace import Workspace
from earec_registry import Registry

StoredModel = Stored[AdapterManifest] | Stored[CompositeManifest]
"""An adapter (one modality) or a composite (several) of the registry."""

_MERGED = "(merged)"


def open_model(registry: Registry, reference: str) -> StoredModel:
    """The model that a name, `name:tag` or id refers to, its files verified.

    Raises:
        UsageError: it is of another kind.
        RegistryError: it is not there, or damaged.
    """
    return cast("StoredModel", open_as(registry, reference, AdapterManifest, CompositeManifest))


def adapter_of(stored: StoredModel) -> Adapter:
    """The model's adapters in the form that its backbone takes (`Backbone.adapted`).

    A routed composite runs its adapters side by side, every other model is merged into the weights.

    Raises:
        IntegrityError: an adapter is damaged; on the backbone: it was made for a model of other shapes.
    """
    folders = {m: stored.folder / "adapters" / m for m in stored.manifest.modalities}
    return composed_adapter(stored.folder, folders if any(map(Path.is_dir, folders.values())) else {})


def composed_adapter(merged: Path, own: Mapping[str, Path]) -> Adapter:
    """A composed adapter in the form that a backbone takes.

    Args:
        merged: its PEFT directory.
        own: of a routed one each modality's own adapter, through which the modality's positions go; else none.

    Raises:
        IntegrityError: see `adapter_of`.
    """
    if not own:
        return MergedLora(merged)
    mixture = Mixture({**own, _MERGED: merged})
    mixture.set({_MERGED: 1.0}, own={m: m for m in own})
    return mixture


def check_base(stored: StoredModel, backbone: BaseRecord) -> None:
    """Refuse a backbone that is not the one the model was aligned on.

    Raises:
        IntegrityError: weights or tokenizer differ; both are named.
    """
    base = stored.manifest.base
    for part in ("weights", "tokenizer"):
        digest, given = getattr(base, part), getattr(backbone, part)
        if digest != given:
            given_name = "another of that name" if base.id == backbone.id else backbone.id
            recorded = base.id != backbone.id and (base.id in NAMED or "/" in base.id)
            raise IntegrityError(
                f"Model {stored.id[:12]} was aligned on {base.id} ({part} {digest[:12]}…), "
                f"this backbone is {given_name} ({given[:12]}…).",
                f"Use --backbone {base.id}."
                if recorded
                else "Give --backbone the directory that it was aligned on.",
            )


def plugin_record(name: str) -> PluginRecord:
    """The installed plugin of a modality, as a manifest records it."""
    plugin = plugins.get(name)
    assert plugin.spec is not None  # noqa: S101 - `get` returns usable plugins only
    return PluginRecord(
        distribution=plugin.distribution,
        version=plugin.version,
        api=".".join(map(str, plugin.spec.api_version)),
    )


def stored_model(
    workspace: Workspace,
    catalog: Catalog,
    backbone: Backbone,
    stored: StoredModel,
    *,
    names: Sequence[str] | None = None,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    window: int | None = None,
) -> AlignedModel:
    """A stored model over a catalog, its projectors loaded; `adapter_of(stored)` is what its backbone needs.

    Args:
        names: modalities to feed; default: all of the model's.
        overrides: plugin settings that differ on this catalog, by modality.
        window: see `earec_core.aligned.build.new_model`.

    Raises:
        UsageError: `names` holds one that the model was not aligned for.
        PluginError: a plugin is missing, or of another major version than the one that made the model.
        IntegrityError: the backbone is not the model's, or a projector does not fit.
    """
    check_base(stored, backbone.info)
    modalities = stored.manifest.modalities
    unknown = sorted(set(names or ()) - set(modalities))
    if unknown:
        raise UsageError(
            f"Model {stored.id[:12]} was not aligned for {', '.join(unknown)}; it has {', '.join(modalities)}.",
            "Choose among those, or compose a model with that modality.",
        )
    names = [name for name in modalities if names is None or name in names]
    for name in names:
        _check_plugin(stored, name)
    settings = {name: {**modalities[name].config, **(overrides or {}).get(name, {})} for name in names}
    manifest = stored.manifest
    model = new_model(
        workspace, catalog, backbone, settings, manifest.prompt, chat=manifest.chat, window=window
    )
    for name, inputs in model.inputs.items():
        load_projector(inputs, stored.folder / modalities[name].projector)
    return model


def joined_model(
    workspace: Workspace,
    catalog: Catalog,
    backbone: Backbone,
    models: Sequence[StoredModel],
    *,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
) -> AlignedModel:
    """The inputs of several stored models in one, each with its own projector, on the first one's template.

    Raises:
        PluginError, IntegrityError: see `stored_model`.
    """
    parts = [stored_model(workspace, catalog, backbone, stored, overrides=overrides) for stored in models]
    inputs = {name: inputs for part in parts for name, inputs in part.inputs.items()}
    return AlignedModel(backbone, inputs, parts[0].prompts.over(inputs))


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


def _check_plugin(stored: StoredModel, name: str) -> None:
    """Refuse a plugin of another major version than made the modality, or than composition was told to accept."""
    recorded, installed = stored.manifest.modalities[name].plugin, plugin_record(name).version
    version = recorded.version
    if isinstance(stored.manifest, CompositeManifest):
        accepted = stored.manifest.overridden.get("plugin", {}).get(f"{name}.version")
        version = str(accepted.get("installed", version)) if accepted else version
    major = version.partition(".")[0]
    if major != installed.partition(".")[0]:
        raise PluginError(
            f"The model's modality {name!r} was made by {recorded.distribution} {version}; "
            f"installed is {installed}.",
            f"Install the version it was made with: pip install '{recorded.distribution}=={major}.*'",
        )
