"""Every method of composition through the same checks, and each against dense double-precision arithmetic."""

from __future__ import annotations

import json
import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.utils import merge_utils
from safetensors.numpy import load_file, save_file

from earec_core.compose import METHODS, Recipe, compose
from earec_core.compose.dense import low_rank
from earec_core.errors import UsageError

PREFIX = "base_model.model."
SHAPES = {
    "model.layers.0.self_attn.q_proj": (7, 5),
    "model.layers.0.mlp.up_proj": (9, 5),
    "model.layers.1.self_attn.q_proj": (7, 5),
    "lm_head": (6, 5),
}
NAMES = ("behavior", "text", "vision")
FULL = 5
"""The largest rank that a module here can have: what is stored at it is stored whole."""


def write_adapter(
    path: Path, seed: int, r: int = 2, alpha: float = 4, modules: Any = SHAPES, **config: Any
) -> Path:
    """A PEFT directory of random factors."""
    generator = np.random.default_rng(seed)
    tensors = {}
    for module in modules:
        d_out, d_in = SHAPES[module]
        tensors[f"{PREFIX}{module}.lora_A.weight"] = generator.normal(size=(r, d_in)).astype(np.float32)
        tensors[f"{PREFIX}{module}.lora_B.weight"] = generator.normal(size=(d_out, r)).astype(np.float32)
    path.mkdir(parents=True)
    save_file(tensors, path / "adapter_model.safetensors", metadata={"format": "pt"})
    targets = sorted({module.rsplit(".", 1)[-1] for module in modules})
    said = {"peft_type": "LORA", "r": r, "lora_alpha": alpha, "target_modules": targets, **config}
    (path / "adapter_config.json").write_text(json.dumps(said))
    return path


def dense(path: Path) -> dict[str, np.ndarray]:
    """dW of every module in float64, by PEFT's documentation; patterns here name one module each."""
    config = json.loads((path / "adapter_config.json").read_text())
    tensors = load_file(path / "adapter_model.safetensors")
    alphas = {
        key.replace("^", "").replace("\\", ""): value
        for key, value in (config.get("alpha_pattern") or {}).items()
    }
    result = {}
    for module in SHAPES:
        if (key := f"{PREFIX}{module}.lora_A.weight") in tensors:
            a, b = tensors[key].astype(np.float64), tensors[key.replace("lora_A", "lora_B")]
            scale = alphas.get(module, config["lora_alpha"]) / (
                math.sqrt(len(a)) if config.get("use_rslora") else len(a)
            )
            result[module] = scale * b.astype(np.float64) @ a
    return result


def norm(changes: dict[str, np.ndarray]) -> float:
    return math.sqrt(sum(float(np.sum(change**2)) for change in changes.values()))


