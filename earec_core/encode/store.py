"""Item vectors on disk by the digest of what they depend on, in shards that several processes write at once.

A shard is a safetensors file: `keys` [m, 32] say whose `vectors` [m, d] it holds, so what is done and what came of
it appear together, or not at all. It is named by the SHA-256 of its bytes.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections import defaultdict
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from types import TracebackType

import numpy as np
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from earec_core import files
from earec_core.artifacts.tables import read_table
from earec_core.errors import EarecError

_DIGEST = 32


class VectorStore:
    """The vectors of one model under one reading, by key; memory holds neither vectors nor keys.

    Where each vector is stands in a temporary SQLite database of this process's own, filled from the shards.

    Args:
        folder: where the shards are, or will be.
        check: whether to read every shard in full and remove those that are damaged, which are then made again.
    """

    def __init__(self, folder: Path, *, check: bool = True) -> None:
        self.folder, self._check = folder, check
        self._shards: list[Path] = []
        self._seen: set[Path] = set()
        self._index = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._index.execute("CREATE TABLE places (key BLOB PRIMARY KEY, shard INT, row INT) WITHOUT ROWID")
        self.refresh()
        self._standing = len(self._shards)

    def __enter__(self) -> VectorStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._index.close()

    def refresh(self) -> None:
        """Take up what other processes have written since."""
        for file in sorted(set(self.folder.glob("*.safetensors")) - self._seen):
            self._take_up(file, check=self._check)

    def missing(self, keys: Sequence[bytes]) -> list[int]:
        """Places of the keys that no vector is stored for, each distinct key once."""
        first: dict[bytes, int] = {}
        for i, key in enumerate(keys):
            first.setdefault(key, i)
        return [i for key, i in first.items() if self._place(key) is None]

    def standing(self, keys: Sequence[bytes]) -> int:
        """How many of the keys had their vector here when the store was opened."""
        places = map(self._place, keys)
        return sum(place is not None and place[0] < self._standing for place in places)

    def write(self, keys: Sequence[bytes], vectors: Float[np.ndarray, "m d"]) -> None:
        """Add a shard.

        Args:
            keys: 32 bytes each.

        Raises:
            EarecError: it cannot be written.
        """
        rows = np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(-1, _DIGEST)
        shard = save({"keys": rows, "vectors": np.ascontiguousarray(vectors, dtype=np.float32)})
        file = self.folder / f"{hashlib.sha256(shard).hexdigest()}.safetensors"
        try:
            files.write_atomic(file, shard)
        except OSError as error:
            raise EarecError(
                f"The vectors could not be written to {self.folder} ({error}).",
                "Free some space, or set EAREC_HOME to another folder, then run again.",
            ) from error
        self._take_up(file, check=False)

    def read(self, keys: Sequence[bytes]) -> Float[np.ndarray, "n d"]:
        """The vectors of keys, in their order.

        Raises:
            EarecError: one is not there (any more).
        """
        within = defaultdict[int, list[tuple[int, int]]](list)
        for i, key in enumerate(keys):
            place = self._place(key)
            if place is None:
                raise EarecError(f"A vector is missing in {self.folder}.", "Run the same again.")
            within[place[0]].append((i, place[1]))
        found: list[tuple[list[int], Float[np.ndarray, "m d"]]] = []
        for shard, places in within.items():
            wanted, rows = map(list, zip(*places, strict=True))
            try:
                found.append((wanted, read_table(self._shards[shard], "vectors")[rows]))
            except (OSError, ValueError, SafetensorError) as error:
                raise EarecError(
                    f"The vectors in {self._shards[shard]} cannot be read ({error}).", "Run the same again."
                ) from error
        vectors = np.empty((len(keys), found[0][1].shape[1]), dtype=np.float32)
        for wanted, part in found:
            vectors[wanted] = part
        return vectors

    def _place(self, key: bytes) -> tuple[int, int] | None:
        """The shard and the row of a vector."""
        found: tuple[int, int] | None = self._index.execute(
            "SELECT shard, row FROM places WHERE key = ?", (key,)
        ).fetchone()
        return found

    def _take_up(self, file: Path, *, check: bool) -> None:
        """Index a shard; a damaged one is removed if it was checked."""
        try:
            if check and files.sha256(file) != file.stem:
                raise ValueError("its bytes are not those that were written")
            with safe_open(str(file), framework="np") as stored:
                keys = stored.get_tensor("keys")
        except OSError:
            return
        except (SafetensorError, ValueError):
            if check:
                with suppress(OSError):
                    file.unlink()
            return
        number = len(self._shards)
        self._shards.append(file)
        self._seen.add(file)
        rows = sorted((key.tobytes(), number, row) for row, key in enumerate(keys))
        with closing(self._index.cursor()) as cursor:
            cursor.execute("BEGIN")
            cursor.executemany("INSERT OR IGNORE INTO places VALUES (?, ?, ?)", rows)
            cursor.execute("COMMIT")
