"""The LLM: splicing, shared prefix, LoRA, merging; against plain transformers and PEFT."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from earec_core.config import BackboneConfig, LoraSettings
from earec_core.errors import IntegrityError, UsageError
from earec_core.llm.backbone import Backbone
from earec_core.llm.lora import MergedLora, TrainableLora
from earec_core.llm.prompts import Prompt
from earec_core.types import Slot

PREFIX = (0, 10, 20, 30)


def _prompts(lengths: list[int]) -> list[Prompt]:
    return [Prompt(i, (PREFIX, Slot("v", i), tuple(range(40, 40 + n)))) for i, n in enumerate(lengths)]


def _slots(backbone: Backbone, n: int) -> dict[Slot, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {Slot("v", i): torch.randn(i % 3 + 1, backbone.d_llm, generator=generator) for i in range(n)}


def _randomize(parameters: dict[str, torch.nn.Parameter]) -> None:
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.normal_(0, 0.2, generator=torch.Generator().manual_seed(parameter.numel()))


@pytest.fixture
def backbone(tiny_llm: Path) -> Backbone:
    return Backbone.load(BackboneConfig(model=str(tiny_llm), dtype="float32", device="cpu"))


def test_hidden_states_equal_plain_transformers_row_by_row(backbone: Backbone) -> None:
    prompts, slots = _prompts([3, 7, 5]), _slots(backbone, 3)
    batch = backbone.splice(prompts, slots)
    hidden = backbone.hidden(batch)
    for i, prompt in enumerate(prompts):
        words = backbone.word_embedding
        parts = [slots[p] if isinstance(p, Slot) else words(torch.tensor(p)) for p in prompt.pieces]
        plain = backbone.model(inputs_embeds=torch.cat(parts)[None], output_hidden_states=True)
        expected = plain.hidden_states[-1][0, len(PREFIX) :]
        n = int(batch.lengths[i])
        torch.testing.assert_close(hidden[i, :n], expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            backbone.logits(hidden[i, n - 1 : n])[0], plain.logits[0, -1], atol=1e-5, rtol=1e-5
        )


def _loss(hidden: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Of the states at the last positions. (Their squares would not do: normed, they sum to what they are wide.)"""
    last = hidden[torch.arange(len(lengths)), lengths - 1]
    return (last * torch.linspace(-1, 1, last.shape[1])).sum()


def test_shared_prefix_gives_the_same_gradients(backbone: Backbone) -> None:
    gradients = []
    with backbone.adapted(TrainableLora(LoraSettings(r=4))) as lora:
        _randomize(lora.parameters)
        for share in (True, False):
            batch = backbone.splice(_prompts([3, 7, 5]), _slots(backbone, 3))
            hidden = backbone.hidden(batch, share_prefix=share)
            _loss(hidden, batch.lengths).backward()
            gradients.append([p.grad.clone() for p in lora.parameters.values()])
            for parameter in lora.parameters.values():
                parameter.grad = None
    for shared, whole in zip(*gradients, strict=True):
        torch.testing.assert_close(shared, whole, atol=1e-4 * float(whole.abs().max()), rtol=1e-4)
    assert max(float(whole.abs().max()) for whole in gradients[1]) > 0.01


def test_checkpointed_blocks_keep_less_and_give_the_same_gradients(backbone: Backbone) -> None:
    gradients, kept = [], []
    with backbone.adapted(TrainableLora(LoraSettings(r=4))) as lora:
        _randomize(lora.parameters)
        for backbone.checkpointing in (False, True):
            sizes: dict[int, int] = {}

            def weigh(tensor: torch.Tensor, sizes: dict[int, int] = sizes) -> torch.Tensor:
                sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(weigh, lambda tensor: tensor):
                batch = backbone.splice(_prompts([30, 70, 50]), _slots(backbone, 3))
                hidden = backbone.hidden(batch, share_prefix=False)
            _loss(hidden, batch.lengths).backward()
            kept.append(sum(sizes.values()))
            gradients.append([p.grad.clone() for p in lora.parameters.values()])
            for parameter in lora.parameters.values():
                parameter.grad = None
        # A text is written from a cache, which a block that is computed again would not fill.
        assert backbone.generate(batch, 4)
    assert kept[1] < kept[0] / 2
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again, atol=1e-6, rtol=1e-5)
    assert not any(module.training for module in backbone.model.modules())


