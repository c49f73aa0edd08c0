"""Adapters from a directory, PEFT's own or one of `earec export`, against PEFT and what was exported."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from earec_core.aligned.importing import import_adapter
from earec_core.artifacts import AdapterManifest, open_as
from earec_core.cli import run
from earec_core.config import BackboneConfig, resolve
from earec_core.errors import UsageError
from earec_core.llm.backbone import Backbone
from earec_core.llm.lora import MergedLora
from earec_registry import Registry

from .conftest import Pipeline

TARGETS = ["q_proj", "v_proj", "down_proj"]
CONFIG, WEIGHTS, MANIFEST = "adapter_config.json", "adapter_model.safetensors", "earec_manifest.json"

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def _trained_by_peft(llm: Path, folder: Path, **options: Any) -> Path:
    """A PEFT adapter of the LLM whose factors are not those that it starts with."""
    base = AutoModelForCausalLM.from_pretrained(llm)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, task_type="CAUSAL_LM", **options)
    model = get_peft_model(base, config)
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def plain(tiny_llm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _trained_by_peft(tiny_llm, tmp_path_factory.mktemp("peft") / "theirs")


def _import(pipeline: Pipeline, folder: Path, *argv: str) -> int:
    return pipeline.run("registry", "import", str(folder), *argv)


def test_an_adapter_of_peft_gives_the_logits_of_peft_and_goes_through_the_stages(
    in_home: Pipeline, plain: Path, tmp_path: Path, out_json: Callable[[], Any]
) -> None:
    one, data = in_home, ["--data", str(in_home.data)]
    assert _import(one, plain, "--modality", "text", "--name", "text/theirs", *one.settings(), "--json") == 0
    said = out_json()
    assert (said["modality"], said["exported"], said["projector"]) == ("text", False, False)
    stored = open_as(one.workspace.registry, "text/theirs", AdapterManifest)
    assert stored.id == said["id"]
    assert (stored.manifest.lora.r, stored.manifest.lora.alpha, stored.manifest.training) == (4, 8, None)
    assert stored.manifest.record.config["max_tokens"] == 20
    assert stored.manifest.prompt.request == "Say it."

    ids = torch.randint(2, 250, (3, 12), generator=torch.Generator().manual_seed(0))
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(one.llm), plain).eval()
    unadapted = AutoModelForCausalLM.from_pretrained(one.llm).eval()
    backbone = Backbone.load(BackboneConfig(model=str(one.llm), dtype="float32", device="cpu"))
    with torch.no_grad(), backbone.adapted(MergedLora(stored.folder)):
        wanted, got = theirs(ids).logits, backbone.model(ids).logits
        assert (unadapted(ids).logits - wanted).abs().max() > 0.1
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)

    # Nobody knows what its A started from, so composing it with another has to be meant.
    weights = ["compose", "--weights", "text=0.5,behavior=0.5", "--adapter", "text=text/theirs"]
    assert one.run(*weights, "--name", "mixed") == 2
    assert one.run(*weights, "--name", "mixed", "--allow-mismatch", "seed") == 0
    for model in ("text/theirs", "mixed"):
        assert one.run("encode", model, *data, *one.settings(), "--name", f"vectors/{model}") == 0
        assert one.run("explain", model, *data, *one.settings(), "--items", "3") == 0
    assert one.run("export", "text/theirs", "--as", "hub", "--out", str(tmp_path / "card")) == 0
    assert "not known: imported" in (tmp_path / "card" / "README.md").read_text()
    assert _import(one, tmp_path / "card", "--name", "text/again") == 0
    assert one.workspace.registry.resolve("text/again") == stored.id


def test_what_was_exported_comes_back_as_the_same_model(
    in_home: Pipeline, tmp_path: Path, tiny_llm: Path
) -> None:
    registry = in_home.workspace.registry
    for modality in ("text", "behavior"):
        name = f"{modality}/things"
        assert in_home.run("export", name, "--as", "hub", "--out", str(tmp_path / modality)) == 0
        assert _import(in_home, tmp_path / modality, "--name", f"{modality}/back") == 0
        assert registry.resolve(f"{modality}/back") == registry.resolve(name)
    # Another registry has not what behavior's encoder reads; the text needs nothing.
    other = Registry.open(tmp_path / "other")
    at = ["--registry", str(other.root)]
    assert run(["registry", "import", str(tmp_path / "text"), "--name", "text", *at]) == 0
    assert other.resolve("text") == registry.resolve("text/things")
    assert run(["registry", "import", str(tmp_path / "behavior"), "--name", "b", *at]) == 2
    assert [entry.name for entry in other.list().entries] == ["text"]

    # As PEFT alone has it, the tensors and their digest are the same, the manifest knows less.
    assert in_home.run("export", "text/things", "--as", "peft", "--out", str(tmp_path / "peft")) == 0
    argv = ["--modality", "text", "--name", "text/bare", *in_home.settings()]
    assert _import(in_home, tmp_path / "peft", *argv) == 0
    before, after = registry.manifest("text/things"), registry.manifest("text/bare")
    assert after.files == before.files
    assert (after.data["training"], after.id == before.id) == (None, False)


def test_an_llm_of_the_hub_keeps_the_id_though_its_name_in_the_directory_is_the_hubs(
    in_home: Pipeline, tmp_path: Path
) -> None:
    registry = in_home.workspace.registry
    said = dict(registry.manifest("text/things").data)
    view = registry.materialize("text/things")
    said["base"] = {**said["base"], "id": "smollm2-135m"}
    config = json.loads((view / CONFIG).read_text()) | {"base_model_name_or_path": "smollm2-135m"}
    (tmp_path / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True))
    files = {path: view / path for path in said.pop("files")} | {CONFIG: tmp_path / CONFIG}
    identity = registry.add(said, files, name="text/named")
    assert in_home.run("export", "text/named", "--as", "hub", "--out", str(tmp_path / "card")) == 0
    assert "HuggingFaceTB" in (tmp_path / "card" / CONFIG).read_text()
    assert _import(in_home, tmp_path / "card", "--name", "text/from-the-hub") == 0
    assert registry.resolve("text/from-the-hub") == identity


def _edit(folder: Path, **changes: Any) -> None:
    file = folder / CONFIG
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def _pickle(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")


def _tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def _head(tensors: dict[str, torch.Tensor]) -> None:
    tensors["base_model.model.lm_head.lora_A.weight"] = torch.ones(4, 32)
    tensors["base_model.model.lm_head.lora_B.weight"] = torch.ones(258, 4)


def _wide(tensors: dict[str, torch.Tensor]) -> None:
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    tensors[key] = torch.ones(4, 48)


def _nan(tensors: dict[str, torch.Tensor]) -> None:
    next(iter(tensors.values()))[0, 0] = torch.nan


DAMAGE: dict[str, tuple[Callable[[Path], Any], int, str]] = {
    "rslora": (lambda f: _edit(f, use_rslora=True), 2, "lora_alpha: 16 there"),
    "dora": (lambda f: _edit(f, use_dora=True), 2, "trained with use_dora"),
    "bias": (lambda f: _edit(f, bias="all"), 2, "bias=all"),
    "saved": (lambda f: _edit(f, modules_to_save=["lm_head"]), 2, "modules_to_save"),
    "ranks": (lambda f: _edit(f, alpha_pattern={"q_proj": 3}), 2, "alpha_pattern"),
    "alpha": (lambda f: _edit(f, lora_alpha=8.5), 2, "alpha"),
    "kind": (lambda f: _edit(f, peft_type="IA3"), 2, "IA3"),
    "pickled": (_pickle, 2, "safe_serialization=True"),
    "no file": (lambda f: (f / CONFIG).unlink(), 2, "has no adapter_config.json"),
    "cut": (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-9]), 4, "damaged or cut short"),
    "nan": (lambda f: _tensors(f, _nan), 4, "NaN"),
    "head": (lambda f: _tensors(f, _head), 2, "changes lm_head"),
    "width": (lambda f: _tensors(f, _wide), 2, "32x48 (out x in) in the adapter"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_cannot_be_taken_is_refused_in_a_sentence_and_nothing_is_stored(
    damage: str, in_home: Pipeline, plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(plain, tmp_path / "theirs")
    change, code, said = DAMAGE[damage]
    change(folder)
    blobs = in_home.workspace.registry.objects.all("blobs")
    assert _import(in_home, folder, "--modality", "text", "--name", "refused", *in_home.settings()) == code
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert in_home.workspace.registry.objects.all("blobs") == blobs


def test_a_base_of_another_name_is_refused_where_names_can_tell(
    in_home: Pipeline, plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(plain, tmp_path / "theirs")
    argv = ["--modality", "text", "--name", "refused"]
    _edit(folder, base_model_name_or_path="owner/other")
    assert _import(in_home, folder, *argv, *in_home.settings()) == 0  # a directory has no name on the hub
    assert "made for owner/other" in capsys.readouterr().err
    assert in_home.run("registry", "rm", "refused") == 0
    backbone = Backbone.load(BackboneConfig(model=str(in_home.llm)))
    backbone.info = backbone.info.model_copy(update={"id": "smollm2-135m"})
    given = {"modality": "text", "backbone": backbone}
    with pytest.raises(UsageError, match=r"owner/other.*SmolLM2-135M-Instruct.*base_model_name_or_path"):
        import_adapter(in_home.workspace, folder, "refused", resolve(), **given)
    for own in ("smollm2-135m", "HuggingFaceTB/SmolLM2-135M-Instruct"):
        _edit(folder, base_model_name_or_path=own)
        assert import_adapter(in_home.workspace, folder, "text/named", resolve(), **given).modality == "text"


def test_projectors_are_asked_for_and_taken(
    in_home: Pipeline, plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(plain, tmp_path / "theirs")
    argv = ["--modality", "behavior", "--name", "behavior/theirs", *in_home.settings()]
    fitted = next(e.name for e in in_home.workspace.registry.list().entries if e.kind == "embeddings")
    argv += ["--set", f"behavior.embeddings={fitted}"]
    assert _import(in_home, folder, *argv) == 2
    assert "projectors/behavior.safetensors is not there" in capsys.readouterr().err
    own = in_home.workspace.registry.materialize("behavior/things") / "projectors" / "behavior.safetensors"
    (folder / "projectors").mkdir()
    shutil.copy(own, folder / "projectors")
    assert _import(in_home, folder, *argv) == 0
    stored = open_as(in_home.workspace.registry, "behavior/theirs", AdapterManifest)
    assert (stored.folder / stored.manifest.record.projector).read_bytes() == own.read_bytes()
    assert stored.manifest.parents
    save_file({"weight": torch.ones(2)}, folder / "projectors" / "behavior.safetensors")
    assert _import(in_home, folder, *argv) == 4
    assert "does not fit" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        (lambda f: (f / MANIFEST).write_text("{"), 4, "is no manifest"),
        (
            lambda f: (f / MANIFEST).write_text('{"kind": "adapter", "files": {"../x": {}}}'),
            4,
            "is no manifest",
        ),
        (lambda f: _edit(f, lora_alpha=64), 4, "is not the file that earec_manifest.json names"),
        (lambda f: (f / "projectors" / "text.safetensors").unlink(), 4, "is not the file"),
        (lambda f: _tensors(f, lambda t: next(iter(t.values())).mul_(2)), 4, "is not the file"),
    ],
)
def test_an_exported_directory_that_was_changed_is_refused(
    change: Callable[[Path], Any],
    code: int,
    said: str,
    in_home: Pipeline,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "card"
    assert in_home.run("export", "text/things", "--as", "hub", "--out", str(folder)) == 0
    change(folder)
    assert _import(in_home, folder, "--name", "refused") == code
    assert said in capsys.readouterr().err


def test_a_composite_and_a_directory_that_says_no_modality_are_refused(
    in_home: Pipeline, plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert in_home.run("export", "composite", "--as", "hub", "--out", str(tmp_path / "card")) == 0
    for folder, argv, said in (
        (tmp_path / "card", [], "earec registry pull"),
        (plain, [], "--modality NAME"),
        (tmp_path / "nothing", [], "is no directory"),
    ):
        assert _import(in_home, folder, "--name", "refused", *argv) == 2
        assert said in capsys.readouterr().err
