"""The tabular modality: what is special to it. The kit's checks run on it in the tutorial's test."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from earec_core.errors import DamagedInputError
from earec_core.modality import Context
from earec_core.types import Item
from earec_tabular.modality import TabularConfig, TabularModality


def read(**fields: Any) -> Any:
    return TabularModality(TabularConfig(), Context()).read(Item(0, "i", "t", fields))


def test_a_row_for_each_field_that_is_there() -> None:
    assert read(price=3, category="pens").shape == (2, 3 + 64 + 16)
    assert read(price="3").shape == (1, 3 + 64 + 16)
    assert read(colour="red") is None


def test_numbers_are_written_as_waves_of_their_logarithm() -> None:
    waves = read(rating=4)[0, -16:]
    angles = math.log(5) * np.array([1, 2, 4, 8, 16, 32, 64, 128])
    np.testing.assert_allclose(waves, [*np.sin(angles), *np.cos(angles)], atol=1e-5)


def test_a_categorys_words_count_in_any_order_and_case() -> None:
    np.testing.assert_array_equal(read(category="Desks, oak"), read(category="oak desks"))
    assert not np.array_equal(read(category="oak desks"), read(category="pine desks"))


@pytest.mark.parametrize("price", ["cheap", -1, math.inf, math.nan, [3]])
def test_what_is_no_price_is_damaged(price: Any) -> None:
    with pytest.raises(DamagedInputError, match="price of item i"):
        read(price=price)