def test_dropout_works_while_training_alone(backbone: Backbone) -> None:
    batch = backbone.splice(_prompts([4, 6]), _slots(backbone, 2))
    with backbone.adapted(TrainableLora(LoraSettings(r=4, dropout=0.5))) as lora:
        _randomize(lora.parameters)
        without = backbone.hidden(batch)
        lora.train(True)
        assert lora.random
        assert not torch.allclose(backbone.hidden(batch), backbone.hidden(batch))
        lora.train(False)
        assert not lora.random
        assert torch.equal(backbone.hidden(batch), without)


def test_dropout_draws_masks_for_every_row_over_the_prefix_too(backbone: Backbone) -> None:
    """Rows that are the same differ in the hidden state of what follows the prefix, however little follows."""
    prompt = Prompt(0, (PREFIX, (40,)))
    batch = backbone.splice([prompt] * 3, {})
    with backbone.adapted(TrainableLora(LoraSettings(r=4, dropout=0.5))) as lora:
        _randomize(lora.parameters)
        seen: list[tuple[int, ...]] = []
        layer = backbone.model.base_model.layers[0].self_attn.k_proj
        layer.register_forward_hook(lambda _, args, __: seen.append(tuple(args[0].shape[:2])))
        for training in (False, True):
            lora.train(training)
            backbone.hidden(batch)
    assert seen == [(1, 4), (3, 1), (3, 5)]


def test_lora_a_follows_from_its_seed_alone(tiny_llm: Path) -> None:
    found = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        one = Backbone.load(BackboneConfig(model=str(tiny_llm)))
        with one.adapted(TrainableLora(LoraSettings(r=4, seed=3))) as lora:
            found.append({n: p.detach().clone() for n, p in lora.parameters.items()})
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert any(found[0][name].any() for name in found[0])


def test_saved_adapter_loads_with_plain_peft_and_merging_equals_it(
    backbone: Backbone, tiny_llm: Path, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    settings = LoraSettings(r=4, alpha=8)
    batch = backbone.splice(_prompts([4, 6]), _slots(backbone, 2))
    ids = torch.tensor([[0, 12, 55, 103]])
    with backbone.adapted(TrainableLora(settings)) as lora:
        _randomize(lora.parameters)
        attached = backbone.hidden(batch).detach()
        attached_logits = backbone.model(ids).logits.detach()
        lora.save(tmp_path / "adapter")

    plain = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_llm), str(tmp_path / "adapter")
    )
    torch.testing.assert_close(plain(ids).logits, attached_logits, atol=1e-5, rtol=1e-5)

    with backbone.adapted(MergedLora(tmp_path / "adapter")):
        torch.testing.assert_close(backbone.hidden(batch), attached, atol=1e-4, rtol=1e-4)


def _save(backbone: Backbone, folder: Path) -> Path:
    with backbone.adapted(TrainableLora(LoraSettings(r=4))) as lora:
        _randomize(lora.parameters)
        lora.save(folder)
    return folder


def test_loading_refuses_another_rank(backbone: Backbone, tmp_path: Path) -> None:
    file = _save(backbone, tmp_path) / "adapter_model.safetensors"
    with backbone.adapted(TrainableLora(LoraSettings(r=8))) as lora:
        with pytest.raises(UsageError, match=r"Set lora\.r"):
            lora.load(file)
    with backbone.adapted(TrainableLora(LoraSettings(r=4, seed=1))) as lora:
        lora.load(file)
        loaded = {name: p.detach() for name, p in lora.parameters.items()}
    stored = load_file(file)
    assert stored.keys() == loaded.keys()
    assert all(torch.equal(stored[name], p) for name, p in loaded.items())


