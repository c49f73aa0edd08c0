"""What the explorer's answers hold, as JSON."""

from __future__ import annotations

from pydantic import Field

from earec_core.serve.models import ItemId, ItemLine, Ranked, Record, Text


class ReasonsRequest(Record):
    """Recommended items, and the history or the user that they are recommended to."""

    ids: list[ItemId]
    history: list[ItemId] = Field(default=[])
    user: str | None = None


class WithoutModality(Record):
    """An item's score without a modality of its own; `change` is that less the whole score."""

    modality: str
    score: float
    change: float


class WithoutItem(ItemLine):
    """The score after the history without one of its items; null where nothing else is in it."""

    score: float | None
    change: float | None


class Reasons(ItemLine):
    """Why an item is recommended.

    Attributes:
        score: the recommender's, of the whole item after the whole history.
        modalities: what its score is without each modality that the model reads of it.
        history: what its score is without each item of the history, in the order of their first time.
    """

    score: float
    modalities: list[WithoutModality]
    history: list[WithoutItem]


class ReasonsAnswer(Record):
    """In the order of the request."""

    results: list[Reasons]


class WeightsRequest(Record):
    """Weights to try, by modality and in proportion, on an item; and for what comes next a history or a user."""

    weights: dict[str, float]
    item_id: ItemId
    history: list[ItemId] = Field(default=[])
    user: str | None = None


class AtWeights(Record):
    """What the model says of an item at weights, as they were used."""

    weights: dict[str, float]
    texts: list[Text]


class Reranked(Ranked):
    """A candidate by the weights that were tried, and as it is at those that are served."""

    served_rank: int
    served_score: float


class Weighed(ItemLine):
    """What a composite makes of an item at other weights.

    Attributes:
        served, tried: at the weights that are served, and at those that were asked for.
        similar: the item's nearest at the served weights, by their cosine at those that were tried.
        recommended: what is recommended at the served weights, by its score at those that were tried; empty without
            a history or user.
    """

    anchor: str | None
    served: AtWeights
    tried: AtWeights
    similar: list[Reranked]
    recommended: list[Reranked]


class Point(ItemLine):
    """An item on the map.

    Attributes:
        x, y: 0 to 1.
        group: its place among the map's groups; null: none of them.
    """

    x: float
    y: float
    group: int | None


class ItemMap(Record):
    """Items by their two leading directions.

    Attributes:
        total: how many have a vector; `items` may be a sample of them.
        groups: the most frequent categories, most frequent first.
    """

    total: int
    groups: list[str]
    items: list[Point]
