"""What leaves a catalog for another recommender library."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from earec_core.catalog import Catalog


@dataclass(frozen=True)
class DatasetExport:
    """A catalog to be written for another library.

    Attributes:
        catalog: with interactions.
        name: of the folder that is written.
        vectors: of the items, in the catalog's order; None: none.
        max_len: items of a history that is written out, the most recent ones; None: as many as is usual.
    """

    catalog: Catalog
    name: str
    vectors: Float[np.ndarray, "n d"] | None = None
    max_len: int | None = None
