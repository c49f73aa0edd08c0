"""Every causal architecture of transformers, tiny and random: its numbers are right, or one sentence refuses it.

The table of docs/compatibility.md is made here: `EAREC_ARCHITECTURES=check pytest FILE` takes each architecture the
whole way and compares the page, which takes minutes, and `EAREC_ARCHITECTURES=write` writes it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from earec_core.align import align
from earec_core.aligned.stored import adapter_of, open_model, stored_model
from earec_core.artifacts import BaseRecord
from earec_core.compose.recipe import Recipe
from earec_core.compose.stage import compose_models
from earec_core.config import BackboneConfig
from earec_core.encode import encode
from earec_core.errors import EarecError, UsageError
from earec_core.explain import explain
from earec_core.llm import architecture, head
from earec_core.llm.backbone import Abilities, Backbone
from earec_core.llm.prompts import Prompt
from earec_core.testing import tiny_tokenizer
from earec_core.testing.families import families, tiny_model
from earec_core.testing.kit import Kit
from earec_core.types import Slot

PAGE = Path(__file__).parents[2] / "docs" / "compatibility.md"
MARKS = ("<!-- architectures -->", "<!-- end of architectures -->")
HEAD = (
    "| architecture | align | explain | compose | encode | remark |",
    "|---|---|---|---|---|---|",
)
WHOLE = os.environ.get("EAREC_ARCHITECTURES", "")
VOCABULARY = 264
SLOW = {"falcon_h1", "nemotron_h", "qwen3_5_text", "zamba2", "inkling2_text", "hy_v4", "mamba2"}
"""Their models take seconds each to run."""
NEW = 4
HANDFUL = (
    "llama",
    "gemma2",
    "cohere",
    "ctrl",
    "mamba",
    "bart",
    "electra",
    "gpt2",
    "phimoe",
    "laguna",
    "zamba",
    "falcon",
)


def test_the_builder_gives_most_architectures_and_the_same_one_each_time() -> None:
    first, second = (dict(tiny_model("gemma2", VOCABULARY).named_parameters()) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert len(_rows()) >= 35


@pytest.mark.filterwarnings("ignore")
def test_the_loss_is_the_models_own_for_every_architecture() -> None:
    """In memory: logits at the response's positions, and the loss over them, against the model's `forward`."""
    wrong = {}
    for family, row in _rows().items():
        if family in SLOW:
            continue
        backbone = _in_memory(family)
        try:
            backbone.abilities = architecture.tried(backbone)
        except UsageError as error:
            if row["align"] != "refused" or row["remark"] != _reason(error):
                wrong[family] = error.problem
            continue
        gap, remark = _gap(backbone), _slower(backbone.abilities)
        if not gap < 1e-5 or row["align"] != "works" or row["remark"] != remark:
            wrong[family] = f"{gap}, {remark}"
    assert wrong == {}


@pytest.mark.parametrize("family", HANDFUL)
@pytest.mark.filterwarnings("ignore")
def test_the_whole_way(family: str, tmp_path: Path) -> None:
    """Align, compose, explain, encode on disk, against transformers and PEFT without a line of ours."""
    assert _taken(family, Kit("text", tmp_path)) == _lines()[family]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(not WHOLE, reason="takes minutes; set EAREC_ARCHITECTURES to check or write")
def test_the_page_is_what_comes_out(tmp_path: Path) -> None:
    kit = Kit("text", tmp_path)
    lines, failed = {}, {}
    for family in families():
        try:
            line = _taken(family, kit)
        except Exception as error:  # noqa: BLE001 - whatever is neither right nor refused
            failed[family] = repr(error)
            continue
        if line:
            lines[family] = line
    assert failed == {}
    if WHOLE == "write":
        _write(lines)
    assert _lines() == lines


@pytest.mark.parametrize(
    ("family", "setting", "values"),
    [("gemma2", "final_logit_softcapping", (2.0, 1.0)), ("cohere", "logit_scale", (0.5, 0.1))],
)
def test_what_an_architecture_does_to_logits_is_in_the_loss(
    family: str, setting: str, values: tuple[float, float]
) -> None:
    """The issue's two: the bare output layer gives another loss, and the setting moves ours as the model's."""
    losses = []
    for value in values:
        backbone = _in_memory(family)
        module: Any = backbone.model
        setattr(module if hasattr(module, setting) else module.config, setting, value)
        assert _gap(backbone) < 1e-5
        hidden = torch.randn(3, backbone.d_llm, generator=torch.Generator().manual_seed(0))
        logits = backbone.logits(hidden)
        assert not torch.allclose(logits, module.get_output_embeddings()(hidden), atol=1e-2)
        losses.append(F.cross_entropy(logits, torch.tensor([1, 2, 3])))
    assert losses[0] != losses[1]


@pytest.mark.parametrize(
    ("family", "layer", "beside"),
    [
        ("zamba", "shared_transf", "mamba.in_proj"),  # several blocks share its weights
        ("phimoe", "router", "q_proj"),  # it chooses, too
        ("laguna", "shared_experts", "q_proj"),  # PEFT loads its factors under another name
        ("falcon", "lm_head", "query_key_value"),  # a layer of a class of its own that only multiplies
    ],
)
def test_lora_leaves_out_what_plain_peft_would_not_give_back(family: str, layer: str, beside: str) -> None:
    names = _in_memory(family).linear_modules()
    assert not any(layer in name for name in names)
    assert any(beside in name for name in names)


def test_llamas_logits_are_the_output_layers_bit_for_bit() -> None:
    backbone = _in_memory("llama")
    hidden = torch.randn(5, backbone.d_llm, generator=torch.Generator().manual_seed(0))
    assert torch.equal(backbone.logits(hidden), backbone.model.lm_head(hidden))


@pytest.mark.parametrize("family", ["llama", "gemma", "gemma3_text", "granite", "opt", "bart", "xglm"])
@pytest.mark.filterwarnings("ignore")
def test_a_slot_is_as_large_as_the_words_beside_it(family: str) -> None:
    """Measured at what the first block reads, less what it reads where a zero comes in (positions)."""
    backbone = _in_memory(family)
    seen: list[torch.Tensor] = []
    block = _first_block(backbone.model)
    block.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    ids = torch.arange(2, VOCABULARY)[None]
    noise = torch.randn(1, ids.shape[1], backbone.d_llm, generator=torch.Generator().manual_seed(0))
    slots = noise / noise.square().mean().sqrt() * backbone.embedding_rms
    with torch.no_grad():
        backbone.model(input_ids=ids)
        backbone.model(inputs_embeds=slots.clone())
        backbone.model(inputs_embeds=torch.zeros_like(slots))
    words, own, nothing = seen
    sizes = [(x - nothing).square().mean().sqrt().item() for x in (words, own)]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.02)


def test_without_scaling_the_size_is_the_tables() -> None:
    for family in ("llama", "qwen2", "gpt_neox"):
        backbone = _in_memory(family)
        weight = backbone.model.get_input_embeddings().weight
        assert backbone.embedding_rms == float(weight.float().square().mean().sqrt())


@pytest.mark.parametrize("family", ["roberta", "ctrl", "bart", "mamba", "rwkv", "gemma2"])
@pytest.mark.filterwarnings("ignore")
def test_greedy_texts_are_the_models_own_whatever_it_can(family: str) -> None:
    """Rows of several lengths, token by token against the likeliest of the model's own logits."""
    backbone = _in_memory(family)
    backbone.abilities = architecture.tried(backbone)
    prefix, bodies = (5, 17, 40), ((99, 120, 33, 60, 77), (99, 120), (101,))
    prompts = [Prompt(i, (prefix, body)) for i, body in enumerate(bodies)]
    expected = []
    for body in bodies:
        ids = [*prefix, *body]
        for _ in range(4):
            with torch.no_grad():
                ids.append(int(backbone.model(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == backbone.tokenizer.eos_token_id:
                break
        new = ids[len(prefix) + len(body) :]
        expected.append(backbone.tokenizer.decode(new, skip_special_tokens=True).strip())
    assert backbone.generate(backbone.splice(prompts, {}), 4) == expected


def test_a_llama_takes_the_fast_ways() -> None:
    assert architecture.tried(_in_memory("llama")) == Abilities(shares_prefix=True, generates="behind")


def test_an_encoder_is_refused_where_it_reads_what_follows() -> None:
    backbone = _in_memory("bert")
    for module in backbone.model.modules():
        if hasattr(module, "is_causal"):
            module.is_causal = False
    backbone.model.config.is_decoder = False
    with pytest.raises(UsageError, match="bert, which reads the tokens that follow"):
        architecture.tried(backbone)


def _in_memory(family: str) -> Backbone:
    model = tiny_model(family, VOCABULARY)
    return Backbone(
        model,
        tiny_tokenizer(),
        BaseRecord(id=family, **dict.fromkeys(("weights", "config", "tokenizer"), "0" * 64)),
        torch.float32,
    )


@torch.no_grad()
def _gap(backbone: Backbone) -> float:
    """How far the loss of two responses is from the model's own on the rows alone, relative to it."""
    generator = torch.Generator().manual_seed(1)
    size = backbone.embedding_rms
    slots = {Slot("v", i): size * torch.randn(i + 1, backbone.d_llm, generator=generator) for i in range(2)}
    responses = ((44, 90, 91, 12), (130, 7))
    prompts = [Prompt(i, ((9, 20, 30), Slot("v", i), (50, 51), r)) for i, r in enumerate(responses)]
    batch = backbone.splice(prompts, slots)
    hidden = backbone.hidden(batch)
    own, expected = [], []
    for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        end = int(batch.lengths[i])
        logits = backbone.logits(hidden[i, end - len(response) - 1 : end - 1])
        own.append(F.cross_entropy(logits, torch.tensor(response)))
        parts = [slots[p] if isinstance(p, Slot) else backbone.embed(p) for p in prompt.pieces]
        plain = backbone.model(inputs_embeds=torch.cat(parts)[None]).logits[0, -len(response) - 1 : -1]
        torch.testing.assert_close(logits, plain, atol=1e-4, rtol=1e-4)
        expected.append(F.cross_entropy(plain, torch.tensor(response)))
    return float((sum(own) - sum(expected)).abs() / sum(expected))  # type: ignore[union-attr, arg-type]


def _first_block(model: Any) -> nn.Module:
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    first: nn.Module = lists[0][0]
    return first


def _taken(family: str, kit: Kit) -> str:
    """A row of the page: a family taken the whole way; empty where none could be built."""
    from transformers.utils import logging

    logging.set_verbosity(50)
    model = tiny_model(family, VOCABULARY)
    if model is None:
        return ""
    folder = kit.new_folder(f"families/{family}")
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    base = BackboneConfig(model=str(folder), dtype="float32", device="cpu")
    cells, remark = [], ""
    try:
        backbone = Backbone.load(base)
    except EarecError as error:
        cells, remark = ["refused"] * 4, _reason(error)
    else:
        _go(family, kit, base, backbone)
        cells, remark = ["works"] * 4, _slower(backbone.abilities)
    return f"| `{family}` | {' | '.join(cells)} | {remark} |"


def _go(family: str, kit: Kit, base: BackboneConfig, backbone: Backbone) -> None:
    """Align by two steps, compose, explain and encode; each is what transformers and PEFT make of the files."""
    settings = kit.run_config.align.model_copy(
        update={"max_steps": 2, "rouge_items": 1, "projector_warmup_epochs": 0.0}
    )
    few = kit.run_config.explain.model_copy(update={"max_new_tokens": NEW})
    config = kit.run_config.model_copy(update={"backbone": base, "align": settings, "explain": few})
    workspace, catalog = kit.workspace, kit.catalog
    align(workspace, catalog, "text", config, backbone=backbone, name=f"text/{family}")
    compose_models(
        workspace, {"text": f"text/{family}"}, Recipe(weights={"text": 1.0}), name=f"composite/{family}"
    )
    for name in (f"text/{family}", f"composite/{family}"):
        told = explain(workspace, catalog, name, config, split="all", variants=["aligned"], backbone=backbone)
        vectors = encode(workspace, catalog, name, config, name=f"vectors/{name}", backbone=backbone).vectors
        texts = {text.row: text.text for text in told.texts}
        stored = open_model(workspace.registry, name)
        model = stored_model(workspace, catalog, backbone, stored)
        peer = _in_peft(base.model, stored.folder)
        changed = False
        with backbone.adapted(adapter_of(stored)), torch.no_grad():
            for row in range(len(catalog)):
                sample = model.prompts.sample(row)
                assert sample is not None
                asked = _embeddings(model, sample.prompt)
                answer = backbone.embed(sample.response[:-1])[None]
                core = peer.get_base_model()
                logits = core(inputs_embeds=torch.cat([asked, answer], 1)).logits[0, asked.shape[1] - 1 :]
                loss = F.cross_entropy(logits, torch.tensor(sample.response), reduction="sum")
                assert float(model([sample])) == pytest.approx(float(loss), rel=1e-5)
                states = getattr(core, head.base_name(core))(inputs_embeds=asked.clone()).last_hidden_state
                torch.testing.assert_close(
                    torch.from_numpy(vectors[row]), states[0, -1], atol=1e-4, rtol=1e-4
                )
                assert texts[row] == _greedy(core, asked, backbone)
                with peer.disable_adapter():
                    bare = core(inputs_embeds=asked.clone()).logits[0, -1]
                changed |= not torch.allclose(bare, logits[0], atol=1e-4)
        assert changed


def _embeddings(model: Any, prompt: Prompt) -> torch.Tensor:
    batch = model.splice([prompt])
    return torch.cat([model.backbone.embed(batch.prefix), batch.body[0]])[None]


def _greedy(peer: Any, inputs: torch.Tensor, backbone: Backbone) -> str:
    """The likeliest tokens one after the other, every pass over the whole row."""
    ids: list[int] = []
    while len(ids) < NEW and backbone.tokenizer.eos_token_id not in ids:
        row = torch.cat([inputs, backbone.embed(ids)[None]], 1)
        ids.append(int(peer(inputs_embeds=row).logits[0, -1].argmax()))
    return str(backbone.tokenizer.decode(ids, skip_special_tokens=True).strip())


def _in_peft(base: str, adapter: Path) -> Any:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return PeftModel.from_pretrained(plain, str(adapter)).eval()


def _reason(error: EarecError) -> str:
    match = re.search(r"of the architecture \S+, which (.*)\.$", error.problem)
    return match[1] if match else error.problem


def _slower(abilities: Abilities) -> str:
    whole = "" if abilities.shares_prefix else "every prompt is read whole"
    recomputed = "" if abilities.generates else "texts are generated without a cache"
    return "; ".join(filter(None, (whole, recomputed)))


def _lines() -> dict[str, str]:
    table = PAGE.read_text().partition(MARKS[0])[2].partition(MARKS[1])[0]
    return {match[1]: match[0] for match in re.finditer(r"^\| `(.*?)` \|.*$", table, re.MULTILINE)}


def _rows() -> dict[str, dict[str, str]]:
    names = [cell.strip() for cell in HEAD[0].strip("|").split("|")]
    return {
        family: dict(zip(names, [cell.strip() for cell in line.strip("|").split("|")], strict=True))
        for family, line in _lines().items()
    }


def _write(lines: dict[str, str]) -> None:
    before, _, rest = PAGE.read_text().partition(MARKS[0])
    after = rest.partition(MARKS[1])[2]
    table = "\n".join((*HEAD, *lines.values()))
    PAGE.write_text(f"{before}{MARKS[0]}\n{table}\n{MARKS[1]}{after}")