def test_merge_refuses_an_adapter_of_another_shape(backbone: Backbone, tmp_path: Path) -> None:
    from earec_core.testing import tiny_backbone

    wider = Backbone.load(BackboneConfig(model=str(tiny_backbone(tmp_path / "wide", hidden=64))))
    folder = _save(wider, tmp_path / "adapter")
    with (
        pytest.raises(IntegrityError, match="does not fit the backbone"),
        backbone.adapted(MergedLora(folder)),
    ):
        pass


def test_merge_refuses_a_damaged_adapter(backbone: Backbone, tmp_path: Path) -> None:
    (_save(backbone, tmp_path) / "adapter_model.safetensors").write_bytes(b"\x08\x00")
    with pytest.raises(IntegrityError, match="cannot be read"), backbone.adapted(MergedLora(tmp_path)):
        pass


def _greedy(backbone: Backbone, prompt: Prompt, slots: dict[Slot, torch.Tensor], new: int) -> list[int]:
    """The likeliest tokens one after the other, each by transformers from the whole row; the end's is the last."""
    words = backbone.word_embedding
    parts = [slots[p] if isinstance(p, Slot) else words(torch.tensor(p)) for p in prompt.pieces]
    ids, embeds = list[int](), torch.cat(parts)[None]
    while len(ids) < new and backbone.tokenizer.eos_token_id not in ids:
        ids.append(int(backbone.model(inputs_embeds=embeds).logits[0, -1].argmax()))
        embeds = torch.cat([embeds, words(torch.tensor([ids[-1:]]))], dim=1)
    return ids


def test_generation_is_greedy_for_rows_of_any_length(backbone: Backbone) -> None:
    prompts, slots = _prompts([3, 9, 1, 5]), _slots(backbone, 4)
    expected = [_greedy(backbone, prompt, slots, 8) for prompt in prompts]
    assert backbone.continued(backbone.splice(prompts, slots), 8) == expected
    decoded = backbone.tokenizer.batch_decode(expected, skip_special_tokens=True)
    assert backbone.generate(backbone.splice(prompts, slots), 8) == [text.strip() for text in decoded]
    assert backbone.continued(backbone.splice(prompts[1:2], slots), 8) == expected[1:2]


def test_rows_that_end_leave_the_others_as_they_are(backbone: Backbone) -> None:
    prompts, slots = _prompts([3, 9, 1, 5]), _slots(backbone, 4)
    third = _greedy(backbone, prompts[1], slots, 8)[2]
    backbone.tokenizer.eos_token = backbone.tokenizer.convert_ids_to_tokens(third)
    expected = [_greedy(backbone, prompt, slots, 8) for prompt in prompts]
    assert len({len(ids) for ids in expected}) > 1
    assert backbone.continued(backbone.splice(prompts, slots), 8) == expected


@pytest.mark.parametrize(
    ("model", "said"),
    [("no-such-name", "There is no backbone"), ("EMPTY", "holds no config.json")],
)
def test_a_backbone_that_is_not_there_is_named(tmp_path: Path, model: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Backbone.load(BackboneConfig(model=str(tmp_path) if model == "EMPTY" else model))


def test_info_changes_with_the_weights(tmp_path: Path) -> None:
    from earec_core.llm import store as backbone_store
    from earec_core.testing import tiny_backbone

    one, other = (tiny_backbone(tmp_path / str(seed), seed=seed) for seed in (0, 1))
    a, b = (backbone_store.info(str(path), path) for path in (one, other))
    assert a.weights != b.weights
    assert (a.config, a.tokenizer) == (b.config, b.tokenizer)


def test_prompts_that_are_the_common_text_alone_are_read_whole(backbone: Backbone) -> None:
    """Items without any modality, on a chat template with nothing before the message, share their whole prompt."""
    bare = [Prompt(row, ((5, 6, 7),)) for row in range(2)]
    batch = backbone.splice(bare, {})
    assert (batch.prefix, batch.lengths.tolist()) == ((), [3, 3])
    with torch.no_grad():
        hidden = backbone.hidden(batch)
        plain = backbone.model.base_model(input_ids=torch.tensor([[5, 6, 7]])).last_hidden_state
    torch.testing.assert_close(hidden[0], plain[0], atol=1e-5, rtol=1e-5)
