"""What `explain` hands on: a row per text, a Parquet table, and what went in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from earec_core import plugins
from earec_core.catalog import Catalog
from earec_core.explain.stage import Explanation
from earec_core.files import replacing


def text_rows(explanation: Explanation, catalog: Catalog) -> list[dict[str, Any]]:
    """A row per text, as tables and reports show it."""
    ids = catalog.items["item_id"].to_list()
    return [
        {
            "item_id": ids[text.row],
            "anchor": explanation.anchors[text.row],
            "source": text.source,
            "variant": text.variant,
            "text": text.text,
            "rouge_l": text.rouge_l,
        }
        for text in explanation.texts
    ]


def write_texts(explanation: Explanation, catalog: Catalog, target: Path) -> None:
    """Write every text with its anchor and score as one Parquet table, atomically."""
    schema = dict.fromkeys(("item_id", "anchor", "source", "variant", "text"), pl.String)
    table = pl.DataFrame(text_rows(explanation, catalog), schema={**schema, "rouge_l": pl.Float64})
    with replacing(target) as temporary:
        table.write_parquet(temporary)


def inputs_shown(explanation: Explanation, catalog: Catalog) -> Callable[[str, str], str]:
    """From an item's id and a modality to what went in, as a report shows it: text or a `data:` image.

    Raises:
        PluginError: by the function, where the plugin cannot show the item.
    """
    items = {item.id: item for item in catalog.all_items()}

    def shown(item_id: str, modality: str) -> str:
        try:
            return explanation.inputs[modality].modality.describe(items[item_id])
        except Exception as error:
            plugin = plugins.failed(plugins.get(modality), f"Describing item {item_id!r}", error)
            raise plugins.refusal(plugin) from error

    return shown
