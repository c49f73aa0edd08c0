"""Instruction samples: what is said, in which order, and what is dropped when it does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    BioGptConfig,
    GPT2Config,
    GPTJConfig,
    LlamaConfig,
    MambaConfig,
    MptConfig,
    OPTConfig,
)

from earec_core.config import PRESETS, PromptConfig, resolve
from earec_core.errors import UsageError
from earec_core.llm.positions import model_positions
from earec_core.llm.prompts import Prompt, PromptBuilder, TooLongError
from earec_core.modality.tokens import SpanTokenizer
from earec_core.testing import tiny_tokenizer
from earec_core.types import Item, Slot


@pytest.fixture(scope="module")
def tokenizer(tiny_llm: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_llm)


def _item(**fields: Any) -> Item:
    return Item(0, "a", "Blue Pen.", {"category": "Pens", "brand": "Acme", **fields}, (1, 2, 3))


def _text(prompt: Prompt, tokenizer: Any) -> str:
    return "".join(
        f"<{p.modality}:{p.item}>" if isinstance(p, Slot) else tokenizer.decode(p) for p in prompt.pieces
    )


def _one(_: Slot) -> int:
    return 1


def test_the_papers_instruction_reads_as_figure_3(tokenizer: Any) -> None:
    config = PromptConfig(**{**PRESETS["paper"]["prompt"], "domain": "Office Products"})
    prompt = PromptBuilder(config, tokenizer, "ignored").prompt(_item(), lambda _: ["image"], _one)
    assert _text(prompt, tokenizer) == (
        "A chat between a curious human and an artificial intelligence assistant. The assistant gives "
        "helpful, detailed, and polite answers to the human's questions. USER: <image:0> is a product in the "
        "Amazon ecommerce platform, the category of this product is Office Products. <image:1>, <image:2> are "
        "often bought together with this product. Please describe the product. ASSISTANT:"
    )


def test_an_item_without_relations_loses_that_sentence(tokenizer: Any) -> None:
    builder = PromptBuilder(PromptConfig(), tokenizer, "Office")
    prompt = builder.prompt(_item(), lambda row: ["image"] if row == 0 else [], _one)
    assert "often bought" not in _text(prompt, tokenizer)
    assert prompt.slots == (Slot("image", 0),)


def test_modalities_stand_together_in_the_order_given(tokenizer: Any) -> None:
    builder = PromptBuilder(PromptConfig(), tokenizer, "Office")
    prompt = builder.prompt(
        _item(), lambda _: ["text", "image"], _one, relation_modalities=lambda _: ["image"]
    )
    assert [(s.modality, s.item) for s in prompt.slots] == [
        ("text", 0),
        ("image", 0),
        ("image", 1),
        ("image", 2),
    ]
    assert "<text:0> <image:0> is a product in the Office category." in _text(prompt, tokenizer)


def test_prompts_of_a_template_share_their_first_piece(tokenizer: Any) -> None:
    builder = PromptBuilder(PromptConfig(), tokenizer, "Office")
    first = {
        builder.prompt(Item(i, str(i), "t", {}, rel), lambda _: ["image"], _one).pieces[0]
        for i, rel in enumerate([(), (1,), (1, 2)])
    }
    assert len(first) == 1


def test_relations_are_dropped_until_the_anchor_fits_and_counted(tokenizer: Any) -> None:
    builder = PromptBuilder(PromptConfig(), tokenizer, "Office")
    whole = builder.prompt(_item(), lambda _: ["image"], _one)
    response = builder.response("Blue Pen")
    limit = whole.length(_one) + len(response) - 1
    tight = PromptBuilder(PromptConfig(max_tokens=limit), tokenizer, "Office")
    prompt = tight.prompt(_item(), lambda _: ["image"], _one, reserve=len(response))
    assert prompt.dropped == 1
    assert prompt.slots == (Slot("image", 0), Slot("image", 1))
    assert tokenizer.decode(response, skip_special_tokens=True) == "Blue Pen"
    none = PromptBuilder(PromptConfig(max_tokens=40), tokenizer, "Office")
    with pytest.raises(UsageError, match=r"prompt\.max_tokens"):
        none.prompt(_item(), lambda _: ["image"], _one, reserve=len(response))


def test_the_response_ends_the_sequence(tokenizer: Any) -> None:
    response = PromptBuilder(PromptConfig(), tokenizer, "x").response("Blue Pen")
    assert response[-1] == tokenizer.eos_token_id
    assert tokenizer.eos_token_id not in response[:-1]


@pytest.mark.parametrize(
    ("fields", "anchor"),
    [
        (("title",), "Blue Pen"),
        (("title", "category", "brand"), "Blue Pen. Pens. Acme"),
        (("title", "colour", "brand"), "Blue Pen. Acme"),
        (("title", "tags"), "Blue Pen. red, green"),
        (("colour", "title"), None),
    ],
)
def test_the_anchor_joins_the_fields_that_are_there(tokenizer: Any, fields: Any, anchor: str | None) -> None:
    item = _item(tags=["red", "green"])
    assert PromptBuilder(PromptConfig(anchor=fields), tokenizer, "x").anchor(item) == anchor


def test_a_template_without_its_slot_is_refused(tokenizer: Any) -> None:
    with pytest.raises(UsageError, match=r"prompt\.item must name \{item\} exactly once"):
        PromptBuilder(PromptConfig(item="a product"), tokenizer, "x")


def test_a_backbone_without_chat_template_asks_for_v1(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", None)
    with pytest.raises(UsageError, match=r"prompt\.chat=v1"):
        PromptBuilder(PromptConfig(), tokenizer, "x")


def test_control_tokens_that_a_catalog_spells_are_read_as_letters(tokenizer: Any, cases: Path) -> None:
    builder = PromptBuilder(PromptConfig(anchor=("title", "brand")), tokenizer, "x")
    controls = set(tokenizer.all_special_ids)
    lines = (cases / "special/items.jsonl").read_text().splitlines()
    titles = [json.loads(line)["title"] for line in lines]
    assert any("<|im_end|>" in title for title in titles)
    for title in titles:
        anchor = builder.anchor(Item(0, "a", title, {"brand": "<|im_start|>Acme"}))
        assert anchor is not None
        response = builder.response(anchor)
        assert controls.isdisjoint(response[:-1])
        # Of this tokenizer a token is a byte.
        assert len(response) == len(anchor.encode()) + 1
        assert tokenizer.decode(response[:-1]) == f"{title}. <|im_start|>Acme"


def test_tokens_that_were_added_without_being_called_special_are_read_as_letters_too() -> None:
    """As `<tool_call>` of Qwen; what a template itself spells stays what it is."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<tool_call>", "</tool_call>", "  "])
    (call, end, spaces) = tokenizer.convert_tokens_to_ids(["<tool_call>", "</tool_call>", "  "])
    tokens = SpanTokenizer(tokenizer)
    title = "a <tool_call> of  red</tool_call>"
    ids = tokens((title, True))
    assert {call, end}.isdisjoint(ids)
    assert spaces in ids
    assert tokenizer.decode(ids) == title
    assert tokens(("x <tool_call> y", False), (title, True)).count(call) == 1
    assert tokens(("plain text", True)) == tuple(
        tokenizer("plain text", add_special_tokens=False)["input_ids"]
    )


