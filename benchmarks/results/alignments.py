"""The ablation over several alignments: what holds whatever seed the adapters were aligned with.

Usage: alignments.py NAME WORK WORK..., each WORK made by `table4.sh NAME` with an ALIGNMENT of its own. Within an
alignment the recommender's seeds are averaged first. A row that some WORK lacks is left out, if it depends on the
alignment.
"""

import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from earec_core.metrics.ranking import Metrics
from earec_core.metrics.statistics import Z, paired, versus
from earec_core.studies.reproduce.compare import main_effects
from earec_core.studies.reproduce.plan import label, plan
from earec_registry import Registry


def gains(work: Path, name: str, row: str) -> np.ndarray | None:
    """NDCG@10 of each user, averaged over the recommender's seeds; None if the row has not been measured."""
    registry = Registry(work / "registry")
    prefix = f"reproduce/{name}/{row}/recommender-"
    names = [entry.name for entry in registry.list().entries if entry.name.startswith(prefix)]
    files = [load_file(registry.materialize(one) / "test_ranks.safetensors") for one in names]
    found = [Metrics(one["ranks"], one["users"]).gains(10) for one in files]
    return np.mean(found, axis=0) if found else None


def compared(found: Mapping[str, float] | None) -> str:
    """A difference, its 95% interval and p."""
    if found is None:
        return " | "
    return f"{found['difference']:+.4f} ± {Z * found['se']:.4f} | {found.get('p_holm', found['p']):.2g}"


def main() -> None:
    name, works = sys.argv[1], [Path(one) for one in sys.argv[2:]]
    modalities = ["text", "vision", "behavior"] if name == "movielens-small" else ["text", "behavior"]
    rows, reference = plan(4, modalities=modalities)
    measured = {}
    for row in rows:
        found = [one for work in works if (one := gains(work, name, row.name)) is not None]
        if len(found) == len(works) or (found and row.kind in ("unaligned", "ids")):
            measured[row.name] = np.array(found)

    print("| row | alignments | NDCG@10, mean ± sd over them | less the reference | p (Holm) |")
    print("|---|---|---|---|---|")
    against = versus({shown: users.mean(axis=0) for shown, users in measured.items()}, reference)
    for shown, users in measured.items():
        ndcg = users.mean(axis=1)
        spread = f" ± {ndcg.std(ddof=1):.4f}" if len(ndcg) > 1 else ""
        print(f"| {shown} | {len(ndcg)} | {ndcg.mean():.4f}{spread} | {compared(against.get(shown))} |")
    if {"text", "unaligned-text"} <= measured.keys():
        text = paired(measured["text"].mean(axis=0), measured["unaligned-text"].mean(axis=0))
        print(f"\nText aligned less un-aligned, and p: {compared(text)}")

    cells = {
        (row.method, label(row.weights)): measured[row.name]
        for row in rows
        if row.method and row.name in measured
    }
    for axis, (factor, first) in enumerate({"method": "delta", "weighting": label(rows[0].weights)}.items()):
        print(f"\n| {factor} | NDCG@10 | less the first's | p (Holm) | in each alignment |")
        print("|---|---|---|---|---|")
        alone = [
            main_effects({c: users[i] for c, users in cells.items()}, axis, first) for i in range(len(works))
        ]
        over = main_effects({c: users.mean(axis=0) for c, users in cells.items()}, axis, first)
        for effect, *single in zip(over, *alone, strict=True):
            each = ", ".join(f"{one.versus['difference']:+.4f}" for one in single if one.versus)
            print(f"| {effect.level} | {effect.ndcg:.4f} | {compared(effect.versus)} | {each} |")


if __name__ == "__main__":
    main()
