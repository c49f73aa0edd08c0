"""Sentences that say what the figures show and what they cannot, computed from the figures alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

from earec_core.report.content import Composition, Contrast, Overlap, Recommendation, RougeRow

HEADLINE = "hr@10"


def learned(row: RougeRow) -> str:
    """What a source's ROUGE-L says: does the text depend on the input, and did alignment help?"""
    aligned, shuffled, before = (row.variants.get(v) for v in ("aligned", "shuffled", "unaligned"))
    if aligned is None or not math.isfinite(aligned[0]):
        return "not measured"
    if shuffled is not None and row.reads:
        return f"reads its input: the wrong item's costs {aligned[0] - shuffled[0]:.2f}"
    if shuffled is not None:
        return "not shown to read its input: the wrong item's may do as well"
    if before is not None and aligned[1] > before[2]:
        return f"{aligned[0] - before[0]:.2f} above the un-aligned model"
    return "cannot be told from the un-aligned model" if before is not None else ""


def gains(rows: Sequence[RougeRow]) -> str:
    """One sentence over all sources: ROUGE-L before and after, and what copying the input would have."""
    parts = [
        f"{source(row.source)} {row.variants['unaligned'][0]:.2f} → {row.variants['aligned'][0]:.2f}{_copying(row)}"
        for row in rows
        if {"unaligned", "aligned"} <= set(row.variants)
    ]
    return (
        f"Closeness to the anchor (ROUGE-L) before and after alignment: {', '.join(parts)}." if parts else ""
    )


def _copying(row: RougeRow) -> str:
    return f" (its input, copied: {row.variants['copied'][0]:.2f})" if "copied" in row.variants else ""


def dependence(rows: Sequence[RougeRow]) -> str:
    """One sentence: which sources' texts depend on what goes in, which cannot be told."""
    tested = [row for row in rows if {"aligned", "shuffled"} <= set(row.variants)]
    if not tested:
        return ""
    reads = [source(r.source) for r in tested if r.reads]
    rest = [source(r.source) for r in tested if source(r.source) not in reads]
    parts = []
    if reads:
        parts.append(f"From {listing(reads)} the model says something of this very item")
    if rest:
        parts.append(f"from {listing(rest)} that is not shown, reading the wrong item may do as well")
    sentence = "; ".join(parts)
    return f"{sentence[0].upper()}{sentence[1:]}."


def resolved(rows: Sequence[Recommendation], metric: str = HEADLINE) -> str:
    """Which recommender is best, and from which others its 95% interval cannot tell it."""
    known = [(row.model, *row.interval(metric)) for row in rows if math.isfinite(row.interval(metric)[0])]
    if not known:
        return ""
    name, value, low, high = max(known, key=lambda row: row[1])
    others = [row for row in known if row[0] != name]
    if not others:
        return f"{name} has {metric.upper()} {value:.4f}."
    best = f"Best {metric.upper()}: {name}, {value:.4f}"
    if not all(math.isfinite(bound) for row in known for bound in row[2:]):
        return f"{best}. Without intervals for all it cannot be said whether that is chance."
    same = [other for other, _, start, end in others if end >= low and start <= high]
    clear = [other for other, *_ in others if other not in same]
    if not same:
        return f"{best}; its 95% interval lies above all others."
    above = f"lies above {_that(clear)} but " if clear else ""
    return (
        f"{best}; its 95% interval {above}overlaps {_that(same)}, so this test cannot tell "
        f"{listing([name, *same])} apart."
    )


def paired(rows: Sequence[Recommendation], metric: str = HEADLINE) -> str:
    """What the differences to the first recommender, user by user, say."""
    parts = [
        f"{row.model} {row.less[metric][0]:+.4f} [{row.less[metric][1]:+.4f}, {row.less[metric][2]:+.4f}], "
        f"p {row.less[metric][3]:.2g}"
        for row in rows
        if metric in row.less
    ]
    if not parts:
        return ""
    return f"User by user, {metric.upper()} less that of {rows[0].model}: {'; '.join(parts)}."


def precision(rows: Sequence[Recommendation], metric: str = HEADLINE) -> str:
    """How fine the test resolves: users and standard error."""
    errors = [row.metrics[f"{metric}_se"] for row in rows if f"{metric}_se" in row.metrics]
    users = {int(row.metrics["users"]) for row in rows if math.isfinite(row.metrics.get("users", math.nan))}
    if not errors:
        return ""
    error = max(errors)
    among = f"With {users.pop():,} users the" if len(users) == 1 else "The"
    return (
        f"{among} standard error of {metric.upper()} is up to {error:.4f}: differences below about "
        f"{1.96 * math.sqrt(2) * error:.3f} between two recommenders may be chance."
    )


def directions(composition: Composition) -> str:
    """How much the adapters' changes agree."""
    if not composition.cosines:
        return ""
    pair, value = max(composition.cosines.items(), key=lambda item: abs(item[1]))
    first, _, second = pair.partition(",")
    how = "nearly unrelated" if abs(value) < 0.1 else "partly shared" if value > 0 else "partly opposed"
    return f"The directions are {how}: the strongest cosine is {value:.3f}, between {first} and {second}."


def shares(overlap: Overlap) -> str:
    """How much two models' lists have in common, beside chance."""
    if not all(map(math.isfinite, overlap.shared)):
        return ""
    mean, low, high = (f"{100 * value:.0f}" for value in overlap.shared)
    unlike = "more than" if overlap.shared[1] > overlap.chance else "not told from"
    return (
        f"{overlap.what.capitalize()} of the two: {mean}% [{low}, {high}] are the same, {unlike} chance "
        f"({100 * overlap.chance:.1f}%)."
    )


def better(contrast: Contrast) -> str:
    """Which of two models has the larger figure, if it can be told; nothing of vectors, where neither is better."""
    if contrast.part == "vectors" or not all(map(math.isfinite, contrast.less)):
        return ""
    mean, low, high = contrast.less
    said = f"{contrast.what}: B less A is {mean:+.4f} [{low:+.4f}, {high:+.4f}], p {contrast.p:.2g}"
    return (
        f"{said}; {'B' if mean > 0 else 'A'} is better." if contrast.p < 0.05 else f"{said}; not told apart."
    )


def _that(names: Sequence[str]) -> str:
    return f"{'that' if len(names) == 1 else 'those'} of {listing(names)}"


def source(name: str) -> str:
    """How a source is called in a sentence."""
    return "all together" if name == "all" else name


def listing(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
