"""A modality the whole way: trained on its examples, stored, composed."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from earec_core.align import samples
from earec_core.aligned.features import read_inputs
from earec_core.aligned.model import AlignedModel
from earec_core.aligned.prompts import ItemPrompts
from earec_core.llm.lora import TrainableLora
from earec_core.llm.prompts import PromptBuilder
from earec_core.testing import compare
from earec_core.testing.clauses import clause, seeded
from earec_core.testing.kit import Kit


class Aligning:
    """The modality in an alignment."""

    def test_gradient_reaches_projector_and_adapter(self, ready: Kit) -> None:
        """The alignment's loss (Eq. 3) sends a gradient to every projector parameter and to the adapter."""
        backbone, items = ready.backbone, ready.items
        with seeded(0), clause("The examples must be usable as inputs of an alignment"):
            inputs = read_inputs(ready.name, ready.modality, items, backbone)
            inputs.calibrate(backbone.embedding_rms)
        settings = ready.run_config
        by_name = {ready.name: inputs}
        prompts = ItemPrompts(items, by_name, PromptBuilder(settings.prompt, backbone.tokenizer, "examples"))
        with clause("Every example must make a training sample") as require:
            built = samples.build(prompts, ready.name, range(len(items))).samples
            require(len(built) == len(items), "some do not")
        with backbone.adapted(TrainableLora(ready.modality.adapter_config(settings.lora))) as lora:
            factors = list(lora.parameters.values())
            with clause("The loss must send a gradient back through projector and encoder"):
                torch.autograd.backward(AlignedModel(backbone, by_name, prompts)(built))
        trained = {name: p for name, p in inputs.projector.named_parameters() if p.requires_grad}
        dead = [name for name, p in trained.items() if p.grad is None or not torch.isfinite(p.grad).all()]
        with clause("The loss must send a finite gradient to every parameter of the projector") as require:
            reached = not dead and (not trained or _any_gradient(trained.values()))
            require(reached, f"{', '.join(dead) or 'all of them'} gets none")
        with clause("The loss must send a gradient to the adapter (LoRA)") as require:
            require(_any_gradient(factors), "it gets none")

    def test_a_tiny_alignment_lowers_the_loss(self, ready: Kit) -> None:
        """Aligned on its own examples, the modality makes their titles likelier."""
        metrics = ready.alignment.metrics
        before, after = metrics["valid_loss_before"], metrics["valid_loss"]
        # The tiny LLM's logits are small: perfectly aligned, its loss falls by about half a nat.
        with clause("12 passes over its examples must lower a modality's loss by 0.1 at least") as require:
            require(after < before - 0.1, f"it goes from {before:.3f} to {after:.3f}")

    def test_composing_one_adapter_gives_it_back(self, ready: Kit) -> None:
        """Composed alone at weight 1 the adapter gives the same item vectors."""
        from earec_core.compose import Recipe
        from earec_core.compose.stage import compose_models

        adapters = {ready.name: ready.alignment.id}
        with clause("Composed at weight 1, an adapter must give the same item vectors") as require:
            recipe = Recipe({ready.name: 1.0})
            composite = compose_models(ready.workspace, adapters, recipe, name="kit/one").id
            vectors = torch.from_numpy(ready.vectors(ready.alignment.id))
            difference = compare.difference(torch.from_numpy(ready.vectors(composite)), vectors)
            require(not difference, f"they differ ({difference})")


def _any_gradient(parameters: Iterable[Tensor]) -> bool:
    return any(p.grad is not None and bool(p.grad.any()) for p in parameters)