@pytest.mark.parametrize("chat", ["backbone", "v1"])
def test_a_domain_is_plain_text_and_makes_no_slots(tokenizer: Any, chat: Any) -> None:
    def controls(domain: str) -> list[int]:
        prompt = PromptBuilder(PromptConfig(chat=chat), tokenizer, domain).prompt(
            Item(0, "a", "t"), lambda _: ["image"], _one
        )
        assert prompt.slots == (Slot("image", 0),)
        assert f"in the {domain} category" in _text(prompt, tokenizer)
        ids = [i for piece in prompt.pieces if not isinstance(piece, Slot) for i in piece]
        return [i for i in ids if i in tokenizer.all_special_ids]

    assert controls("a <|im_end|> b {item} {related}") == controls("Office")


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_ordinary_text_gets_the_tokenizers_own_tokens(tokenizer: Any, text: str) -> None:
    assume("<|im_" not in text)
    response = PromptBuilder(PromptConfig(), tokenizer, "x").response(text)
    assert response == (*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id)


def test_a_vocabulary_that_holds_the_marker_as_a_word_does_not_leak_it() -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = [("<unk>", 0.0), ("</s>", 0.0), *((letter, -5.0) for letter in "abc </s>")]
    words = list(dict(words).items())
    model = Tokenizer(models.Unigram(words, unk_id=0))
    named = {"unk_token": "<unk>", "eos_token": "</s>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=model, **named)
    assert fast.eos_token_id in fast("a </s> b", split_special_tokens=True)["input_ids"]
    builder = PromptBuilder(PromptConfig(chat="v1"), fast, "x")
    response = builder.response("a </s> b")
    assert fast.eos_token_id not in response[:-1]
    assert fast.decode(response[:-1]).replace(" ", "") == "a</s>b"


@pytest.mark.parametrize("title", ["...", ".", "…", ". . .", "", None])
def test_a_title_of_dots_is_none(tokenizer: Any, title: str | None) -> None:
    item = Item(0, "a", title, {"brand": "Acme", "category": "..."})
    assert PromptBuilder(PromptConfig(), tokenizer, "x").anchor(item) is None
    assert PromptBuilder(PromptConfig(anchor=("brand", "title")), tokenizer, "x").anchor(item) == "Acme"
    three = PromptBuilder(PromptConfig(anchor=("brand", "category", "title")), tokenizer, "x")
    assert three.anchor(item) == "Acme"


def test_an_anchor_of_no_fields_is_refused() -> None:
    with pytest.raises(UsageError, match="anchor"):
        resolve(flags={"prompt.anchor": "[]"})


def _parts(slot: Slot) -> int:
    return 30 if slot.modality == "text" else 4


def _limited(tokenizer: Any, limit: int | None, **options: Any) -> Prompt:
    builder = PromptBuilder(PromptConfig(), tokenizer, "Office", limit=limit)
    return builder.prompt(_item(), lambda _: ["text", "image"], _parts, **options)


def _kept(prompt: Prompt) -> int:
    return prompt.length(lambda slot: _parts(slot) if slot.keep is None else slot.keep)


@pytest.mark.parametrize("reserve", [0, 5])
@pytest.mark.parametrize("less", range(1, 35))
def test_to_fit_the_model_relations_go_first_then_the_end_of_the_text(
    tokenizer: Any, less: int, reserve: int
) -> None:
    own = ["image"]
    alone = PromptBuilder(PromptConfig(max_relations=0), tokenizer, "Office")
    bare = alone.prompt(_item(), lambda _: ["text", "image"], _parts).length(_parts)
    options = {"relation_modalities": lambda _: own, "shortens": "text".__eq__, "reserve": reserve}
    limit = bare + reserve - less
    if less > 29:
        with pytest.raises(TooLongError, match=f"more than the {limit} that the model reads"):
            _limited(tokenizer, limit, **options)
        return
    prompt = _limited(tokenizer, limit, **options)
    assert _kept(prompt) + reserve == limit
    assert (prompt.dropped, prompt.cut) == (2, less)
    assert prompt.slots == (Slot("text", 0, 30 - less), Slot("image", 0))
    with pytest.raises(TooLongError):
        _limited(tokenizer, limit, **(options | {"shortens": lambda _: False}))


def test_room_to_write_in_counts_for_the_model_alone(tokenizer: Any) -> None:
    shown: Any = {"relation_modalities": lambda _: [], "shortens": "text".__eq__}
    whole = _limited(tokenizer, None, **shown)
    length = whole.length(_parts)
    assert _limited(tokenizer, length + 10, room=10, **shown) == whole
    assert _limited(tokenizer, length + 9, room=10, **shown).cut == 1
    config = PromptConfig(max_tokens=length)
    builder = PromptBuilder(config, tokenizer, "Office", limit=10_000)
    assert builder.prompt(_item(), lambda _: ["text", "image"], _parts, room=10, **shown) == whole


def test_a_template_that_does_not_fit_is_no_items_fault(tokenizer: Any) -> None:
    with pytest.raises(UsageError, match="The prompt's text alone") as caught:
        _limited(tokenizer, 20)
    assert not isinstance(caught.value, TooLongError)


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        (GPT2Config(n_positions=77), 77),
        (LlamaConfig(max_position_embeddings=512), 512),
        (
            LlamaConfig(
                max_position_embeddings=512,
                rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4},
            ),
            2048,
        ),
        (
            LlamaConfig(
                max_position_embeddings=4096,
                rope_parameters={
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 2048,
                    "rope_theta": 1e4,
                },
            ),
            8192,
        ),
        (MptConfig(max_seq_len=99), 99),
        (MambaConfig(), None),
    ],
)
def test_the_positions_of_a_model_are_known(config: Any, limit: int | None) -> None:
    assert model_positions(config) == limit


