"""The conformance kit: it passes the plugins, and each wrong plugin fails the check made for its fault."""

from __future__ import annotations

import inspect
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from earec_core.cli import run
from earec_core.errors import MissingDependencyError, PluginError
from earec_core.testing import ModalityConformance, pytest_plugin
from earec_core.testing import check as checking
from earec_core.testing.clauses import ContractError
from earec_core.testing.kit import Kit
from earec_registry import Registry

from .conftest import Site
from .test_broken_plugins import earec

__all__ = ["earec"]
Earec = Callable[..., subprocess.CompletedProcess[str]]

WRONG = Path(__file__).parent / "wrong"
CHECKS = [name for name in dir(ModalityConformance) if name.startswith("test_")]

OWN_EXAMPLES = """
from earec_core.testing import ModalityConformance
from earec_core.types import Item
from earec_text.modality import TextConfig

class TestTitles(ModalityConformance):
    modality = "text"

    @classmethod
    def examples(cls, folder):
        items = [Item(i, name, name.upper(), {"words": name}) for i, name in enumerate(("pen", "lamp", "book"))]
        return TextConfig(fields=("words",)), [*items, Item(3, "mute", "Mute")]
"""

# The check that each fault must fail, and what its sentence says.
FAULTS = {
    "heavy": ("importing_the_spec_is_light", "imports numpy"),
    "setting": ("importing_leaves_the_process_alone", "it changes the environment"),
    "undocumented": ("every_config_field_is_documented", "size has none"),
    "none": ("examples_are_given", "add to the Modality a classmethod examples"),
    "few": ("examples_are_given", "gives a Config and 2 items"),
    "lossy": ("the_config_round_trips_through_json", "must come back from JSON equal"),
    "lenient": ("the_config_refuses_unknown_keys", "must refuse unknown keys"),
    "thawed": ("the_config_is_frozen", "must be frozen"),
    "token": ("the_slot_token_is_a_word", "it is 'n'"),
    "cached": ("cache_features_is_a_bool", "two modalities give 1 and 1"),
    "seed": ("the_adapter_keeps_the_seed", r"seed=0\) it gives .*seed=1\)"),
    "rank": ("the_adapter_keeps_the_seed", "valid LoraSettings, but it raised ValidationError"),
    "sources": ("sources_are_ids", "must give a tuple of ids"),
    "fingerprint": ("the_fingerprint_is_stable", "one text for one configuration"),
    "objects": ("read_gives_the_same_typed_input_every_time", "item e0 gives list"),
    "changing": ("read_gives_the_same_typed_input_every_time", "that of item e0 changes"),
    "alike": ("read_gives_the_same_typed_input_every_time", "inputs must differ"),
    "without": ("the_encoder_gives_finite_values_of_the_stated_shape", "item e3 included, but it gives None"),
    "opened": (
        "files_are_found_by_item_path",
        r"open item\.path\('n'\), here 0\.txt in .* FileNotFoundError",
    ),
    "raising": ("read_gives_none_without_the_modality", "it raised KeyError"),
    "fragile": ("damaged_input_is_none_or_an_error_never_a_wrong_vector", "it raised (Value|Type)Error"),
    "spelled": ("damaged_input_is_none_or_an_error_never_a_wrong_vector", r"inside, but it raised Unicode"),
    "nan": ("damaged_input_is_none_or_an_error_never_a_wrong_vector", "a vector with NaN or infinity"),
    "wearing": ("damaged_input_is_none_or_an_error_never_a_wrong_vector", "its state has changed"),
    "silent": ("describe_shows_every_item", "'an item without input' included, but it raised KeyError"),
    "markup": ("describe_shows_every_item", "must be a base64 image"),
    "narrow": ("the_encoder_gives_finite_values_of_the_stated_shape", r"here \(3 n 6\)"),
    "infinite": ("the_encoder_gives_finite_values_of_the_stated_shape", "finite values"),
    "intmask": ("the_encoder_gives_finite_values_of_the_stated_shape", "bool mask"),
    "padded": ("padding_holds_zeros", "some hold up to 7"),
    "mixing": ("row_i_depends_on_input_i_alone", "item e0 is encoded otherwise alone"),
    "noisy": ("encoding_is_deterministic", "called again it differs"),
    "drawn": ("encoding_is_deterministic", "built again at another seed it differs"),
    "trainable": ("the_encoder_is_frozen", "2 parameters train, out.weight first"),
    "training": ("the_encoder_is_frozen", "in training mode"),
    "counting": ("the_encoder_is_frozen", "it changes calls"),
    "moving": ("the_process_is_left_alone", "they change the working directory"),
    "seeding": ("the_process_is_left_alone", "they change torch's random state"),
    "patching": ("the_process_is_left_alone", r"they change torch\.nn\.functional\.gelu"),
    "tampering": ("the_process_is_left_alone", "they change the configuration"),
    "empty": ("the_projector_fits_the_llm", "uses none of some"),
    "long": (
        "no_item_takes_more_than_its_positions",
        r"at most positions\(\) = 3 positions, but one takes 12",
    ),
    "zero": ("no_item_takes_more_than_its_positions", "1 or more, but it gives 0"),
    "endless": ("no_item_takes_more_than_its_positions", "but one takes 150"),
    "thresholded": ("the_mask_of_the_projector_follows_from_the_input_mask_alone", "changes with the values"),
    "pooled": ("projection_does_not_depend_on_the_batch", "item e0 differs"),
    "ownseed": ("the_projector_is_drawn_from_the_global_generator", "out.weight differ"),
    "forgetful": ("the_projector_round_trips_through_safetensors", "not in the state_dict"),
    "loud": ("calibrate_brings_the_output_to_the_size_of_words", "within a factor of 3"),
    "dead": ("gradient_reaches_projector_and_adapter", "unused gets none"),
    "detached": ("gradient_reaches_projector_and_adapter", "of the projector, but"),
    "restless": ("composing_one_adapter_gives_it_back", "but they differ"),
}
# These two need a stage that goes wrong, not a plugin.
ELSEWHERE = {"test_the_spec_is_valid", "test_a_tiny_alignment_lowers_the_loss"}


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Install wrong plugins: their modules on the path, and a distribution's entry points."""

    def install(*names: str) -> None:
        own = {"wrong_heavy": "kit_heavy", "wrong_setting": "kit_setting"}
        lines = [f"{n} = {own.get(n, 'kit_specs')}:{'SPEC' if n in own else n}" for n in names]
        info = tmp_path / "earec_wrong-0.1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: earec-wrong\nVersion: 0.1.0\n")
        (info / "entry_points.txt").write_text("\n".join(["[earec.modalities]", *lines]))
        monkeypatch.setenv("KIT_SETTING", "0")
        for folder in (tmp_path, WRONG):
            monkeypatch.syspath_prepend(str(folder))

    yield install
    for module in ("kit_specs", "kit_parts", "kit_heavy", "kit_setting"):
        sys.modules.pop(module, None)


