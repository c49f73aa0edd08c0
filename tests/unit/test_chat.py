"""The text around the message: found in any template, the same every day, or refused in a sentence."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import pytest

from earec_core.config import PromptConfig
from earec_core.errors import UsageError
from earec_core.llm.chat import chat_text
from earec_core.llm.prompts import PromptBuilder
from earec_core.types import Item, Slot

MESSAGE = "{item} is a product in the Office category. Please describe it."
PARTS = "{% for m in messages %}[{{ m['role'] }}]{% for p in m['content'] %}{{ p['text'] }}{% endfor %}{% endfor %}"


@pytest.fixture
def tokenizer(tiny_llm: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_llm)


def _template(tokenizer: Any, cases: Path, name: str) -> str:
    tokenizer.chat_template = (cases / "templates" / f"{name}.jinja").read_text()
    return str(tokenizer.chat_template)


@pytest.mark.parametrize("system", ["", "Be brief."])
@pytest.mark.parametrize("name", ["listtmpl", "uppertmpl", "datetmpl"])
def test_the_message_stands_where_the_template_puts_it(
    tokenizer: Any, cases: Path, name: str, system: str
) -> None:
    source = _template(tokenizer, cases, name)
    roles = {"system": system, "user": MESSAGE} if system else {"user": MESSAGE}
    messages = [
        {"role": role, "content": [{"type": "text", "text": text}] if name == "listtmpl" else text}
        for role, text in roles.items()
    ]
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, autoescape=False)  # noqa: S701
    rendered = environment.from_string(source).render(
        messages=messages,
        bos_token=tokenizer.bos_token,
        add_generation_prompt=True,
        strftime_now=datetime(2024, 7, 26).strftime,
    )
    chat = chat_text(PromptConfig(system=system), tokenizer, MESSAGE)
    assert chat.before + MESSAGE + chat.after == rendered
    assert chat.before.rstrip('\n"').endswith("<|im_start|>user")
    assert chat.after.lstrip('"') == "<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("name", "system", "said"),
    [
        ("gemmatmpl", "Be brief.", "System role not supported. Leave prompt.system empty"),
        ("altertmpl", "", "Conversation must start with a system message. Give it a system message"),
        ("brokentmpl", "", "TemplateSyntaxError"),
    ],
)
def test_what_a_template_cannot_do_is_said(
    tokenizer: Any, cases: Path, name: str, system: str, said: str
) -> None:
    _template(tokenizer, cases, name)
    with pytest.raises(UsageError, match=said) as caught:
        chat_text(PromptConfig(system=system), tokenizer, MESSAGE)
    assert "prompt.chat=v1" in str(caught.value)


def test_templates_that_want_it_so_work(tokenizer: Any, cases: Path) -> None:
    _template(tokenizer, cases, "gemmatmpl")
    assert chat_text(PromptConfig(), tokenizer, MESSAGE).after == "<|im_end|>\n<|im_start|>model\n"
    _template(tokenizer, cases, "altertmpl")
    assert chat_text(PromptConfig(system="Be brief."), tokenizer, MESSAGE).before == "Be brief."


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ({"rag": "x", "tools": "y"}, r"multiple chat templates with no default.*rag.*tools"),
        ("{{ messages[-1]['content'] | upper }}", "changes the user's message"),
        ("{{ messages[-1]['content'] | truncate(20) }}", "changes the user's message"),
        ("{{ messages[-1]['content'] | length }} {{ messages[-1]['content'] }}", "with the message"),
        ("{{ messages[-1]['content'] | urlencode }}", "changes the user's message"),
        ("{{ messages[-1]['content'] * 2 }}", "once"),
        ("{{ messages[-1]['content'] }}", "leaves the system message out"),
        ("{{ messages['content'] }}", "does not pass the user's message on"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
    ],
)
def test_templates_that_lose_or_change_the_message_are_refused(
    tokenizer: Any, template: Any, said: str
) -> None:
    tokenizer.chat_template = template
    with pytest.raises(UsageError, match=said):
        chat_text(PromptConfig(system="Be brief."), tokenizer, MESSAGE)


def test_a_template_of_several_names_gives_its_default(tokenizer: Any) -> None:
    tokenizer.chat_template = {"default": tokenizer.chat_template, "rag": "x"}
    assert chat_text(PromptConfig(), tokenizer, MESSAGE).before == "<|im_start|>user\n"


def test_the_prompt_is_the_same_tomorrow(
    tokenizer: Any, cases: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.utils import chat_template_utils

    class Tomorrow(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return cls(2099, 1, 2, 3, 4, 5)

    _template(tokenizer, cases, "datetmpl")
    today = PromptBuilder(PromptConfig(), tokenizer, "Office")
    monkeypatch.setattr(chat_template_utils, "datetime", Tomorrow)
    # The patch reaches the template where nothing holds the date.
    dated = tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    assert "02 Jan 2099" in dated
    tomorrow = PromptBuilder(PromptConfig(), tokenizer, "Office")
    assert today.chat == tomorrow.chat
    item = Item(0, "a", "Pen")
    prompts = [b.prompt(item, lambda _: ["image"], lambda _: 1) for b in (today, tomorrow)]
    assert prompts[0] == prompts[1]
    assert prompts[0].slots == (Slot("image", 0),)


@pytest.mark.parametrize("code", ["%d %B %Y", "%Y-%m-%d", "%A, %-d %b %y", "%H:%M:%S", "100%% %j", "%-m/%-d"])
def test_the_fixed_day_is_written_as_strftime_writes_it(tokenizer: Any, code: str) -> None:
    tokenizer.chat_template = (
        "\n  {% if true %}{{ strftime_now('" + code + "') }}{% endif %}\n" + "{{ messages[-1]['content'] }}"
    )
    before = chat_text(PromptConfig(), tokenizer, MESSAGE).before
    assert before == "\n" + datetime(2024, 7, 26).strftime(code)


def test_parts_are_given_to_a_template_that_iterates_them(tokenizer: Any) -> None:
    tokenizer.chat_template = PARTS
    assert chat_text(PromptConfig(system="S"), tokenizer, MESSAGE).before == "[system]S[user]"
