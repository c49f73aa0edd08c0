"""The text that a chat format puts around the user's message, the same every day."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from earec_core.artifacts import ChatRecord
from earec_core.config import PromptConfig
from earec_core.errors import UsageError, one_line

_MARK = "EARECUSERMESSAGE"
_DAY = datetime(2024, 7, 26)
"""Any fixed day; this one is Llama's own where it knows no date."""
_V1 = "choose the paper's chat format with --set prompt.chat=v1."


class _UnusableError(Exception):
    """Why a message cannot be handed to the template in one of its forms."""


def chat_text(config: PromptConfig, tokenizer: Any, message: str) -> ChatRecord:
    """What stands before and after the user's message, up to where the response starts.

    Args:
        message: what users will say; the template must pass it on as it is.

    Raises:
        UsageError: the tokenizer has no chat template, or one that does not work for this system message.
    """
    if config.chat == "v1":
        bos = tokenizer.bos_token if _adds_bos(tokenizer) else ""
        system = f"{config.system} " if config.system else ""
        return ChatRecord(before=f"{bos}{system}USER: ", after=" ASSISTANT:")
    if not getattr(tokenizer, "chat_template", None):
        raise UsageError("The backbone has no chat template.", f"{_V1[0].upper()}{_V1[1:]}")
    problem = ""
    for content in (_as_text, _as_parts):
        try:
            return _around(config.system, message, _renderer(tokenizer, config.system, content))
        except _UnusableError as error:
            problem = problem or str(error)
    system = "Leave prompt.system empty" if config.system else "Give it a system message (prompt.system)"
    raise UsageError(
        f"The backbone's chat template does not work here: {problem}.",
        f"{system} if that is what it wants, mend it in the backbone's directory, or {_V1}",
    )


def _around(system: str, message: str, render: Callable[[str], str]) -> ChatRecord:
    """The text around the message, found by a mark in its place.

    Raises:
        _UnusableError: the message or the system message does not come through.
    """
    marked = render(_MARK)
    if marked.count(_MARK) != 1:
        raise _UnusableError("it does not pass the user's message on as it is, once")
    before, _, after = marked.partition(_MARK)
    if render(message) not in (before + message + after, before + message.strip() + after):
        raise _UnusableError("it changes the user's message, or what stands around it with the message")
    if system.strip() not in before:
        raise _UnusableError("it leaves the system message out, or changes it")
    return ChatRecord(before=before, after=after)


def _renderer(tokenizer: Any, system: str, content: Callable[[str], Any]) -> Callable[[str], str]:
    """From a user's message to the whole conversation, the content of messages in one of its forms."""

    def render(message: str) -> str:
        messages = [{"role": "user", "content": content(message)}]
        if system:
            messages.insert(0, {"role": "system", "content": content(system)})
        try:
            template = _dated(tokenizer.get_chat_template())
            text: str = tokenizer.apply_chat_template(
                messages, chat_template=template, tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # a template is a program of its author
            raise _UnusableError(one_line(error)) from error
        return text

    return render


def _dated(template: str) -> str:
    """The template on a fixed day: its `strftime_now` becomes a macro, since transformers lets no function in."""
    if "strftime_now" not in template:
        return template
    codes = {f"%-{c}": _DAY.strftime(f"%{c}").lstrip("0") or "0" for c in "dmyHIMSjUW"}
    codes |= {f"%{c}": _DAY.strftime(f"%{c}") for c in "aAbBcdDeFHIjmMpRSTuUVwWxXyY%"}
    filled = "".join(f" | replace({code!r}, {value!r})" for code, value in codes.items())
    # The line's end goes with the tag before it (`trim_blocks`), so that the template begins on a line of its own.
    return (
        f"{{% macro strftime_now(format='%d %b %Y') %}}{{{{ format{filled} }}}}{{% endmacro %}}\n{template}"
    )


def _as_text(text: str) -> str:
    return text


def _as_parts(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


def _adds_bos(tokenizer: Any) -> bool:
    ids = tokenizer("a")["input_ids"]
    return tokenizer.bos_token_id is not None and bool(ids) and ids[0] == tokenizer.bos_token_id
