"""What requests and answers hold, as JSON; OpenAPI is made from these."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from earec_core.errors import UsageError

ItemId = Annotated[str, Field(min_length=1, max_length=1024, description="An id of the catalog.")]
_BASE64 = "base64"


class Record(BaseModel):
    """A part of a request or an answer."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Problem(Record):
    """Why a request was not answered.

    Attributes:
        problem: what is wrong and where, a sentence.
        next_step: what to do about it, a sentence.
    """

    problem: str
    next_step: str


class ItemLine(Record):
    """An item in a list."""

    item_id: str
    title: str | None


class ItemPage(Record):
    """A part of the items that were searched for, in the catalog's order; the added ones last."""

    total: int
    offset: int
    items: list[ItemLine]


class Item(ItemLine):
    """An item with everything that is known of it.

    Attributes:
        fields: of the catalog, those that are not empty; what is no JSON, such as bytes, by its size or its text.
        anchor: what the model was aligned to say of it; null where the catalog does not have it.
        inputs: by modality, what the model reads of it, to be shown: text, or a `data:` image.
        related: items often bought together with it, best first.
        added: whether it was added by `POST /v1/items`.
        picture: whether `GET /v1/pictures/ID` gives one.
    """

    fields: dict[str, Any]
    anchor: str | None
    inputs: dict[str, str]
    related: list[ItemLine]
    added: bool
    picture: bool


class Ranked(ItemLine):
    """An item of a ranking; the score is a cosine, or the recommender's."""

    rank: int
    score: float


class SimilarItems(Record):
    """The items most like an item."""

    item_id: str
    items: list[Ranked]


class Recommendation(Record):
    """What comes next, best first; none where the recommender knows nothing of the history."""

    items: list[Ranked]


class Text(Record):
    """What the model says of an item from a source: a modality, or `all` together."""

    source: str
    text: str
    rouge_l: float | None


class Explained(ItemLine):
    """What the model says of an item, beside its anchor."""

    anchor: str | None
    texts: list[Text]


class VectorsLine(Record):
    """Item vectors by which items are compared beside the model's own.

    Attributes:
        name: what `vectors` of a request for similar items is.
        id: in the registry.
        modalities: that were read; none of vectors that no LLM made.
        takes_new: whether items that are added are compared by them, too: the served model made them.
    """

    name: str
    id: str
    modalities: list[str]
    takes_new: bool


class About(Record):
    """What is served.

    Attributes:
        model, vectors, recommender: ids in the registry.
        beside: further vectors.
        weights: of the modalities in the composite that is served; null for a single adapter.
        catalog: its name.
        columns: of its items, by name: what a new item may have.
        modalities: that the model reads.
        items, added: how many there are, and how many of them were added.
        users: how many users have a history.
    """

    model: str
    vectors: str
    recommender: str | None
    beside: list[VectorsLine]
    weights: dict[str, float] | None
    catalog: str
    columns: dict[str, str]
    modalities: list[str]
    items: int
    added: int
    users: int


class Readiness(Record):
    """Whether requests are answered, and what failed since: loading, or loading what a moved tag means."""

    ready: bool
    problem: str | None = None
    next_step: str | None = None


class NewItem(BaseModel):
    """An item to be added: fields as in the catalog's columns. Bytes are `{"base64": "..."}`."""

    model_config = ConfigDict(frozen=True, extra="allow")

    item_id: ItemId


class NewItems(Record):
    """Items to be added, all or none."""

    items: list[NewItem]


class SimilarRequest(Record):
    """Items, for each of which those most like it are asked for; by the model's vectors, or by some beside them."""

    ids: list[ItemId]
    k: Annotated[int, Field(ge=1)] = 10
    vectors: str | None = None


class RecommendRequest(Record):
    """Histories of item ids, the latest last, and users by their ids; histories are answered first."""

    histories: list[list[ItemId]] = []
    users: list[str] = []
    k: Annotated[int, Field(ge=1)] = 10
    exclude_seen: bool = True


class ExplainRequest(Record):
    """Items to be explained."""

    ids: list[ItemId]


class SimilarAnswer(Record):
    """In the order of the request."""

    results: list[SimilarItems]


class RecommendAnswer(Record):
    """In the order of the request."""

    results: list[Recommendation]


class ExplainAnswer(Record):
    """In the order of the request."""

    results: list[Explained]


class AddAnswer(Record):
    """The items as they are now, in the order of the request."""

    results: list[Item]


def from_json(value: Any) -> Any:
    """A posted value, its bytes read.

    Raises:
        UsageError: something is no base64, or a number is too large.
    """
    if isinstance(value, Mapping):
        if list(value) == [_BASE64] and isinstance(value[_BASE64], str):
            try:
                return base64.b64decode(value[_BASE64], validate=True)
            except (binascii.Error, ValueError):
                raise UsageError("A value is no base64.", "Encode the bytes again.") from None
        return {str(key): from_json(one) for key, one in value.items()}
    if isinstance(value, list):
        return [from_json(one) for one in value]
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise UsageError("A number has more than 64 bits.", "Give a smaller one, or a text.")
    return value


def to_json(value: Any) -> Any:
    """A value of a catalog as JSON has it: bytes by their number, times as ISO 8601, null for what is no number."""
    if isinstance(value, bytes):
        return {"bytes": len(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(one) for one in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Decimal):
        return str(value)
    return value if isinstance(value, str | int | bool) or value is None else str(value)
