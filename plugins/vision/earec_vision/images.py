"""From a picture file to an upright RGB image, or a clear refusal."""

from __future__ import annotations

import base64
import io
import warnings
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from earec_core.errors import DamagedInputError

MOST_PIXELS = 178_956_970
"""Beyond this Pillow itself refuses to open a picture."""

# Still formats that Pillow decodes by itself: EPS, say, would run Ghostscript on a downloaded file.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "ICO")
_NEXT = "Replace the file or clear the item's picture; the item does without."


def open_rgb(source: str | bytes, name: str, max_pixels: int) -> Image.Image:
    """Decode a picture: first frame, upright by its EXIF orientation, transparency over white, RGB.

    Args:
        source: path of a file, or its content.
        name: what a message calls it.
        max_pixels: width times height above which it is not decoded (decompression bombs).

    Raises:
        DamagedInputError: it is not there, not a picture, damaged or too large.
    """
    try:
        if isinstance(source, str) and Path(source).exists() and not Path(source).is_file():
            raise DamagedInputError(f"The picture {name} is no file.", _NEXT)
        # Pillow warns of large pictures; `max_pixels` decides here.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            Image.init()
            known = [kind for kind in _FORMATS if kind in Image.OPEN]
            file = io.BytesIO(source) if isinstance(source, bytes) else Path(source)
            with Image.open(file, formats=known) as image:
                width, height = image.size
                if width * height > max_pixels:
                    raise DamagedInputError(
                        f"{name} has {width} x {height} pixels, more than vision.max_pixels={max_pixels}.",
                        "Shrink it, or raise --set vision.max_pixels=N.",
                    )
                image.load()
                return _over_white(ImageOps.exif_transpose(image))
    except DamagedInputError:
        raise
    except FileNotFoundError:
        raise DamagedInputError(f"The picture {name} is not there.", _NEXT) from None
    except Exception as error:
        # On damaged data Pillow's decoders raise whatever they run into, SyntaxError and struct.error too.
        # An OSError's own text would repeat the path.
        reason = (
            (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        )
        short = "not a picture of a known format" if isinstance(error, UnidentifiedImageError) else reason
        raise DamagedInputError(f"The picture {name} cannot be read: {short.rstrip('.')}.", _NEXT) from error


def thumbnail(image: Image.Image, side: int = 160) -> str:
    """The image at most `side` pixels wide and high, as a `data:` address of a JPEG."""
    small = image.copy()
    small.thumbnail((side, side))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _over_white(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":
        # Pillow would clip 16-bit grey at 255 instead of scaling it.
        image = image.point(lambda value: value * (1 / 256)).convert("L")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")
