"""The whole method in a few commands, and the numbers that come out of it.

Everything goes through the command line, because the commands stay while the Python behind them moves; the one
function that is called is `earec_core.compose.compose`, whose import path is promised. Settings come from a TOML
file, and no seed is set, so the defaults are part of what is recorded.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch
from safetensors.torch import save_file as save_torch

from earec_core.cli import run
from earec_core.compose import Recipe as Composition
from earec_core.compose import compose

Numbers = dict[str, Any]
METHODS = ("delta", "factor", "factor-norm", "routed", "ties", "dare")

SETTINGS = """
[backbone]
dtype = "float32"

[prompt]
item = "{item}"
relations = "Seen with: {related}."
request = "Say it."

[lora]
r = 4
alpha = 8

[align]
epochs = 20
max_steps = 20
batch_size = 4
eval_every = 8
rouge_items = 2
"""
TINY = """lr = 1e-2
projector_lr = 1e-2

[explain]
max_new_tokens = 8

[recommender]
table = "linear"
dim = 16
inner = 32
lr = 1e-2
batch_size = 128
epochs = 4

[modalities.text]
max_tokens = 20
"""
SMALL = """lr = 5e-4
projector_lr = 1e-4

[explain]
max_new_tokens = 10

[recommender]
table = "linear"
dim = 32
inner = 64
lr = 1e-2
batch_size = 128
epochs = 4

