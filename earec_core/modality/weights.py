"""Model folders and hub checkpoints through transformers: whole, of numbers, nothing unpickled, or one sentence.

transformers fills what a checkpoint lacks with random numbers and says so in a log. Here its loading report is
read, and such a checkpoint is refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from earec_core.errors import UsageError

WEIGHTS, INDEX, ADAPTER = "model.safetensors", "model.safetensors.index.json", "adapter_config.json"
_OBJECTS = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "preprocessor_config.json",
    "processor_config.json",
    INDEX,
)
_LONGEST = 240
_LFS = b"version https://git-lfs"
_AGAIN = "Get the file from its source again."
_WHOLE = "Get the whole checkpoint, or save the model of this very architecture with save_pretrained."
# Tables that follow from the configuration and that older versions of transformers stored.
_DERIVED = ("position_ids", "inv_freq", "masked_bias")


@dataclass(frozen=True)
class Loaded:
    """A model of transformers, every tensor of it from its checkpoint.

    Attributes:
        model: the model, on the CPU.
        left: the parts of the checkpoint that it has no place for, by name: another head, a vision tower.
    """

    model: Any
    left: tuple[str, ...]


def check_folder(folder: Path, subject: str) -> None:
    """Refuse a model folder that transformers could not read, or would read something else from than it seems.

    Headers alone are read, so that this costs nothing beside loading.

    Args:
        folder: with `config.json` and safetensors weights.
        subject: what it is to the user, as a sentence begins: `The backbone models/x`.

    Raises:
        UsageError: what is wrong, the file named.
    """
    for file in sorted(folder.iterdir()):
        if file.is_file() and _begins(file, _LFS):
            raise UsageError(
                f"{subject} cannot be loaded: {file.name} is a Git LFS pointer, not the file itself.",
                "Run `git lfs pull` where it was cloned, or download the file.",
            )
    objects = {name: _object(folder / name, subject) for name in _OBJECTS if (folder / name).exists()}
    if (folder / ADAPTER).exists():
        raise UsageError(
            f"{subject} holds an {ADAPTER} beside the model, and transformers would load that adapter into it.",
            f"Move {ADAPTER} elsewhere to use the model alone, or merge the adapter into a model of its own "
            "(merge_and_unload, save_pretrained).",
        )
    for file in _weight_files(folder, objects, subject):
        _check_safetensors(file, subject)


def load_complete(
    auto: Any, source: str, subject: str, advice: str, *, spare: Sequence[str] = (), **options: Any
) -> Loaded:
    """Load a model with a class of transformers, refusing one that the checkpoint does not fill.

    Args:
        auto: the class, such as `transformers.AutoModel`.
        source: a local directory or a hub id.
        subject: as `check_folder`.
        advice: the next step where transformers cannot load it.
        spare: beginnings of names of tensors that are never read, which the checkpoint may lack.
        options: more for `from_pretrained`.

    Raises:
        UsageError: it does not load; tensors are missing, of another shape, or left over inside a part that the
            model has. They are named. Tied ones are not missing.
    """
    model, report = pretrained(
        auto,
        source,
        subject,
        advice,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        use_safetensors=True,
        **options,
    )
    if getattr(model, "_hf_peft_config_loaded", False):
        raise UsageError(
            f"{subject} comes with an adapter, which transformers has loaded into it.",
            "Merge it into a model of its own (merge_and_unload, save_pretrained) and give that.",
        )
    own = f"{model.base_model_prefix}."
    missing = [name for name in report["missing_keys"] if not name.removeprefix(own).startswith(tuple(spare))]
    if missing:
        raise UsageError(f"{subject} lacks {_named(missing)}, which would be random numbers.", _WHOLE)
    if shapes := [f"{n} {list(a)} for {list(b)}" for n, a, b in report["mismatched_keys"]]:
        raise UsageError(
            f"{subject} has tensors of another shape than its config.json means: {_listed(shapes)}.", _WHOLE
        )
    if report["error_msgs"]:
        raise UsageError(f"{subject} cannot be loaded: {_short(report['error_msgs'][0])}.", advice)
    return Loaded(model, _left(model, report["unexpected_keys"], subject))


def pretrained(auto: Any, source: str, subject: str, advice: str, **options: Any) -> Any:
    """What `from_pretrained` of a class of transformers gives, none of a model's own code run.

    Raises:
        UsageError: it does not load; says why in one sentence.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        return auto.from_pretrained(source, trust_remote_code=False, **options)
    except Exception as error:  # transformers raises whatever a wrong file happens to cause
        plain = isinstance(error, OSError | ValueError | ImportError) and str(error)
        reason = _short(str(error) if plain else f"{type(error).__name__}: {error}")
        raise UsageError(f"{subject} cannot be loaded: {reason}.", advice) from error


