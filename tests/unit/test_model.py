"""The aligned model as one module: what it registers, its two modes, and its loss inside a distributed wrapper."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from earec_core.align import samples
from earec_core.align.train import Trainer
from earec_core.aligned.features import read_inputs
from earec_core.aligned.model import AlignedModel
from earec_core.aligned.prompts import ItemPrompts, Sample
from earec_core.config import AlignConfig, BackboneConfig, LoraSettings, PromptConfig
from earec_core.llm.backbone import Backbone
from earec_core.llm.lora import TrainableLora
from earec_core.llm.prompts import Prompt, PromptBuilder
from earec_core.modality import Context, Encoded, Encoder, Modality, PluginConfig, pad
from earec_core.modality.projectors import MlpProjector
from earec_core.train.engine import TorchEngine
from earec_core.types import Item, Slot


class Config(PluginConfig):
    field: str


class Codes(Encoder):
    d_enc = 2

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.01))

    def forward(self, batch: Sequence[str]) -> Encoded:
        codes = [torch.tensor([float(ord(c)) for c in raw])[:, None] * self.scale for raw in batch]
        return pad([torch.cat([x.sin(), x.cos()], dim=1) for x in codes])


class Letters(Modality[Config]):
    """Reads a field of an item letter by letter."""

    def read(self, item: Item) -> str | None:
        return item.fields.get(self.config.field)

    def build_encoder(self, llm: Any) -> Codes:
        return Codes()

    def build_projector(self, d_enc: int, d_llm: int) -> MlpProjector:
        projector = MlpProjector(d_enc, d_llm)
        projector.hidden.append(nn.Dropout(0.5))
        return projector

    def positions(self) -> int:
        return 8 if self.config.field == "long" else 2

    def describe(self, item: Item) -> str:
        return ""


ITEMS = [
    Item(0, "a", "Red Pen", {"short": "ab", "long": "abcdef"}, (1, 2)),
    Item(1, "b", "Blue Pen", {"short": "cd"}, (0,)),
    Item(2, "c", None, {"short": "ef", "long": "xyz"}),
    Item(3, "d", "Lamp", {"long": "lamp"}),
    Item(4, "e", "Desk", {}),
]
TEMPLATE = PromptConfig(request="Say it.", relation_positions=4)


def _model(llm: Path, *fields: str, rename: str = "{}") -> AlignedModel:
    backbone = Backbone.load(BackboneConfig(model=str(llm), dtype="float32", device="cpu"))
    torch.manual_seed(0)
    inputs = {}
    for field in fields:
        name = rename.format(field)
        inputs[name] = read_inputs(name, Letters(Config(field=field), Context()), ITEMS, backbone)
        inputs[name].calibrate(backbone.embedding_rms)
    builder = PromptBuilder(TEMPLATE, backbone.tokenizer, "things")
    return AlignedModel(backbone, inputs, ItemPrompts(ITEMS, inputs, builder))


@pytest.fixture
def model(tiny_llm: Path) -> AlignedModel:
    return _model(tiny_llm, "long", "short")


def _samples(model: AlignedModel, *modalities: str) -> list[Sample]:
    found = [model.prompts.sample(row, modalities or None) for row in range(len(ITEMS))]
    return [sample for sample in found if sample is not None]


def test_a_prompt_has_what_an_item_has(model: AlignedModel) -> None:
    prompts = model.prompts
    # Relations are shown by the modality that takes few positions alone.
    related = (Slot("short", 1), Slot("short", 2))
    assert prompts.prompt(0).slots == (Slot("long", 0), Slot("short", 0), *related)
    assert [slot.modality for slot in prompts.prompt(0, ["long"]).slots] == ["long"]
    assert prompts.prompt(4).slots == ()
    assert [prompts.has(row) for row in range(5)] == [True, True, True, True, False]
    assert [prompts.has(row, ["long"]) for row in range(5)] == [True, False, True, True, False]
    assert prompts.length(prompts.prompt(3)) == prompts.length(prompts.prompt(4)) + 4


def test_samples_are_those_with_anchor_and_input(model: AlignedModel) -> None:
    assert [sample.prompt.item for sample in _samples(model)] == [0, 1, 3]
    built = samples.build(model.prompts, "long", range(5))
    assert list(built.samples) == _samples(model, "long")
    assert (built.without_anchor, built.without_input) == (1, 2)
    for sample in built.samples:
        spliced = model.splice([sample.prompt])
        whole = len(spliced.prefix) + int(spliced.lengths[0]) + len(sample.response)
        assert sample.length == whole
        said = model.backbone.tokenizer.decode(sample.response, skip_special_tokens=True)
        assert said == ITEMS[sample.prompt.item].title


def test_every_parameter_is_registered_once(model: AlignedModel) -> None:
    """The LLM's and the projectors', not the frozen encoders'; a projector is saved under its own names."""
    mine = [id(p) for _, p in model.named_parameters(remove_duplicate=False)]
    projectors = [inputs.projector for inputs in model.inputs.values()]
    assert sorted(set(mine)) == sorted(
        {id(p) for module in (model.backbone.model, *projectors) for p in module.parameters()}
    )
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    plain = set(dict(model.inputs["long"].projector.named_parameters()))
    assert trained == {f"projectors.{i}.{name}" for i in range(2) for name in plain}
    assert set(model.inputs["long"].projector.state_dict()) == plain


