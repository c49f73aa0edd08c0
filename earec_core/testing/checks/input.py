"""What a modality reads of an item, and how it shows it."""

from __future__ import annotations

import base64
import re
from contextlib import suppress
from dataclasses import replace
from itertools import starmap
from typing import Any

import numpy as np
import torch

from earec_core.errors import DamagedInputError
from earec_core.modality import Projector, content_digest
from earec_core.testing import compare
from earec_core.testing.clauses import clause
from earec_core.testing.damage import damaged, files
from earec_core.testing.kit import Kit


class Input:
    """`read` and `describe`."""

    def test_read_gives_the_same_typed_input_every_time(self, ready: Kit) -> None:
        """`read` gives a str, bytes or numeric array, the same each time, and another for another example."""
        digests = set()
        with clause("read must give the same input every time") as require:
            for item, raw in zip(ready.items, ready.raws, strict=True):
                _check_type(raw, f"item {item.id}")
                digest = content_digest(raw)
                same = digest == content_digest(ready.new_modality().read(item))
                require(same, f"that of item {item.id} changes")
                digests.add(digest)
        with clause("The examples' inputs must differ, or rows that mix cannot be seen") as require:
            require(len(digests) == len(ready.items), "some are the same")

    def test_files_are_found_by_item_path(self, ready: Kit) -> None:
        """A field that names a file is read by `item.path`: from the catalog's folder, or by an absolute path."""
        for item, raw in zip(ready.items, ready.raws, strict=True):
            for field, file in files(item):
                for value, folder in ((file.name, file.parent), (str(file), ready.folder)):
                    moved = replace(item, fields={**item.fields, field: value}, folder=folder, outside=True)
                    with clause(f"read must open item.path({field!r}), here {value} in {folder}") as require:
                        moved_raw = ready.modality.read(moved)
                        same = moved_raw is not None and content_digest(moved_raw) == content_digest(raw)
                        require(same, f"it reads something else than given {file}")

    def test_read_gives_none_without_the_modality(self, ready: Kit) -> None:
        """`read` gives None for an item that lacks the modality: it is skipped, not damaged."""
        with clause("read must give None for an item without fields and title") as require:
            raw = ready.modality.read(ready.bare)
            require(raw is None, f"it gives {raw!r:.60}")

    def test_damaged_input_is_none_or_an_error_never_a_wrong_vector(self, ready: Kit) -> None:
        """Damaged input gives None or DamagedInputError; what `read` accepts has a finite vector."""
        projector = ready.calibrated_projector()
        for damage, item in damaged(ready.items[0], ready.new_folder("damaged")):
            raw = None
            with clause(f"read must give None or DamagedInputError for {damage}"):
                with suppress(DamagedInputError):
                    raw = ready.modality.read(item)
            if raw is None:
                continue
            _check_type(raw, damage)
            with clause("read must refuse (None or DamagedInputError) what has no finite vector") as require:
                finite = _has_finite_vector(ready, projector, raw)
                unchanged = finite or _is_as_it_was(ready)
                require(finite or not unchanged, f"{damage} gives a vector with NaN or infinity")
            with clause("The encoder's forward must not change what it gives later") as require:
                require(unchanged, "its state has changed: it encodes the examples otherwise than at first")

    def test_describe_shows_every_item(self, ready: Kit) -> None:
        """`describe` gives plain text or a `data:` image for every item, one without the modality included."""
        for item in (*ready.items, ready.bare):
            with clause(f"describe must give a str for every item, {item.id!r} included") as require:
                text = ready.modality.describe(item)
                require(isinstance(text, str), f"it gives a {type(text).__name__}")
            with clause("A data: address of describe must be a base64 image") as require:
                valid = not text.startswith("data:") or _is_image(text)
                require(valid, f"that of {item.id!r} is {text:.40}...")


def _has_finite_vector(ready: Kit, projector: Projector, raw: Any) -> bool:
    encoded = ready.encode([raw])
    h, mask = ready.project(projector, encoded)
    return bool(torch.isfinite(encoded.h).all() and torch.isfinite(h[mask]).all())


def _is_as_it_was(ready: Kit) -> bool:
    """Whether the encoder, after what it was called with since, still gives the same for the examples."""
    again = compare.rows(ready.encode(ready.raws))
    return not any(starmap(compare.difference, zip(again, compare.rows(ready.encoded), strict=True)))


def _check_type(raw: Any, name: str) -> None:
    array = isinstance(raw, np.ndarray)
    with clause("read must give str, bytes or a numeric numpy array, or None") as require:
        valid = raw.dtype.kind in "biufc" if array else isinstance(raw, str | bytes)
        require(valid, f"{name} gives {f'array of {raw.dtype}' if array else type(raw).__name__}")


def _is_image(text: str) -> bool:
    image = re.fullmatch(r"data:image/[\w.+-]+;base64,([A-Za-z0-9+/]+=*)", text)
    return image is not None and bool(base64.b64decode(image[1]))