def apart(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> float:
    assert set(left) == set(right)
    return norm({module: left[module] - right[module] for module in left})


def bytes_of(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(path.iterdir())}


def weighted_sum(changes: dict[str, dict[str, np.ndarray]], weights: dict[str, float]) -> Any:
    result: dict[str, np.ndarray] = {}
    for name, one in changes.items():
        for module, change in one.items():
            result[module] = result.get(module, 0.0) + weights[name] * change
    return result


def by_hand(
    method: str, paths: dict[str, Path], weights: dict[str, float], options: dict[str, float]
) -> dict[str, np.ndarray]:
    """What a method means, entry by entry in float64, written down from the papers."""
    changes = {name: dense(path) for name, path in paths.items()}
    if method in ("delta", "routed"):
        return weighted_sum(changes, weights)
    result = {}
    for module in {module for one in changes.values() for module in one}:
        taking = {name: weights[name] for name in changes if module in changes[name]}
        stack = {name: changes[name][module] for name in taking}
        if method.startswith("factor"):
            tensors = {name: load_file(paths[name] / "adapter_model.safetensors") for name in taking}
            a, b = (
                sum(
                    w * tensors[name][f"{PREFIX}{module}.lora_{x}.weight"].astype(np.float64)
                    for name, w in taking.items()
                )
                for x in "AB"
            )
            mixed = 2.0 * b @ a  # r 2, alpha 4
            exact = sum(w * stack[name] for name, w in taking.items())
            ratio = np.linalg.norm(exact) / np.linalg.norm(mixed) if method == "factor-norm" else 1.0
            result[module] = ratio * mixed
        elif method == "ties":
            count = int(options["density"] * next(iter(stack.values())).size) or 1
            merged = np.zeros_like(next(iter(stack.values())))
            kept = {}
            for name, change in stack.items():
                cut = np.sort(np.abs(change).ravel())[-count]
                kept[name] = np.where(np.abs(change) >= cut, taking[name] * change, 0.0)
            for at in np.ndindex(merged.shape):
                sign = np.sign(sum(one[at] for one in kept.values()))
                agree = [name for name, one in kept.items() if np.sign(one[at]) == sign != 0.0]
                if agree:
                    size = sum(abs(taking[name]) for name in agree)
                    whole = sum(abs(weight) for weight in taking.values())
                    merged[at] = whole * sum(kept[name][at] for name in agree) / size
            result[module] = merged
        else:
            raise AssertionError(f"write down what {method} means")
    return result


WHOLE: dict[str, dict[str, float]] = {"ties": {"density": 1.0}, "dare": {"density": 1.0}}
"""Options under which a dense method drops nothing."""
CLOSED = sorted(set(METHODS) - {"dare"})
"""Methods whose result follows from the adapters alone."""


@st.composite
def adapters(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Options of two or three adapters: ranks, scales and modules of their own, rsLoRA or not."""
    return [
        {
            "seed": draw(st.integers(0, 2**16)) * 3 + i,
            "r": draw(st.integers(1, 4)),
            "alpha": draw(st.sampled_from([1, 5, 16])),
            "modules": draw(st.lists(st.sampled_from(sorted(SHAPES)), min_size=1, unique=True)),
            "use_rslora": draw(st.booleans()),
        }
        for i in range(draw(st.integers(2, 3)))
    ]


SIGNED = st.lists(st.floats(-2, 2).filter(lambda x: abs(x) > 0.01 and x != 1.0), min_size=3, max_size=3)


def alike(options: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same adapters with one rank and scale, for methods that need it."""
    return [{**one, "r": 2, "alpha": 4, "use_rslora": False} for one in options]


@pytest.mark.parametrize("method", CLOSED)
@given(options=adapters(), raw=SIGNED, density=st.sampled_from([0.2, 0.5, 0.77, 1.0]))
@settings(max_examples=25)
def test_a_method_is_its_dense_arithmetic_in_any_order(
    method: str, options: list[dict[str, Any]], raw: list[float], density: float
) -> None:
    chosen = alike(options) if METHODS[method].rank == "equal" else options
    taken = {"density": density} if "density" in METHODS[method].options else {}
    with TemporaryDirectory() as folder:
        root = Path(folder)
        paths = {n: write_adapter(root / n, **o) for n, o in zip(NAMES, chosen, strict=False)}
        weights = dict(zip(paths, raw, strict=False))
        wanted = by_hand(method, paths, weights, taken)
        rank = FULL if METHODS[method].rank == "dense" else None
        report = compose(
            paths, Recipe(weights, method=method, rank=rank, sum_rule="any", **taken), root / "out"
        )
        changes = {name: dense(path) for name, path in paths.items()}
        # The sum may cancel, so errors are measured against the sum of the norms.
        size = sum(abs(weights[name]) * norm(change) for name, change in changes.items())
        found = dense(root / "out")
        assert apart(found, wanted) < 2e-5 * max(size, norm(wanted))
        exact = weighted_sum(changes, weights)
        assert report.norm == pytest.approx(norm(exact), abs=1e-3 * size)
        if norm(exact) > 0.1 * size:
            error = apart(found, exact) / norm(exact)
            assert report.relative_error == pytest.approx(error, rel=1e-3, abs=1e-5)
        again = dict(reversed(paths.items()))
        compose(
            again,
            Recipe(dict(reversed(weights.items())), method=method, rank=rank, sum_rule="any", **taken),
            root / "again",
        )
        assert bytes_of(root / "out") == bytes_of(root / "again")


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("rank", [None, 1])
def test_order_changes_no_byte(method: str, rank: int | None, tmp_path: Path) -> None:
    paths = {name: write_adapter(tmp_path / name, seed) for seed, name in enumerate(NAMES)}
    weights = dict(zip(NAMES, (0.2, 0.5, 0.3), strict=True))
    compose(paths, Recipe(weights, method=method, rank=rank), tmp_path / "out")
    again = dict(reversed(paths.items()))
    compose(again, Recipe(dict(reversed(weights.items())), method=method, rank=rank), tmp_path / "again")
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "again")


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_adapter_left_at_weight_1_comes_back_bit_for_bit(method: str, dtype: Any, tmp_path: Path) -> None:
    paths = {name: write_adapter(tmp_path / name, seed) for seed, name in enumerate(NAMES)}
    tensors = load_file(paths["text"] / "adapter_model.safetensors")
    for values in tensors.values():
        values[0, 0] = -0.0  # a sum with 0 would make it 0.0
    save_file(tensors, paths["text"] / "adapter_model.safetensors", metadata={"format": "pt"})
    compose({"text": paths["text"]}, Recipe({"text": 1.0}, dtype=dtype), tmp_path / "stored")
    paths["text"] = tmp_path / "stored"
    weights = {"behavior": 0.0, "text": 1.0, "vision": 0.0}
    report = compose(paths, Recipe(weights, method=method), tmp_path / "out")
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "stored")
    assert (report.relative_error, report.truncation_error) == (0.0, 0.0)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_equal_adapters_come_back_as_one_where_nothing_is_dropped(method: str, tmp_path: Path) -> None:
    paths = {name: write_adapter(tmp_path / name, 7) for name in NAMES}
    weights = dict(zip(NAMES, (0.2, 0.5, 0.3), strict=True))
    report = compose(paths, Recipe(weights, method=method, **WHOLE.get(method, {})), tmp_path / "out")  # type: ignore[arg-type]
    wanted = dense(paths["text"])
    assert apart(dense(tmp_path / "out"), wanted) < 1e-6 * norm(wanted)
    assert report.relative_error < 1e-6
    assert report.truncation_error < 1e-6


