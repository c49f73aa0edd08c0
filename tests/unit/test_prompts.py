"""Instruction samples: what is said, in which order, and what is dropped when it does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from earec_core.config import PRESETS, PromptConfig, resolve
from earec_core.errors import UsageError
from earec_core.llm.prompts import Prompt, PromptBuilder
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


def test_configuration_precedence_and_unknown_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "run.toml"
    file.write_text("[align]\nlr = 0.5\nepochs = 7\nbatch_size = 3\n")
    monkeypatch.setenv("EAREC_ALIGN__EPOCHS", "8")
    monkeypatch.setenv("EAREC_ALIGN__BATCH_SIZE", "9")
    config = resolve("paper", file, {"align.batch_size": "4"})
    assert (config.align.projector_lr, config.align.lr) == (2e-5, 0.5)
    assert (config.align.epochs, config.align.batch_size) == (8, 4)
    with pytest.raises(UsageError, match=r"align\.learning_rate"):
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
