"""Composition against dense double-precision arithmetic, numpy's SVD and PEFT's own loader."""

from __future__ import annotations

import json
import math
import tracemalloc
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from earec_core.compose import METHODS, LoraAdapter, Method, Recipe, compose
from earec_core.compose.factors import Factors
from earec_core.compose.methods import truncate
from earec_core.errors import EarecError, IntegrityError, UsageError
from earec_core.llm.tensors import TensorFile, from_array, is_finite, write_tensors

SHAPES = {
    "model.layers.0.self_attn.q_proj": (7, 5),
    "model.layers.0.mlp.up_proj": (9, 5),
    "model.layers.1.self_attn.q_proj": (7, 5),
}
PREFIX = "base_model.model."


def write_adapter(
    path: Path,
    seed: int = 0,
    r: int = 2,
    alpha: float = 4,
    modules: dict[str, tuple[int, int]] | None = None,
    dtype: type[np.generic] = np.float32,
    **config: Any,
) -> Path:
    """A PEFT directory with random factors; `rank_pattern` keys are module suffixes here."""
    generator = np.random.default_rng(seed)
    modules = SHAPES if modules is None else modules
    tensors = {}
    for module, (d_out, d_in) in modules.items():
        rank = next((v for k, v in config.get("rank_pattern", {}).items() if module.endswith(k)), r)
        tensors[f"{PREFIX}{module}.lora_A.weight"] = generator.normal(size=(rank, d_in)).astype(dtype)
        tensors[f"{PREFIX}{module}.lora_B.weight"] = generator.normal(size=(d_out, rank)).astype(dtype)
    path.mkdir(parents=True)
    save_file(tensors, path / "adapter_model.safetensors", metadata={"format": "pt"})
    targets = sorted({module.rsplit(".", 1)[-1] for module in modules})
    written = {"peft_type": "LORA", "r": r, "lora_alpha": alpha, "target_modules": targets, "bias": "none"}
    (path / "adapter_config.json").write_text(json.dumps({**written, **config}))
    return path


def dense(path: Path) -> dict[str, np.ndarray]:
    """dW of every module in float64, written down again from PEFT's documentation."""
    config = json.loads((path / "adapter_config.json").read_text())
    tensors = load_file(path / "adapter_model.safetensors")
    result = {}
    for key in tensors:
        if not key.endswith(".lora_A.weight"):
            continue
        module = key[len(PREFIX) : -len(".lora_A.weight")]
        alphas = config.get("alpha_pattern") or {}
        plain = {k.replace("^", "").replace("\\", ""): v for k, v in alphas.items()}
        alpha = next((v for k, v in plain.items() if module.endswith(k)), config["lora_alpha"])
        rank = tensors[key].shape[0]
        scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
        b = tensors[f"{PREFIX}{module}.lora_B.weight"].astype(np.float64)
        result[module] = scale * b @ tensors[key].astype(np.float64)
    return result


def dense_sum(paths: dict[str, Path], weights: dict[str, float]) -> dict[str, np.ndarray]:
    result: dict[str, np.ndarray] = {}
    for name, path in paths.items():
        for module, change in dense(path).items():
            result[module] = result.get(module, 0.0) + weights[name] * change
    return result


def total_norm(changes: dict[str, np.ndarray]) -> float:
    return math.sqrt(sum(float(np.sum(change**2)) for change in changes.values()))


