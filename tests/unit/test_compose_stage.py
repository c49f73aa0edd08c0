"""`earec compose` on adapters that are registered: what a composite holds, its guards, and its other forms."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from peft import PeftModel
from peft.utils import merge_utils
from safetensors.numpy import save_file
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from earec_core import plugins
from earec_core.artifacts import CompositeManifest, MethodRecord, Stored
from earec_core.cli import run
from earec_core.compose import LoraAdapter, Recipe, compose
from earec_core.compose.stage import choose_adapters, compose_models
from earec_core.config import PromptConfig
from earec_core.errors import UsageError
from earec_core.export.mergekit import check_mergekit, write_mergekit
from earec_core.llm.store import info
from earec_core.workspace import Workspace
from earec_registry import Registry

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

MODULES = {"model.layers.0.mlp.up_proj": (64, 32), "model.layers.1.self_attn.q_proj": (32, 32)}
VERSIONS = {entry.name: entry.version for entry in plugins.entry_points("earec.modalities")}
HALF = {"text": 0.5, "vision": 0.5}


def write_factors(folder: Path, seed: int, modules: dict[str, tuple[int, int]] = MODULES) -> Path:
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    tensors = {}
    for module, (d_out, d_in) in modules.items():
        key = f"base_model.model.{module}.lora_{{}}.weight"
        tensors[key.format("A")] = generator.normal(size=(2, d_in)).astype(np.float32)
        tensors[key.format("B")] = generator.normal(size=(d_out, 2)).astype(np.float32)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": sorted(modules)}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def dense(folder: Path) -> dict[str, torch.Tensor]:
    """dW by module of a directory whose scale is 2 at rank 2, as `write_factors` makes it, else 1."""
    tensors = load_file(folder / "adapter_model.safetensors")
    found = {}
    for module in MODULES:
        a, b = (tensors[f"base_model.model.{module}.lora_{x}.weight"].double() for x in "AB")
        found[module] = (2.0 if len(a) == 2 else 1.0) * b @ a
    return found


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setenv("EAREC_REGISTRY", str(tmp_path / "registry"))
    return Registry.open(tmp_path / "registry")


@pytest.fixture
def add(registry: Registry, tiny_llm: Path, tmp_path: Path) -> Callable[..., Path]:
    """Register an adapter as `earec align` does, without training it; returns its factors' folder."""

    def add(modality: str, seed: int, chat: dict[str, str] | None = None, **plugin: str) -> Path:
        folder = write_factors(tmp_path / f"factors-{modality}-{seed}", seed)
        save_file({"weight": np.ones(3, np.float32)}, folder / "projector.safetensors")
        version = VERSIONS.get(modality, "0.1.0")
        manifest = {
            "kind": "adapter",
            "modality": modality,
            "modalities": {
                modality: {
                    "plugin": {
                        "distribution": f"earec-{modality}",
                        "version": version,
                        "api": "1.0",
                        **plugin,
                    },
                    "config": {},
                    "shapes": {"d_enc": 3, "d_llm": 32},
                    "projector": f"projectors/{modality}.safetensors",
                }
            },
            "base": info("tiny", tiny_llm).model_dump(),
            "prompt": PromptConfig().model_dump(mode="json"),
            **({"chat": chat} if chat else {}),
            "lora": {"r": 2, "alpha": 4, "dropout": 0.0, "seed": 0},
            "parents": [],
            "method": "lora",
            "training": {
                "config": "0" * 64,
                "data": {"name": "things", "digest": "0" * 64},
                "seed": 0,
                "steps": 1,
                "kept_step": 1,
                "items": {"train": 1},
            },
            "metrics": {},
        }
        names = ("adapter_config.json", "adapter_model.safetensors")
        files = {name: folder / name for name in names}
        files[f"projectors/{modality}.safetensors"] = folder / "projector.safetensors"
        registry.add(manifest, files, name=f"{modality}/things")
        return folder

    return add


@pytest.fixture
def two(add: Callable[..., Path]) -> dict[str, Path]:
    return {"text": add("text", 1), "vision": add("vision", 2)}


def refs(*modalities: str) -> dict[str, str]:
    return {m: f"{m}/things" for m in modalities}


def composed(
    registry: Registry, weights: dict[str, float], *, allow: frozenset[str] = frozenset(), **options: Any
) -> tuple[Path, dict[str, Any]]:
    workspace = Workspace.open(registry.root.parent / "home", registry.root)
    recipe = Recipe(weights, **options)
    identity = compose_models(workspace, refs(*weights), recipe, name="c", allow=allow).id
    return registry.materialize(identity), dict(registry.manifest(identity).data)