[modalities.text]
max_tokens = 24
"""


@dataclass(frozen=True)
class Recipe:
    """What one set of numbers is made from.

    Attributes:
        colours, things: the catalog has an item for each pair.
        settings: the TOML file that every command gets.
        backbone: writes or finds the LLM, given a folder for it, and returns its directory.
    """

    colours: Sequence[str]
    things: Sequence[str]
    settings: str
    backbone: Callable[[Path], Path]


def _tiny(folder: Path) -> Path:
    from earec_core.testing import tiny_backbone

    return tiny_backbone(folder / "tiny")


def _smollm2(folder: Path) -> Path:
    """Pulled once into the home of that folder (93 MB), and found there afterwards."""
    with _home(folder):
        return Path(_command("backbones", "pull", "smollm2-135m").strip())


RECIPES: Mapping[str, Recipe] = {
    "tiny": Recipe(
        ("red", "blue", "green", "black", "white"),
        ("pen", "book", "lamp", "chair", "desk", "clock"),
        SETTINGS + TINY,
        _tiny,
    ),
    "smollm2": Recipe(
        ("red", "blue", "green", "black"), ("pen", "book", "lamp", "chair"), SETTINGS + SMALL, _smollm2
    ),
}


def make(name: str, folder: Path, llm: Path) -> Numbers:
    """Run one recipe and collect its numbers.

    Args:
        name: a key of `RECIPES`.
        folder: a new folder for everything that the commands store.
        llm: where the LLM is written to or kept.
    """
    recipe = RECIPES[name]
    model = recipe.backbone(llm)
    adapters = write_adapters(folder / "handmade")
    found: Numbers = {**machine(), "composed": composed(adapters, folder / "composed")}
    with _home(folder / "home"):
        found |= _pipeline(recipe, folder, model)
    return _rounded(found)


def machine() -> Numbers:
    """What decides how floating-point numbers are rounded here.

    Two processors of one capability may still get other kernels of the same library; `rounding` is a digest of the
    bits of a few products, functions and decompositions, which tells them apart.
    """
    x = np.random.default_rng(0).standard_normal((48, 64), dtype=np.float32)
    t = torch.from_numpy(x)
    square = (t @ t.T).double()
    made = [
        t @ t.T,
        t[:1] @ t.T,
        t.exp(),
        t.softmax(-1),
        torch.nn.functional.silu(t),
        t.square().mean(-1).rsqrt(),
    ]
    bits = [one.numpy() for one in (*made, *torch.linalg.eigh(square))]
    bits += [x @ x.T, *np.linalg.svd(x), *np.linalg.eigh(square.numpy()), *np.linalg.qr(x.astype(np.float64))]
    return {
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "rounding": hashlib.sha256(b"".join(one.tobytes() for one in bits)).hexdigest()[:16],
    }


# Composition of adapters that are written by hand, so that its bytes do not hang on any training.


def write_adapters(root: Path) -> dict[str, Path]:
    """Seeded PEFT LoRA directories: ranks 4 and 8, float32 and bfloat16, rsLoRA, patterns, a missing module."""
    options: dict[str, dict[str, Any]] = {
        "text": {"r": 4},
        "behavior": {"r": 4},
        "vision": {"r": 4},
        "text-half": {"r": 4, "dtype": torch.bfloat16},
        "behavior-half": {"r": 4, "dtype": torch.bfloat16},
        "wide": {"r": 8, "lora_alpha": 24, "use_rslora": True, "modules": ("q_proj", "down_proj")},
        "wide-half": {"r": 8, "dtype": torch.bfloat16},
        "patterned": {
            "r": 8,
            "rank_pattern": {"down_proj": 4},
            "alpha_pattern": {"layers.1.self_attn.q_proj": 3},
        },
    }
    return {
        name: _write_adapter(root / name, seed, **chosen)
        for seed, (name, chosen) in enumerate(options.items())
    }


def _write_adapter(
    folder: Path,
    seed: int,
    *,
    r: int,
    dtype: torch.dtype = torch.float32,
    modules: Sequence[str] = ("q_proj", "up_proj", "down_proj"),
    **config: Any,
) -> Path:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    shapes = {"q_proj": (32, 32), "up_proj": (48, 32), "down_proj": (32, 48)}
    places = {"q_proj": "self_attn", "up_proj": "mlp", "down_proj": "mlp"}
    tensors = {}
    for layer, module in itertools.product(range(2), modules):
        d_out, d_in = shapes[module]
        rank = config.get("rank_pattern", {}).get(module, r)
        key = f"base_model.model.model.layers.{layer}.{places[module]}.{module}"
        for factor, shape in (("A", (rank, d_in)), ("B", (d_out, rank))):
            values = rng.standard_normal(shape, dtype=np.float32)
            tensors[f"{key}.lora_{factor}.weight"] = torch.from_numpy(values).to(dtype)
    save_torch(tensors, folder / "adapter_model.safetensors")
    whole = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "somewhere/base",
        "r": r,
        "lora_alpha": 8,
        "lora_dropout": 0.05,
        "bias": "none",
        "target_modules": list(modules),
        **config,
    }
    (folder / "adapter_config.json").write_text(json.dumps(whole))
    return folder


def _cases() -> list[tuple[dict[str, float], dict[str, Any]]]:
    """Weights by adapter and the options of `compose`."""
    cases: list[tuple[dict[str, float], dict[str, Any]]] = []
    for end, method in itertools.product(("", "-half"), METHODS):
        for text, behavior in ((0.5, 0.5), (0.1, 0.9), (0.0, 1.0)):
            cases.append(({f"text{end}": text, f"behavior{end}": behavior}, {"method": method}))
    for end, rank in itertools.product(("", "-half"), (4, 3)):
        cases.append(({f"text{end}": 0.5, f"behavior{end}": 0.5}, {"method": "delta", "rank": rank}))
    three = {"text": 0.2, "behavior": 0.3, "vision": 0.5}
    cases += [(three, {"method": method}) for method in METHODS]
    unlike = {"text": 0.5, "wide": 0.3, "patterned": 0.2}
    cases += [(unlike, {"method": method}) for method in ("delta", "routed", "ties", "dare")]
    cases += [
        (unlike, {"method": "delta", "rank": 4}),
        (unlike, {"method": "ties", "rank": 6, "density": 0.5}),
        (unlike, {"method": "dare", "rank": 20, "density": 0.3, "seed": 3}),
        ({"text": 0.5, "wide-half": 0.5}, {"method": "delta"}),
        ({"text": 0.5, "text-half": 0.5}, {"method": "factor"}),
        ({"text": 0.5, "behavior": 0.5}, {"method": "delta", "dtype": "bfloat16"}),
        ({"text-half": 0.5, "wide-half": 0.5}, {"method": "delta", "dtype": "float32"}),
        ({"text": 2.0, "behavior": 6.0}, {"method": "delta", "sum_rule": "normalize"}),
        ({"text": 1.0, "behavior": -0.5}, {"method": "delta", "sum_rule": "any"}),
        ({"text": 0.5, "behavior": 0.5}, {"method": "delta", "measure": False}),
        (
            {"text": 0.5, "behavior": 0.5},
            {"method": "delta", "layer_weights": {0: {"text": 0.9, "behavior": 0.1}}},
        ),
    ]
    return cases


def composed(adapters: Mapping[str, Path], root: Path) -> Numbers:
    """Digests of both files of every composite, and `change`: its B A, projected to two numbers a layer.

    `same_everywhere` says that the arithmetic is multiplication and addition number by number, which every
    processor rounds alike. The others go through LAPACK or BLAS, whose bits depend on the processor.
    """
    found = {}
    for n, (weights, options) in enumerate(_cases()):
        out = root / str(n)
        compose({name: adapters[name] for name in weights}, Composition(weights, **options), out)
        label = ",".join(f"{name}={weight:g}" for name, weight in weights.items())
        label += "".join(f" {key}={value}" for key, value in options.items())
        tensors = load_torch(out / "adapter_model.safetensors")
        found[label] = {
            "weights": _sha256(out / "adapter_model.safetensors"),
            "config": _sha256(out / "adapter_config.json"),
            "same_everywhere": options["method"] in ("delta", "factor", "routed") and "rank" not in options,
            "change": _change(tensors),
        }
    return found


def _change(tensors: Mapping[str, torch.Tensor]) -> list[float]:
    """Two seeded bilinear forms of B A, summed over the modules of each layer."""
    found = np.zeros((2, 2))
    for key in sorted(key for key in tensors if ".lora_A." in key):
        a, b = (tensors[one].double().numpy() for one in (key, key.replace(".lora_A.", ".lora_B.")))
        rng = np.random.default_rng(0)
        left, right = rng.standard_normal((2, len(b))), rng.standard_normal((2, a.shape[1]))
        found[int(key.split(".layers.")[1][0])] += np.einsum("no,or,ri,ni->n", left, b, a, right)
    return found.ravel().tolist()


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


# The commands.


def write_source(folder: Path, colours: Sequence[str], things: Sequence[str]) -> Path:
    """Items of a colour and a thing; users who stay with one colour. Some lack a description."""
    folder.mkdir(parents=True)
    rng = random.Random(0)
    items = [(f"i{n}", *pair) for n, pair in enumerate(itertools.product(colours, things))]
    with (folder / "items.jsonl").open("w") as out:
        for n, (item, colour, thing) in enumerate(items):
            row = {
                "item_id": item,
                "title": f"{colour} {thing}",
                "description": f"a {thing} that is {colour}",
            }
            if n % 7 == 6:
                del row["description"]
            out.write(json.dumps(row) + "\n")
    with (folder / "interactions.csv").open("w") as out:
        out.write("user_id,item_id,timestamp\n")
        for user in range(60):
            mine = [item for item, colour, _ in items if colour == colours[user % len(colours)]]
            others = rng.sample([item for item, *_ in items], 3)
            rng.shuffle(mine)
            for time, item in enumerate([*mine, *others, *mine[:2]]):
                out.write(f"u{user},{item},{time}\n")
    return folder


def _pipeline(recipe: Recipe, folder: Path, model: Path) -> Numbers:
    source = write_source(folder / "source", recipe.colours, recipe.things)
    settings = folder / "settings.toml"
    settings.write_text(recipe.settings)
    dataset = folder / "data" / "things"
    imported = _json("data", "import", str(source), "--out", str(dataset))
    data = ("--data", str(dataset))
    config = ("--config", str(settings))
    llm = (*data, *config, "--backbone", str(model))
    found: Numbers = {"data": imported["counts"]}

    fitted = _json("behavior", "fit", *data, "--epochs", "6", "--dim", "16", "--batch-size", "128")
    found["behavior"] = fitted["metrics"]

    aligned = {m: _json("align", "--modality", m, *llm) for m in ("text", "behavior")}
    found["losses"] = {m: _history(Path(done["run"])) for m, done in aligned.items()}
    found["aligned"] = {
        m: {"metrics": done["metrics"], "items": done["items"]} for m, done in aligned.items()
    }

    even = ("--weights", "text=0.5,behavior=0.5")
    composites = {
        "composite": even,
        "behavior-heavy": ("--weights", "text=0.1,behavior=0.9"),
        "rank-4": (*even, "--rank", "4"),
        **{method: (*even, "--method", method) for method in METHODS if method != "delta"},
    }
    found["compose"] = {}
    for name, options in composites.items():
        report = _json("compose", *options, "--name", name)
        kept = ("weights", "options", "rank", "dtype", "norm", "norms", "cosines", "relative_error")
        found["compose"][name] = {key: report[key] for key in (*kept, "truncation_error")}

    _json("encode", "composite", *llm, "--name", "vectors/composite")
    _json("encode", "routed", *llm, "--name", "vectors/routed")
    _json("encode", "--unaligned", "--modalities", "text", *llm, "--name", "vectors/unaligned")
    found["vectors"] = {name: _vectors(f"vectors/{name}") for name in ("composite", "routed", "unaligned")}

    texts = folder / "texts.parquet"
    asked = ("--split", "all", "--items", "6", "--out", str(texts))
    # What it tells beside since the record was made is no part of it.
    told = [
        f"{variant}{end}" for variant in ("aligned", "shuffled", "unaligned") for end in ("", "_low", "_high")
    ]
    rows = _json("explain", "composite", *asked, *llm)
    found["explain"] = [{key: row[key] for key in ("source", "items", *told)} for row in rows]
    table = pl.read_parquet(texts)
    found["texts"] = [
        " | ".join(row) for row in table.select("item_id", "source", "variant", "text").iter_rows()
    ]

    train = partial(_json, "recommend", "train", *data, *config)
    models = {
        "ids": train("--ids", "--name", "recommender/ids"),
        "vectors": train("--vectors", "vectors/composite", "--name", "recommender/vectors"),
    }
    kept = ("epochs", "best_epoch", "valid", "test")
    found["recommend"] = {name: {key: done[key] for key in kept} for name, done in models.items()}
    return found


def _history(run_folder: Path) -> list[list[float | None]]:
    """Step, loss, validation loss and ROUGE-L of every point; None for what a point has not."""
    history = json.loads((run_folder / "result.json").read_text())["history"]
    return [[point.get(key) for key in ("step", "loss", "valid_loss", "valid_rouge_l")] for point in history]


def _vectors(reference: str) -> list[list[float]]:
    """Of every item, its vector projected to eight numbers, and the vector's norm."""
    folder = Path(_command("registry", "show", reference, "--path").strip())
    vectors = load_file(folder / "vectors.safetensors")["vectors"].astype(np.float64)
    directions = np.random.default_rng(0).standard_normal((vectors.shape[1], 8)) / np.sqrt(vectors.shape[1])
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.concatenate([vectors @ directions, norms], axis=1).tolist()


def _command(*argv: str) -> str:
    """Run one command and return what it printed; its notes go to stderr as they are."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = run(list(argv))
    if code:
        raise SystemExit(f"`earec {' '.join(argv)}` exited with {code}.")
    return printed.getvalue()


def _json(*argv: str) -> Any:
    return json.loads(_command(*argv, "--json"))


@contextlib.contextmanager
def _home(folder: Path) -> Iterator[None]:
    """EAREC's home at `folder`; no other setting of the environment's reaches the commands."""
    before = {key: os.environ.pop(key) for key in list(os.environ) if key.startswith("EAREC_")}
    os.environ["EAREC_HOME"] = str(folder)
    try:
        yield
    finally:
        del os.environ["EAREC_HOME"]
        os.environ.update(before)


def _rounded(value: Any) -> Any:
    """Nine digits of every number, which is what float32 holds."""
    if isinstance(value, float):
        return float(f"{value:.9g}")
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, list) else value
