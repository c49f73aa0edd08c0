"""On a GPU the numbers are the processor's: states, gradients, texts, and the whole way from alignment to vectors.

`EAREC_TEST_DEVICE=cpu pytest tests/cuda` runs them without one.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from earec_core.align import align
from earec_core.catalog import Catalog
from earec_core.catalog.importing import import_dataset
from earec_core.config import (
    AlignConfig,
    BackboneConfig,
    EncodeConfig,
    LoraSettings,
    RecommenderConfig,
    RunConfig,
)
from earec_core.encode import encode
from earec_core.explain import explain
from earec_core.llm.backbone import Backbone, Spliced
from earec_core.llm.lora import TrainableLora
from earec_core.llm.prompts import Prompt
from earec_core.recommend import evaluate, get_recommender, train
from earec_core.types import Slot
from earec_core.workspace import Workspace

DEVICE = os.environ.get("EAREC_TEST_DEVICE", "cuda")
pytestmark = pytest.mark.skipif(
    DEVICE == "cuda" and not torch.cuda.is_available(), reason="there is no CUDA device here"
)
PREFIX = (0, 10, 20, 30)


@pytest.fixture(autouse=True)
def _exact_products() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False


def _load(folder: Path, device: str) -> Backbone:
    return Backbone.load(BackboneConfig(model=str(folder), dtype="float32", device=device))


def _batch(backbone: Backbone) -> Spliced:
    generator = torch.Generator().manual_seed(1)
    slots = {Slot("v", i): torch.randn(2, backbone.d_llm, generator=generator) for i in range(4)}
    prompts = [
        Prompt(i, (PREFIX, Slot("v", i), tuple(range(40, 40 + n)))) for i, n in enumerate((3, 9, 1, 5))
    ]
    return backbone.splice(prompts, slots)


def _step(backbone: Backbone) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """States, and a loss's gradients to the adapter."""
    with backbone.adapted(TrainableLora(LoraSettings(r=4))) as lora:
        for name, parameter in lora.parameters.items():
            draw = torch.Generator().manual_seed(len(name) + parameter.numel())
            parameter.data.copy_(torch.randn(parameter.shape, generator=draw) * 0.1)
        batch = _batch(backbone)
        hidden = backbone.hidden(batch)
        ends = hidden[torch.arange(4, device=hidden.device), batch.lengths - 1]
        backbone.logits(ends).logsumexp(-1).sum().backward()
        gradients = {name: p.grad.cpu() for name, p in lora.parameters.items() if p.grad is not None}
    return ends.detach().cpu(), gradients


def test_states_and_gradients_are_the_processors(tiny_llm: Path) -> None:
    (states, gradients), (expected, by_processor) = (_step(_load(tiny_llm, d)) for d in (DEVICE, "cpu"))
    torch.testing.assert_close(states, expected, atol=1e-4, rtol=1e-4)
    assert gradients.keys() == by_processor.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, by_processor[name], atol=1e-4, rtol=1e-3)


def test_texts_are_the_processors(tiny_llm: Path) -> None:
    device, processor = (_load(tiny_llm, d) for d in (DEVICE, "cpu"))
    assert device.continued(_batch(device), 8) == processor.continued(_batch(processor), 8)


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    """40 things in colours, and 12 users."""
    draw, folder = np.random.default_rng(0), tmp_path / "source"
    folder.mkdir()
    colours = ("red", "green", "blue", "black")
    lines = [
        f'{{"item_id": "i{i}", "title": "{colours[i % 4]}", "description": "{" ".join(["thing"] * (i % 9 + 1))}"}}'
        for i in range(40)
    ]
    (folder / "items.jsonl").write_text("\n".join(lines))
    rows = [f"u{u},i{i},{t}" for u in range(12) for t, i in enumerate(draw.choice(40, 8, replace=False))]
    (folder / "interactions.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]))
    return import_dataset(folder, tmp_path / "catalog", core=1)


@pytest.mark.parametrize("dtype", ["float32", "auto"])
def test_the_whole_way_gives_the_processors_vectors(
    tiny_llm: Path, catalog: Catalog, tmp_path: Path, dtype: str
) -> None:
    vectors = {}
    for device in (DEVICE, "cpu"):
        workspace = Workspace.open(tmp_path / device)
        config = RunConfig(
            backbone=BackboneConfig(model=str(tiny_llm), dtype=dtype, device=device),
            align=AlignConfig(max_steps=6, batch_size=8, lr=1e-2, rouge_items=2),
        )
        alignment = align(workspace, catalog, "text", config)
        assert alignment.metrics["valid_loss"] < alignment.metrics["valid_loss_before"]
        explained = explain(workspace, catalog, alignment.id, config, max_items=3)
        assert all(score.variants["aligned"].n for score in explained.scores)
        config = config.model_copy(update={"encode": EncodeConfig(batch_tokens=512)})
        vectors[device] = encode(workspace, catalog, alignment.id, config).vectors
    mine, expected = vectors[DEVICE], vectors["cpu"]
    cosines = (mine * expected).sum(1) / (np.linalg.norm(mine, axis=1) * np.linalg.norm(expected, axis=1))
    assert cosines.min() > (0.9999 if dtype == "float32" else 0.99)


def test_a_recommender_learns_there(catalog: Catalog) -> None:
    split = catalog.leave_one_out()
    config = RecommenderConfig(dim=16, epochs=3, table="mlp")
    vectors = torch.randn(len(catalog), 24, generator=torch.Generator().manual_seed(0))
    trained = train(get_recommender("earec"), split, len(catalog), config, vectors=vectors, device=DEVICE)
    assert trained.history[-1].loss < trained.history[0].loss
    model = trained.model
    assert (
        evaluate(model, split, "test").ranks.tolist() == evaluate(model.cpu(), split, "test").ranks.tolist()
    )
