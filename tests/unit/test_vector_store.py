"""The store of item vectors: what one process wrote another reads, what is damaged is as if it were not there."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from earec_core.artifacts.tables import read_table, write_table
from earec_core.encode.store import VectorStore
from earec_core.errors import EarecError

RNG = np.random.default_rng(0)


def _keys(*names: str) -> list[bytes]:
    return [hashlib.sha256(name.encode()).digest() for name in names]


def _vectors(n: int) -> np.ndarray:
    return RNG.normal(size=(n, 3)).astype(np.float32)


def test_vectors_are_found_by_key_in_any_order_whoever_wrote_them(tmp_path: Path) -> None:
    first, second = _vectors(2), _vectors(3)
    with VectorStore(tmp_path) as own, VectorStore(tmp_path) as other:
        own.write(_keys("a", "b"), first)
        other.write(_keys("c", "d", "e"), second)
        assert own.missing(_keys("e", "x", "b", "x", "y")) == [0, 1, 4]
        own.refresh()
        assert own.missing(_keys("e", "x", "b", "x", "y")) == [1, 4]
        expected = [second[2], first[0], second[0], first[0]]
        np.testing.assert_array_equal(own.read(_keys("e", "a", "c", "a")), expected)
    with VectorStore(tmp_path) as later:
        assert later.missing(_keys("a", "b", "c", "d", "e")) == []
        np.testing.assert_array_equal(later.read(_keys("d", "b")), [second[1], first[1]])
        with pytest.raises(EarecError, match="is missing"):
            later.read(_keys("a", "x"))


@pytest.mark.parametrize("harm", ["flip", "cut", "empty"])
def test_a_damaged_shard_counts_for_nothing_and_the_others_stay(tmp_path: Path, harm: str) -> None:
    with VectorStore(tmp_path) as store:
        store.write(_keys("a"), _vectors(1))
        damaged = next(iter(tmp_path.glob("*.safetensors")))
        store.write(_keys("b"), _vectors(1))
    whole = damaged.read_bytes()
    harmed = {"flip": whole[:-1] + bytes([whole[-1] ^ 1]), "cut": whole[:-5], "empty": b""}[harm]
    damaged.write_bytes(harmed)
    with VectorStore(tmp_path) as store:
        assert store.missing(_keys("a", "b")) == [0]
        vectors = _vectors(1)
        store.write(_keys("a"), vectors)
        np.testing.assert_array_equal(store.read(_keys("a")), vectors)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_table_written_in_parts_is_the_file_that_safetensors_writes(tmp_path: Path) -> None:
    table = _vectors(7)
    save_file({"vectors": table}, tmp_path / "whole")
    assert write_table(tmp_path / "parts", "vectors", 7, [table[:3], table[3:4], table[4:]]) == 3
    assert (tmp_path / "parts").read_bytes() == (tmp_path / "whole").read_bytes()
    np.testing.assert_array_equal(read_table(tmp_path / "parts", "vectors"), table)
    with pytest.raises(ValueError, match="6 rows, not 7"):
        write_table(tmp_path / "short", "vectors", 7, [table[:3], table[4:]])
