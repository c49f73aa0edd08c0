"""What a modality reads of an item, and how it shows it."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from earec_core.errors import DamagedInputError
from earec_core.modality import content_digest
from earec_core.testing.clauses import ContractError, expecting, require, said
from earec_core.testing.damage import damaged, files
from earec_core.testing.kit import Kit


class Input:
    """`read` and `describe`."""

    def test_read_gives_the_same_typed_input_every_time(self, ready: Kit) -> None:
        """`read` gives a str, bytes or numeric array, the same each time, and another for another example."""
        digests = []
        for item, first in zip(ready.items, ready.raws, strict=True):
            _check_raw(first, f"item {item.id}")
            digests.append(content_digest(first))
            require(
                digests[-1] == content_digest(ready.new_modality().read(item)),
                f"read must give the same input every time, but that of item {item.id} changes.",
            )
        require(
            len(set(digests)) == len(digests),
            "The examples' inputs must differ, or rows that mix cannot be seen, but some are the same.",
        )

    def test_files_are_found_by_item_path(self, ready: Kit) -> None:
        """A field that names a file is read by `item.path`: from the catalog's folder, or by an absolute path."""
        for item, raw in zip(ready.items, ready.raws, strict=True):
            for field, file in files(item):
                for value, folder in ((file.name, file.parent), (str(file), ready.folder)):
                    moved = replace(item, fields={**item.fields, field: value}, folder=folder)
                    with expecting(f"read must open item.path({field!r}), here {value} in {folder}"):
                        found = ready.modality.read(moved)
                    require(
                        found is not None and content_digest(found) == content_digest(raw),
                        f"read must open item.path({field!r}), but given {value} in {folder} it reads something "
                        f"else than given {file}.",
                    )

    def test_read_gives_none_without_the_modality(self, ready: Kit) -> None:
        """`read` gives None for an item that lacks the modality: it is skipped, not damaged."""
        with expecting("read must give None for an item without fields and title"):
            raw = ready.modality.read(ready.bare)
        require(
            raw is None,
            f"read must give None for an item without fields and title, but it gives {raw!r:.60}.",
        )

    def test_damaged_input_is_none_or_an_error_never_a_wrong_vector(self, ready: Kit) -> None:
        """Damaged input gives None or DamagedInputError; what `read` accepts has a finite vector."""
        folder = ready.new_folder("damaged")
        projector = ready.calibrated_projector()
        for what, item in damaged(ready.items[0], folder):
            try:
                raw = ready.modality.read(item)
            except DamagedInputError:
                continue
            except Exception as error:
                raise ContractError(
                    f"read must answer damaged input with None or DamagedInputError, but {what} raises "
                    f"{said(error)}."
                ) from error
            if raw is None:
                continue
            _check_raw(raw, what)
            with expecting(f"The encoder must take whatever read accepts, such as {what}"):
                encoded = ready.encode([raw])
            h, mask = ready.project(projector, encoded)
            require(
                bool(torch.isfinite(encoded.h).all() and torch.isfinite(h[mask]).all()),
                "read must refuse what gives no finite vector (None or DamagedInputError), but "
                f"{what} gives a vector with NaN or infinity.",
            )

    def test_describe_shows_every_item(self, ready: Kit) -> None:
        """`describe` gives plain text or a `data:` image for every item, one without the modality included."""
        for item in (*ready.items, ready.bare):
            with expecting(f"describe must give text for every item, {item.id!r} included"):
                text = ready.modality.describe(item)
            require(
                isinstance(text, str),
                f"describe must give a str for every item, but for {item.id!r} a {type(text).__name__}.",
            )
            require(
                not text.startswith("data:") or _is_image(text),
                f"A data: address of describe must be a base64 image, but that of {item.id!r} is {text:.40}...",
            )


def _check_raw(raw: Any, what: str) -> None:
    numeric = isinstance(raw, np.ndarray) and raw.dtype.kind in "biufc"
    found = f"array of {raw.dtype}" if isinstance(raw, np.ndarray) else type(raw).__name__
    require(
        isinstance(raw, str | bytes) or numeric,
        f"read must give str, bytes or a numeric numpy array, or None, but {what} gives {found}.",
    )


def _is_image(text: str) -> bool:
    found = re.fullmatch(r"data:image/[\w.+-]+;base64,([A-Za-z0-9+/]+=*)", text)
    return found is not None and bool(base64.b64decode(found[1]))