@pytest.mark.parametrize("method", sorted(METHODS))
def test_both_errors_are_those_of_the_dense_matrices(method: str, tmp_path: Path) -> None:
    """The stored factors against the exact sum, and against what the method gives at full rank."""
    paths = {name: write_adapter(tmp_path / name, seed) for seed, name in enumerate(NAMES)}
    weights = dict(zip(NAMES, (0.2, 0.5, 0.3), strict=True))
    compose(paths, Recipe(weights, method=method, rank=FULL), tmp_path / "whole")
    own = dense(tmp_path / "whole")
    exact = weighted_sum({name: dense(path) for name, path in paths.items()}, weights)
    for rank in (None, 1, 3):
        report = compose(paths, Recipe(weights, method=method, rank=rank), tmp_path / f"{rank}")
        found = dense(tmp_path / f"{rank}")
        assert report.relative_error == pytest.approx(apart(found, exact) / norm(exact), rel=1e-4, abs=1e-6)
        assert report.truncation_error == pytest.approx(apart(found, own) / norm(own), rel=1e-4, abs=1e-6)
        for module in report.modules:
            one, mine, sums = (changes[module.name] for changes in (found, own, exact))
            error, loss = (np.linalg.norm(one - w) / np.linalg.norm(w) for w in (sums, mine))
            assert module.relative_error == pytest.approx(error, rel=1e-4, abs=1e-6)
            assert module.truncation_error == pytest.approx(loss, rel=1e-4, abs=1e-6)
            if rank == 1:  # no other matrix of rank 1 is closer
                tail = np.linalg.svd(mine, compute_uv=False)[1:]
                assert loss == pytest.approx(np.linalg.norm(tail) / np.linalg.norm(mine), rel=1e-4, abs=1e-6)
    assert METHODS[method].exact == (report.relative_error == report.truncation_error)


