"""`earec similar`."""

from __future__ import annotations

from pathlib import Path

import click

from earec_core.cli import options
from earec_core.cli.output import out
from earec_core.config import RunConfig


@click.command()
@click.argument("item")
@options.data_option
@click.option("--vectors", help="REF of item vectors.  [default: vectors/DATASET]")
@click.option("-k", "k", type=click.IntRange(1), default=10, show_default=True)
@options.search_index_option
@options.config_options("preset")
@options.registry_option
@options.json_option
def command(
    item: str,
    data: Path,
    vectors: str | None,
    k: int,
    index: str,
    config: RunConfig,
    registry: Path,
    as_json: bool,
) -> None:
    """The items of a dataset whose vectors are most like those of ITEM, by cosine.

    Vectors are whitened first (--set recommender.scaling=none leaves them), since an LLM's are all nearly alike.
    """
    from earec_core.artifacts import ItemVectors
    from earec_core.catalog import Catalog
    from earec_core.recommend.indexes import SAMPLE
    from earec_core.recommend.similar import Neighbours
    from earec_core.workspace import Workspace

    catalog = Catalog.open(data)
    (row,) = catalog.rows_of([item])
    workspace = Workspace.open(registry=registry)
    opened = ItemVectors.open(workspace.registry, vectors or f"vectors/{catalog.name}", catalog)
    neighbours = Neighbours.of(opened.vectors, config.recommender, index=index, cache=workspace.indexes)
    found = neighbours.nearest(row, k)
    if neighbours.index is not None:
        out.note(
            f"The index is {neighbours.index.kind}: {neighbours.index.why}. Recall@10 {neighbours.recall():.3f}, "
            f"on {min(SAMPLE, len(neighbours.rows)):,} items."
        )
    items = catalog.items_at([place for place, _ in found])
    rows = [
        {"rank": rank, "item_id": one.id, "title": one.title, "cosine": cosine}
        for rank, (one, (_, cosine)) in enumerate(zip(items, found, strict=True), start=1)
    ]
    out.table(rows, ["rank", "item_id", "title", "cosine"], as_json)