@pytest.mark.parametrize("name", ["items", "type", "sound.mel"])
def test_a_modality_may_have_a_name_that_modules_have_a_use_for(tiny_llm: Path, name: str) -> None:
    plain, renamed = _model(tiny_llm, "long"), _model(tiny_llm, "long", rename=name)
    assert list(renamed.inputs) == [name]
    assert torch.equal(renamed(_samples(renamed)), plain(_samples(plain)))
    assert set(renamed.state_dict()) == set(plain.state_dict())


def test_training_switches_projectors_and_adapter_but_not_the_llm(model: AlignedModel) -> None:
    assert not any(module.training for module in model.modules())
    with model.backbone.adapted(TrainableLora(LoraSettings(r=2, dropout=0.5))) as lora:
        model.train()
        assert lora.random
        on = {name for name, module in model.named_modules() if module.training}
        assert {name.split(".")[0] for name in on} == {"", "projectors", "llm"}
        assert all("lora_dropout" in name for name in on if name.startswith("llm"))
        assert not torch.equal(model(_samples(model)), model(_samples(model)))
        model.eval()
        assert not lora.random
        assert not any(module.training for module in model.modules())
        assert torch.equal(model(_samples(model)), model(_samples(model)))


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


def _gradients(model: AlignedModel, call: nn.Module) -> tuple[float, dict[str, torch.Tensor]]:
    torch.manual_seed(1)
    loss = call(_samples(model))
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return loss.item(), found


def test_a_distributed_wrapper_gives_the_same_loss_and_gradients(
    model: AlignedModel, one_process: None
) -> None:
    with model.backbone.adapted(TrainableLora(LoraSettings(r=2, dropout=0.1))) as lora:
        for i, parameter in enumerate(lora.parameters.values()):
            parameter.data.normal_(0, 0.2, generator=torch.Generator().manual_seed(i))
        model.train()
        lora_names = {name for name, _ in model.named_parameters() if ".lora_" in name}
        loss, plain = _gradients(model, model)
        assert lora_names < plain.keys()
        wrapped = DistributedDataParallel(model)
        reduced: list[Any] = []

        def reduce(_, bucket):  # type: ignore[no-untyped-def]
            """Stands for the sum over processes: the wrapper hands every gradient over here."""
            reduced.extend(bucket.parameters())
            future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
            future.set_result(2 * bucket.buffer())
            return future

        wrapped.register_comm_hook(None, reduce)
        wrapped.train()
        wrapped_loss, doubled = _gradients(model, wrapped)
    assert wrapped_loss == loss
    assert doubled.keys() == plain.keys()
    assert len(reduced) == len(plain)
    for name, gradient in plain.items():
        torch.testing.assert_close(doubled[name], 2 * gradient, rtol=1e-6, atol=1e-9)
        assert gradient.any()


class Wrapping(TorchEngine):
    """An engine that trains through a distributed wrapper."""

    @contextmanager
    def around(self, model: nn.Module, parameters: Collection[nn.Parameter]) -> Iterator[nn.Module]:
        yield DistributedDataParallel(model)


def test_a_training_does_not_depend_on_the_engine(tiny_llm: Path, one_process: None, tmp_path: Path) -> None:
    model = _model(tiny_llm, "long")
    config = AlignConfig(
        max_steps=5, batch_size=2, micro_batch=1, projector_warmup_epochs=1, lr=0.01, rouge_items=1, epochs=9
    )
    start = {name: p.detach().clone() for name, p in model.projectors.named_parameters()}
    ends = []
    for engine in (TorchEngine, Wrapping):
        with model.backbone.adapted(TrainableLora(LoraSettings(r=2, dropout=0.1))) as lora:
            for name, p in model.projectors.named_parameters():
                p.data.copy_(start[name])
            trainer = Trainer(
                model,
                lora.parameters,
                _samples(model),
                _samples(model),
                config,
                tmp_path / f"{engine.__name__}.safetensors",
                lambda *_: None,
                engine=engine,
            )
            trainer.run(lambda *_: None)
            ends.append({name: p.detach().clone() for name, p in trainer.parameters.items()})
    assert ends[0].keys() == ends[1].keys()
    for name, end in ends[0].items():
        torch.testing.assert_close(ends[1][name], end, rtol=1e-6, atol=1e-7)
    assert any(not torch.equal(ends[0][f"projector/{name}"], p) for name, p in start.items())