def distance(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> float:
    assert set(found) == set(wanted)
    return total_norm({module: found[module] - wanted[module] for module in wanted})


def relative(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> float:
    return distance(found, wanted) / total_norm(wanted)


def bytes_of(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(path.iterdir())}


@pytest.fixture
def three(tmp_path: Path) -> dict[str, Path]:
    return {
        name: write_adapter(tmp_path / name, seed) for seed, name in enumerate(("text", "vision", "behavior"))
    }


WEIGHTS = {"text": 0.05, "vision": 0.05, "behavior": 0.9}


@st.composite
def adapter_options(draw: st.DrawFn) -> dict[str, Any]:
    modules = draw(st.lists(st.sampled_from(sorted(SHAPES)), min_size=1, unique=True))
    options: dict[str, Any] = {
        "seed": draw(st.integers(0, 2**16)),
        "r": draw(st.integers(1, 6)),
        "alpha": draw(st.sampled_from([1, 2, 5, 16])),
        "modules": {module: SHAPES[module] for module in modules},
        "use_rslora": draw(st.booleans()),
    }
    if draw(st.booleans()):
        options["alpha_pattern"] = {"q_proj": 3, "layers.0.mlp.up_proj": 7}
    if draw(st.booleans()):
        options["rank_pattern"] = {"layers.0.self_attn.q_proj": 3}
    return options


@given(
    options=st.lists(adapter_options(), min_size=1, max_size=4),
    raw=st.lists(st.floats(-2, 2).filter(lambda x: abs(x) > 1e-3), min_size=4, max_size=4),
    dtype=st.sampled_from(["float32", "float32", "float16"]),
)
@settings(max_examples=60)
def test_delta_equals_the_dense_sum(options: list[dict[str, Any]], raw: list[float], dtype: Any) -> None:
    with TemporaryDirectory() as folder:
        root = Path(folder)
        paths = {f"m{i}": write_adapter(root / f"m{i}", **o) for i, o in enumerate(options)}
        weights = {name: raw[i] for i, name in enumerate(paths)}
        wanted = dense_sum(paths, weights)
        report = compose(paths, Recipe(weights, sum_rule="any", dtype=dtype), root / "out")
        # The sum may cancel, so errors are measured against the sum of the norms.
        size = sum(abs(weights[name]) * total_norm(dense(path)) for name, path in paths.items())
        error, norm = distance(dense(root / "out"), wanted), total_norm(wanted)
        assert error < (2e-6 if dtype == "float32" else 2e-3) * size
        assert report.norm == pytest.approx(norm, abs=1e-3 * size)
        if dtype == "float32":
            assert report.relative_error == 0.0
        elif norm > 0.01 * size:
            assert report.relative_error == pytest.approx(error / norm, rel=0.02, abs=1e-5)
        backwards = dict(reversed(paths.items()))
        compose(
            backwards, Recipe(dict(reversed(weights.items())), sum_rule="any", dtype=dtype), root / "again"
        )
        assert bytes_of(root / "out") == bytes_of(root / "again")


@given(options=st.lists(adapter_options(), min_size=2, max_size=3), rank=st.integers(1, 8))
@settings(max_examples=40)
def test_truncation_error_is_the_dense_svd_tail(options: list[dict[str, Any]], rank: int) -> None:
    with TemporaryDirectory() as folder:
        root = Path(folder)
        paths = {f"m{i}": write_adapter(root / f"m{i}", **o) for i, o in enumerate(options)}
        weights = {name: 1 / len(paths) for name in paths}
        wanted = dense_sum(paths, weights)
        report = compose(paths, Recipe(weights, rank=rank), root / "out")
        for module in report.modules:
            values = np.linalg.svd(wanted[module.name], compute_uv=False)
            tail = np.linalg.norm(values[rank:]) / np.linalg.norm(values)
            assert module.relative_error == pytest.approx(tail, rel=1e-4, abs=1e-6)
            assert module.rank <= max(rank, 1)
        assert relative(dense(root / "out"), wanted) == pytest.approx(
            report.relative_error, rel=1e-4, abs=2e-6
        )


def test_delta_is_linear_in_the_weights(three: dict[str, Path], tmp_path: Path) -> None:
    first, second = (
        {"text": 0.2, "vision": 0.5, "behavior": 0.3},
        {"text": -1.0, "vision": 0.25, "behavior": 2.0},
    )
    both = {name: 2 * first[name] - 3 * second[name] for name in three}
    found = []
    for i, weights in enumerate((first, second, both)):
        compose(three, Recipe(weights, sum_rule="any"), tmp_path / f"out{i}")
        found.append(dense(tmp_path / f"out{i}"))
    combined = {module: 2 * found[0][module] - 3 * found[1][module] for module in found[0]}
    assert relative(found[2], combined) < 1e-6


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("rslora", [False, True])
def test_weight_one_gives_the_adapter_back(method: str, rslora: bool, tmp_path: Path) -> None:
    pattern = {"rank_pattern": {"up_proj": 3}, "alpha_pattern": {"up_proj": 5}}
    text = write_adapter(tmp_path / "text", 1, use_rslora=rslora, lora_dropout=0.05, **pattern)
    other = write_adapter(tmp_path / "other", 2, r=4)
    report = compose(
        {"text": text, "other": other}, Recipe({"text": 1.0, "other": 0.0}, method=method), tmp_path / "out"
    )
    before, after = (load_file(p / "adapter_model.safetensors") for p in (text, tmp_path / "out"))
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[key], after[key]) for key in before)
    old, new = (json.loads((p / "adapter_config.json").read_text()) for p in (text, tmp_path / "out"))
    assert all(new[key] == value for key, value in old.items())
    assert report.relative_error < 1e-7
    assert report.norms.keys() == {"text"}


