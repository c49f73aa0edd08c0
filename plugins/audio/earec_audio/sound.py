"""From a sound file to windows of mono samples, or a clear refusal."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
from jaxtyping import Float

from earec_core.errors import DamagedInputError

Windows = Float[np.ndarray, "windows samples"]

SHORTEST_WINDOW = 1.0
"""Seconds; a clip shorter than so many times `windows` has fewer of them."""

_RATES = (1_000, 768_000)
_MOST_CHANNELS = 32
# Frames decoded before a window and dropped: after a seek an MP3's first frames lack the data before them.
_LEAD = 1 << 14
_TOLERANCE = 0.1
_NEXT = "Replace the file or clear the item's sound; the item does without."


@dataclass(frozen=True)
class Cut:
    """Which part of a clip is used.

    The clip is divided into `windows` equal stretches; of each the middle `most / windows` seconds are kept (all
    of it in a clip no longer than `most`), so that a long clip is sampled from its beginning to its end.

    Attributes:
        windows: the most windows of one clip.
        most: seconds kept of one clip.
        least: seconds; a shorter clip is refused.
    """

    windows: int
    most: float
    least: float

    def spans(self, frames: int, rate: int) -> list[tuple[int, int]]:
        """First frame and length of each window of a clip with so many frames."""
        count = min(max(int(frames / rate / SHORTEST_WINDOW), 1), self.windows)
        stretch = frames // count
        length = min(stretch, int(self.most * rate) // count)
        return [(i * stretch + (stretch - length) // 2, length) for i in range(count)]


def windows(source: str | bytes, name: str, rate: int, cut: Cut) -> Windows:
    """Decode what is used of a clip: mono (the mean of its channels), resampled, within [-1, 1].

    Frames outside the windows are skipped, so that an hour-long file costs as much memory as a short one.

    Args:
        source: path of a file, or its content; any format that libsndfile reads (WAV, FLAC, Ogg, MP3, ...).
        name: what a message calls it.
        rate: samples a second wanted.
        cut: which part.

    Raises:
        DamagedInputError: not there, not a sound, damaged, empty or too short.
    """
    with _opened(source, name) as file:
        rows = _decoded(file, file.frames, cut, name)
        resampled = [soxr.resample(row, file.samplerate, rate) for row in rows]
    # What a player would do with samples beyond full scale; resampling overshoots a little, too.
    clipped: np.ndarray = np.clip(np.stack(resampled), -1, 1)
    return clipped


def duration(source: str | bytes, name: str) -> float:
    """Seconds of a clip, from its header alone.

    Raises:
        DamagedInputError: it cannot be opened.
    """
    with _opened(source, name) as file:
        return float(file.frames / file.samplerate)


def _decoded(file: soundfile.SoundFile, frames: int, cut: Cut, name: str) -> Windows:
    """The windows of a file with so many frames, at its own rate."""
    if frames / file.samplerate < cut.least:
        raise DamagedInputError(
            f"The sound {name} lasts {frames / file.samplerate:.2f} s, less than "
            f"audio.min_seconds={cut.least:g}.",
            _NEXT,
        )
    spans = cut.spans(frames, file.samplerate)
    count, length = len(spans), spans[0][1]
    if spans[-1][0] == (count - 1) * length:
        # Windows that meet are decoded in one go.
        spans = [(0, count * length)]
    blocks = []
    for start, wanted in spans:
        first = max(0, start - _LEAD)
        file.seek(first)
        got = file.read(start - first + wanted, dtype="float32", always_2d=True)[start - first :]
        if len(got) < wanted and file.format == "MP3":
            # An MP3's length may be an estimate; here is its true end.
            return _decoded(file, start + len(got), cut, name)
        if (missing := (wanted - len(got)) / file.samplerate) > _TOLERANCE:
            raise DamagedInputError(f"The sound {name} ends {missing:.1f} s before its header says.", _NEXT)
        if not np.isfinite(got).all():
            raise DamagedInputError(f"The sound {name} holds samples that are not finite.", _NEXT)
        blocks.append(np.pad(got.mean(1), (0, wanted - len(got))))
    return np.concatenate(blocks).reshape(count, length)


@contextmanager
def _opened(source: str | bytes, name: str) -> Iterator[soundfile.SoundFile]:
    try:
        if isinstance(source, str) and Path(source).exists() and not Path(source).is_file():
            raise DamagedInputError(f"The sound {name} is no file.", _NEXT)
        with soundfile.SoundFile(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
            if not _RATES[0] <= file.samplerate <= _RATES[1] or file.channels > _MOST_CHANNELS:
                raise DamagedInputError(
                    f"The sound {name} has {file.samplerate} samples a second in {file.channels} channels.",
                    _NEXT,
                )
            yield file
    except DamagedInputError:
        raise
    except Exception as error:
        # On damaged data libsndfile and its bindings raise whatever they run into.
        reason = getattr(error, "error_string", "") or str(error) or type(error).__name__
        raise DamagedInputError(f"The sound {name} cannot be read: {reason.rstrip('.')}.", _NEXT) from error