@torch.no_grad()
def check_finite(model: nn.Module, subject: str, next_step: str) -> None:
    """Refuse weights that hold NaN or infinite numbers; one pass over them, wherever they lie.

    Raises:
        UsageError: naming the tensors.
    """
    if wrong := [name for name, weight in model.named_parameters() if not _is_finite(weight)]:
        raise UsageError(f"{subject} holds NaN or infinite numbers in {_named(wrong)}.", next_step)


def _is_finite(weight: Tensor) -> bool:
    if not weight.is_floating_point() or weight.itemsize < 2 or not weight.numel():
        return True
    return all(math.isfinite(end) for end in torch.stack(torch.aminmax(weight)).tolist())


def _begins(file: Path, start: bytes) -> bool:
    try:
        with file.open("rb") as stream:
            return stream.read(len(start)) == start
    except OSError:
        return False  # whoever needs it says so


def _object(file: Path, subject: str) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(
            f"{subject} cannot be loaded: {file.name} is no JSON ({_short(error)}).", _AGAIN
        ) from None
    if not isinstance(values, dict):
        raise UsageError(f"{subject} cannot be loaded: {file.name} is no JSON object.", _AGAIN)
    return values


def _weight_files(folder: Path, objects: dict[str, dict[str, Any]], subject: str) -> list[Path]:
    """The files that transformers reads weights from, all of them safetensors in the folder itself."""
    explicit = objects.get("config.json", {}).get("transformers_weights")
    if explicit is not None:
        raise UsageError(
            f"{subject} names its weights in config.json (transformers_weights={explicit!r}).",
            "Load it with transformers and save_pretrained it to a new directory.",
        )
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if INDEX not in objects:
        raise UsageError(
            f"{subject} has no safetensors weights ({WEIGHTS}, or {INDEX} and its parts).",
            "Convert it: load it with transformers and save_pretrained it to a new directory.",
        )
    places = objects[INDEX].get("weight_map")
    names = list(places.values()) if isinstance(places, dict) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise UsageError(f"{subject} cannot be loaded: {INDEX} has no map from tensors to files.", _AGAIN)
    for name in sorted(set(names)):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise UsageError(
                f"{subject} cannot be loaded: {INDEX} names {name!r}, which is no safetensors file beside it.",
                _AGAIN,
            )
        if not (folder / name).is_file():
            raise UsageError(f"{subject} cannot be loaded: its part {name} is not there.", _AGAIN)
    return [folder / name for name in sorted(set(names))]


def _check_safetensors(file: Path, subject: str) -> None:
    try:
        with safe_open(file, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise UsageError(
            f"{subject} cannot be loaded: {file.name} is damaged or cut short ({_short(error)}).", _AGAIN
        ) from None


def _left(model: Any, unexpected: Iterable[str], subject: str) -> tuple[str, ...]:
    """Parts of a checkpoint that the model has no place for; refused where it has the part, but not the tensor."""
    parts = {name for whole in (model, model.base_model) for name, _ in whole.named_children()}
    parts |= {
        name for whole in (model, model.base_model) for name, _ in whole.named_parameters(recurse=False)
    }
    left: dict[str, None] = {}
    strays = []
    for name in sorted(unexpected):
        part = name.removeprefix(f"{model.base_model_prefix}.").partition(".")[0]
        if name.endswith(_DERIVED):
            continue
        if part in parts:
            strays.append(name)
        left[part] = None
    if strays:
        raise UsageError(
            f"{subject} holds {_named(strays)} that the model of its config.json has no place for.", _WHOLE
        )
    return tuple(left)


def _named(tensors: Iterable[str]) -> str:
    names = sorted(tensors)
    return f"{len(names)} tensor{'s' if len(names) > 1 else ''} ({_listed(names)})"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _short(error: object) -> str:
    """An error's text in one line without a full stop, cut after a sentence or a word where it is long."""
    text = " ".join(str(error).split())
    if len(text) > _LONGEST:
        start = text[:_LONGEST]
        text = start.rpartition(". ")[0] or start.rpartition(" ")[0]
    return text.rstrip(". ")