@pytest.mark.parametrize(
    "config",
    [
        GPT2Config(
            n_positions=20, n_embd=16, n_layer=1, n_head=2, vocab_size=50, bos_token_id=0, eos_token_id=1
        ),
        OPTConfig(
            max_position_embeddings=20,
            hidden_size=16,
            word_embed_proj_dim=16,
            ffn_dim=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            vocab_size=50,
        ),
        GPTJConfig(
            n_positions=20,
            n_embd=16,
            n_layer=1,
            n_head=2,
            rotary_dim=4,
            vocab_size=50,
            bos_token_id=0,
            eos_token_id=1,
        ),
        MptConfig(max_seq_len=20, d_model=16, n_layers=1, n_heads=2, vocab_size=50),
        BioGptConfig(
            max_position_embeddings=20,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            vocab_size=50,
        ),
    ],
    ids=lambda config: config.model_type,
)
def test_a_model_reads_as_many_positions_as_are_said_and_no_more(config: Any) -> None:
    model = AutoModelForCausalLM.from_config(config).eval()
    limit = model_positions(model.config)
    assert limit == 20
    with torch.no_grad():
        assert model(inputs_embeds=torch.randn(1, limit, 16)).logits.shape[1] == limit
        with pytest.raises((IndexError, RuntimeError)):
            model(inputs_embeds=torch.randn(1, limit + 1, 16))


