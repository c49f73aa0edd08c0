"""Plugin discovery: what switches do, that nothing heavy is imported for a listing, that the core names none."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from pkgutil import resolve_name

import pytest

from earec_core import plugins
from earec_core.cli import COMMAND, run
from earec_core.cli.inspection import KINDS
from earec_core.errors import PluginError
from earec_core.plugins import MODALITY, Entry, Kind, Plugin, State

from .conftest import Site

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _on_the_path(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(site.folder))


def test_disabled_and_strict(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.modality("fine")
    assert plugins.get("fine").state is State.OK
    monkeypatch.setenv("EAREC_DISABLE_PLUGINS", "fine, other")
    with pytest.raises(PluginError, match="Take 'fine' out of EAREC_DISABLE_PLUGINS"):
        plugins.get("fine")
    assert next(p for p in plugins.installed(MODALITY) if p.name == "fine").state is State.DISABLED
    source = {"kit_raising.py": "raise RuntimeError('no luck')"}
    site.add("earec-raising", "[earec.modalities]\nraising = kit_raising:SPEC\n", source)
    with pytest.raises(PluginError) as caught:
        plugins.get("raising")
    assert isinstance(caught.value.__cause__, RuntimeError)
    monkeypatch.setenv("EAREC_STRICT_PLUGINS", "1")
    with pytest.raises(RuntimeError, match="no luck"):
        plugins.installed(MODALITY)
    # One that nobody asked for stops nobody, strict or not.
    assert plugins.get("text").state is State.OK


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ("requires='soundfile'", "requires is 'soundfile'"),
        ("order='first'", "order is 'first'"),
        ("summary=None", "summary is None"),
        ("api_version='1.0'", "api_version is '1.0'"),
        ("config=None", "config is None"),
        ("factory='kit_odd.modality'", "not of the form"),
        ("name='even'", "named 'even'"),
    ],
)
def test_a_malformed_field_is_named(
    site: Site, field: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("kit_odd.spec", "kit_odd"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    site.modality("odd")
    spec = site.folder / "kit_odd" / "spec.py"
    spec.write_text(spec.read_text() + f"from dataclasses import replace\nSPEC = replace(SPEC, {field})\n")
    with pytest.raises(PluginError, match="invalid-spec") as caught:
        plugins.get("odd")
    assert said in str(caught.value)


def test_a_requirement_that_does_not_import_is_missing(site: Site) -> None:
    (site.folder / "kit_wreck").mkdir()
    (site.folder / "kit_wreck" / "__init__.py").write_text("raise OSError('no such library')")
    site.modality("leaning", more=", requires=('json', 'kit_wreck.part', 'kit_absent')")
    with pytest.raises(PluginError, match=r"needs kit_wreck\.part, kit_absent, not installed"):
        plugins.get("leaning")


def test_a_command_that_cannot_be_had(
    site: Site, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "import click\n\n@click.command()\ndef hum():\n    click.echo('{}')\n"
    for n in (1, 2):
        site.add(
            f"earec-hum{n}",
            f"[earec.commands]\nhum = kit_hum{n}:hum\nsing{n} = kit_hum{n}:hum\nalign = kit_hum{n}:hum\n",
            {f"kit_hum{n}.py": source.format(n)},
        )
    site.add("earec-dumb", "[earec.commands]\ndumb = json:loads\n")
    monkeypatch.setenv("EAREC_DISABLE_PLUGINS", "sing2")
    assert run(["sing1"]) == 0
    assert capsys.readouterr().out == "1\n"
    states = {(p.name, p.distribution): (p.state, p.cause) for p in plugins.installed(COMMAND)}
    assert states["sing1", "earec-hum1"] == (State.OK, "")
    brought = "'hum' is brought by earec-hum1 (kit_hum1:hum) and earec-hum2 (kit_hum2:hum)."
    own = "The command 'align' is that of earec itself."
    for n in (1, 2):
        assert states["hum", f"earec-hum{n}"] == (State.DUPLICATE_NAME, brought)
        assert states["align", f"earec-hum{n}"] == (State.DUPLICATE_NAME, own)
    assert states["sing2", "earec-hum2"][0] is State.DISABLED
    not_a_command = "json:loads is a function, not a click command."
    assert states["dumb", "earec-dumb"] == (State.INVALID_SPEC, not_a_command)
    for name, said in (("hum", "brought by"), ("sing2", "EAREC_DISABLE_PLUGINS"), ("dumb", not_a_command)):
        assert run([name]) == 3
        assert said in capsys.readouterr().err
    assert run(["align", "--help"]) == 0
    assert "Fine-tune an adapter" in capsys.readouterr().out


OWNER = """
from dataclasses import dataclass
from earec_core.plugins import Kind, instance_check