def test_a_routed_composite_holds_every_part(registry: Registry, two: dict[str, Path]) -> None:
    folder, manifest = composed(registry, {"text": 1.0, "vision": 0.0}, method="routed")
    plain, _ = composed(registry, {"text": 1.0, "vision": 0.0})
    names = ("adapter_config.json", "adapter_model.safetensors")
    for name in names:
        assert (folder / name).read_bytes() == (plain / name).read_bytes()
        for modality, factors in two.items():
            assert (folder / "adapters" / modality / name).read_bytes() == (factors / name).read_bytes()
    assert not (plain / "adapters").exists()
    assert manifest["method"] == {"name": "routed", "rank": None, "options": {}}
    short, _ = composed(registry, HALF, method="routed", rank=1)
    for modality, factors in two.items():
        stored = short / "adapters" / modality / names[1]
        assert stored.read_bytes() == (factors / names[1]).read_bytes()
    assert len(load_file(short / names[1])["base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"]) == 1


def test_the_manifest_says_what_was_done(registry: Registry, two: dict[str, Path]) -> None:
    layers = {1: {"text": 0.25, "vision": 0.75}}
    folder, manifest = composed(registry, HALF, layer_weights=layers, method="ties", density=0.4)
    assert manifest["method"] == {"name": "ties", "rank": None, "options": {"density": 0.4}}
    assert manifest["layer_weights"] == {"1": {"text": 0.25, "vision": 0.75}}
    assert 0 < manifest["report"]["truncation_error"] < manifest["report"]["relative_error"]
    assert composed(registry, HALF)[1]["layer_weights"] is None
    folder, manifest = composed(registry, HALF, layer_weights=layers)
    changes = {m: dense(path) for m, path in two.items()}
    for module, found in dense(folder).items():
        weights = layers[1] if "layers.1." in module else HALF
        wanted = sum(weights[m] * changes[m][module] for m in two)
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("plugin", "where", "values"),
    [
        ({"version": "7.1.2"}, "vision.version", {"recorded": "7.1.2", "installed": VERSIONS["vision"]}),
        ({"api": "2.0"}, "plugin.api", {"text": "1.0", "vision": "2.0"}),
    ],
)
def test_plugins_of_other_majors_are_refused(
    plugin: dict[str, str],
    where: str,
    values: dict[str, str],
    registry: Registry,
    add: Callable[..., Path],
) -> None:
    add("text", 1)
    add("vision", 2, **plugin)
    with pytest.raises(UsageError, match="--allow-mismatch plugin") as caught:
        composed(registry, HALF)
    assert where in str(caught.value)
    assert all(value in str(caught.value) for value in values.values())
    manifest = composed(registry, HALF, allow=frozenset({"plugin"}))[1]
    assert manifest["overridden"] == {"plugin": {where: values}}


def test_chat_texts_that_differ_are_refused_where_both_are_known(
    registry: Registry, add: Callable[..., Path]
) -> None:
    monday, tuesday = (
        {"before": "Monday. USER: ", "after": " A:"},
        {"before": "Tuesday. USER: ", "after": " A:"},
    )
    add("text", 1, chat=monday)
    add("vision", 2)
    assert composed(registry, HALF)[1]["chat"] == monday
    add("vision", 3, chat=tuesday)
    with pytest.raises(UsageError, match="--allow-mismatch template") as caught:
        composed(registry, HALF)
    assert "Tuesday" in str(caught.value)
    manifest = composed(registry, HALF, allow=frozenset({"template"}))[1]
    assert manifest["overridden"] == {"template": {"chat": {"text": monday, "vision": tuesday}}}


def test_plugins_of_one_major_or_not_installed_compose(registry: Registry, add: Callable[..., Path]) -> None:
    add("text", 1, version=VERSIONS["text"].partition(".")[0] + ".99.1", api="1.7")
    add("smell", 2, version="9.0")
    assert composed(registry, {"text": 0.5, "smell": 0.5})[1]["overridden"] == {}


