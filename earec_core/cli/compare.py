"""`earec compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from earec_core.cli import options
from earec_core.cli.output import out
from earec_core.config import RunConfig
from earec_core.errors import UsageError

if TYPE_CHECKING:
    from earec_core.compare import Comparison

_COLUMNS = ("part", "what", "n", "a", "b", "difference", "overlap", "low", "high", "p", "chance")


@click.command()
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@options.data_option
@click.option("--recommender-a", metavar="REF", help="A recommender over the vectors of A.")
@click.option("--recommender-b", metavar="REF", help="One over those of B; both or none.")
@click.option(
    "--split", type=click.Choice(["train", "valid", "test", "all"]), default="test", show_default=True
)
@click.option("--items", "max_items", type=click.IntRange(1), help="Texts of a random part of the split.")
@click.option("--backbone-b", metavar="NAME|DIR", help="The LLM of B.  [default: that of A]")
@click.option("--out", "page", type=options.OutFile, help="Also write a page, with texts of some items.")
@options.config_options("preset", "backbone")
@options.session_options
@options.json_option
def command(
    a: str,
    b: str,
    data: Path,
    recommender_a: str | None,
    recommender_b: str | None,
    split: str,
    max_items: int | None,
    backbone_b: str | None,
    page: Path | None,
    config: RunConfig,
    session: options.Session,
    as_json: bool,
) -> None:
    """Two models, adapters or composites, beside each other on one dataset.

    What their manifests say otherwise; whether the same items are near each other by their vectors; what each says
    of the items held back, scored with ROUGE-L; with two recommenders, HR@10, NDCG@10 and the lists. Differences
    are B less A over the same items or users. Vectors and texts that are there are not made again.
    """
    from earec_core.catalog import Catalog
    from earec_core.compare import compare

    recommenders = _both(recommender_a, recommender_b)
    catalog = Catalog.open(data)
    with session("compare") as workspace:
        comparison = compare(
            workspace,
            catalog,
            a,
            b,
            config,
            split=split,  # type: ignore[arg-type]
            max_items=max_items,
            recommenders=recommenders,
            other_backbone=backbone_b,
        )
    if as_json:
        out.json(comparison.as_json())
    else:
        out.table([row.as_json() for row in comparison.rows], _COLUMNS)
    if page is not None:
        _write(comparison, page, catalog.name, split)
    if recommenders is None:
        options.follow_up("recommend", "train", "--vectors", comparison.b.vectors, "--data", str(data))
    else:
        pair = (f"{label}={one}" for label, one in zip("ab", recommenders, strict=True))
        options.follow_up("recommend", "compare", *pair, "--data", str(data), "--slice", "cold")


def _both(a: str | None, b: str | None) -> tuple[str, str] | None:
    """The recommenders of both models, or none."""
    if a is None and b is None:
        return None
    if a is None or b is None:
        raise UsageError("One recommender has nothing to be compared with.", "Give both or none.")
    return a, b


def _write(comparison: Comparison, page: Path, catalog: str, split: str) -> None:
    """Write the page, and say so."""
    from earec_core.report import compared, write

    report = compared(comparison.as_json(), catalog=catalog, split=split, command=options.typed())
    out.note(f"Report: {write(report, page)}")
