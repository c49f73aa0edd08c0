"""Model folders that users bring: whole and of numbers, or one sentence before any work."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from earec_core.config import BackboneConfig, resolve
from earec_core.errors import UsageError
from earec_core.llm.backbone import Backbone
from earec_core.modality.pretrained import Pretrained
from earec_core.workspace import Reporter, Workspace

Tensors = dict[str, torch.Tensor]
WEIGHTS = "model.safetensors"
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935\nsize 12345\n"
UP = "model.layers.1.mlp.up_proj.weight"
SMALL = {
    "vocab_size": 258,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
EYES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}


class OpenedError(Exception):
    """Raised by an unpickler that reads what nobody should."""


class Trap:
    def __reduce__(self) -> Any:
        return (exec, (f"open({str(self.mark)!r}, 'w')",))

    def __init__(self, mark: Path) -> None:
        self.mark = mark


@pytest.fixture
def folder(tiny_llm: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_llm, tmp_path / "model"))


def _load(folder: Path) -> Backbone:
    return Backbone.load(BackboneConfig(model=str(folder), dtype="float32", device="cpu"))


def _edit(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS, metadata={"format": "pt"})


def _configure(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


def _save(model: Any, folder: Path, tokenizer_of: Path) -> Path:
    model.save_pretrained(folder)
    for file in (*tokenizer_of.glob("*token*"), *tokenizer_of.glob("chat_template*")):
        shutil.copy(file, folder)
    return folder


WITHOUT: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "a layer is missing": (
        lambda t: {name: v for name, v in t.items() if name != UP},
        rf"lacks 1 tensor \({UP}\)",
    ),
    "a prefix": (lambda t: {f"module.{name}": v for name, v in t.items()}, r"lacks 21 tensors \(lm_head"),
    "another prefix": (
        lambda t: {f"language_model.{name}": v for name, v in t.items()},
        r"lacks 21 tensors .* and 18 more",
    ),
    "another shape": (lambda t: t | {UP: t[UP][:-1].clone()}, rf"{UP} \[63, 32\] for \[64, 32\]"),
    "a layer too many": (
        lambda t: t | {UP.replace("1", "7"): t[UP].clone()},
        r"holds 1 tensor \(model.layers.7.mlp.up_proj.weight\) that the model",
    ),
    "no number": (
        lambda t: t | {UP: t[UP].fill_(float("nan"))},
        rf"NaN or infinite numbers in 1 tensor \({UP}\)",
    ),
    "infinity": (
        lambda t: t | {UP: t[UP].index_fill_(0, torch.tensor([3]), float("-inf"))},
        rf"NaN or infinite numbers in 1 tensor \({UP}\)",
    ),
}


@pytest.mark.parametrize("case", WITHOUT)
def test_a_checkpoint_that_does_not_fill_the_model_with_numbers_is_refused(folder: Path, case: str) -> None:
    change, said = WITHOUT[case]
    _edit(folder, change)
    with pytest.raises(UsageError, match=said):
        _load(folder)


def test_an_embedding_model_has_no_head(tiny_llm: Path, tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaModel

    folder = _save(LlamaModel(LlamaConfig(**SMALL)), tmp_path / "model", tiny_llm)
    with pytest.raises(UsageError, match=r"lacks 1 tensor \(lm_head.weight\)"):
        _load(folder)
    _configure(folder, tie_word_embeddings=True)
    head = _load(folder).model.lm_head.weight
    stored = load_file(folder / WEIGHTS)
    assert torch.equal(head, next(v for name, v in stored.items() if name.endswith("embed_tokens.weight")))


def test_every_tensor_is_the_checkpoints(folder: Path) -> None:
    """A head that is stored, though the configuration ties it, and tables of older versions included."""
    generator = torch.Generator().manual_seed(0)
    head = torch.randn(258, 32, generator=generator)
    inverse = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.randn(4)}
    _edit(folder, lambda t: t | {"lm_head.weight": head} | inverse)
    loaded = dict(_load(folder).model.named_parameters())
    for name, stored in load_file(folder / WEIGHTS).items():
        assert name in inverse or torch.equal(loaded[name], stored)


def test_another_head_is_left_alone_and_named(folder: Path, tmp_path: Path) -> None:
    _edit(folder, lambda t: t | {"score.weight": torch.zeros(1, 32), "v_head.summary.bias": torch.zeros(1)})
    notes: list[str] = []
    workspace = Workspace.open(tmp_path / "home", reporter=Reporter(notes.append))
    Backbone.load(BackboneConfig(model=str(folder), device="cpu"), workspace)
    assert [note for note in notes if "left alone: score, v_head." in note]


WRONG: dict[str, tuple[Mapping[str, str | bytes | None], str]] = {
    "config a list": ({"config.json": "[1]"}, r"config\.json is no JSON object"),
    "config a word": ({"config.json": '"a"'}, r"config\.json is no JSON object"),
    "config null": ({"config.json": "null"}, r"config\.json is no JSON object"),
    "config cut": ({"config.json": "{"}, r"config\.json is no JSON \("),
    "config of bytes": ({"config.json": b"\xff\xfe\x00"}, r"config\.json is no JSON \("),
    "config deep": ({"config.json": "[" * 100_000}, r"config\.json is no JSON \("),
    "generation settings": ({"generation_config.json": "[]"}, r"generation_config\.json is no JSON object"),
    "tokenizer settings": ({"tokenizer_config.json": "[]"}, r"tokenizer_config\.json is no JSON object"),
    "tokenizer": ({"tokenizer.json": "[]"}, r"The tokenizer of .* cannot be loaded"),
    "weights an LFS pointer": ({WEIGHTS: LFS}, r"model\.safetensors is a Git LFS pointer.*git lfs pull"),
    "tokenizer an LFS pointer": ({"tokenizer.json": LFS}, r"tokenizer\.json is a Git LFS pointer"),
    "weights empty": ({WEIGHTS: b""}, r"model\.safetensors is damaged or cut short"),
    "weights no header": ({WEIGHTS: b"\xff" * 64}, r"model\.safetensors is damaged or cut short"),
    "weights absent": ({WEIGHTS: None}, r"has no safetensors weights"),
    "index a list": ({WEIGHTS: None, f"{WEIGHTS}.index.json": "[]"}, r"index\.json is no JSON object"),
    "index of a list": (
        {WEIGHTS: None, f"{WEIGHTS}.index.json": '{"weight_map": ["a"]}'},
        r"index\.json has no map",
    ),
    "index elsewhere": (
        {WEIGHTS: None, f"{WEIGHTS}.index.json": '{"weight_map": {"a": "../model.safetensors"}}'},
        r"names '\.\./model\.safetensors'",
    ),
    "index of a part that is not there": (
        {WEIGHTS: None, f"{WEIGHTS}.index.json": '{"weight_map": {"a": "b.safetensors"}}'},
        r"its part b\.safetensors is not there",
    ),
    "an adapter beside": ({"adapter_config.json": "{}"}, r"holds an adapter_config\.json beside the model"),
    "an adapter alone": ({"config.json": None, "adapter_config.json": "{}"}, r"is an adapter, no model"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_folder_that_is_not_right_is_one_sentence(folder: Path, case: str) -> None:
    files, said = WRONG[case]
    for name, content in files.items():
        (folder / name).unlink(missing_ok=True)
        if content is not None:
            (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UsageError, match=said) as caught:
        _load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("length", [4, 100, -1])
def test_weights_cut_short_are_refused(folder: Path, length: int) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:length])
    with pytest.raises(UsageError, match=r"model\.safetensors is damaged or cut short"):
        _load(folder)


SETTINGS: list[dict[str, Any]] = [
    {"hidden_size": "32"},
    {"hidden_size": -3},
    {"num_attention_heads": 0},
    {"num_hidden_layers": [2]},
    {"hidden_act": "nope"},
    {"dtype": "nope"},
    {"model_type": ["llama"]},
    {"model_type": "nope"},
    {"model_type": "t5"},
    {"quantization_config": "x"},
    {"rope_parameters": 7},
    {"transformers_weights": "../elsewhere.safetensors"},
    {"model_type": "nope", "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}},
]


@pytest.mark.parametrize("values", SETTINGS, ids=[json.dumps(values)[:40] for values in SETTINGS])
def test_a_configuration_of_wrong_types_is_one_sentence(folder: Path, values: dict[str, Any]) -> None:
    _configure(folder, **values)
    with pytest.raises(UsageError) as caught:
        _load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "hqq", "nope"])
def test_quantised_weights_are_refused_by_name(folder: Path, method: str) -> None:
    _configure(folder, quantization_config={"quant_method": method, "bits": 4})
    with pytest.raises(UsageError, match=rf"has quantised weights \({method}\)"):
        _load(folder)


@pytest.mark.parametrize("beside", ["nothing", "other weights", "an index"])
def test_pickled_weights_reach_no_unpickler(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beside: str
) -> None:
    def opened(*_: Any, **__: Any) -> None:
        raise OpenedError

    monkeypatch.setattr(torch, "load", opened)
    weights = folder / WEIGHTS
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(tmp_path / "mark")))
    if beside == "other weights":
        weights.rename(folder / "other.safetensors")
    elif beside == "an index":
        places = dict.fromkeys(load_file(weights), "pytorch_model.bin")
        (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": places}))
    weights.unlink(missing_ok=True)
    with pytest.raises(UsageError, match="safetensors"):
        _load(folder)
    assert not (tmp_path / "mark").exists()


def test_a_tokenizer_larger_than_the_embedding_is_refused(tiny_llm: Path, tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(LlamaConfig(**SMALL | {"vocab_size": 200}))
    with pytest.raises(UsageError, match="has ids up to 257, but the model has embeddings for 200"):
        _load(_save(model, tmp_path / "model", tiny_llm))


@pytest.mark.parametrize("name", ["2024", "true", "1e5", "2024-01-01", "[a]"])
def test_a_folder_named_like_a_number_is_a_folder(
    tiny_llm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    shutil.copytree(tiny_llm, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    by_flag = resolve(flags={"backbone.model": name})
    monkeypatch.setenv("EAREC_BACKBONE__MODEL", name)
    assert by_flag.backbone.model == resolve().backbone.model == name
    assert Backbone.load(by_flag.backbone).info.id == name


def test_settings_that_are_no_texts_are_still_read_as_toml() -> None:
    flags = {"align.lr": "3e-4", "search.per_layer": "true", "prompt.anchor": '["a", "b"]', "run.seed": "7"}
    config = resolve(flags={**flags, "prompt.system": '"1"', "prompt.domain": "1999"})
    assert (config.align.lr, config.search.per_layer, config.run.seed) == (3e-4, True, 7)
    assert config.prompt.anchor == ("a", "b")
    assert (config.prompt.system, config.prompt.domain) == ("1", "1999")


def _llava() -> tuple[Any, Any]:
    import transformers as t

    config = t.LlavaConfig(text_config=t.LlamaConfig(**SMALL), vision_config=t.CLIPVisionConfig(**EYES))
    return t.LlavaForConditionalGeneration(config), t.LlamaForCausalLM


def _gemma3() -> tuple[Any, Any]:
    import transformers as t

    text = t.Gemma3TextConfig(**SMALL, head_dim=8)
    config = t.Gemma3Config(text_config=text, vision_config=t.SiglipVisionConfig(**EYES))
    return t.Gemma3ForConditionalGeneration(config), t.Gemma3ForCausalLM


@pytest.mark.parametrize("make", [_llava, _gemma3])
def test_of_a_multimodal_model_the_language_part_is_used(
    make: Callable[[], tuple[Any, Any]], tiny_llm: Path, tmp_path: Path
) -> None:
    """Its logits of text are the whole model's."""
    torch.manual_seed(0)
    whole, language = make()
    backbone = _load(_save(whole, tmp_path / "model", tiny_llm))
    assert type(backbone.model) is language
    assert not [name for name, _ in backbone.model.named_modules() if "vision" in name]
    ids = torch.tensor([[0, 12, 55, 103]])
    with torch.no_grad():
        expected = whole.eval()(input_ids=ids).logits
        torch.testing.assert_close(backbone.model(input_ids=ids).logits, expected, atol=1e-5, rtol=1e-5)


