"""The paper's figures 4 and 5: what the LLM says of items; whether saying it well goes with recommending well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from earec_core.catalog import Catalog
from earec_core.compose.stage import choose_adapters
from earec_core.config import RunConfig
from earec_core.errors import UsageError
from earec_core.explain import Explanation, explain
from earec_core.llm.backbone import Backbone
from earec_core.studies.reproduce.plan import Row
from earec_core.studies.reproduce.rows import Protocol
from earec_core.studies.reproduce.stage import reproduce
from earec_core.workspace import Workspace

_VARIANTS = ("unaligned", "aligned")


@dataclass(frozen=True)
class Case:
    """What the LLM says of an item from one modality.

    Attributes:
        item, anchor: the item's id, and what would be right.
        modality, variant: what was shown; `unaligned` or `aligned`.
        text, rouge_l: what was said, and its ROUGE-L.
    """

    item: str
    anchor: str
    modality: str
    variant: str
    text: str
    rouge_l: float


@dataclass(frozen=True)
class Point:
    """One modality before or after its alignment.

    Attributes:
        modality, variant: as in `Case`.
        rouge_l: mean over the items of the test split.
        items: how many these are.
        test: `hr@10` and `ndcg@10` of the recommender on the vectors, mean over its seeds.
    """

    modality: str
    variant: str
    rouge_l: float
    items: int
    test: Mapping[str, float]


@dataclass(frozen=True)
class Correlation:
    """Figure 5.

    Attributes:
        points: of every modality.
        pearson: by metric of the recommender r, its 95% interval (Fisher's) `low` and `high`, and `p`; none for
            fewer than four points, or where all are alike.
    """

    points: tuple[Point, ...]
    pearson: Mapping[str, Mapping[str, float]]

    def as_json(self) -> dict[str, Any]:
        """Everything, plain."""
        return asdict(self)


def cases(
    workspace: Workspace,
    catalog: Catalog,
    config: RunConfig,
    *,
    modalities: Sequence[str],
    adapters: Mapping[str, str] | None = None,
    items: int = 5,
) -> list[Case]:
    """Figure 4: some items of the test split, from each modality that they have, un-aligned and aligned.

    Args:
        adapters: references by modality; default: see `choose_adapters`.
        items: how many are drawn.

    Raises:
        UsageError: an adapter is missing.
        DataError: no item of the test split has an anchor.
    """
    explained = _explained(workspace, catalog, config, modalities, adapters or {}, items)
    found = [
        Case(
            catalog.item(text.row).id,
            explanation.anchors[text.row],
            modality,
            text.variant,
            text.text,
            text.rouge_l,
        )
        for modality, explanation in explained.items()
        for text in explanation.texts
    ]
    order = {item: place for place, item in enumerate(dict.fromkeys(case.item for case in found))}
    shown = list(modalities)
    return sorted(found, key=lambda c: (order[c.item], shown.index(c.modality), _VARIANTS.index(c.variant)))


def correlate(
    workspace: Workspace,
    catalog: Catalog,
    config: RunConfig,
    *,
    modalities: Sequence[str],
    adapters: Mapping[str, str] | None = None,
    seeds: int = 3,
    items: int | None = None,
    at_once: int = 1,
) -> Correlation:
    """Figure 5: ROUGE-L and recommendation of each modality alone, un-aligned and aligned.

    Args:
        seeds: trainings of the recommender each.
        items: of the test split, for ROUGE-L; default: all.
        at_once: trainings that run at once, see `reproduce`.

    Raises:
        UsageError: an adapter is missing.
        DataError: no item of the test split has an anchor, or no user a test target.
    """
    explained = _explained(workspace, catalog, config, modalities, adapters or {}, items)
    rows = {
        (m, variant): Row(m, "single", (m,))
        if variant == "aligned"
        else Row(f"unaligned-{m}", "unaligned", (m,))
        for m in modalities
        for variant in _VARIANTS
    }
    report = reproduce(
        workspace,
        catalog,
        4,
        list(rows.values()),
        modalities[0],
        config,
        adapters=adapters,
        protocol=Protocol(seeds),
        at_once=at_once,
    )
    test = {result.row.name: result.test for result in report.results}
    points = []
    for (modality, variant), row in rows.items():
        said = [text.rouge_l for text in explained[modality].texts if text.variant == variant]
        figures = {metric: test[row.name][metric]["mean"] for metric in ("hr@10", "ndcg@10")}
        points.append(Point(modality, variant, sum(said) / len(said), len(said), figures))
    return Correlation(tuple(points), _pearson(points))


def _explained(
    workspace: Workspace,
    catalog: Catalog,
    config: RunConfig,
    modalities: Sequence[str],
    adapters: Mapping[str, str],
    items: int | None,
) -> dict[str, Explanation]:
    if unknown := set(adapters) - set(modalities):
        raise UsageError(f"--adapter knows no {', '.join(sorted(unknown))}.", "Name it in --modalities.")
    chosen = choose_adapters(workspace.registry, modalities, adapters, catalog.name)
    backbone = Backbone.load(config.backbone, workspace)
    return {
        modality: explain(
            workspace,
            catalog,
            reference,
            config,
            max_items=items,
            variants=_VARIANTS,
            backbone=backbone,
        )
        for modality, reference in chosen.items()
    }


def _pearson(points: Sequence[Point]) -> dict[str, dict[str, float]]:
    from scipy import stats

    if len(points) < 4:
        return {}
    rouge = [point.rouge_l for point in points]
    found: dict[str, dict[str, float]] = {}
    for metric in points[0].test:
        recommended = [point.test[metric] for point in points]
        if min(len(set(rouge)), len(set(recommended))) < 2:
            continue
        result = stats.pearsonr(rouge, recommended)
        bounds = result.confidence_interval()
        found[metric] = {
            "r": float(result.statistic),
            "low": float(bounds.low),
            "high": float(bounds.high),
            "p": float(result.pvalue),
        }
    return found
