"""What `earec compose` writes beside the registered composite: merged base, PEFT directory, mergekit recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from earec_core.aligned.stored import StoredModel
from earec_core.compose.methods import get_method
from earec_core.compose.report import ComposeReport
from earec_core.errors import IntegrityError, UsageError
from earec_core.export.emit import check_mergekit, emit_mergekit, emit_peft
from earec_core.export.into_base import merge_into_base
from earec_core.files import check_new
from earec_core.llm.store import NAMED, folder, info
from earec_registry import Registry


@dataclass(frozen=True)
class Exports:
    """What was asked for.

    Attributes:
        into_base: where to write the base model with the composite merged into it.
        emit: `peft` or `mergekit`.
        out: where to write that.
        backbone: the base model; None looks for the one that the adapters record.
    """

    into_base: Path | None = None
    emit: str | None = None
    out: Path | None = None
    backbone: str | None = None

    def check(
        self,
        registry: Registry,
        adapters: Mapping[str, str],
        weights: Mapping[str, float],
        *,
        method: str,
        rank: int | None,
        per_layer: bool,
        note: Callable[[str], None],
    ) -> Path | None:
        """Refuse at once what could not be written after the composition.

        Args:
            adapters, weights, method, rank: as in `compose_models`; weights that are yet to be found are left out.
            per_layer: whether layers have weights of their own.

        Returns:
            The base model's directory where it is needed, its digests checked.

        Raises:
            UsageError: options or directories do not fit, or the method has no such form.
            IntegrityError: the base is not the one that the adapters were aligned on.
        """
        if (self.emit is None) != (self.out is None):
            raise UsageError(
                "--emit and --out belong together.", "Write e.g. --emit peft --out DIR, or leave both out."
            )
        for wanted in filter(None, (self.into_base, self.out)):
            check_new(wanted)
        if self.emit == "mergekit":
            check_mergekit(method, weights, rank=rank, per_layer=per_layer)
        if (self.into_base or self.emit) and get_method(method).routed:
            raise UsageError(
                f"A {method} composite is several adapters, so it is neither one weight nor one adapter.",
                "Compose with --method delta, its merged part.",
            )
        if self.into_base is None and self.emit != "mergekit":
            return None
        return find_base(StoredModel.open(registry, next(iter(adapters.values()))), self.backbone, note)

    def write(
        self,
        registry: Registry,
        composite: str,
        adapters: Mapping[str, str],
        report: ComposeReport,
        base: Path | None,
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Write what was asked for.

        Args:
            composite: id of the registered composite.
            adapters: as in `compose_models`.
            report: of the composition.
            base: what `check` returned.
            progress: of the merge into the base.
        """
        merged = registry.materialize(composite)
        if self.emit == "peft" and self.out is not None:
            emit_peft(merged, self.out)
        if self.emit == "mergekit" and self.out is not None and base is not None:
            parts = {m: registry.materialize(ref) for m, ref in adapters.items()}
            emit_mergekit(parts, report.weights, base, self.out, method=report.method, options=report.options)
        if self.into_base is not None and base is not None:
            merge_into_base(merged, base, self.into_base, progress=progress)


def find_base(model: StoredModel, backbone: str | None, note: Callable[[str], None]) -> Path:
    """The directory of the base that an adapter was aligned on.

    Args:
        model: the adapter.
        backbone: name, directory or hub id; None takes the one that the adapter records.

    Raises:
        UsageError: there is none.
        IntegrityError: its weights or tokenizer are others; both are named.
    """
    want = model.data["base"]
    name = backbone or want["id"]
    if backbone is None and name not in NAMED and name.count("/") != 1:
        raise UsageError(
            f"The adapters were aligned on the local directory {name!r}, whose place is not recorded.",
            "Name it: --backbone DIR",
        )
    path = folder(name, note)
    have = info(name, path).as_manifest()
    for part in ("weights", "tokenizer"):
        if have[part] != want[part]:
            raise IntegrityError(
                f"The adapters were aligned on {want['id']} ({part} {want[part][:12]}…), "
                f"{path} is another ({have[part][:12]}…).",
                "Name the right one: --backbone DIR",
            )
    return path