def test_the_parts_of_a_batch_have_its_loss_and_gradients(tiny_llm: Path) -> None:
    model = _model(tiny_llm, "long", "short")
    batch = _samples(model)
    assert len(batch) > 2
    found = []
    for tokens in (None, max(sample.length for sample in batch)):
        model.zero_grad()
        sizes, total = [], 0.0
        for part in samples.parts(batch, most=None, tokens=tokens):
            loss = model(part)
            loss.backward()
            sizes.append(len(part))
            total += loss.item()
        found.append((sizes, total, {n: p.grad for n, p in model.projectors.named_parameters()}))
    (whole, loss, gradients), (split, sum_of_losses, added) = found
    assert (whole, len(split) > 1) == ([len(batch)], True)
    assert sum_of_losses == pytest.approx(loss, rel=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(added[name], gradient, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("micro_batch", [None, 1])
def test_parts_side_by_side_have_the_batchs_loss_and_gradients_the_same_each_time(
    model: AlignedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, micro_batch: int | None
) -> None:
    threads, batch = torch.get_num_threads(), _samples(model)
    torch.set_num_threads(2)
    monkeypatch.setattr("earec_core.align.gradients._POSITIONS", 1)
    next(model.projectors.parameters()).requires_grad_(False)
    config = AlignConfig(micro_batch=micro_batch)
    results: list[tuple[float, list[torch.Tensor | None]]] = []
    with model.backbone.adapted(TrainableLora(LoraSettings(r=2))) as lora:
        for name, factor in lora.parameters.items():
            if "lora_B" in name:  # else A has no gradient
                nn.init.normal_(factor, std=0.1)
        for able in (False, True, True):
            model.backbone.abilities = replace(model.backbone.abilities, side_by_side=able)
            trainer = Trainer(model, lora.parameters, batch, [], config, tmp_path / "no", lambda *_: None)
            assert trainer.gradients.lanes(batch) == (2 if able else 1)
            assert len(list(trainer.gradients.parts_of(batch))) == (
                len(batch) if micro_batch else 2 if able else 1
            )
            loss, _ = trainer.gradients.add(batch)
            results.append((loss, [p.grad for p in trainer.parameters.values()]))
            trainer.optimizer.zero_grad(set_to_none=True)
        lora_names = list(lora.parameters)
    torch.set_num_threads(threads)
    in_turn, first, again = results
    for gradients in (in_turn[1], first[1], again[1]):
        assert [i for i, gradient in enumerate(gradients) if gradient is None] == [len(lora_names)]
    assert first[0] == again[0] == pytest.approx(in_turn[0], rel=1e-5)
    for expected, gradient, other in zip(in_turn[1], first[1], again[1], strict=True):
        if expected is None or gradient is None or other is None:
            continue
        assert expected.any()
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-6)
        assert torch.equal(gradient, other)


def test_passes_that_draw_random_numbers_run_in_turn(
    model: AlignedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("earec_core.align.gradients._POSITIONS", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    batch = _samples(model)
    for dropout, lanes in ((0.0, 2), (0.1, 1)):
        with model.backbone.adapted(TrainableLora(LoraSettings(r=2, dropout=dropout))) as lora:
            trainer = Trainer(
                model, lora.parameters, batch, [], AlignConfig(), tmp_path / "no", lambda *_: None
            )
            model.train()
            assert trainer.gradients.lanes(batch) == lanes
            trainer.gradients.loss = nn.Module()  # a wrapper, that counts passes
            assert trainer.gradients.lanes(batch) == 1
        model.eval()


@given(
    lengths=st.lists(st.integers(1, 30), max_size=12),
    most=st.none() | st.integers(1, 5),
    tokens=st.none() | st.integers(1, 60),
    together=st.sampled_from([1, 2]),
)
def test_parts_keep_order_and_limits(
    lengths: list[int], most: int | None, tokens: int | None, together: int
) -> None:
    batch = [Sample(Prompt(i, ((1,),)), (2,), length) for i, length in enumerate(lengths)]
    parts = list(samples.parts(batch, most=most, tokens=tokens, together=together))
    assert [sample for part in parts for sample in part] == batch
    place = 0
    for part in parts:
        assert place % together == 0
        place += len(part)
        if len(part) > together:
            assert most is None or len(part) <= most
            assert tokens is None or len(part) * max(sample.length for sample in part) <= tokens
    for part, after in pairwise(parts):  # and no part is smaller than it must be
        more = [*part, *after[:together]]
        full = bool(most) and len(more) > max(most or 0, together)
        assert full or (tokens and len(more) * max(sample.length for sample in more) > tokens)