@dataclass(frozen=True)
class Scale:
    name: str
    factor: float


SCALE = Kind("scale", "kit.scales", instance_check(Scale), reserved=lambda: ["unit"])
"""
POINTS = """
[kit.scales]
twice = kit_scales:TWICE
thrice = kit_scales:TWICE
unit = kit_scales:UNIT
words = kit_scales:WORDS
lost = kit_lost:SCALE
zero = kit_scales:ZERO
"""
BROUGHT = """
from kit_scale_owner import Scale

TWICE, UNIT, WORDS, ZERO = Scale("twice", 2.0), Scale("unit", 1.0), "two", Scale("zero", 0.0)
"""


@pytest.fixture
def scale(site: Site) -> Iterator[Kind]:
    """A kind that the core does not know, defined by a module outside it, and a distribution's plugins of it."""
    (site.folder / "kit_scale_owner.py").write_text(OWNER)
    site.add(
        "earec-scales", POINTS, {"kit_scales.py": BROUGHT, "kit_lost.py": "raise RuntimeError('no scale')"}
    )
    kind: Kind = import_module("kit_scale_owner").SCALE
    yield kind
    for module in ("kit_scale_owner", "kit_scales", "kit_lost"):
        sys.modules.pop(module, None)


def test_a_kind_is_whatever_its_owner_defines(scale: Kind) -> None:
    assert plugins.names(scale) == ["lost", "thrice", "twice", "unit", "words", "zero"]
    assert "kit_scales" not in sys.modules
    assert plugins.load(scale, "twice").factor == 2.0
    assert "kit_lost" not in sys.modules
    assert plugins.load(scale, "nothing") is None
    listed = {plugin.name: plugin for plugin in plugins.installed(scale)}
    assert {plugin.kind for plugin in listed.values()} == {"scale"}
    said = {
        "lost": (State.IMPORT_ERROR, "Importing kit_lost:SCALE raised RuntimeError: no scale."),
        "thrice": (State.INVALID_SPEC, "kit_scales:TWICE is the scale 'twice', not a Scale named 'thrice'."),
        "unit": (State.DUPLICATE_NAME, "The scale 'unit' is that of earec itself."),
        "words": (State.INVALID_SPEC, "kit_scales:WORDS is a str, not a Scale named 'words'."),
    }
    for name, plugin in listed.items():
        assert (plugin.state, plugin.cause) == said.get(name, (State.OK, ""))
        assert (plugin.loaded is None) == (name in said) == bool(plugin.fix)
        if name in said:
            with pytest.raises(PluginError, match=f"The scale '{name}' is unusable") as caught:
                plugins.load(scale, name)
            assert said[name][1] in str(caught.value)


