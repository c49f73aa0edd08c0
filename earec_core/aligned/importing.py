"""From a directory with a PEFT adapter to one of the registry, checked against the LLM and the modality first."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from earec_core.aligned.features import ModalityInputs, read_inputs
from earec_core.aligned.stored import load_projector, plugin_record
from earec_core.artifacts import AdapterManifest, ModalityRecord, Shapes, save
from earec_core.artifacts.base import read
from earec_core.config import LoraSettings, RunConfig, validate
from earec_core.errors import IntegrityError, UsageError, one_line
from earec_core.files import sha256
from earec_core.llm.backbone import Backbone
from earec_core.llm.layers import linear_weight
from earec_core.llm.peft_adapter import CONFIG, WEIGHTS, LoraAdapter
from earec_core.llm.prompts import PromptBuilder
from earec_core.llm.store import hub_id
from earec_core.modality import Context, create
from earec_core.train.checkpoint import not_finite
from earec_core.workspace import Workspace
from earec_registry import DamagedError, InvalidError
from earec_registry.manifest import Manifest, canonical, parse

MANIFEST = "earec_manifest.json"
"""What `earec export --as hub` writes beside an adapter."""
_LARGEST = 16 << 20  # bytes of a manifest
_PLAIN = "Train it as plain LoRA of one rank and one alpha."


@dataclass(frozen=True)
class ImportedAdapter:
    """An adapter that came from a directory.

    Attributes:
        id: in the registry; `name` points to it.
        modality: whose adapter it is.
        exported: whether EAREC had exported it, so that its manifest is the one of before.
        projector: whether the modality's projector came with it.
    """

    id: str
    name: str
    modality: str
    exported: bool
    projector: bool


def import_adapter(
    workspace: Workspace,
    folder: Path,
    name: str,
    config: RunConfig,
    *,
    modality: str | None = None,
    backbone: Backbone | None = None,
) -> ImportedAdapter:
    """Register the adapter of a directory that PEFT or `earec export` wrote; nothing is stored of what is refused.

    With `earec_manifest.json` beside it, it is the model that was exported, with its id. Otherwise its manifest
    says what is given here, and nothing of its training, which is not known.

    Args:
        folder: `adapter_config.json`, `adapter_model.safetensors`, and `projectors/MODALITY.safetensors` where the
            modality has a projector that is trained.
        name: what to register it as.
        config: of a directory without manifest: the LLM, the prompt, the modality's settings.
        modality: an installed plugin's name; not needed where there is a manifest.
        backbone: one already loaded, without adapter; default: loaded from the configuration.

    Raises:
        UsageError: it is no plain LoRA adapter, not one of this LLM or modality, or lacks the projector.
        IntegrityError: a file is damaged, or is not the one that the manifest names.
        PluginError: the modality's plugin is missing or fails.
        RegistryError: what its encoder reads is not in the registry.
    """
    workspace.registry.check_name(name)
    if not folder.is_dir():
        raise UsageError(f"{folder} is no directory.", "Name the directory of a PEFT adapter.")
    if (folder / MANIFEST).is_file():
        return _exported(workspace, folder, name, modality)
    if modality is None:
        raise UsageError(
            f"{folder} has no {MANIFEST}, so it does not say which modality its adapter reads.",
            "Name it: --modality NAME.",
        )
    return _foreign(workspace, folder, name, modality, config, backbone)


def _exported(workspace: Workspace, folder: Path, name: str, modality: str | None) -> ImportedAdapter:
    """Of a directory for the hub: the model that was exported, file by file."""
    stored = _read_manifest(folder / MANIFEST)
    if stored.kind != "adapter":
        raise UsageError(
            f"{folder} holds a model of kind {stored.kind}, not an adapter; its parts are not in it.",
            "Copy it with its parts: earec registry pull.",
        )
    manifest = read(stored, AdapterManifest)
    if modality not in (None, manifest.modality):
        raise UsageError(
            f"The adapter of {folder} is one of {manifest.modality}.", "Leave --modality out, or name that."
        )
    adapter = _open(folder)
    workspace.registry.require(*manifest.parents)
    with tempfile.TemporaryDirectory() as scratch:
        files = {path: folder / path for path in stored.files}
        own = _config_of(adapter.config, manifest.base.id)
        if hashlib.sha256(own).hexdigest() == stored.files[CONFIG].sha256:
            files[CONFIG] = Path(scratch, CONFIG)  # as it was before it named the LLM as the hub does
            files[CONFIG].write_bytes(own)
        for path, file in files.items():
            if not file.is_file() or sha256(file) != stored.files[path].sha256:
                raise IntegrityError(
                    f"{folder / path} is not the file that {MANIFEST} names.",
                    f"Get the directory again; without {MANIFEST} it is imported as PEFT's alone.",
                )
        said = {key: value for key, value in stored.data.items() if key != "files"}
        identity = workspace.registry.add(said, files, name=name, why=f"import {folder.name}")
    return ImportedAdapter(identity, name, manifest.modality, True, True)


def _foreign(
    workspace: Workspace,
    folder: Path,
    name: str,
    modality: str,
    config: RunConfig,
    backbone: Backbone | None,
) -> ImportedAdapter:
    """Of any other directory: a new model, of which is known what its files and this call say."""
    plugin, adapter = plugin_record(modality), _open(folder)
    lora = _lora(adapter)
    backbone = backbone or Backbone.load(config.backbone, workspace)
    _check_base(workspace, adapter, backbone)
    _check_layers(adapter, backbone)
    context = Context(registry=workspace.registry.root, home=workspace.home)
    made = create(modality, config.modalities.get(modality, {}), context)
    inputs = read_inputs(modality, made, [], backbone)
    trained = _load_projector(inputs, folder)
    chat = PromptBuilder(config.prompt, backbone.tokenizer, "", limit=backbone.positions).chat
    projector = f"projectors/{modality}.safetensors"
    manifest = AdapterManifest(
        modality=modality,
        modalities={
            modality: ModalityRecord(
                plugin=plugin,
                config=inputs.resolved_config(),
                shapes=Shapes(d_enc=inputs.encoder.d_enc, d_llm=backbone.d_llm),
                projector=projector,
            )
        },
        base=backbone.info,
        prompt=config.prompt,
        chat=chat,
        lora=lora,
        parents=inputs.modality.sources(),
        training=None,
        metrics={},
    )
    with tempfile.TemporaryDirectory() as scratch:
        files = {CONFIG: Path(scratch, CONFIG), WEIGHTS: folder / WEIGHTS, projector: folder / projector}
        files[CONFIG].write_bytes(_config_of(adapter.config, backbone.info.id))
        if not trained:
            files[projector] = Path(scratch, "projector.safetensors")
            save_file({}, files[projector])
        identity = save(workspace.registry, manifest, files, name=name, why=f"import {folder.name}")
    return ImportedAdapter(identity, name, modality, False, trained)


def _read_manifest(file: Path) -> Manifest:
    """The manifest that `write_hub` wrote.

    Raises:
        IntegrityError: it is none.
    """
    try:
        if file.stat().st_size > _LARGEST:
            raise ValueError(f"it has more than {_LARGEST >> 20} MiB")
        raw = canonical(json.loads(file.read_text(encoding="utf-8")))
        return parse(raw, hashlib.sha256(raw).hexdigest(), str(file))
    except (OSError, ValueError, RecursionError, InvalidError, DamagedError) as error:
        raise IntegrityError(
            f"{file} is no manifest ({one_line(error)}).", "Get the directory again from its source."
        ) from error


def _open(folder: Path) -> LoraAdapter:
    """The adapter of a directory, every number of it looked at."""
    adapter = LoraAdapter.open(folder)
    for module in adapter.shapes:
        adapter.stored(module)
    return adapter


def _lora(adapter: LoraAdapter) -> LoraSettings:
    """Rank, alpha and dropout as `align` has them.

    Raises:
        UsageError: they differ by module, are no integers, or are rsLoRA's.
    """
    config, file = adapter.config, adapter.path / CONFIG
    r, alpha = config.get("r", 8), config.get("lora_alpha", 8)
    if config.get("use_rslora"):
        own = alpha * r**0.5
        raise UsageError(
            f"{file} says use_rslora: it divides alpha by the root of the rank, and EAREC's adapters by the rank.",
            f"Write use_rslora: false and lora_alpha: {own:.0f} there, which is the same adapter."
            if own == int(own)
            else _PLAIN,
        )
    if given := [key for key in ("rank_pattern", "alpha_pattern") if config.get(key)]:
        raise UsageError(f"{file} has a {given[0]}: its modules differ in rank or alpha.", _PLAIN)
    values = {"r": r, "alpha": alpha, "dropout": config.get("lora_dropout") or 0.0}
    return validate(LoraSettings, values, f"LoRA of {file}")


def _check_base(workspace: Workspace, adapter: LoraAdapter, backbone: Backbone) -> None:
    """Refuse an adapter that names another LLM of the hub; say where names cannot tell."""
    named, own = adapter.config.get("base_model_name_or_path"), backbone.info.id
    known = hub_id(own)
    if named in (own, known):
        return
    if known and isinstance(named, str) and hub_id(named):
        raise UsageError(
            f"The adapter in {adapter.path} was made for {named}, and the backbone {own} is {known}.",
            f"Say --backbone {named}; if the two are the same, correct base_model_name_or_path in {CONFIG}.",
        )
    workspace.note(
        f"The adapter was made for {named or 'an LLM without name'}; that it is {own} is known by its shapes alone."
    )


def _check_layers(adapter: LoraAdapter, backbone: Backbone) -> None:
    """Refuse modules that `align` does not adapt in this LLM, or that have other shapes in it."""
    adapted = set(backbone.linear_modules())
    for module, (d_out, _, d_in) in adapter.shapes.items():
        if module not in adapted:
            raise UsageError(
                f"The adapter in {adapter.path} changes {module}, which is none of the linear layers that EAREC "
                f"adapts in {backbone.info.id}.",
                "Give the LLM that it was made for (--backbone), or train it on the linear layers of the blocks.",
            )
        weight = linear_weight(backbone.model.get_submodule(module))
        assert weight is not None  # noqa: S101 - what is adapted is linear
        if weight.shape != (d_out, d_in):
            raise UsageError(
                f"{module} is {d_out}x{d_in} (out x in) in the adapter of {adapter.path} and "
                f"{weight.shape[0]}x{weight.shape[1]} in the backbone {backbone.info.id}.",
                "Give the LLM that it was made for: --backbone.",
            )


def _load_projector(inputs: ModalityInputs, folder: Path) -> bool:
    """Try the directory's projector; False where the modality has nothing to train in one.

    Raises:
        UsageError: there is none.
        IntegrityError: it does not fit, or is not finite.
    """
    if not inputs.projector.state_dict():
        return False
    file = folder / "projectors" / f"{inputs.name}.safetensors"
    if not file.is_file():
        raise UsageError(
            f"The modality {inputs.name} needs a trained projector, and {file} is not there: PEFT's files hold the "
            "LLM's part alone.",
            f"Import what `earec export --as hub` wrote, or align it: earec align --modality {inputs.name}.",
        )
    load_projector(inputs, file)
    if unusable := not_finite(inputs.projector.state_dict()):
        raise IntegrityError(f"{unusable} in {file} holds NaN or infinity.", "Get it again from its source.")
    return True


def _config_of(config: Mapping[str, Any], base: str) -> bytes:
    """`adapter_config.json` as PEFT writes it, with the LLM by the name that EAREC has for it."""
    return json.dumps({**config, "base_model_name_or_path": base}, indent=2, sort_keys=True).encode()
