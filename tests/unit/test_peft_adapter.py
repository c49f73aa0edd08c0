"""PEFT directories as they come: read as PEFT reads them, or refused in a sentence and in bounded time."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft.utils.other import get_pattern_key
from safetensors.numpy import save_file

from earec_core.errors import IntegrityError, UsageError
from earec_core.llm.peft_adapter import CONFIG, KEY_A, KEY_B, WEIGHTS, LoraAdapter
from earec_core.llm.peft_patterns import Patterns

MODULES = ["model.layers.0.mlp.up_proj", "model.layers.10.mlp.up_proj", "model.layers.1.self_attn.q_proj"]
PLAIN: dict[str, Any] = {
    "peft_type": "LORA",
    "r": 2,
    "lora_alpha": 4,
    "target_modules": ["up_proj", "q_proj"],
}
ENDLESS = r"(\w|\w\w|\.|.)*(?<!proj)"
fuzzed = settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    tensors = {}
    for module in MODULES:
        tensors[KEY_A.format(module)] = np.ones((2, 6), dtype=np.float32)
        tensors[KEY_B.format(module)] = np.ones((4, 2), dtype=np.float32)
    save_file(tensors, tmp_path / WEIGHTS)
    (tmp_path / CONFIG).write_text(json.dumps(PLAIN))
    return tmp_path


keys = st.sampled_from(
    [
        "up_proj",
        "proj",
        "mlp.up_proj",
        r"mlp\.up_proj",
        r"^model\.layers\.0\.mlp\.up_proj",
        "^up_proj",
        r"layers\.\d\.mlp\.up_proj",
        "model.layers.1.self_attn.q_proj",
        r".*\.q_proj",
        "(up|q)_proj",
        "a)|(.*q_proj",
        "[a-z_]+",
        "layers.1.mlp.up_proj",
    ]
)


@given(st.lists(keys, unique=True, max_size=5), st.sampled_from(MODULES))
def test_patterns_are_looked_up_as_peft_does(chosen: list[str], module: str) -> None:
    patterns = {key: number for number, key in enumerate(chosen, 1)}
    expected = patterns.get(get_pattern_key(patterns, module), 0)
    assert Patterns(Path(CONFIG), {"rank_pattern": patterns}, "rank_pattern").value(module, 0.0) == expected


@pytest.mark.parametrize("key", ["rank_pattern", "alpha_pattern"])
def test_an_expression_that_never_ends_is_refused_in_bounded_time(
    adapter: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setattr("earec_core.llm.peft_patterns._SECONDS", 0.5)
    (adapter / CONFIG).write_text(json.dumps({**PLAIN, key: {ENDLESS: 2}}))
    start = time.monotonic()
    with pytest.raises(UsageError, match=f"{key} that take longer"):
        LoraAdapter.open(adapter)
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rank_pattern": ["up_proj"]}, "rank_pattern"),
        ({"alpha_pattern": {"up_proj": "8"}}, "alpha_pattern"),
        ({"alpha_pattern": {"up_proj": None}}, "alpha_pattern"),
        ({"rank_pattern": {"(": 2}}, "no regular expression"),
        ({"rank_pattern": {"(" * 2000 + ")" * 2000: 2}}, "no regular expression"),
        ({"rank_pattern": {"(x)" * 2000: 2}}, "no regular expression"),
        ({"lora_alpha": 10**400}, "lora_alpha"),
        ({"r": [2]}, "r="),
        ({"peft_type": ["LORA"]}, "PEFT type"),
    ],
)
def test_a_configuration_of_wrong_types_is_refused(adapter: Path, change: dict[str, Any], said: str) -> None:
    (adapter / CONFIG).write_text(json.dumps({**PLAIN, **change}))
    with pytest.raises((UsageError, IntegrityError), match=re.escape(said)):
        LoraAdapter.open(adapter)


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "[" * 100_000, '{"r": ' + "9" * 5000 + "}", "\0"])
def test_a_configuration_that_is_none_is_refused(adapter: Path, text: str) -> None:
    (adapter / CONFIG).write_text(text)
    with pytest.raises(IntegrityError, match="cannot be read"):
        LoraAdapter.open(adapter)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@fuzzed
@given(st.sampled_from([*PLAIN, "rank_pattern", "alpha_pattern", "bias", "use_rslora", "other"]), json_values)
def test_whatever_a_setting_is_the_adapter_opens_or_is_refused(adapter: Path, key: str, value: Any) -> None:
    (adapter / CONFIG).write_text(json.dumps({**PLAIN, key: value}))
    try:
        opened = LoraAdapter.open(adapter)
    except (UsageError, IntegrityError):
        return
    assert all(np.isfinite(scale) for scale in opened.scales.values())


@fuzzed
@given(st.data())
def test_damaged_tensors_are_read_or_refused(adapter: Path, data: st.DataObject) -> None:
    content = bytearray((adapter / WEIGHTS).read_bytes())
    for at in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=3)):
        content[at] ^= data.draw(st.integers(1, 255))
    damaged = content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content
    (adapter / "damaged").mkdir(exist_ok=True)
    (adapter / "damaged" / CONFIG).write_text(json.dumps(PLAIN))
    (adapter / "damaged" / WEIGHTS).write_bytes(damaged)
    try:
        opened = LoraAdapter.open(adapter / "damaged")
        for module in opened.shapes:
            opened.factors(module)
    except (UsageError, IntegrityError) as error:
        assert "\n" not in str(error)  # noqa: PT017 - most of what is drawn is refused, some is not