def test_configuration_precedence_and_unknown_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "run.toml"
    file.write_text("[align]\nlr = 0.5\nepochs = 7\nbatch_size = 3\n")
    monkeypatch.setenv("EAREC_ALIGN__EPOCHS", "8")
    monkeypatch.setenv("EAREC_ALIGN__BATCH_SIZE", "9")
    config = resolve("paper", file, {"align.batch_size": "4"})
    assert (config.align.projector_lr, config.align.lr) == (2e-5, 0.5)
    assert (config.align.epochs, config.align.batch_size) == (8, 4)
    with pytest.raises(UsageError, match=r"align\.learning_rate.*align's keys are: epochs, .*projector_lr"):
        resolve(flags={"align.learning_rate": 1.0})
    with pytest.raises(UsageError, match="no preset"):
        resolve("fast")
    file.write_text("[align")
    with pytest.raises(UsageError, match="is not TOML"):
        resolve(file=file)


@pytest.mark.parametrize(
    "title", ["...", ".", "\u2026", "- ?!", "\u200b", "\u3002\u3002", "  ", "(.)", "\u0301"]
)
def test_a_title_of_punctuation_is_no_anchor(tokenizer: Any, title: str) -> None:
    item = Item(0, "a", title, {"brand": "Acme"})
    assert PromptBuilder(PromptConfig(), tokenizer, "x").anchor(item) is None
    assert PromptBuilder(PromptConfig(anchor=["title", "brand"]), tokenizer, "x").anchor(item) is None
    other = Item(0, "a", "Pen", {"brand": title})
    assert PromptBuilder(PromptConfig(anchor=["title", "brand"]), tokenizer, "x").anchor(other) == "Pen"


@pytest.mark.parametrize(
    "title", ["7", "+", "\u00f7", "\u2764", "\u4e66", "\u0e01", "C++", "?x", "\U0001f58a"]
)
def test_one_letter_digit_or_symbol_is_enough_for_an_anchor(tokenizer: Any, title: str) -> None:
    assert PromptBuilder(PromptConfig(), tokenizer, "x").anchor(Item(0, "a", title)) == title
