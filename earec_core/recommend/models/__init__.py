"""The table of recommenders.

Another one is a row more, or installed: a plugin of the kind `RECOMMENDER`, an entry point that yields a
`RecommenderModel`.
"""

from __future__ import annotations

from earec_core import plugins
from earec_core.errors import UsageError
from earec_core.recommend.models import earec, sasrec
from earec_core.recommend.models.base import Recommender, RecommenderModel
from earec_core.recommend.models.transformer import TransformerRecommender

MODELS: dict[str, RecommenderModel] = {model.name: model for model in (sasrec.MODEL, earec.MODEL)}

RECOMMENDER = plugins.Kind(
    "recommender", "earec.recommenders", plugins.instance_check(RecommenderModel), reserved=lambda: MODELS
)
"""The kind of plugin that brings a recommender."""


def recommender_names() -> list[str]:
    """Every model's name, those of plugins last; nothing is imported."""
    return [*MODELS, *sorted(set(plugins.names(RECOMMENDER)) - set(MODELS))]


def get_recommender(name: str) -> RecommenderModel:
    """The model of that name; a plugin is imported only for its own.

    Raises:
        UsageError: there is none.
        PluginError: a plugin brings it and is not usable.
    """
    model: RecommenderModel | None = MODELS.get(name) or plugins.load(RECOMMENDER, name)
    if model is None:
        raise UsageError(
            f"There is no recommender {name!r}.", f"Choose one of {', '.join(recommender_names())}."
        )
    return model


def choose_recommender(name: str | None, *, vectors: bool) -> RecommenderModel:
    """The model of that name; without a name `earec` on item vectors, `sasrec` without.

    Args:
        vectors: whether there are item vectors.

    Raises:
        UsageError: there is none, or see `RecommenderModel.check`.
        PluginError: a plugin brings it and is not usable.
    """
    model = get_recommender(name or ("earec" if vectors else "sasrec"))
    model.check(vectors=vectors)
    return model


__all__ = [
    "MODELS",
    "RECOMMENDER",
    "Recommender",
    "RecommenderModel",
    "TransformerRecommender",
    "choose_recommender",
    "get_recommender",
    "recommender_names",
]
