"""What a weighting is worth on validation data; test targets are never read.

`loss` and `rouge` look at the items of the validation split, fed with every modality they have. `ndcg@10` encodes
the catalog, trains the recommender and looks at the users' validation items.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from earec_core.align.samples import Sample
from earec_core.align.train import response_loss
from earec_core.aligned.instructions import Instructions
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

    def __init__(
        self, instructions: Instructions, catalog: Catalog, seed: int, max_items: int | None
    ) -> None:
        self.instructions = instructions
        samples = []
        for row in catalog.item_split("valid").tolist():
            anchor = instructions.builder.anchor(instructions.items[row])
            if anchor is None or not any(row in one for one in instructions.inputs.values()):
                continue
            response = instructions.builder.response(anchor)
            prompt = instructions.prompt(row, reserve=len(response))
            samples.append(Sample(prompt, response, instructions.length(prompt) + len(response)))
        if not samples:
            raise DataError(
                f"No validation item of {catalog.name} has both an anchor and one of "
                f"{', '.join(instructions.inputs)}.",
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
                float(response_loss(self.instructions, ordered[i : i + batch_size]))
                for i in range(0, len(ordered), batch_size)
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
            loss = response_loss(self.instructions, ordered[start : start + batch_size]) / tokens
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        return total

    def rouge(self, batch_size: int, max_new_tokens: int) -> float:
        """Mean ROUGE-L of what is generated."""
        prompts = [s.prompt for s in self.samples]
        texts = self.instructions.generate(prompts, max_new_tokens, batch_size=batch_size)
        items = self.instructions.items
        anchors = [self.instructions.builder.anchor(items[p.item]) or "" for p in prompts]
        return float(rouge_l(texts, anchors).mean())


def validation_ndcg(
    instructions: Instructions, catalog: Catalog, config: RecommenderConfig, batch_tokens: int
) -> float:
    """NDCG@10 on the users' validation items of a recommender over the vectors of this weighting."""
    vectors = item_vectors(instructions, range(len(catalog)), batch_tokens=batch_tokens)
    split = catalog.leave_one_out()
    # Test targets are taken out, so that nothing can look at them.
    hidden = replace(split, test=np.full_like(split.test, -1))
    trained = train(MODELS["earec"], hidden, len(catalog), config, vectors=torch.from_numpy(vectors))
    return evaluate(trained.model, hidden, "valid").ndcg(10)
