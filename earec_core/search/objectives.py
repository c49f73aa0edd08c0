"""What a weighting is worth on validation data; test targets are never read.

`loss` and `rouge` look at the items of the validation split, fed with every modality they have. `ndcg@10` encodes
the catalog, trains the recommender and looks at the users' validation items.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from earec_core.aligned.model import AlignedModel
from earec_core.aligned.prompts import Sample
from earec_core.catalog import Catalog
from earec_core.config import ExplainConfig, RunConfig
from earec_core.encode import item_vectors
from earec_core.errors import DataError
from earec_core.metrics.rouge import rouge_l
from earec_core.recommend.evaluate import evaluate
from earec_core.recommend.models import choose_recommender
from earec_core.recommend.train import train


def validation_samples(
    model: AlignedModel,
    catalog: Catalog,
    seed: int,
    max_items: int | None,
    note: Callable[[str], None] = lambda _: None,
) -> list[Sample]:
    """The validation items of a catalog that have an anchor and one of the model's modalities, and fit.

    Args:
        max_items: a random part of them.
        note: told how many do not fit.

    Raises:
        DataError: there is none.
    """
    prompts = model.prompts
    rows = [
        r for r in catalog.item_split("valid").tolist() if prompts.anchor(r) is not None and prompts.has(r)
    ]
    samples = [sample for row in rows if (sample := prompts.sample(row)) is not None]
    if len(samples) < len(rows):
        note(f"{len(rows) - len(samples)} of {len(rows)} validation items do not fit and take no part.")
    if not samples:
        raise DataError(
            f"No validation item of {catalog.name} has both an anchor and one of {', '.join(model.inputs)}.",
            "Choose other modalities, or import the missing columns.",
        )
    if max_items is not None and len(samples) > max_items:
        picked = np.random.default_rng(seed).choice(len(samples), max_items, replace=False)
        samples = [samples[i] for i in np.sort(picked)]
    return samples


def validation_loss(
    model: AlignedModel, samples: list[Sample], batch_size: int, gradient: bool = False
) -> float:
    """Eq. 3 per response token.

    Args:
        gradient: whether its gradient is added to whatever wants one, such as a mixture's weights.
    """
    ordered = sorted(samples, key=lambda sample: sample.length)
    tokens = sum(len(sample.response) for sample in ordered)
    total = 0.0
    for start in range(0, len(ordered), batch_size):
        batch = ordered[start : start + batch_size]
        if gradient:
            loss = model(batch) / tokens
            loss.backward()
            total += loss.item() * tokens
        else:
            with torch.inference_mode():
                total += float(model(batch))
    return total / tokens


def validation_rouge(model: AlignedModel, samples: list[Sample], config: ExplainConfig) -> float:
    """Mean ROUGE-L of what is generated."""
    prompts = [sample.prompt for sample in samples]
    texts = model.generate(prompts, config.max_new_tokens, batch_size=config.batch_size)
    anchors = [model.prompts.anchor(prompt.item) or "" for prompt in prompts]
    return float(rouge_l(texts, anchors).mean())


def validation_ndcg(model: AlignedModel, catalog: Catalog, config: RunConfig) -> float:
    """NDCG@10 on the users' validation items of a recommender over the vectors of this weighting."""
    vectors = item_vectors(model, range(len(catalog)), config.encode)
    split = catalog.leave_one_out()
    # Test targets are taken out, so that nothing can look at them.
    hidden = replace(split, test=np.full_like(split.test, -1))
    recommender = choose_recommender(None, vectors=True)
    trained = train(recommender, hidden, len(catalog), config.recommender, vectors=torch.from_numpy(vectors))
    return evaluate(trained.model, hidden, "valid").ndcg(10)
