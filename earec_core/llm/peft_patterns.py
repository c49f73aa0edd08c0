"""`rank_pattern` and `alpha_pattern` of a PEFT configuration: regular expressions from a file, in bounded time."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import regex

from earec_core.errors import IntegrityError, UsageError

_SECONDS = 10.0
_LONGEST = 4096
_PLAIN = re.compile(r"\^?(?:\w|\\?-|\\\.)+")


class Patterns:
    """A module's own rank or alpha, by PEFT's rule: the first pattern that matches the name or its end.

    PEFT takes `re.match(rf"(.*\\.)?({key})$", module)`. An expression may take longer than the universe has, and
    `re` cannot be stopped; `regex`, which has the same syntax and more, can. A key without anything special is
    looked up.

    Args:
        file: the configuration's, for messages.
        key: `rank_pattern` or `alpha_pattern`.

    Raises:
        IntegrityError: it is no mapping of text to numbers.
        UsageError: a pattern is no regular expression; from `value`: it takes longer than 10 s.
    """

    def __init__(self, file: Path, config: Mapping[str, Any], key: str) -> None:
        self._file, self._key, self._left = file, key, _SECONDS
        patterns = config.get(key) or {}
        if not isinstance(patterns, dict) or not all(map(is_number, patterns.values())):
            raise IntegrityError(
                f"{file} gives a {key} that is no mapping to numbers.", "Restore the file from its source."
            )
        self._values = [float(value) for value in patterns.values()]
        self._plain: dict[str, int] = {}
        self._others: dict[int, regex.Pattern[str]] = {}
        for number, pattern in enumerate(patterns):
            if _PLAIN.fullmatch(pattern):
                self._plain.setdefault(pattern.replace("\\", ""), number)
            else:
                self._others[number] = self._compiled(pattern)

    def value(self, module: str, default: float) -> float:
        """What the patterns say of a module."""
        ends = [f"^{module}", module, *(module[dot.end() :] for dot in re.finditer(r"\.", module))]
        first = min((self._plain[end] for end in ends if end in self._plain), default=len(self._values))
        for number, pattern in self._others.items():
            if number > first:
                break
            if self._matches(pattern, module):
                return self._values[number]
        return self._values[first] if first < len(self._values) else default

    def _compiled(self, pattern: str) -> regex.Pattern[str]:
        text = rf"(.*\.)?({pattern})$"
        try:
            if len(pattern) > _LONGEST:
                raise ValueError(f"it has {len(pattern)} characters")
            re.compile(text)  # what PEFT would refuse is refused
            return regex.compile(text)
        except (re.error, regex.error, ValueError, OverflowError, RecursionError) as error:
            raise UsageError(
                f"{self._file} holds the pattern {pattern[:80]!r}, which is no regular expression ({error}).",
                f"Correct it in {self._key}.",
            ) from error

    def _matches(self, pattern: regex.Pattern[str], module: str) -> bool:
        start = time.monotonic()
        try:
            matched = pattern.match(module, timeout=max(self._left, 1e-3)) is not None
        except TimeoutError:
            raise UsageError(
                f"{self._file} holds patterns in {self._key} that take longer than {_SECONDS:.0f} s to look up.",
                "Write the modules' names there, without nested repetitions.",
            ) from None
        self._left -= time.monotonic() - start
        return matched


def is_number(value: object) -> bool:
    """Whether a value of a JSON file is a finite number that a float can hold."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False
