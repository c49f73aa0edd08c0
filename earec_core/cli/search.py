"""The options of `earec compose --search`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from earec_core.cli.options import OutFile, PathType, modality_names, run_config
from earec_core.cli.output import out
from earec_core.errors import UsageError
from earec_registry import Registry

if TYPE_CHECKING:
    from earec_core.search import Found


@dataclass(frozen=True)
class SearchOptions:
    """What a search was asked for; see `earec_core.search.search`."""

    strategy: str
    objective: Any
    data: Path
    modalities: list[str]
    step: float
    steps: int
    per_layer: bool
    max_evaluations: int | None
    max_minutes: float | None
    max_items: int | None
    report: Path | None
    file: Path | None
    settings: tuple[str, ...]

    def run(
        self,
        registry: Registry,
        adapters: Mapping[str, str],
        backbone: str | None,
        allow: frozenset[str] = frozenset(),
    ) -> Found:
        """Search, and write the report."""
        from earec_core.catalog import Catalog
        from earec_core.recommend.stage import recommender_config
        from earec_core.report import write_search
        from earec_core.search import search
        from earec_core.search.learn import Descent

        own = tuple(s for s in self.settings if s.startswith("recommender."))
        flags = dict(s.split("=", 1) for s in own if "=" in s)
        others = tuple(s for s in self.settings if s not in own)
        catalog = Catalog.open(self.data)
        with out.progress(f"search {self.strategy}") as bar:
            found = search(
                catalog,
                adapters,
                run_config(self.file, "recommended", backbone, others),
                registry,
                strategy=self.strategy,
                objective=self.objective,
                step=self.step,
                descent=Descent(steps=self.steps, per_layer=self.per_layer),
                max_evaluations=self.max_evaluations,
                max_minutes=self.max_minutes,
                max_items=self.max_items,
                allow=allow,
                recommender=recommender_config(self.file, flags),
                note=out.note,
                show=bar.update,
            )
        best = ",".join(f"{m}={w:.4g}" for m, w in found.best.weights.items())
        out.note(f"Best of {len(found.path)}: {best} ({found.objective} {found.best.value:.4f}).")
        if not found.complete:
            out.note("The budget ended first; the same command with a larger one goes on from here.")
        target = self.report or found.folder / "report.html"
        write_search(found, target, title=f"Weights for {catalog.name}")
        out.note(f"Report: {target}")
        return found


def search_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options of a search, passed together as `search: SearchOptions | None`."""

    @click.option(
        "--search",
        "strategy",
        type=click.Choice(["grid", "learn", "bayes"]),
        help="Find the weights on validation data, in place of --weights.",
    )
    @click.option(
        "--objective",
        type=click.Choice(["loss", "rouge", "ndcg@10"]),
        default="loss",
        show_default=True,
        help="Of the search: alignment loss or ROUGE-L of validation items, or users' validation NDCG@10.",
    )
    @click.option("--data", type=PathType, help="The dataset to search on.")
    @click.option("--modalities", help="Comma-separated: those to weigh.")
    @click.option(
        "--step", type=click.FloatRange(0, 1, min_open=True), default=0.1, help="Of grid.", show_default=True
    )
    @click.option("--steps", type=click.IntRange(1), default=4, help="Gradients of learn.", show_default=True)
    @click.option("--per-layer", is_flag=True, help="Learn weights for every layer of the LLM.")
    @click.option("--max-evaluations", type=click.IntRange(1), help="Budget.")
    @click.option("--max-minutes", type=click.FloatRange(0, min_open=True), help="Budget.")
    @click.option(
        "--max-items", type=click.IntRange(1), help="Search on a random part of the validation items."
    )
    @click.option("--report", type=OutFile, help="The search's page.  [default: in the run's folder]")
    @click.option("--config", "file", type=PathType, help="A TOML file with sections as in docs/method.md.")
    @click.option(
        "--set", "settings", multiple=True, metavar="KEY=VALUE", help="One setting of the search's run."
    )
    @functools.wraps(function)
    def with_search(
        *args: Any, strategy: str | None, data: Path | None, modalities: str | None, **kwargs: Any
    ) -> Any:
        names = SearchOptions.__dataclass_fields__
        values = {key: kwargs.pop(key) for key in list(kwargs) if key in names}
        search = None
        if strategy is not None:
            if data is None or not modality_names(modalities):
                raise UsageError(
                    "A search needs --data and --modalities.",
                    "Write e.g. --search learn --data DIR --modalities text,vision",
                )
            search = SearchOptions(
                strategy=strategy, data=data, modalities=modality_names(modalities) or [], **values
            )
        return function(*args, search=search, **kwargs)

    return with_search