def test_factor_is_the_formula_and_shrinks(three: dict[str, Path], tmp_path: Path) -> None:
    third = dict.fromkeys(three, 1 / 3)
    report = compose(three, Recipe(third, method="factor"), tmp_path / "out")
    stored = [load_file(path / "adapter_model.safetensors") for path in three.values()]
    merged = load_file(tmp_path / "out" / "adapter_model.safetensors")
    for key, value in merged.items():
        np.testing.assert_allclose(value, sum(s[key].astype(np.float64) for s in stored) / 3, atol=1e-6)
    wanted, found = dense_sum(three, third), dense(tmp_path / "out")
    assert relative(found, wanted) == pytest.approx(report.relative_error, rel=1e-5)
    norm = total_norm(found)
    # Independent factors: 9 products of size 1/9 in place of 3 of size 1/3, so about 1 / sqrt(3) of the norm.
    assert 0.4 < norm / report.norm < 0.8


def test_factor_norm_has_the_norm_of_the_exact_sum(three: dict[str, Path], tmp_path: Path) -> None:
    compose(three, Recipe(WEIGHTS, method="factor"), tmp_path / "factor")
    report = compose(three, Recipe(WEIGHTS, method="factor-norm"), tmp_path / "out")
    plain, found, wanted = dense(tmp_path / "factor"), dense(tmp_path / "out"), dense_sum(three, WEIGHTS)
    for module in wanted:
        assert np.linalg.norm(found[module]) == pytest.approx(np.linalg.norm(wanted[module]), rel=1e-5)
        cosine = np.sum(found[module] * plain[module])
        assert cosine == pytest.approx(
            np.linalg.norm(found[module]) * np.linalg.norm(plain[module]), rel=1e-5
        )
    assert report.relative_error == pytest.approx(relative(found, wanted), rel=1e-5)


def test_factor_of_equal_adapters_is_exact(tmp_path: Path) -> None:
    paths = {name: write_adapter(tmp_path / name, 3) for name in ("a", "b")}
    assert (
        compose(paths, Recipe({"a": 0.5, "b": 0.5}, method="factor"), tmp_path / "out").relative_error < 1e-6
    )


def test_factor_norm_says_when_the_factors_cancel(tmp_path: Path) -> None:
    modules = {"layer": (3, 3)}
    a = write_adapter(tmp_path / "a", 3, modules=modules)
    b = write_adapter(tmp_path / "b", 3, modules=modules)
    tensors = load_file(b / "adapter_model.safetensors")
    tensors[PREFIX + "layer.lora_A.weight"] *= -1  # A cancels at equal weights
    tensors[PREFIX + "layer.lora_B.weight"] *= -1  # dW does not
    save_file(tensors, b / "adapter_model.safetensors")
    with pytest.raises(UsageError, match="cancel in layer"):
        compose({"a": a, "b": b}, Recipe({"a": 0.5, "b": 0.5}, method="factor-norm"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"r": 3},
        {"alpha": 9},
        {"use_rslora": True},
        {"rank_pattern": {"up_proj": 1}},
        {"alpha_pattern": {"q_proj": 1}},
    ],
)
def test_factor_refuses_unequal_ranks_and_scales(change: dict[str, Any], tmp_path: Path) -> None:
    paths = {"a": write_adapter(tmp_path / "a"), "b": write_adapter(tmp_path / "b", **change)}
    with pytest.raises(UsageError, match="needs equal ranks and scales"):
        compose(paths, Recipe({"a": 0.5, "b": 0.5}, method="factor"), tmp_path / "out")


