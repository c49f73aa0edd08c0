"""What DeepSpeed is asked for: a run's settings of the engine and a user's DeepSpeed file, as one configuration.

DeepSpeed itself is not needed to read it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from earec_core.config import EngineConfig
from earec_core.errors import UsageError

Offload = Literal["nothing", "optimizer", "all"]

_ZERO = "zero_optimization"
_BUCKET = 50_000_000
"""Gradients exchanged at a time, 200 MB of them; DeepSpeed's default of 2 GB is meant for whole models."""
_DERIVED: Mapping[str, str] = {
    "amp": "backbone.dtype",
    "bf16": "backbone.dtype",
    "bfloat16": "backbone.dtype",
    "fp16": "backbone.dtype",
    "torch_autocast": "backbone.dtype",
    "gradient_accumulation_steps": "align.micro_batch",
    "gradient_clipping": "align.clip",
    "managed_gradient_accumulation": "align.micro_batch",
    "optimizer": "align.lr, align.projector_lr and align.weight_decay",
    "scheduler": "align.schedule and align.warmup",
    "train_batch_size": "align.batch_size",
    "train_micro_batch_size_per_gpu": "align.micro_batch",
}
"""Keys of a DeepSpeed file that would have another say in what these settings decide."""


@dataclass(frozen=True)
class Zero:
    """ZeRO as it will run.

    Attributes:
        stage: 1 divides the optimizer among the processes, 2 its gradients too, 3 all weights too.
        offload: what is kept on the processor's side.
        settings: DeepSpeed's `zero_optimization`, with stage and offloading.
        others: the further keys of a DeepSpeed configuration.
    """

    stage: int
    offload: Offload
    settings: Mapping[str, Any]
    others: Mapping[str, Any]

    @classmethod
    def of(cls, config: EngineConfig) -> Zero:
        """What a run asks for.

        Raises:
            UsageError: the file cannot be read, says what other settings decide, or contradicts the run's.
        """
        given = _file(Path(config.file)) if config.file else {}
        settings = dict(given.pop(_ZERO, {}))
        where = f"{_ZERO} in {config.file}"
        stage = _one(config.stage, settings.get("stage"), 2, "engine.stage", f"{where} says stage")
        offload: Offload = _one(
            config.offload, _offload(settings, where), "nothing", "engine.offload", f"{where} offloads"
        )
        if stage not in (1, 2, 3):
            raise UsageError(
                f"{where} says stage {stage!r}.", "Write 1, 2 or 3; without ZeRO, use --engine torch."
            )
        if offload == "all" and stage < 3:
            raise UsageError(
                f"Weights are kept on the processor's side at stage 3 alone, not at {stage}.",
                "Set engine.stage=3, or engine.offload=optimizer.",
            )
        settings = {"reduce_bucket_size": _BUCKET, **settings, "stage": stage}
        for key, kept in (("offload_optimizer", offload != "nothing"), ("offload_param", offload == "all")):
            if kept:
                settings.setdefault(key, {"device": "cpu"})
        return cls(stage, offload, settings, given)

    @property
    def bucket(self) -> int:
        """Gradients exchanged at a time."""
        return int(self.settings["reduce_bucket_size"])

    @property
    def overlaps(self) -> bool:
        """Whether they are exchanged while the next ones are computed, from a second bucket."""
        return bool(self.settings.get("overlap_comm", self.stage == 3))

    def deepspeed(self, clip: float) -> dict[str, Any]:
        """DeepSpeed's configuration.

        Args:
            clip: largest gradient norm.
        """
        return {
            "steps_per_print": None,
            **self.others,
            # The training divides its batches itself, and says which part is the last.
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": clip,
            "zero_optimization": dict(self.settings),
            # torch's AdamW: DeepSpeed's own are compiled where they are used.
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
        }


def _file(path: Path) -> dict[str, Any]:
    """What a DeepSpeed file asks for; `auto`, and what is switched off, asks for nothing.

    Raises:
        UsageError: it is no JSON object, or says what other settings decide.
    """
    try:
        read = json.loads(path.read_text())
    except OSError as error:
        raise UsageError(
            f"The DeepSpeed configuration {path} cannot be read: {error.strerror}.", "Check engine.file."
        ) from None
    except ValueError as error:
        raise UsageError(
            f"The DeepSpeed configuration {path} is not JSON: {error}.", "Mend that line."
        ) from None
    if not isinstance(read, dict) or not isinstance(read.get(_ZERO, {}), dict):
        raise UsageError(
            f"The DeepSpeed configuration {path} holds no JSON object with {_ZERO}.",
            "See examples/configs.",
        )
    given: dict[str, Any] = _asked(read)
    for key, setting in _DERIVED.items():
        if key in given:
            raise UsageError(f"{key} in {path} is decided by {setting}.", f"Leave {key} out of the file.")
    return given


def _asked(section: Mapping[str, Any]) -> dict[str, Any]:
    """A section without what is `auto` or switched off."""
    asked = {
        key: _asked(value) if isinstance(value, Mapping) else value
        for key, value in section.items()
        if value != "auto"
        and not (isinstance(value, Mapping) and value.get("enabled", True) in (False, "auto"))
    }
    return {key: value for key, value in asked.items() if value != {}}


def _offload(settings: Mapping[str, Any], where: str) -> Offload | None:
    """What a file's `zero_optimization` keeps elsewhere; None where it does not say.

    Raises:
        UsageError: elsewhere is no memory.
    """
    devices = {
        key: part.get("device", "none")
        for key in ("offload_optimizer", "offload_param")
        if isinstance(part := settings.get(key), Mapping)
    }
    for key, device in devices.items():
        if device not in ("cpu", "none"):
            raise UsageError(
                f"{key} of {where} names the device {device!r}, which a checkpoint cannot be gathered from.",
                "Write cpu, or leave it out.",
            )
    if devices.get("offload_param") == "cpu":
        return "all"
    return "optimizer" if devices.get("offload_optimizer") == "cpu" else None


def _one(setting: Any, said: Any, default: Any, name: str, file: str) -> Any:
    """What the setting and the file agree on, or the default.

    Raises:
        UsageError: they do not agree.
    """
    if setting is not None and said is not None and setting != said:
        raise UsageError(f"{name} is {setting}, but {file} {said}.", f"Leave {name} out, or change the file.")
    return next(value for value in (setting, said, default) if value is not None)