def test_every_form_from_the_command_line(
    two: dict[str, Path],
    tiny_llm: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["compose", "--weights", "text=1,vision=3", "--normalize"]) == 0
    identity = capsys.readouterr().out.strip()
    call = ["export", "composite/things", "--backbone", str(tiny_llm), "--as"]
    assert run([*call, "merged", "--out", "merged"]) == 0
    assert capsys.readouterr().out == "merged\n"
    assert run([*call, "peft", "--out", "plain", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"id": identity, "as": "peft", "out": "plain"}
    base = AutoModelForCausalLM.from_pretrained(tiny_llm)
    wanted = PeftModel.from_pretrained(base, tmp_path / "plain").merge_and_unload().state_dict()
    for name, value in load_file(tmp_path / "merged" / "model.safetensors").items():
        torch.testing.assert_close(value, wanted[name], atol=2e-6, rtol=1e-5)
    names = {"adapter_config.json", "adapter_model.safetensors"}
    assert {path.name for path in (tmp_path / "plain").iterdir()} == names
    # The recipe comes from the manifest alone: the parts by modality, the weights as they were used.
    assert run([*call, "mergekit", "--out", "recipe"]) == 0
    recipe = yaml.safe_load((tmp_path / "recipe" / "mergekit.yml").read_text())
    assert [model["parameters"]["weight"] for model in recipe["models"]] == [0.25, 0.75]
    for modality, factors in two.items():
        for name in names:
            stored = tmp_path / "recipe" / "adapters" / modality / name
            assert stored.read_bytes() == (factors / name).read_bytes()
    # An adapter has two of the forms.
    assert run(["export", "text/things", "--as", "peft", "--out", "text"]) == 0
    for name in names:
        assert (tmp_path / "text" / name).read_bytes() == (two["text"] / name).read_bytes()


def test_a_directory_for_the_hub_has_a_card_of_what_the_manifests_say(
    two: dict[str, Path], registry: Registry, tiny_llm: Path, tmp_path: Path
) -> None:
    from huggingface_hub import ModelCard

    assert run(["compose", "--weights", "text=0.25,vision=0.75"]) == 0
    assert run(["export", "composite/things", "--as", "hub", "--out", str(tmp_path / "hub")]) == 0
    card, stored = ModelCard.load(tmp_path / "hub" / "README.md"), registry.manifest("composite/things")
    assert (card.data.library_name, card.data.base_model) == ("peft", None)  # the base was a directory
    assert card.data.tags == ["earec", "lora", "text", "vision"]
    base = stored.data["base"]
    facts = [stored.id, "text 0.25, vision 0.75", "`title`", "delta", base["weights"], base["tokenizer"]]
    for fact in (*facts, "things `" + "0" * 64, "projectors/vision.safetensors", "r 2, alpha 4"):
        assert fact in card.content
    assert card.content.startswith("---\n")
    assert json.loads((tmp_path / "hub/earec_manifest.json").read_text()) == stored.data
    for path in stored.files:
        assert (tmp_path / "hub" / path).read_bytes() == (registry.materialize(stored.id) / path).read_bytes()
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llm), tmp_path / "hub")

    # An adapter of a base that the hub has: it is named, in PEFT's configuration, too.
    said = {**registry.manifest("text/things").data, "metrics": {"valid_loss": 1.25}}
    said["base"] = {**said["base"], "id": "smollm2-135m"}
    view = registry.materialize("text/things")
    files = {path: view / path for path in said.pop("files")}
    registry.add(said, files, name="text/named")
    assert run(["export", "text/named", "--as", "hub", "--out", str(tmp_path / "named")]) == 0
    card = ModelCard.load(tmp_path / "named" / "README.md")
    assert card.data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    config = json.loads((tmp_path / "named" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == card.data.base_model
    assert "valid_loss 1.25" in card.content
    assert run(["export", "text/named", "--as", "hub", "--out", str(tmp_path / "named")]) == 2


def test_what_cannot_be_exported_is_refused_before_anything_is_done(
    two: dict[str, Path],
    registry: Registry,
    tmp_path: Path,
    tiny_llm: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from earec_core.testing import tiny_backbone

    other = tiny_backbone(tmp_path / "other", seed=1)
    (tmp_path / "taken" / "x").mkdir(parents=True)
    # A tokenizer that differs is refused too: it is copied with the weights.
    worded = tiny_backbone(tmp_path / "worded")
    file = worded / "tokenizer_config.json"
    file.write_text(file.read_text() + "\n")
    layers = {1: {"text": 0.25, "vision": 0.75}}
    for name, options in {
        "plain": {},
        "routed": {"method": "routed"},
        "factor": {"method": "factor"},
        "short": {"rank": 1},
        "layered": {"layer_weights": layers},
    }.items():
        compose_models(
            Workspace.open(registry.root.parent / "home", registry.root),
            refs(*HALF),
            Recipe(HALF, **options),
            name=name,
        )  # type: ignore[arg-type]
    base = ["--backbone", str(tiny_llm)]
    for ref, form, argv, code, said in (
        ("plain", "merged", ["--backbone", str(other)], 4, "aligned on tiny"),
        ("plain", "merged", ["--backbone", str(worded)], 4, "tokenizer"),
        ("plain", "merged", [], 2, "--backbone DIR"),
        ("plain", "merged", ["--backbone", str(tmp_path)], 2, "no config.json"),
        ("plain", "merged", [*base, "--out", str(tmp_path / "taken")], 2, "exists already"),
        ("routed", "merged", base, 2, "A routed composite"),
        ("routed", "peft", [], 2, "A routed composite"),
        ("routed", "hub", [], 2, "A routed composite"),
        ("routed", "mergekit", [], 2, "A routed composite"),
        ("factor", "mergekit", [], 2, "cannot do the method factor"),
        ("short", "mergekit", [], 2, "cut to rank 1"),
        ("layered", "mergekit", [], 2, "weights of single layers"),
        ("text/things", "mergekit", [], 2, "An adapter has no parts"),
        ("nothing", "peft", [], 2, "nothing"),
    ):
        out = [] if "--out" in argv else ["--out", str(tmp_path / "new")]
        assert run(["export", ref, "--as", form, *argv, *out]) == code, (ref, form, argv)
        lines = capsys.readouterr().err.strip().splitlines()
        assert said in lines[-1]
        assert len(lines) == 1
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("argv", "named", "command"),
    [
        (["--search", "grid", "--data", "d", "--modalities", "text,vision"], "--search", "earec search"),
        (["--weights", "text=1", "--per-layer"], "--per-layer", "earec search"),
        (["--weights", "text=1", "--step", "0.1"], "--step", "earec search"),
        (["--weights", "text=1", "--into-base", "merged"], "--into-base", "earec export REF --as"),
        (["--weights", "text=1", "--emit", "peft", "--out", "plain"], "--emit", "earec export REF --as"),
        (["--backbone", "b", "--weights", "text=1"], "--backbone", "earec export REF --as"),
    ],
)
def test_options_that_moved_name_the_command_they_moved_to(
    argv: list[str], named: str, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["compose", *argv]) == 2
    said = capsys.readouterr().err
    assert f"no {named} any more" in said
    assert command in said
    assert len(said.splitlines()) == 1


def test_a_file_of_weights_is_composed(
    registry: Registry, two: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "weights.json"
    found = {"strategy": "learn", "value": 1.5}
    ids = {m: registry.resolve(ref) for m, ref in refs(*HALF).items()}
    layers = {"1": {"text": 0.25, "vision": 0.75}}
    file.write_text(json.dumps({"weights": HALF, "layer_weights": layers, "adapters": ids, "search": found}))
    registry.tag(ids["text"], "text/other", "latest", "now there are two to choose from")
    assert run(["compose", "--weights", f"@{file}", "--name", "c"]) == 0
    by_file = registry.manifest("c").data
    assert (by_file["search"], by_file["layer_weights"]) == (found, layers)
    assert by_file["parents"] == [ids["text"], ids["vision"]]
    by_hand = composed(registry, HALF, layer_weights={1: layers["1"]})[1]
    assert by_hand["files"] == by_file["files"]
    capsys.readouterr()
    for text, said in (
        ("weights", "not JSON"),
        ("[1]", "valid dict"),
        ('{"weights": {"text": "half"}}', "weights.text"),
        ('{"text": 0.5, "vision": 0.5}', "weights: field required"),
    ):
        file.write_text(text)
        assert run(["compose", "--weights", f"@{file}"]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert said in lines[0]
        assert len(lines) == 1
    assert run(["compose", "--weights", f"@{tmp_path / 'none'}"]) == 2
    assert "No such file" in capsys.readouterr().err


def opened(paths: dict[str, Path]) -> dict[str, LoraAdapter]:
    return {name: LoraAdapter.open(path) for name, path in paths.items()}


def carried_out(folder: Path, base: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What mergekit makes of a recipe of `task_arithmetic` or `ties`, by its documentation, in float64.

    Its parts are models, the base with one adapter merged; a part's change is its difference to the base.
    """
    recipe = yaml.safe_load((folder / "mergekit.yml").read_text())
    models = [(one["model"].split("+"), one["parameters"]) for one in recipe["models"]]
    assert {path for (path, _), _ in models} == {recipe["base_model"]}
    settings, merged = recipe["parameters"], {}
    for module in MODULES:
        weights = torch.tensor([one["weight"] for _, one in models], dtype=torch.float64).view(-1, 1, 1)
        changes = torch.stack([dense(folder / lora)[module] for (_, lora), _ in models])
        if recipe["merge_method"] == "ties":
            changes = torch.stack(
                [
                    merge_utils.magnitude_based_pruning(change, one["density"])
                    for change, (_, one) in zip(changes, models, strict=True)
                ]
            )
            weighted = changes * weights
            mask = weighted.sign() == torch.where(weighted.sum(0) >= 0, 1.0, -1.0)
            mixed, divisor = (weighted * mask).sum(0), (weights * mask).sum(0)
            divisor[divisor == 0] = 1
        else:
            assert recipe["merge_method"] == "task_arithmetic"
            mixed, divisor = (changes * weights).sum(0), weights.sum(0)
        change = mixed / divisor if settings["normalize"] else mixed
        merged[module] = base[f"{module}.weight"] + settings["lambda"] * change
    return merged


@pytest.mark.parametrize(
    ("method", "weights", "options"),
    [
        ("delta", {"text": 0.3, "vision": 0.7}, {}),
        ("delta", {"text": -0.5, "vision": 2.0}, {}),
        ("ties", {"text": 0.3, "vision": 0.7}, {"density": 0.4}),
        ("ties", {"text": 1.0, "vision": 2.0}, {"density": 0.4}),
    ],
)
def test_a_recipe_gives_the_same_merge(
    method: str,
    weights: dict[str, float],
    options: dict[str, float],
    tiny_llm: Path,
    tmp_path: Path,
) -> None:
    from earec_core.compose import Recipe

    paths = {name: write_factors(tmp_path / name, seed) for seed, name in enumerate(weights)}
    report = compose(
        paths, Recipe(weights, method=method, rank=32, sum_rule="any", **options), tmp_path / "c"
    )  # type: ignore[arg-type]
    out = tmp_path / "recipe"
    record = MethodRecord(name=method, rank=32, options=options)
    write_mergekit(opened(paths), report.weights, record, tiny_llm, out)
    base = load_file(tiny_llm / "model.safetensors")
    merged = carried_out(out, base)
    for module, change in dense(tmp_path / "c").items():
        torch.testing.assert_close(merged[module], base[f"{module}.weight"] + change, atol=1e-5, rtol=1e-5)
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    parts = (f"adapters/{m}/adapter_{n}" for m in paths for n in ("config.json", "model.safetensors"))
    assert files == {"mergekit.yml", *parts}


def test_a_recipe_of_dare_names_density_and_leaves_out_weight_0(tiny_llm: Path, tmp_path: Path) -> None:
    paths = {name: write_factors(tmp_path / name, seed) for seed, name in enumerate(("a", "b", "c"))}
    weights = {"a": 0.4, "b": 0.6, "c": 0.0}
    dare = MethodRecord(name="dare", options={"density": 0.5, "seed": 1})
    write_mergekit(opened(paths), weights, dare, tiny_llm, tmp_path / "out")
    recipe = yaml.safe_load((tmp_path / "out" / "mergekit.yml").read_text())
    assert recipe == {
        "merge_method": "dare_linear",
        "base_model": str(tiny_llm),
        "models": [
            {
                "model": f"{tiny_llm}+./adapters/{name}",
                "parameters": {"weight": weights[name], "density": 0.5},
            }
            for name in ("a", "b")
        ],
        "parameters": {"normalize": False, "lambda": 1.0},
        "dtype": "float32",
        "out_dtype": "float32",
    }


@pytest.mark.parametrize("method", ["factor", "factor-norm", "routed", "mine"])
def test_methods_that_mergekit_lacks_are_named(method: str, tmp_path: Path) -> None:
    path = write_factors(tmp_path / "a", 0)
    with pytest.raises(UsageError, match=f"mergekit cannot do the method {method}"):
        check_mergekit(opened({"a": path}), {"a": 1.0}, MethodRecord(name=method))


def test_what_else_mergekit_lacks_is_named(tmp_path: Path) -> None:
    path, ties = write_factors(tmp_path / "one", 0), MethodRecord(name="ties")
    with pytest.raises(UsageError, match="ties with negative weights"):
        check_mergekit(opened(dict.fromkeys("ab", path)), {"a": 1.5, "b": -0.5}, ties)
    some = dict(list(MODULES.items())[:1])
    paths = {"a": write_factors(tmp_path / "a", 0), "b": write_factors(tmp_path / "b", 1, some)}
    halves = {"a": 0.5, "b": 0.5}
    with pytest.raises(UsageError, match="different modules"):
        check_mergekit(opened(paths), halves, ties)
    check_mergekit(opened(paths), halves, MethodRecord(name="delta"))
    check_mergekit(opened(paths), {"a": 1.0, "b": 0.0}, ties)


def test_options_of_methods_from_the_command_line(
    two: dict[str, Path], registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["compose", "--weights", "text=0.5,vision=0.5", "--method"]
    assert run([*call, "dare", "--density", "0.25", "--seed", "9"]) == 0
    done = capsys.readouterr()
    manifest = registry.manifest(done.out.strip()).data
    assert manifest["method"] == {"name": "dare", "rank": None, "options": {"density": 0.25, "seed": 9}}
    assert "of the method's own result" in done.err
    assert run([*call, "delta", "--seed", "9"]) == 2
    assert "delta has no --seed" in capsys.readouterr().err


def test_a_report_is_measured_or_not(
    registry: Registry, two: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["compose", "--weights", "text=0.5,vision=0.5", "--name"]
    assert run([*call, "measured"]) == 0
    assert "relative error 0" in capsys.readouterr().err
    assert run([*call, "plain", "--no-measure"]) == 0
    assert capsys.readouterr().err.splitlines() == ["delta: rank 4"]
    measured, plain = (registry.manifest(name).data for name in ("measured", "plain"))
    figures = ("relative_error", "truncation_error", "norm", "composed_norm")
    assert {plain["report"][figure] for figure in figures} == {None}
    assert (plain["report"]["norms"], plain["report"]["cosines"]) == ({}, {})
    exact = {m: sum(0.5 * dense(path)[m] for path in two.values()) for m in MODULES}
    norm = torch.cat([change.flatten() for change in exact.values()]).norm()
    for figure in ("norm", "composed_norm"):
        assert measured["report"][figure] == pytest.approx(float(norm), rel=1e-5)
    assert set(measured["report"]["norms"]) == set(two)
    assert list(measured["report"]["cosines"]) == ["text,vision"]
    assert plain["files"] == measured["files"]


def test_adapters_are_chosen_where_there_is_one(registry: Registry, two: dict[str, Path]) -> None:
    both = {"text": "text/things", "vision": "vision/things"}
    assert choose_adapters(registry, ["vision", "text"], {}) == both
    assert list(choose_adapters(registry, ["vision", "text"], {})) == ["vision", "text"]
    registry.tag("text/things", "text/other", "latest")
    with pytest.raises(
        UsageError, match=r"several adapters of text: text/other, text/things.*--adapter text=REF"
    ):
        choose_adapters(registry, ["text"], {})
    assert choose_adapters(registry, ["text", "vision"], {}, "other") == {
        "text": "text/other",
        "vision": "vision/things",
    }
    assert choose_adapters(registry, ["text"], {"text": "text/things", "smell": "x"}) == {
        "text": "text/things",
        "smell": "x",
    }
    with pytest.raises(UsageError, match=r"no adapter of smell.*earec align --modality smell"):
        choose_adapters(registry, ["smell"], {})


def test_a_plugin_version_that_composition_accepted_is_accepted_at_use(tmp_path: Path) -> None:
    from earec_core.aligned.stored import _check_plugin, plugin_record
    from earec_core.errors import PluginError

    record = {**plugin_record("text").model_dump(), "version": "7.0.0"}
    modality = {"plugin": record, "config": {}, "shapes": {"d_enc": 1, "d_llm": 1}, "projector": "p"}

    def check(overridden: dict[str, Any]) -> None:
        manifest = CompositeManifest.model_validate(
            {
                "modalities": {"text": modality},
                "base": dict.fromkeys(("id", "weights", "config", "tokenizer"), "x"),
                "prompt": {},
                "weights": {"text": 1.0},
                "method": {"name": "delta"},
                "overridden": overridden,
            }
        )
        _check_plugin(Stored("id", manifest, tmp_path), "text")

    with pytest.raises(PluginError, match=r"7\.0\.0"):
        check({})
    installed = plugin_record("text").version
    check({"plugin": {"text.version": {"recorded": "7.0.0", "installed": installed}}})
    with pytest.raises(PluginError, match=r"6\.1\.0"):
        check({"plugin": {"text.version": {"recorded": "7.0.0", "installed": "6.1.0"}}})
