"""The table of recommenders.

Another one is a row more, or installed: a plugin of the kind `RECOMMENDER`, an entry point that yields a
`RecommenderModel`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from jaxtyping import Int
from torch import Tensor

from earec_core import plugins
from earec_core.config import RecommenderConfig
from earec_core.recommend.models import missrec
from earec_core.recommend.models.base import RecommenderModel
from earec_core.recommend.models.esasrec import ESASRec, esasrec_config
from earec_core.recommend.models.markov import MarkovRecommender
from earec_core.recommend.models.morec import MoRec
from earec_core.recommend.models.popularity import PopularityRecommender
from earec_core.recommend.models.transformer import TransformerRecommender, of_table
from earec_core.recommend.models.unisrec import UniSRec, unisrec_config
from earec_core.recommend.tables import IdTable, Items, ItemTable, build_table
from earec_core.recommend.tables.base import transferred_scaling


def _sasrec(config: RecommenderConfig, items: Items) -> TransformerRecommender:
    """SASRec (Kang & McAuley, ICDM 2018): the transformer over a trained embedding per item id."""
    return _competing(IdTable(len(items), config.dim), config, items.counts)


def _esasrec(config: RecommenderConfig, items: Items) -> TransformerRecommender:
    """eSASRec (Tikhonovich et al., RecSys 2025): LiGR's layers over ids, trained by a sampled softmax."""
    config = esasrec_config(config)
    return _competing(IdTable(len(items), config.dim), config, items.counts, ESASRec)


def _earec(config: RecommenderConfig, items: Items) -> TransformerRecommender:
    """EARec's (Eqs. 6-8): the transformer over frozen item vectors through a table of `recommender.table`."""
    return _competing(build_table(config, items), config, items.counts)


def _unisrec(config: RecommenderConfig, items: Items) -> TransformerRecommender:
    """UniSRec (Hou et al., KDD 2022): the transformer over its adaptor, for transfer between catalogs."""
    config = unisrec_config(config)
    return _competing(build_table(config, items), config, items.counts, UniSRec)


def _competing(
    table: ItemTable,
    config: RecommenderConfig,
    counts: Int[Tensor, " n"],
    model: type[TransformerRecommender] = TransformerRecommender,
) -> TransformerRecommender:
    """The transformer, whose items compete in training as `candidates`, `negatives` and `logit_adjustment` say."""
    competing = counts > 0 if config.candidates == "trained" else torch.ones_like(counts)
    whole = config.candidates == "catalog" and config.negatives is None
    candidates = None if whole else competing.nonzero().squeeze(1)
    # One that nobody chose counts as chosen once.
    prior = config.logit_adjustment * (counts.clamp(min=1) / counts.sum()).log()
    return model(table, config, candidates=candidates, prior=prior if config.logit_adjustment else None)


def _transfer(
    build: Callable[[RecommenderConfig, Items], TransformerRecommender],
) -> Callable[[RecommenderConfig, Items, Mapping[str, Tensor]], TransformerRecommender]:
    """How a model over an item table starts from one of another catalog, whose scaling its vectors get."""

    def transfer(
        config: RecommenderConfig, items: Items, tensors: Mapping[str, Tensor]
    ) -> TransformerRecommender:
        model = build(config, replace(items, scaling=transferred_scaling(of_table(tensors))))
        model.transfer_from(tensors)
        return model

    return transfer


_load = TransformerRecommender.stored
MODELS = {
    model.name: model
    for model in (
        RecommenderModel("sasrec", "a trained embedding per item id", False, _sasrec, _load),
        RecommenderModel(
            "esasrec",
            "a trained embedding per item id, eSASRec's layers and sampled loss",
            False,
            _esasrec,
            ESASRec.stored,
            resolved=esasrec_config,
        ),
        RecommenderModel(
            "earec", "frozen item vectors through an item table", True, _earec, _load, _transfer(_earec)
        ),
        RecommenderModel(
            "unisrec",
            "frozen item vectors through UniSRec's adaptor, pre-trained by contrast",
            True,
            _unisrec,
            UniSRec.stored,
            _transfer(_unisrec),
            resolved=unisrec_config,
        ),
        RecommenderModel(
            "missrec",
            "modalities mixed by user and read by interests",
            True,
            missrec.build,
            missrec.MissRec.stored,
            missrec.transfer,
        ),
        RecommenderModel(
            "popularity",
            "what training saw most often; nothing is trained",
            False,
            PopularityRecommender.counted,
            PopularityRecommender.stored,
            counts=True,
        ),
        RecommenderModel(
            "markov",
            "what followed the last item most often; nothing is trained",
            False,
            MarkovRecommender.counted,
            MarkovRecommender.stored,
            counts=True,
        ),
        RecommenderModel(
            "morec", "an encoder of text trained with it", False, MoRec.build, _load, needs_words=True
        ),
    )
}

RECOMMENDER = plugins.Kind(
    "recommender", "earec.recommenders", plugins.instance_check(RecommenderModel), reserved=lambda: MODELS
)
"""The kind of plugin that brings a recommender."""


def recommender_names() -> list[str]:
    """Every model's name, those of plugins last; nothing is imported."""
    return plugins.names_in(MODELS, RECOMMENDER)


def get_recommender(name: str) -> RecommenderModel:
    """The model of that name; a plugin is imported only for its own.

    Raises:
        UsageError: there is none.
        PluginError: a plugin brings it and is not usable.
    """
    return plugins.choose(MODELS, RECOMMENDER, name, "recommender")


def choose_recommender(name: str | None, *, vectors: bool, words: bool = False) -> RecommenderModel:
    """The model of that name; without a name `earec` on item vectors, `sasrec` without.

    Args:
        vectors: whether there are item vectors.
        words: whether items' words are to be read.

    Raises:
        UsageError: there is none, or see `RecommenderModel.check`.
        PluginError: a plugin brings it and is not usable.
    """
    model = get_recommender(name or ("earec" if vectors else "sasrec"))
    model.check(vectors=vectors, words=words)
    return model
