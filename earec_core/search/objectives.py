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
from earec_core.catalog import Catalog
from earec_core.config import RecommenderConfig
from earec_core.encode import item_vectors
from earec_core.errors import DataError
from earec_core.metrics.rouge import rouge_l
from earec_core.recommend import MODELS, evaluate, train


class Validation:
    """The validation items of a catalog that have an anchor and one of the modalities.

    Raises:
        DataError: there is none.
    """

    def __init__(self, model: AlignedModel, catalog: Catalog, seed: int, max_items: int | None) -> None:
        self.model = model
        rows = catalog.item_split("valid").tolist()
        samples = [sample for row in rows if (sample := model.prompts.sample(row)) is not None]
        if not samples:
            raise DataError(
                f"No validation item of {catalog.name} has both an anchor and one of "
                f"{', '.join(model.inputs)}.",
                "Choose other modalities, or import the missing columns.",
            )
        if max_items is not None and len(samples) > max_items:
            picked = np.random.default_rng(seed).choice(len(samples), max_items, replace=False)
            samples = [samples[i] for i in np.sort(picked)]
        self.samples = samples

    def loss(self, batch_size: int) -> float:
        """Eq. 3 per response token."""
        ordered = sorted(self.samples, key=lambda s: s.length)
        with torch.inference_mode():
            total = sum(
                float(self.model(ordered[i : i + batch_size])) for i in range(0, len(ordered), batch_size)
            )
        return total / sum(len(s.response) for s in ordered)

    def loss_with_gradient(self, batch_size: int, prepare: Callable[[], object]) -> float:
        """The same, its gradient added up over the batches.

        Args:
            prepare: called before each batch; sets what the gradient is to reach.
        """
        total, tokens = 0.0, sum(len(s.response) for s in self.samples)
        ordered = sorted(self.samples, key=lambda s: s.length)
        for start in range(0, len(ordered), batch_size):
            prepare()
            loss = self.model(ordered[start : start + batch_size]) / tokens
            loss.backward()
            total += loss.item()
        return total

    def rouge(self, batch_size: int, max_new_tokens: int) -> float:
        """Mean ROUGE-L of what is generated."""
        prompts = [s.prompt for s in self.samples]
        texts = self.model.generate(prompts, max_new_tokens, batch_size=batch_size)
        anchors = [self.model.prompts.anchor(p.item) or "" for p in prompts]
        return float(rouge_l(texts, anchors).mean())


def validation_ndcg(
    model: AlignedModel, catalog: Catalog, config: RecommenderConfig, batch_tokens: int
) -> float:
    """NDCG@10 on the users' validation items of a recommender over the vectors of this weighting."""
    vectors = item_vectors(model, range(len(catalog)), batch_tokens=batch_tokens)
    split = catalog.leave_one_out()
    # Test targets are taken out, so that nothing can look at them.
    hidden = replace(split, test=np.full_like(split.test, -1))
    trained = train(MODELS["earec"], hidden, len(catalog), config, vectors=torch.from_numpy(vectors))
    return evaluate(trained.model, hidden, "valid").ndcg(10)