@pytest.fixture(autouse=True)
def unchanged(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What wrong plugins do to the process is undone."""
    monkeypatch.chdir(Path.cwd())
    monkeypatch.setattr(torch.nn.functional, "gelu", torch.nn.functional.gelu)
    with torch.random.fork_rng():
        yield


def _check(name: str, check: str, folder: Path) -> None:
    getattr(ModalityConformance(), f"test_{check}")(Kit(name, folder))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_plugin_fails_with_a_sentence(
    fault: str, installed: Callable[..., None], tmp_path: Path
) -> None:
    installed(f"wrong_{fault}")
    check, sentence = FAULTS[fault]
    with pytest.raises(ContractError, match=sentence) as caught:
        _check(f"wrong_{fault}", check, tmp_path)
    said = str(caught.value)
    assert said.endswith(".")
    assert "\n" not in said


def test_every_check_has_a_plugin_that_fails_it_and_a_clause_that_says_it() -> None:
    assert {f"test_{check}" for check, _ in FAULTS.values()} | ELSEWHERE == set(CHECKS)
    assert all(inspect.getdoc(getattr(ModalityConformance, name)) for name in CHECKS)


def test_the_page_lists_every_check() -> None:
    page = (Path(__file__).parents[2] / "docs" / "plugin-kit.md").read_text()
    table = page.partition("## What is checked")[2].split("\n\n")[1].splitlines()[2:]
    documented = [row.split("|")[1].strip() for row in table]
    # As pytest runs them: those of the last base first.
    in_order = [
        name for base in reversed(ModalityConformance.__mro__) for name in vars(base) if name in CHECKS
    ]
    assert documented == [name.removeprefix("test_").replace("_", " ") for name in in_order]


def test_the_spec_check_says_what_is_wrong(installed: Callable[..., None], tmp_path: Path) -> None:
    installed("wrong_heavy", "wrong_undeclared")
    with pytest.raises(ContractError, match="wrong_undeclared"):
        _check("wrong_undeclared", "the_spec_is_valid", tmp_path)


def test_an_alignment_that_does_not_lower_the_loss_fails(tmp_path: Path) -> None:
    kit: Any = Kit("text", tmp_path)
    for after, passes in ((5.45, False), (5.0, True)):
        vars(kit)["alignment"] = type("A", (), {"metrics": {"valid_loss_before": 5.5, "valid_loss": after}})
        outcome = nullcontext() if passes else pytest.raises(ContractError, match=r"from 5\.500 to 5\.450")
        with outcome:
            ModalityConformance().test_a_tiny_alignment_lowers_the_loss(kit)


@pytest.mark.parametrize("name", ["text", "behavior", "vision"])
def test_the_plugins_pass(name: str) -> None:
    findings = checking.check(name)
    assert [f.check for f in findings if f.outcome != "passed"] == []
    assert len(findings) == len(CHECKS)


def test_the_command_names_the_failures_and_exits_1(
    installed: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    installed("wrong_none", "wrong_undocumented")
    assert run(["plugins", "check", "wrong_none", "--json"]) == 1
    said = capsys.readouterr()
    rows = {row["check"]: row for row in json.loads(said.out)}
    assert rows["examples are given"]["outcome"] == "failed"
    assert "classmethod examples(cls, folder)" in rows["examples are given"]["why"]
    assert rows["importing the spec is light"] == {
        "check": "importing the spec is light",
        "outcome": "passed",
        "why": None,
    }
    assert rows["padding holds zeros"]["outcome"] == "skipped"
    assert rows["padding holds zeros"]["why"] == "needs a usable plugin with examples"
    assert "wrong_none fails 1 of" in said.err
    assert "kit.py" not in said.err
    assert run(["plugins", "check", "wrong_none", "--trace"]) == 1
    assert "kit.py" in capsys.readouterr().err


def test_the_command_on_a_good_plugin_exits_0_and_leaves_no_trace(
    installed: Callable[..., None], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    installed("good")
    home = Path(os.environ["EAREC_HOME"])
    before = sorted(home.rglob("*"))
    assert run(["plugins", "check", "good"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("\t") == ["check", "outcome", "why"]
    assert {line.split("\t")[1] for line in lines[1:]} == {"passed"}
    assert len(lines) == len(CHECKS) + 1
    assert sorted(home.rglob("*")) == before


def test_a_class_can_bring_its_own_examples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "test_titles.py").write_text(OWN_EXAMPLES)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.chdir(tmp_path)
    plain = ["--capture=no", *(f"-pno:{part}" for part in ("cacheprovider", "faulthandler"))]
    assert (
        pytest.main(["-q", "-k", "describe or none_without or typed", *plain]) == pytest.ExitCode.TESTS_FAILED
    )
    said = capsys.readouterr().out
    assert "item mute included, but it gives None" in said
    assert "1 failed, 2 passed" in said


def test_an_unusable_plugin_exits_3(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plugins", "check", "not_there"]) == 3
    with pytest.raises(PluginError, match="not_there"):
        checking.check("not_there")


def test_without_pytest_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'earec\[testing\]'") as caught:
        checking.check("text")
    assert caught.value.exit_code == 5


def test_the_pytest_plugin_is_light_and_does_nothing_unasked(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import sys\n"
        "def test_it():\n"
        "    assert not {'torch', 'transformers', 'numpy', 'pydantic', 'click'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", pytest_plugin.__name__, "."],
        cwd=tmp_path,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


def test_a_modality_is_checked_with_other_settings_than_its_examples(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert Kit("text", tmp_path, settings={"max_tokens": 3}).modality.positions() == 3
    failed = [f.why for f in checking.check("text", settings={"max_tokens": -5}) if f.outcome == "failed"]
    assert len(failed) == 1
    assert "must take the settings given, but it raised" in failed[0]
    assert run(["plugins", "check", "text", "--set", "text.speed=5"]) == 2
    assert "fields, template, max_tokens" in capsys.readouterr().err
    assert run(["plugins", "check", "text", "--set", "vision.positions=5"]) == 2
    assert "text is checked" in capsys.readouterr().err


def test_the_worked_example_with_a_projector_of_its_own_goes_from_nothing_to_vectors(
    site: Site, earec: Earec, tiny_llm: Path, tmp_path: Path
) -> None:
    """The page's lines as they stand, but pip's: what it would put on the path is put there."""
    page = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text()
    example = page.partition("### A worked example\n")[2]
    code = re.search(r"```python\n(.*?)```", example, re.DOTALL)
    assert code is not None
    (tmp_path / "drawings").mkdir()
    rows = []
    for n in range(12):
        drawing = np.random.default_rng(n).normal(size=(3 + n, 4))
        np.save(tmp_path / f"drawings/{n}.npy", drawing)
        rows.append({"item_id": f"d{n}", "title": f"drawing {n}", "strokes": f"{n}.npy"})
    (tmp_path / "drawings/items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    settings = {"BACKBONE__MODEL": str(tiny_llm), "ALIGN__MAX_STEPS": "2", "EXPLAIN__MAX_NEW_TOKENS": "3"}
    environment = {f"EAREC_{name}": value for name, value in settings.items()}
    said = {}
    lines = example.partition("<!-- worked example -->\n")[2].partition("\n\n")[0].splitlines()
    for program, *argv in (shlex.split(line, comments=True) or [line] for line in lines):
        if program == "pip":
            (tmp_path / "earec-strokes/earec_strokes/modality.py").write_text(code[1])
            (site.folder / "earec_strokes").symlink_to(tmp_path / "earec-strokes/earec_strokes")
            site.add("earec-strokes", "[earec.modalities]\nstrokes = earec_strokes.spec:SPEC\n")
        elif program == "earec":
            done = earec(*argv, "--json", **environment)
            assert done.returncode == 0, (argv, done.stderr)
            said[argv[0]] = json.loads(done.stdout)
    assert {row["outcome"] for row in said["plugins"]} == {"passed"}
    assert len(said["plugins"]) == len(CHECKS)
    shapes = Registry.open(tmp_path / "home/registry").manifest("vectors/drawings").data["shapes"]
    assert shapes["items"] == 12