def test_a_multimodal_model_without_a_causal_language_part_is_one_sentence(
    tiny_llm: Path, tmp_path: Path
) -> None:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    eyes = {"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 4}
    rope = {"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}}
    whole = Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config={**SMALL, **rope}, vision_config=eyes))
    with pytest.raises(UsageError, match="multimodal qwen2_vl, whose language part"):
        _load(_save(whole, tmp_path / "model", tiny_llm))


@pytest.fixture
def vit(tmp_path: Path) -> Path:
    """A classifier's checkpoint: a head that nobody needs, and no pooler."""
    from transformers import ViTConfig, ViTForImageClassification

    ViTForImageClassification(ViTConfig(**EYES)).save_pretrained(tmp_path / "vit")
    return tmp_path / "vit"


def _encoder(folder: Path) -> Pretrained:
    return Pretrained("vision", str(folder), None, "builtin")


def test_an_encoder_may_lack_what_is_never_read_alone(vit: Path) -> None:
    with pytest.raises(UsageError, match=r"The vision encoder .* lacks 2 tensors \(pooler"):
        _encoder(vit).load("AutoModel")
    model = _encoder(vit).load("AutoModel", spare=("pooler.",))
    stored = load_file(vit / WEIGHTS)
    embedding = model.embeddings.patch_embeddings.projection.weight
    assert torch.equal(embedding, stored["vit.embeddings.patch_embeddings.projection.weight"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: {name: v for name, v in t.items() if "layernorm_after" not in name}, "lacks 2 tensors"),
        (lambda t: t | {"vit.layernorm.weight": t["vit.layernorm.weight"] / 0 * 0}, "NaN or infinite"),
        (lambda t: t | {"vit.layernorm.weight": torch.ones(7)}, r"layernorm\.weight \[7\] for \[32\]"),
    ],
)
def test_an_encoder_that_its_checkpoint_does_not_fill_is_refused(
    vit: Path, change: Callable[[Tensors], Tensors], said: str
) -> None:
    _edit(vit, change)
    with pytest.raises(UsageError, match=rf"{said}.*--set vision\.encoder="):
        _encoder(vit).load("AutoModel", spare=("pooler.",))


def test_an_encoder_with_an_adapter_beside_it_is_refused(vit: Path) -> None:
    (vit / "adapter_config.json").write_text("{}")
    with pytest.raises(UsageError, match="adapter_config"):
        _encoder(vit).load("AutoModel", spare=("pooler.",))
