"""`export`: what leaves the registry in a form that other tools read."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from earec_core.aligned.stored import StoredModel, check_base, open_model
from earec_core.artifacts import CompositeManifest
from earec_core.errors import UsageError
from earec_core.export.hub import write_hub
from earec_core.export.into_base import merge_into_base
from earec_core.export.mergekit import check_mergekit, write_mergekit
from earec_core.files import check_new, copy_file, new_directory
from earec_core.llm.peft_adapter import CONFIG, WEIGHTS, LoraAdapter
from earec_core.llm.store import NAMED, folder, info
from earec_core.workspace import Workspace

Form = Literal["peft", "hub", "mergekit", "merged"]


def export(
    workspace: Workspace, reference: str, form: Form, out: Path, *, backbone: str | None = None
) -> None:
    """Write a model to a directory of its own; what cannot be written is refused before the work.

    Args:
        reference: a composite; for all but `mergekit` an adapter, too.
        form: `peft`: a plain PEFT directory. `hub`: the same with projectors and a model card. `mergekit`: the
            parts' adapters and a recipe that merges them into the base. `merged`: the base model with the composite
            merged into it.
        out: the directory to write; it must not exist, or be empty. It appears complete or not at all.
        backbone: the base model: name, directory or hub id; None looks for the one that the model records.

    Raises:
        UsageError: the model has no such form, the base is not found, or something is at `out`.
        IntegrityError: the base is not the one that the model was aligned on, or a file is damaged.
        EarecError: the directory cannot be written.
    """
    check_new(out)
    model = open_model(workspace.registry, reference)
    if (model.folder / "adapters").is_dir():
        raise UsageError(
            "A routed composite is several adapters, so it is neither one weight nor one adapter.",
            "Compose with --method delta, its merged part.",
        )
    if form == "peft":
        with new_directory(out, "adapter") as target:
            for name in (CONFIG, WEIGHTS):
                copy_file(model.folder / name, target / name)
    elif form == "hub":
        write_hub(workspace.registry, model, out)
    elif form == "merged":
        base = _find_base(workspace, model, backbone)
        merge_into_base(model.folder, base, out, progress=workspace.progress)
    else:
        _to_mergekit(workspace, model, out, backbone)


def _to_mergekit(workspace: Workspace, model: StoredModel, out: Path, backbone: str | None) -> None:
    manifest = model.manifest
    if not isinstance(manifest, CompositeManifest):
        raise UsageError(
            "An adapter has no parts for mergekit to merge.", "Export it --as peft, --as hub or --as merged."
        )
    registry, weights, method = workspace.registry, manifest.weights, manifest.method
    adapters = {m: LoraAdapter.open(registry.materialize(id_)) for m, id_ in manifest.adapters.items()}
    check_mergekit(adapters, weights, method, per_layer=manifest.layer_weights is not None)
    write_mergekit(adapters, weights, method, _find_base(workspace, model, backbone), out)


def _find_base(workspace: Workspace, model: StoredModel, backbone: str | None) -> Path:
    """The directory of the base that a model was aligned on.

    Args:
        backbone: name, directory or hub id; None takes the one that the model records.

    Raises:
        UsageError: there is none.
        IntegrityError: its weights or tokenizer are others; both are named.
    """
    name = backbone or model.manifest.base.id
    if backbone is None and name not in NAMED and name.count("/") != 1:
        raise UsageError(
            f"The model was aligned on the local directory {name!r}, whose place is not recorded.",
            "Name it: --backbone DIR",
        )
    path = folder(name, workspace)
    check_base(model, info(name, path, workspace))
    return path