@pytest.mark.parametrize("density", [0.2, 0.5, 0.9])
def test_ties_is_pefts_at_equal_weights(density: float, tmp_path: Path) -> None:
    paths = {name: write_adapter(tmp_path / name, seed) for seed, name in enumerate(NAMES)}
    third = dict.fromkeys(NAMES, 1 / 3)
    compose(paths, Recipe(third, method="ties", density=density, rank=FULL), tmp_path / "out")
    changes = [dense(path) for path in paths.values()]
    for module, found in dense(tmp_path / "out").items():
        tensors = [torch.from_numpy(change[module]) for change in changes]
        wanted = merge_utils.ties(tensors, torch.ones(3, dtype=torch.float64), density)
        np.testing.assert_allclose(found, wanted.numpy(), atol=1e-5)


def test_ties_is_the_sum_where_all_agree(tmp_path: Path) -> None:
    paths = {name: write_adapter(tmp_path / name, seed) for seed, name in enumerate(NAMES)}
    for path in paths.values():  # positive factors: every entry of every dW is positive
        tensors = load_file(path / "adapter_model.safetensors")
        save_file({k: np.abs(v) for k, v in tensors.items()}, path / "adapter_model.safetensors")
    weights = dict(zip(NAMES, (0.2, 0.7, 0.1), strict=True))
    report = compose(paths, Recipe(weights, method="ties", density=1.0), tmp_path / "out")
    exact = weighted_sum({name: dense(path) for name, path in paths.items()}, weights)
    assert apart(dense(tmp_path / "out"), exact) < 1e-6 * norm(exact)
    assert report.relative_error < 1e-6


@given(options=adapters(), raw=SIGNED, more=SIGNED, seed=st.integers(0, 2**40))
@settings(max_examples=25)
def test_dare_is_linear_in_the_weights_and_drops_or_rescales(
    options: list[dict[str, Any]], raw: list[float], more: list[float], seed: int
) -> None:
    """At one seed the masks stay, so the result is linear; each entry is 0 or dW / density."""
    with TemporaryDirectory() as folder:
        root = Path(folder)
        paths = {n: write_adapter(root / n, **o) for n, o in zip(NAMES, options, strict=False)}

        def dared(weights: list[float], name: str) -> dict[str, np.ndarray]:
            given_ = dict(zip(paths, weights, strict=False))
            compose(
                paths,
                Recipe(given_, method="dare", seed=seed, density=0.25, rank=FULL, sum_rule="any"),
                root / name,
            )
            return dense(root / name)

        one, two = dared(raw, "one"), dared(more, "two")
        both = dared([2 * a - 3 * b for a, b in zip(raw, more, strict=True)], "both")
        size = 4 * sum(6 * norm(dense(path)) for path in paths.values())
        assert apart(both, {m: 2 * one[m] - 3 * two[m] for m in one}) < 1e-5 * size
        # The masks of one adapter do not depend on the others.
        first = next(iter(paths))
        compose(
            {first: paths[first]},
            Recipe({first: 0.5}, method="dare", seed=seed, density=0.25, rank=FULL, sum_rule="any"),
            root / "alone",
        )
        whole = dense(paths[first])
        for module, found in dense(root / "alone").items():
            scaled = 0.5 * whole[module] / 0.25
            near = np.minimum(np.abs(found), np.abs(found - scaled))
            assert near.max() < 1e-4 * np.abs(scaled).max()


def test_dare_masks_follow_seed_adapter_and_module(tmp_path: Path) -> None:
    write_adapter(tmp_path / "a", 3)
    paths = dict.fromkeys(("a", "b"), tmp_path / "a")

    def kept(name: str, seed: int, density: float = 0.5) -> dict[str, np.ndarray]:
        out = tmp_path / f"{name}{seed}{density}"
        if not out.exists():
            compose(
                {name: paths[name]},
                Recipe({name: 0.5}, method="dare", seed=seed, density=density, rank=FULL, sum_rule="any"),
                out,
            )
        return {m: np.abs(change) > 1e-3 * np.abs(change).max() for m, change in dense(out).items()}

    first = kept("a", 0)
    q0, q1 = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"
    assert (first[q0] != first[q1]).any()
    assert (first[q0] != kept("b", 0)[q0]).any()
    assert (first[q0] != kept("a", 1)[q0]).any()
    # Over many seeds an entry is kept with probability `density`: 4 standard errors.
    share = np.mean([kept("a", seed, 0.3)[q0] for seed in range(60)])
    assert abs(share - 0.3) < 4 * math.sqrt(0.3 * 0.7 / (60 * 35))


