"""Catalogs: items, interactions and relations as one dataset directory of Parquet tables."""

from earec_core.catalog.adding import GrownCatalog, item_row
from earec_core.catalog.dataset import Catalog
from earec_core.catalog.importing import import_dataset
from earec_core.catalog.joining import join_catalogs
from earec_core.catalog.splits import LeaveOneOut, Sequences, Split, random_part

__all__ = [
    "Catalog",
    "GrownCatalog",
    "LeaveOneOut",
    "Sequences",
    "Split",
    "import_dataset",
    "item_row",
    "join_catalogs",
    "random_part",
]