def test_a_check_of_its_own_says_what_is_wrong_and_one_that_raises_stops_nobody(
    scale: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(entry: Entry, plugin: Plugin) -> Plugin:
        brought = plugins.imported(entry, plugin)
        if 1 / brought.factor > 0.9:
            plugins.unusable(plugin, State.MISSING_DEPENDENCY, "It is too small.", "Enlarge it.")
        return replace(plugin, loaded=brought)

    own = replace(scale, check=check, reserved=tuple)
    listed = {plugin.name: plugin for plugin in plugins.installed(own)}
    assert {name for name, plugin in listed.items() if plugin.state is State.OK} == {"twice", "thrice"}
    assert (listed["unit"].state, listed["unit"].cause, listed["unit"].fix) == (
        State.MISSING_DEPENDENCY,
        "It is too small.",
        "Enlarge it.",
    )
    assert listed["zero"].state is State.IMPORT_ERROR
    assert "Checking kit_scales:ZERO raised ZeroDivisionError" in listed["zero"].cause
    monkeypatch.setenv("EAREC_STRICT_PLUGINS", "1")
    with pytest.raises(ZeroDivisionError):
        plugins.load(own, "zero")


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_listed_is_what_it_is_called(name: str) -> None:
    group, reference = KINDS[name]
    kind = resolve_name(reference)
    assert isinstance(kind, Kind)
    assert (kind.name, kind.group) == (name, group)


def _imported(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_help_and_listing_import_nothing_heavy() -> None:
    heavy = {"torch", "transformers", "peft", "polars", "numpy", "pydantic", "rich"}
    packages = tuple(f"earec_{name}" for name in _names())
    quiet = "from contextlib import redirect_stdout; import io\nwith redirect_stdout(io.StringIO()):"
    for argv in (["--help"], ["--version"]):
        modules = _imported(f"from earec_core.cli import run\n{quiet} run({argv!r})")
        assert not modules & heavy
        assert not any(name.startswith(packages) for name in modules)
    modules = _imported("from earec_core import plugins; plugins.names(plugins.MODALITY)")
    assert not any(name.startswith(packages) for name in modules)
    modules = _imported("from earec_core import plugins; plugins.installed(plugins.MODALITY)")
    assert not modules & heavy
    # No method of composition is installed here, so that what owns that kind is not asked.
    look = "from earec_core.cli.inspection import look, questions\nfor each in questions(): look(each, False)"
    modules = _imported(look)
    assert "earec_text.spec" in modules
    assert not modules & {"torch", "transformers", "peft", "polars", "earec_core.compose"}


def _names() -> list[str]:
    """Names of the modalities and commands of the distributions under plugins/."""
    found = set()
    for file in ROOT.glob("plugins/*/pyproject.toml"):
        groups = tomllib.loads(file.read_text())["project"].get("entry-points", {})
        found |= {name for entries in groups.values() for name in entries}
    return sorted(found)


WORDS = {
    ("catalog/formats/columns.py", "text"): "a column of the reviews' own files",
    ("llm/chat.py", "text"): "a kind of part of a chat message",
    ("explain/texts.py", "text"): "a column of the table of texts",
    ("report/explained.py", "text"): "the same column",
    ("report/charts.py", "text"): "an element of SVG",
}
"""Where a string is a plugin's name by being the same word, and what it means there."""


def test_the_core_names_no_modality() -> None:
    """No branch can turn on a plugin's name: none stands in the code as a string, name or import.

    `earec_core/studies` is left out: it holds a recipe of commands, as a user would type them, and those name the
    modalities to align. Nothing imports it but its own command.
    """
    names = _names()
    assert {"text", "vision", "behavior"} <= set(names)
    wrong = []
    for file in [*ROOT.glob("earec_core/**/*.py"), *ROOT.glob("registry/**/*.py")]:
        where = file.relative_to(ROOT).as_posix().removeprefix("earec_core/")
        if where.startswith("studies/"):
            continue
        source = file.read_text()
        wrong += [f"{where}: earec_{n}" for n in names if f"earec_{n}" in source]
        wrong += [f"{where}: earec-{n}" for n in names if f"earec-{n}" in source]
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Constant) and (where, node.value) not in WORDS:
                wrong += [f"{where}:{node.lineno} {n!r}" for n in names if node.value == n]
            if isinstance(node, ast.Attribute) and node.attr != "text":
                wrong += [f"{where}:{node.lineno} .{n}" for n in names if node.attr == n]
    assert not wrong


def test_the_demo_is_imported_by_its_command_alone() -> None:
    users = {
        file.relative_to(ROOT).as_posix()
        for file in ROOT.glob("earec_core/**/*.py")
        if "earec_core.studies.demo" in file.read_text() and "earec_core/studies/demo/" not in file.as_posix()
    }
    assert users == {"earec_core/cli/demo.py"}
