"""Vision: an item's picture through a frozen encoder and a trained MLP."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from PIL import Image
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from earec_core.errors import DamagedInputError, IntegrityError
from earec_core.modality import Encoder, Item, LanguageModel, MlpProjector, Modality, PluginConfig, Projector
from earec_vision import llava
from earec_vision.encoders import LITE0, Lite0, Pixels, Source, Tower
from earec_vision.images import MOST_PIXELS, open_rgb, thumbnail
from earec_vision.llava import LlavaProjector


class VisionConfig(PluginConfig):
    """Which picture, which encoder, how many positions."""

    encoder: str = Field(
        LITE0, description=f"{LITE0}, or a directory or hub id of a transformers vision tower."
    )
    revision: str | None = Field(
        None, description="Hub commit, or digest that a local directory must have; stored with a model."
    )
    layer: int = Field(-1, description="Hidden state of a tower; -1 the last, -2 as LLaVA on CLIP.")
    pool: Literal["patch", "pooled"] = Field("patch", description="patch: the grid; pooled: one vector.")
    positions: int = Field(
        4,
        ge=1,
        description="Slot positions, a square: 1, 4, 9, ...; the grid is averaged to that many cells.",
    )
    projector: str = Field(
        "mlp",
        description="mlp: new, behind a LayerNorm; llava: LLaVA's shape, new; or a LLaVA checkpoint (directory "
        "or safetensors file) whose projector it starts from.",
    )
    projector_revision: str | None = Field(
        None, description="Digest that this checkpoint's projector must have; stored with a model."
    )
    field: str = Field("image", min_length=1, description="Item field with a picture's path or bytes.")
    folder: str = Field(
        "",
        description="For pictures named by web address: the folder that has them, by the address's last part.",
    )
    max_pixels: int = Field(
        MOST_PIXELS // 2, ge=1, le=MOST_PIXELS, description="Larger pictures are not decoded."
    )

    @model_validator(mode="before")
    @classmethod
    def _one_position_when_pooled(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("pool") == "pooled":
            return {"positions": 1, **values}
        return values

    @field_validator("positions")
    @classmethod
    def _square(cls, value: int) -> int:
        if math.isqrt(value) ** 2 != value:
            raise ValueError("must be a square (1, 4, 9, 16, ...)")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> VisionConfig:
        if self.pool == "pooled" and self.positions != 1:
            raise ValueError("pool=pooled gives one position; leave `positions` out or set it to 1")
        if self.encoder == LITE0 and self.layer != -1:
            raise ValueError(f"{LITE0} has its last layer only; leave `layer` out")
        return self


class VisionModality(Modality[VisionConfig]):
    """An item's picture."""

    def read(self, item: Item) -> Pixels | None:
        image = self._open(item)
        if image is None:
            return None
        try:
            return self._source.prepare(image)
        except DamagedInputError as error:
            raise DamagedInputError(
                f"{_name(item, self.config.field)}: {error.problem}", error.next_step
            ) from None

    def build_encoder(self, llm: LanguageModel) -> Encoder:
        return self._source.encoder()

    def build_projector(self, d_enc: int, d_llm: int) -> Projector:
        if self.config.projector == "mlp":
            return MlpProjector(d_enc, d_llm)
        return LlavaProjector(d_enc, d_llm, self._projector_weights and self._projector_weights[0])

    def positions(self) -> int:
        return self.config.positions

    def describe(self, item: Item) -> str:
        try:
            image = self._open(item)
        except DamagedInputError as error:
            return error.problem
        return "" if image is None else thumbnail(image)

    def resolved_config(self) -> VisionConfig:
        exact = {"revision": self._source.revision}
        if self._projector_weights:
            # The model has its own copy of them from now on: their shape is all that matters.
            exact |= {"projector": "llava", "projector_revision": self._projector_weights[1]}
        return self.config.model_copy(update=exact)

    def fingerprint(self) -> str:
        c = self.config
        name = c.encoder if c.encoder == LITE0 else "tower"
        return json.dumps([name, self._source.revision, c.layer, c.pool, c.positions])

    @classmethod
    def examples(cls, folder: Path) -> tuple[VisionConfig, Sequence[Item]]:
        items = []
        for row, (mode, colour) in enumerate((("RGB", "red"), ("RGBA", "#0000ff80"), ("L", "gray"))):
            file = folder / f"{mode}.png"
            picture = Image.new(mode, (60 + 20 * row, 80), colour)
            picture.paste(Image.linear_gradient("L").resize((40, 30)), (10, 20 + 10 * row))
            picture.save(file)
            items.append(Item(row, f"e{row}", f"Thing {row}", {"image": file.name}, folder=folder))
        return VisionConfig(), items

    def _open(self, item: Item) -> Image.Image | None:
        value = item.content(self.config.field)
        if value is None:
            return None
        name = _name(item, self.config.field)
        if not isinstance(value, (str, bytes)):
            raise DamagedInputError(
                f"{name} is a {type(value).__name__}, neither path nor bytes.", "Mend the column."
            )
        return open_rgb(self._path(value) if isinstance(value, str) else value, name, self.config.max_pixels)

    def _path(self, value: str) -> str:
        """The file that a path or an address means; nothing is downloaded."""
        try:
            address = urlsplit(value)
        except ValueError as error:
            raise DamagedInputError(
                f"{value!r} is no picture's address: {error}.", "Mend the column."
            ) from None
        if address.scheme == "file":
            return url2pathname(address.path)
        if address.scheme not in ("http", "https"):
            return value
        if not self.config.folder:
            raise DamagedInputError(
                f"The picture {value} is on the web, and nothing is downloaded.",
                "Put the pictures into a folder and name it: --set vision.folder=DIR",
            )
        return str(Path(self.config.folder).expanduser() / Path(unquote(address.path)).name)

    @cached_property
    def _projector_weights(self) -> tuple[dict[str, Tensor], str] | None:
        if self.config.projector in ("mlp", "llava"):
            return None
        weights, revision = llava.read(Path(self.config.projector).expanduser())
        if self.config.projector_revision not in (None, revision):
            raise IntegrityError(
                f"The projector in {self.config.projector} is {revision}, not {self.config.projector_revision}.",
                "Give the checkpoint that is meant, or leave vision.projector_revision out.",
            )
        return weights, revision

    @cached_property
    def _source(self) -> Source:
        c = self.config
        if c.encoder == LITE0:
            return Lite0(c.positions, c.revision)
        return Tower(c.encoder, c.revision, c.layer, c.pool, c.positions)


def _name(item: Item, field: str) -> str:
    content = item.content(field)
    return content if isinstance(content, str) else f"{field} of item {item.id}"
