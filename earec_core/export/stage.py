"""`export`: a registered model in the form that other tools read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from earec_core.aligned.stored import StoredModel
from earec_core.errors import IntegrityError, UsageError
from earec_core.export.into_base import merge_into_base
from earec_core.export.mergekit import check_mergekit, write_mergekit
from earec_core.files import check_new, copy_file, new_directory
from earec_core.llm.peft_adapter import CONFIG, WEIGHTS, LoraAdapter
from earec_core.llm.store import NAMED, folder, info
from earec_registry import Registry

Form = Literal["peft", "mergekit", "merged"]


def export(
    registry: Registry,
    reference: str,
    form: Form,
    out: Path,
    *,
    backbone: str | None = None,
    note: Callable[[str], None] = lambda _: None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a model to a directory of its own; what cannot be written is refused before the work.

    Args:
        reference: a composite; for `peft` and `merged` an adapter, too.
        form: `peft`: a plain PEFT directory. `mergekit`: the parts' adapters and a recipe that merges them into
            the base. `merged`: the base model with the composite merged into it.
        out: the directory to write; it must not exist, or be empty. It appears complete or not at all.
        backbone: the base model: name, directory or hub id; None looks for the one that the model records.
        progress: of `merged`; called with (tensors done, tensors in all).

    Raises:
        UsageError: the model has no such form, the base is not found, or something is at `out`.
        IntegrityError: the base is not the one that the model was aligned on, or a file is damaged.
        EarecError: the directory cannot be written.
    """
    check_new(out)
    model = StoredModel.open(registry, reference)
    if (model.folder / "adapters").is_dir():
        raise UsageError(
            "A routed composite is several adapters, so it is neither one weight nor one adapter.",
            "Compose with --method delta, its merged part.",
        )
    if form == "peft":
        with new_directory(out, "adapter") as target:
            for name in (CONFIG, WEIGHTS):
                copy_file(model.folder / name, target / name)
    elif form == "merged":
        merge_into_base(model.folder, find_base(model, backbone, note), out, progress=progress)
    else:
        _to_mergekit(registry, model, out, backbone, note)


def _to_mergekit(
    registry: Registry, model: StoredModel, out: Path, backbone: str | None, note: Callable[[str], None]
) -> None:
    if model.data["kind"] != "composite":
        raise UsageError(
            "An adapter has no parts for mergekit to merge.", "Export it --as peft or --as merged."
        )
    weights, method = model.data["weights"], model.data["method"]
    # A composite's parents begin with its modalities' adapters, both in alphabetical order.
    parts = dict(zip(sorted(model.modalities), model.data["parents"], strict=False))
    adapters = {m: LoraAdapter.open(registry.materialize(parent)) for m, parent in parts.items()}
    per_layer = "layer_weights" in model.data
    check_mergekit(adapters, weights, method["name"], rank=method["rank"], per_layer=per_layer)
    base = find_base(model, backbone, note)
    density = method.get("density")
    write_mergekit(adapters, weights, base, out, method=method["name"], density=density)


def find_base(model: StoredModel, backbone: str | None, note: Callable[[str], None]) -> Path:
    """The directory of the base that a model was aligned on.

    Args:
        backbone: name, directory or hub id; None takes the one that the model records.

    Raises:
        UsageError: there is none.
        IntegrityError: its weights or tokenizer are others; both are named.
    """
    want = model.data["base"]
    name = backbone or want["id"]
    if backbone is None and name not in NAMED and name.count("/") != 1:
        raise UsageError(
            f"The model was aligned on the local directory {name!r}, whose place is not recorded.",
            "Name it: --backbone DIR",
        )
    path = folder(name, note)
    have = info(name, path).as_manifest()
    for part in ("weights", "tokenizer"):
        if have[part] != want[part]:
            raise IntegrityError(
                f"The model was aligned on {want['id']} ({part} {want[part][:12]}…), "
                f"{path} is another ({have[part][:12]}…).",
                "Name the right one: --backbone DIR",
            )
    return path
