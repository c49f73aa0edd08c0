"""What a report shows, as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class StageRow:
    """A stage of the run: what was typed and how long it took."""

    title: str
    command: str
    seconds: float


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
    """ROUGE-L of one source: for each variant (mean, low, high) of its 95% interval."""

    source: str
    items: int
    variants: Mapping[str, tuple[float, float, float]]


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
    """An item, its anchor, and what the model says of it."""

    item: str
    anchor: str
    says: Sequence[Says]


@dataclass(frozen=True)
class Composition:
    """How the adapters were merged."""

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
        metrics: `hr@10`, ... and their standard errors `hr@10_se`, ...
        command: what was typed.
    """

    model: str
    what: str
    metrics: Mapping[str, float]
    command: str


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
class Report:
    """A whole report; parts that are empty are left out."""

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
    stages: Sequence[StageRow] = ()
    notes: Sequence[str] = field(default_factory=tuple)
