"""What a report shows, as plain data; saved as JSON, from which the same page can be rendered again."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import earec_core
from earec_core.errors import DataError


@dataclass(frozen=True)
class StageRow:
    """A stage of the run: what was typed and how long it took.

    Attributes:
        skipped: the result of an earlier run was kept; `seconds` is what that run took.
    """

    title: str
    command: str
    seconds: float
    skipped: bool = False


@dataclass(frozen=True)
class Curve:
    """An alignment's course.

    Attributes:
        modality: what was aligned.
        loss: (step, training loss).
        valid: (step, validation loss).
        rouge: (step, validation ROUGE-L).
        items: training items.
        minutes: training time.
        tokens_per_s: median speed.
        command: what was typed.
    """

    modality: str
    loss: Sequence[tuple[float, float]]
    valid: Sequence[tuple[float, float]]
    rouge: Sequence[tuple[float, float]]
    items: int
    minutes: float
    tokens_per_s: float
    command: str


@dataclass(frozen=True)
class RougeRow:
    """ROUGE-L of one source.

    Attributes:
        source: the modality, or `all`.
        items: how many were scored.
        variants: `aligned`, `shuffled`, `unaligned`, `copied`, those measured: (mean, low, high), 95%.
        difference: aligned less shuffled, item by item, likewise; None where it was not measured.
    """

    source: str
    items: int
    variants: Mapping[str, tuple[float, float, float]]
    difference: tuple[float, float, float] | None = None

    @property
    def reads(self) -> bool:
        """Whether the text is shown to depend on the input: the difference's interval, or else both, lie apart."""
        if self.difference is not None:
            return self.difference[1] > 0
        return self.variants["aligned"][1] > self.variants["shuffled"][2]


@dataclass(frozen=True)
class Says:
    """What the model says of an item from one source.

    Attributes:
        source: the modality, or `all`.
        input: what went in: text, or a `data:` address of an image.
        text: what the model said.
        unaligned: what the un-aligned backbone said.
        rouge_l: of `text` against the anchor.
    """

    source: str
    input: str
    text: str
    unaligned: str
    rouge_l: float


@dataclass(frozen=True)
class Example:
    """An item, its anchor, and what the model says of it.

    Attributes:
        title: the item's name, shown where the anchor is something else.
        image: a `data:` address of a picture of the item.
    """

    item: str
    anchor: str
    says: Sequence[Says]
    title: str = ""
    image: str = ""


@dataclass(frozen=True)
class Composition:
    """How the adapters were merged.

    Attributes:
        weights: lambda of Eq. 4, by modality.
        method: name of the arithmetic.
        cosines: between two adapters' changes, by "first,second".
        norms: Frobenius norm of each adapter's change.
        command: what was typed.
    """

    weights: Mapping[str, float]
    method: str
    cosines: Mapping[str, float]
    norms: Mapping[str, float]
    command: str


@dataclass(frozen=True)
class Recommendation:
    """A recommender's figures.

    Attributes:
        model: its name.
        what: one line of what it recommends from.
        metrics: `hr@10`, ...; their standard errors `hr@10_se`, or 95% intervals `hr@10_low`, `hr@10_high`;
            `users`, how many were evaluated.
        command: what was typed.
        less: by metric the difference to the first recommender, user by user: (mean, low, high, p), p corrected for
            all that are shown; empty for the first.
    """

    model: str
    what: str
    metrics: Mapping[str, float]
    command: str
    less: Mapping[str, tuple[float, float, float, float]] = field(default_factory=dict)

    def interval(self, metric: str) -> tuple[float, float, float]:
        """A metric's value and its 95% interval, by the normal approximation where only the error is known.

        What was not measured is NaN.
        """
        value = self.metrics.get(metric, math.nan)
        reach = 1.96 * self.metrics.get(f"{metric}_se", math.nan)
        low, high = (self.metrics.get(f"{metric}_{side}") for side in ("low", "high"))
        return value, value - reach if low is None else low, value + reach if high is None else high


@dataclass(frozen=True)
class Suggestion:
    """What several recommenders offer one user.

    Attributes:
        user: the user's id.
        history: titles of the last items, latest last.
        target: title of the true next item.
        lists: by model, the titles offered, best first.
    """

    user: str
    history: Sequence[str]
    target: str
    lists: Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Difference:
    """An entry of two models' manifests that is not alike; empty where one has none."""

    what: str
    a: str
    b: str


@dataclass(frozen=True)
class Contrast:
    """A figure of two models over the same items or users.

    Attributes:
        part: of the comparison: `vectors`, `texts` or `recommendations`.
        what: was measured.
        n: items or users.
        a, b: the means.
        less: b less a: (mean, low, high), 95%.
        p: of the paired test, corrected for those of the part.
    """

    part: str
    what: str
    n: int
    a: float
    b: float
    less: tuple[float, float, float]
    p: float


@dataclass(frozen=True)
class Overlap:
    """What two models' lists of items share.

    Attributes:
        part, what, n: as of a `Contrast`.
        shared: part of a list that is in both: (mean, low, high), 95%.
        chance: of lists drawn at random.
    """

    part: str
    what: str
    n: int
    shared: tuple[float, float, float]
    chance: float


@dataclass(frozen=True)
class TwoSay:
    """What two models say of an item, with ROUGE-L of each text against the anchor."""

    item: str
    anchor: str
    a: str
    b: str
    rouge_a: float
    rouge_b: float


@dataclass(frozen=True)
class Report:
    """A whole report; parts that are empty are left out.

    Attributes:
        rouge_commands: what was typed to get `rouge` and `examples`.
        differences, contrasts, overlaps, said: of two models, A and B.
        compared_by: what was typed to get these.
        generated_with: the program and its version.
    """

    title: str
    subtitle: str
    facts: Sequence[tuple[str, str]] = ()
    examples: Sequence[Example] = ()
    rouge: Sequence[RougeRow] = ()
    rouge_commands: Sequence[str] = ()
    curves: Sequence[Curve] = ()
    composition: Composition | None = None
    recommendations: Sequence[Recommendation] = ()
    suggestions: Sequence[Suggestion] = ()
    differences: Sequence[Difference] = ()
    contrasts: Sequence[Contrast] = ()
    overlaps: Sequence[Overlap] = ()
    said: Sequence[TwoSay] = ()
    compared_by: str = ""
    stages: Sequence[StageRow] = ()
    notes: Sequence[str] = ()
    generated_with: str = field(default_factory=lambda: f"earec {earec_core.__version__}")

    def to_json(self) -> str:
        """The report as standard JSON; what is not a finite number is written as a string."""
        return json.dumps(_standard(asdict(self)), ensure_ascii=False, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Report:
        """The report that `to_json` wrote.

        Raises:
            DataError: the text is not a saved report.
        """
        from pydantic import TypeAdapter, ValidationError

        try:
            return TypeAdapter(cls).validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            raise DataError(
                f"This is not a saved report: {where}: {first['msg']}.",
                "Give the .json file that was written beside a report.",
            ) from error


def _standard(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _standard(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_standard(part) for part in value]
    return value