def test_report_has_norms_and_cosines(three: dict[str, Path], tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    report = compose(
        three, Recipe(WEIGHTS), tmp_path / "out", progress=lambda done, total: seen.append((done, total))
    )
    flat = {name: np.concatenate([w.ravel() for w in dense(path).values()]) for name, path in three.items()}
    for name, values in flat.items():
        assert report.norms[name] == pytest.approx(np.linalg.norm(values), rel=1e-5)
    for pair, cosine in report.cosines.items():
        one, two = (flat[name] for name in pair.split(","))
        assert cosine == pytest.approx(one @ two / np.linalg.norm(one) / np.linalg.norm(two), abs=1e-5)
    assert len(report.cosines) == 3
    assert report.norm == pytest.approx(total_norm(dense_sum(three, WEIGHTS)), rel=1e-5)
    assert report.rank == 6
    assert report.bytes == sum(len(data) for data in bytes_of(tmp_path / "out").values())
    assert seen == [(1, 3), (2, 3), (3, 3)]
    summary = json.loads(json.dumps(report.summary()))
    assert set(asdict(report)) - set(summary) == {"modules", "path"}
    assert summary["norms"] == report.norms


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rank", [None, 1])
def test_the_composites_norm_is_that_of_its_dense_matrices(
    method: str, dtype: Any, rank: int | None, three: dict[str, Path], tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import load_file as load_torch

    report = compose(three, Recipe(WEIGHTS, method=method, rank=rank, dtype=dtype), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    stored = load_torch(tmp_path / "out" / "adapter_model.safetensors")
    changes = [
        config["lora_alpha"] / config["r"] * stored[key.replace("lora_A", "lora_B")].double() @ a.double()
        for key, a in stored.items()
        if "lora_A" in key
    ]
    assert report.composed_norm == pytest.approx(float(torch.cat(changes).norm()), rel=1e-5)
    assert report.norm == pytest.approx(total_norm(dense_sum(three, WEIGHTS)), rel=1e-5)


def test_an_error_beside_nothing_is_none_in_the_summary(tmp_path: Path) -> None:
    """The exact sum cancels, the averaged factors do not: the ratio is infinite, which JSON cannot hold."""
    paths = {name: write_adapter(tmp_path / name, 3) for name in ("a", "b")}
    tensors = load_file(paths["b"] / "adapter_model.safetensors")
    turned = {key: value * (2 if "lora_A" in key else -0.5) for key, value in tensors.items()}
    save_file(
        {key: value.astype(np.float32) for key, value in turned.items()},
        paths["b"] / "adapter_model.safetensors",
    )
    recipe = Recipe({"a": 0.75, "b": 0.75}, method="factor", sum_rule="any")
    report = compose(paths, recipe, tmp_path / "out")
    assert (report.relative_error, report.norm) == (math.inf, 0.0)
    assert report.composed_norm == pytest.approx(total_norm(dense(tmp_path / "out")), rel=1e-5)
    summary = json.loads(json.dumps(report.summary(), allow_nan=False))
    assert summary["relative_error"] is None


def test_half_precision_is_rounded_as_torch_rounds(three: dict[str, Path], tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file as load_torch

    exact = tmp_path / "float32"
    compose(three, Recipe(WEIGHTS, dtype="float32"), exact)
    wanted = dense_sum(three, WEIGHTS)
    for dtype in ("bfloat16", "float16"):
        report = compose(three, Recipe(WEIGHTS, dtype=dtype), tmp_path / dtype)  # type: ignore[arg-type]
        half = load_torch(tmp_path / dtype / "adapter_model.safetensors")
        for key, value in load_torch(exact / "adapter_model.safetensors").items():
            assert torch.equal(value.to(getattr(torch, dtype)), half[key])
        rebuilt = {}
        for module in wanted:
            a, b = (half[f"{PREFIX}{module}.lora_{x}.weight"].double().numpy() for x in "AB")
            rebuilt[module] = b @ a
        assert report.relative_error == pytest.approx(relative(rebuilt, wanted), rel=0.02)
        # The same type again when composed again, and no bit moves at weight 1.
        again = compose({"x": tmp_path / dtype}, Recipe({"x": 1.0}), tmp_path / f"{dtype}-again")
        assert again.dtype == dtype
        name = "adapter_model.safetensors"
        assert (tmp_path / dtype / name).read_bytes() == (tmp_path / f"{dtype}-again" / name).read_bytes()


def test_half_precision_adapters_are_stacked_as_torch_would(three: dict[str, Path], tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file as load_torch

    half = {name: tmp_path / "half" / name for name in three}
    for name, path in three.items():
        compose({name: path}, Recipe({name: 1.0}, dtype="bfloat16"), half[name])
    report = compose(half, Recipe(WEIGHTS), tmp_path / "out")
    assert report.dtype == "bfloat16"
    found = load_torch(tmp_path / "out" / "adapter_model.safetensors")
    stored = {name: load_torch(path / "adapter_model.safetensors") for name, path in half.items()}
    rebuilt, wanted = {}, {}
    for module in LoraAdapter.open(half["text"]).shapes:
        key_a, key_b = (f"{PREFIX}{module}.lora_{x}.weight" for x in "AB")
        parts = {name: (stored[name][key_a], stored[name][key_b]) for name in sorted(half)}
        factor = {name: WEIGHTS[name] * LoraAdapter.open(half[name]).scales[module] for name in parts}
        assert torch.equal(found[key_a], torch.cat([a for a, _ in parts.values()]))
        scaled = [(b.float() * factor[name]).bfloat16() for name, (_, b) in parts.items()]
        assert torch.equal(found[key_b], torch.cat(scaled, dim=1))
        rebuilt[module] = (found[key_b].double() @ found[key_a].double()).numpy()
        wanted[module] = sum(
            (b.double() @ a.double()).numpy() * factor[name] for name, (a, b) in parts.items()
        )
    assert report.relative_error == pytest.approx(relative(rebuilt, wanted), rel=0.02)


@pytest.mark.parametrize("method", ["delta", "factor"])
def test_measuring_changes_no_byte(method: str, three: dict[str, Path], tmp_path: Path) -> None:
    measured = compose(three, Recipe(WEIGHTS, method=method), tmp_path / "measured")
    plain = compose(three, Recipe(WEIGHTS, method=method, measure=False), tmp_path / "plain")
    assert bytes_of(tmp_path / "measured") == bytes_of(tmp_path / "plain")
    assert (plain.rank, plain.bytes, plain.dtype) == (measured.rank, measured.bytes, measured.dtype)
    assert (plain.relative_error, plain.norm, plain.norms, plain.modules) == (None, None, {}, ())
    assert plain.composed_norm is None
    json.dumps(asdict(plain))


def test_too_large_for_float16_is_said(tmp_path: Path) -> None:
    path = write_adapter(tmp_path / "a", alpha=1e7)
    with pytest.raises(UsageError, match="too large for float16"):
        compose({"a": path}, Recipe({"a": 0.5}, sum_rule="any", dtype="float16"), tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    ("weights", "rule", "message"),
    [
        (
            {"text": 0.5, "vision": 0.4, "behavior": 0.0},
            "strict",
            r"sum to 0\.9.*--normalize.*--no-normalize",
        ),
        (
            {"text": 1.5, "vision": -0.5, "behavior": 0.0},
            "strict",
            r"not in \[0, 1\].*--normalize.*--no-normalize",
        ),
        ({"text": 1.5, "vision": -0.5, "behavior": 0.0}, "normalize", "negative"),
        ({"text": math.nan, "vision": 0.5, "behavior": 0.5}, "any", "text is nan"),
        ({"text": math.inf, "vision": -math.inf, "behavior": 0.5}, "any", "text is inf"),
        ({"text": 0.0, "vision": 0.0, "behavior": 0.0}, "any", "Every weight is 0"),
        ({"text": 0.5, "vision": 0.5}, "strict", "No weight is given for behavior"),
        ({"text": 0.5, "vision": 0.5, "behavior": 0.0, "sound": 0.0}, "strict", "sound, which is no adapter"),
    ],
)
def test_weights_that_do_not_fit(
    weights: dict[str, float], rule: Any, message: str, three: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        compose(three, Recipe(weights, sum_rule=rule), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_recipe_that_exists_is_valid() -> None:
    for wrong, message in (
        ({"weights": {}}, "no adapter to compose"),
        ({"weights": {"a": 0.5}}, "sum to 0.5"),
        ({"weights": {"a": 1.0}, "method": "mean"}, "no composition method 'mean'"),
        ({"weights": {"a": 1.0}, "rank": 0}, "Rank 0"),
        ({"weights": {"a": 1.0}, "seed": 1}, "delta has no --seed"),
        ({"weights": {"a": 1.0}, "layer_weights": {3: {"b": 1.0}}}, "Layer 3: No weight is given for a"),
    ):
        with pytest.raises(UsageError, match=message):
            Recipe(**wrong)  # type: ignore[arg-type]
    recipe = Recipe(
        {"b": 3, "a": 1, "c": 0}, sum_rule="normalize", layer_weights={1: {"a": 0, "b": 0, "c": 2}}
    )
    assert list(recipe.used.items()) == [("a", 0.25), ("b", 0.75), ("c", 0.0)]
    assert recipe.taking == ["a", "b", "c"]
    assert recipe.at("model.layers.1.mlp")["c"] == 1.0
    assert recipe.at("model.layers.2.mlp") == recipe.at("lm_head") == recipe.used


def test_sum_rules(three: dict[str, Path], tmp_path: Path) -> None:
    raw = {"text": 1.0, "vision": 1.0, "behavior": 2.0}
    report = compose(three, Recipe(raw, sum_rule="normalize"), tmp_path / "normalized")
    assert report.weights == {"behavior": 0.5, "text": 0.25, "vision": 0.25}
    compose(three, Recipe({"text": 0.25, "vision": 0.25, "behavior": 0.5}), tmp_path / "given")
    assert bytes_of(tmp_path / "normalized") == bytes_of(tmp_path / "given")
    compose(three, Recipe(raw, sum_rule="any"), tmp_path / "any")
    assert relative(dense(tmp_path / "any"), dense_sum(three, raw)) < 1e-6


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"lora_bias": True}, "lora_bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"bias": "lora_only"}, "bias=lora_only"),
        ({"peft_type": "LOHA"}, "LOHA"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4"),
        ({"some_later_variant": {"x": 1}}, "some_later_variant"),
    ],
)
def test_variants_are_refused_by_name(config: dict[str, Any], named: str, tmp_path: Path) -> None:
    path = write_adapter(tmp_path / "a", **config)
    with pytest.raises(UsageError, match=named):
        LoraAdapter.open(path)


def test_tensors_of_other_kinds_are_refused(tmp_path: Path) -> None:
    path = write_adapter(tmp_path / "a")
    tensors = load_file(path / "adapter_model.safetensors")
    save_file(
        {**tensors, PREFIX + "embed.lora_embedding_A": np.ones((2, 3), np.float32)},
        path / "adapter_model.safetensors",
    )
    with pytest.raises(UsageError, match=r"embed\.lora_embedding_A"):
        LoraAdapter.open(path)


def _cut(path: Path) -> None:
    file = path / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-7])


def _scramble(path: Path) -> None:
    (path / "adapter_model.safetensors").write_bytes(b"\x10" * 64)


def _no_json(path: Path) -> None:
    (path / "adapter_config.json").write_text("{")


def _lose_b(path: Path) -> None:
    tensors = load_file(path / "adapter_model.safetensors")
    tensors.pop(next(key for key in tensors if "lora_B" in key))
    save_file(tensors, path / "adapter_model.safetensors")


def _other_rank(path: Path) -> None:
    config = json.loads((path / "adapter_config.json").read_text())
    (path / "adapter_config.json").write_text(json.dumps({**config, "r": 5}))


def _nan(path: Path) -> None:
    tensors = load_file(path / "adapter_model.safetensors")
    tensors[PREFIX + "model.layers.1.self_attn.q_proj.lora_B.weight"][2, 1] = np.nan
    save_file(tensors, path / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_cut, "damaged or cut short"),
        (_scramble, "damaged or cut short"),
        (_no_json, "cannot be read"),
        (_lose_b, "do not belong together"),
        (_other_rank, "has rank 2 .* says 5"),
        (_nan, r"layers\.1\.self_attn\.q_proj\.lora_B\.weight of the adapter in .*vision holds NaN"),
    ],
)
def test_damage_is_named_and_nothing_is_written(
    damage: Callable[[Path], None], message: str, three: dict[str, Path], tmp_path: Path
) -> None:
    damage(three["vision"])
    with pytest.raises(IntegrityError, match=message):
        compose(three, Recipe(WEIGHTS), tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["behavior", "text", "vision"]


def test_other_backbone_is_named(tmp_path: Path) -> None:
    modules = {**SHAPES, "model.layers.0.mlp.up_proj": (11, 5)}
    paths = {
        "text": write_adapter(tmp_path / "text"),
        "vision": write_adapter(tmp_path / "vision", modules=modules),
    }
    with pytest.raises(UsageError, match=r"text and vision .*layers\.0\.mlp\.up_proj is 9x5 .* 11x5"):
        compose(paths, Recipe({"text": 1.0, "vision": 0.0}), tmp_path / "out")


def test_missing_adapter_and_existing_output(three: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no adapter_config\.json"):
        compose({**three, "text": tmp_path / "nowhere"}, Recipe(WEIGHTS), tmp_path / "out")
    (tmp_path / "out").mkdir()
    compose(three, Recipe(WEIGHTS), tmp_path / "out")  # an empty directory may be filled
    before = bytes_of(tmp_path / "out")
    with pytest.raises(UsageError, match="exists already"):
        compose(three, Recipe({**WEIGHTS, "text": 0.06, "vision": 0.04}), tmp_path / "out")
    assert bytes_of(tmp_path / "out") == before
    with pytest.raises(UsageError, match="no composition method 'mean'"):
        compose(three, Recipe(WEIGHTS, method="mean"), tmp_path / "x")
    with pytest.raises(UsageError, match="Rank 0"):
        compose(three, Recipe(WEIGHTS, rank=0), tmp_path / "x")


def test_a_full_disk_and_an_interrupt_leave_nothing(
    three: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compose(three, Recipe(WEIGHTS), tmp_path / "out", progress=stop)

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(EarecError, match="No space left on device"):
        compose(three, Recipe(WEIGHTS), tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["behavior", "text", "vision"]


def test_another_method_can_be_registered(
    three: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heaviest = Method(
        "heaviest",
        "the adapter of the largest weight",
        "equal",
        False,
        lambda parts: max((p.weight, Factors(p.a, p.b, p.scale)) for p in parts)[1],
    )
    monkeypatch.setitem(METHODS, "heaviest", heaviest)
    compose(three, Recipe(WEIGHTS, method="heaviest"), tmp_path / "out")
    assert relative(dense(tmp_path / "out"), dense(three["behavior"])) < 1e-7


def test_truncation_never_forms_the_dense_matrix() -> None:
    generator = np.random.default_rng(0)
    a = generator.normal(size=(6, 200_000)).astype(np.float32)
    b = generator.normal(size=(200_000, 6)).astype(np.float32)  # dW would take 160 GB
    factors, dropped = truncate(Factors(a, b), 4)
    assert factors.a.shape == (4, 200_000)
    assert 0 < dropped < np.linalg.norm(a) * np.linalg.norm(b)


def test_memory_stays_at_a_few_tensors(tmp_path: Path) -> None:
    modules = {f"layers.{i}.q_proj": (256, 256) for i in range(60)}
    paths = {name: write_adapter(tmp_path / name, modules=modules, r=16) for name in ("a", "b")}
    one_module = sum(path.stat().st_size for folder in paths.values() for path in folder.iterdir()) / 60
    tracemalloc.start()
    try:
        compose(paths, Recipe({"a": 0.5, "b": 0.5}, rank=16), tmp_path / "out")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16 * one_module  # double precision for the SVD; all modules at once would be 60 and more


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3e38, -1.0, 0.0])
def test_finite_numbers_are_told_as_torch_tells_them(dtype: Any, value: float) -> None:
    import torch

    numbers = torch.randn(131_075)
    numbers[65_543] = value
    stored = from_array(numbers.numpy(), dtype)
    assert torch.equal(stored, numbers.to(getattr(torch, dtype))) or math.isnan(value)
    assert is_finite(stored) == bool(torch.isfinite(stored).all())
    assert is_finite(stored[:0])


def test_a_file_is_written_as_the_library_writes_it_and_mapped_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from safetensors.torch import save_file as save_torch

    tensors = {name: torch.randn(3, 5).bfloat16() for name in "abc"}
    save_torch(tensors, tmp_path / "library", metadata={"format": "pt"})
    shapes = dict.fromkeys(tensors, (3, 5))
    size = write_tensors(tmp_path / "ours", shapes, "bfloat16", tensors.items())
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "library").read_bytes()
    assert size == (tmp_path / "ours").stat().st_size
    wrong = {**tensors, "b": tensors["b"].float()}
    with pytest.raises(ValueError, match="announced b"):
        write_tensors(tmp_path / "wrong", shapes, "bfloat16", wrong.items())
    monkeypatch.setattr("earec_core.llm.tensors._MAPPED", 0)
    file = TensorFile(tmp_path / "ours")
    assert file.tensors == dict.fromkeys("abc", ((3, 5), "BF16"))
    for name, values in tensors.items():
        assert torch.equal(file.read(name), values)
        assert torch.equal(file.read(name, slice(1, 3)), values[1:3])