def test_dare_keeps_the_mean(tmp_path: Path) -> None:
    """The average over seeds approaches the exact sum."""
    paths = {name: write_adapter(tmp_path / name, seed) for seed, name in enumerate(NAMES)}
    third = dict.fromkeys(NAMES, 1 / 3)
    exact = weighted_sum({name: dense(path) for name, path in paths.items()}, third)
    runs = []
    for seed in range(100):
        compose(paths, Recipe(third, method="dare", seed=seed, rank=FULL), tmp_path / f"{seed}")
        runs.append(dense(tmp_path / f"{seed}"))
    mean = {module: np.mean([run[module] for run in runs], axis=0) for module in exact}
    one = np.mean([apart(run, exact) for run in runs])
    assert apart(mean, exact) < 0.15 * one  # 1/10 expected of 100 independent ones
    assert one > 0.3 * norm(exact)


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (6, 6)])
def test_low_rank_is_the_truncated_svd(shape: tuple[int, int]) -> None:
    generator = np.random.default_rng(0)
    matrix = generator.normal(size=shape)
    for rank in range(1, min(shape) + 1):
        a, b = low_rank(matrix, rank)
        assert (a.shape, b.shape) == ((rank, shape[1]), (shape[0], rank))
        u, s, vt = np.linalg.svd(matrix, full_matrices=False)
        np.testing.assert_allclose(b @ a, (u[:, :rank] * s[:rank]) @ vt[:rank], atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=0), rtol=1e-5)
    zero = low_rank(np.zeros(shape), 2)
    assert not zero[0].any()
    assert not zero[1].any()


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("delta", {"density": 0.5}, "delta has no --density"),
        ("factor", {"seed": 1}, "factor has no --seed"),
        ("ties", {"seed": 1}, "ties has no --seed.*it takes --density"),
        ("ties", {"density": 0.0}, r"density 0 is not in \(0, 1\]"),
        ("dare", {"density": 1.5}, r"density 1\.5"),
        ("dare", {"density": math.nan}, "density nan"),
        ("dare", {"seed": -1}, "seed -1"),
    ],
)
def test_options_that_do_not_fit(method: str, options: Any, message: str, tmp_path: Path) -> None:
    path = write_adapter(tmp_path / "a", 0)
    with pytest.raises(UsageError, match=message):
        compose({"a": path}, Recipe({"a": 1.0}, method=method, **options), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_options_are_reported_with_their_defaults(tmp_path: Path) -> None:
    path = write_adapter(tmp_path / "a", 0)
    for method, given_, wanted in (
        ("delta", {}, {}),
        ("ties", {}, {"density": 0.2}),
        ("dare", {"seed": 3}, {"density": 0.5, "seed": 3}),
    ):
        out = tmp_path / method
        assert compose({"a": path}, Recipe({"a": 1.0}, method=method, **given_), out).options == wanted  # type: ignore[arg-type]


@pytest.mark.parametrize("method", sorted(METHODS))
def test_layers_may_have_weights_of_their_own(method: str, tmp_path: Path) -> None:
    """Each part of the composite is that of a composition at its weights everywhere."""
    paths = {name: write_adapter(tmp_path / name, seed) for seed, name in enumerate(NAMES)}
    weights = dict(zip(NAMES, (0.2, 0.5, 0.3), strict=True))
    other = dict(zip(NAMES, (0.6, 0.0, 0.4), strict=True))
    report = compose(paths, Recipe(weights, method=method, layer_weights={1: other}), tmp_path / "out")
    compose(paths, Recipe(weights, method=method), tmp_path / "weights")
    compose(paths, Recipe(other, method=method), tmp_path / "other")
    found, usual, own = (dense(tmp_path / name) for name in ("out", "weights", "other"))
    for module in SHAPES:
        np.testing.assert_array_equal(found[module], (own if "layers.1." in module else usual)[module])
    exact = {name: dense(path) for name, path in paths.items()}
    sums, theirs = (weighted_sum(exact, w) for w in (weights, other))
    wanted = {m: (theirs if "layers.1." in m else sums)[m] for m in SHAPES}
    assert report.norm == pytest.approx(norm(wanted), rel=1e-5)
    assert report.relative_error == pytest.approx(apart(found, wanted) / norm(wanted), rel=1e-4, abs=1e-6)
    assert report.layer_weights == {1: other}
    # At weight 1 in a layer, that adapter is there as it is.
    alone = {"behavior": 0.0, "text": 1.0, "vision": 0.0}
    compose(paths, Recipe(weights, method=method, layer_weights={0: alone, 1: other}), tmp_path / "alone")
    before, after = (load_file(p / "adapter_model.safetensors") for p in (paths["text"], tmp_path / "alone"))
    for key, value in before.items():
        if ".layers.0." in key:
            np.testing.assert_array_equal(after[key], value)


@pytest.mark.parametrize(
    ("layer_weights", "rule", "message"),
    [
        ({0: {"a": 0.5, "b": 0.4}}, "strict", r"Layer 0: .*sum to 0\.9"),
        ({1: {"a": 1.5, "b": -0.5}}, "normalize", "Layer 1: .*negative"),
        ({1: {"a": 1.0}}, "strict", "Layer 1: No weight is given for b"),
        ({1: {"a": 0.0, "b": 0.0}}, "any", "Layer 1: Every weight is 0"),
        ({2: {"a": 0.5, "b": 0.5}}, "strict", "layer 2, which no adapter changes"),
    ],
)
def test_layer_weights_that_do_not_fit(layer_weights: Any, rule: Any, message: str, tmp_path: Path) -> None:
    paths = {name: write_adapter(tmp_path / name, seed) for seed, name in enumerate("ab")}
    with pytest.raises(UsageError, match=message):
        compose(
            paths, Recipe({"a": 0.5, "b": 0.5}, layer_weights=layer_weights, sum_rule=rule), tmp_path / "out"
        )


def test_layer_weights_are_normalized_and_may_leave_a_module_out(tmp_path: Path) -> None:
    q1 = "model.layers.1.self_attn.q_proj"
    paths = {
        "a": write_adapter(tmp_path / "a", 1),
        "b": write_adapter(tmp_path / "b", 2, modules=["lm_head", "model.layers.0.mlp.up_proj"]),
    }
    report = compose(
        paths,
        Recipe(
            {"a": 1.0, "b": 3.0},
            sum_rule="normalize",
            layer_weights={1: {"a": 0.0, "b": 2.0}, 0: {"a": 2.0, "b": 2.0}},
        ),
        tmp_path / "out",
    )
    assert report.layer_weights == {0: {"a": 0.5, "b": 0.5}, 1: {"a": 0.0, "b": 1.0}}
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert set(config["target_modules"]) == set(dense(tmp_path / "out")) == set(SHAPES) - {q1}


def test_weights_that_miss_every_module_are_refused(tmp_path: Path) -> None:
    q0, q1 = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"
    paths = {
        "a": write_adapter(tmp_path / "a", 1, modules=[q0]),
        "b": write_adapter(tmp_path / "b", 2, modules=[q1]),
    }
    layers = {0: {"a": 0.0, "b": 1.0}, 1: {"a": 1.0, "b": 0.0}}
    with pytest.raises(UsageError, match="weight 0 in the layers that it changes"):
        compose(paths, Recipe({"a": 0.5, "b": 0.5}, layer_weights=layers), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_gpt2s_layers_are_seen_too() -> None:
    from earec_core.llm.peft_adapter import layer_of

    assert layer_of("transformer.h.11.attn.c_attn") == 11
    assert layer_of("model.layers.3.mlp.up_proj") == 3
    assert layer_of("layers.3.mlp") == 3
    assert layer_of("lm_head") is None
    assert layer_of("model.sublayers.3.mlp") is None
