"""Plugin discovery: what switches do, that nothing heavy is imported for a listing, that the core names none."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from earec_core import plugins
from earec_core.cli import COMMANDS, run
from earec_core.errors import PluginError
from earec_core.plugins import State

from .conftest import Site

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _on_the_path(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(site.folder))
    plugins.discover.cache_clear()
    yield
    plugins.discover.cache_clear()


def test_disabled_and_strict(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.modality("fine")
    assert plugins.get("fine").state is State.OK
    monkeypatch.setenv("EAREC_DISABLE_PLUGINS", "fine, other")
    with pytest.raises(PluginError, match="Take 'fine' out of EAREC_DISABLE_PLUGINS"):
        plugins.get("fine")
    assert next(p for p in plugins.discover() if p.name == "fine").state is State.DISABLED
    source = {"kit_raising.py": "raise RuntimeError('no luck')"}
    site.add("earec-raising", "[earec.modalities]\nraising = kit_raising:SPEC\n", source)
    with pytest.raises(PluginError) as caught:
        plugins.get("raising")
    assert isinstance(caught.value.__cause__, RuntimeError)
    monkeypatch.setenv("EAREC_STRICT_PLUGINS", "1")
    plugins.discover.cache_clear()
    with pytest.raises(RuntimeError, match="no luck"):
        plugins.discover()
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


def test_commands_of_one_name(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    source = "import click\n\n@click.command()\ndef hum():\n    click.echo('{}')\n"
    for n in (1, 2):
        site.add(
            f"earec-hum{n}",
            f"[earec.commands]\nhum = kit_hum{n}:hum\nalign = kit_hum{n}:hum\n",
            {f"kit_hum{n}.py": source.format(n)},
        )
    site.add("earec-dumb", "[earec.commands]\ndumb = json:loads\n")
    assert run(["hum"]) == 0
    assert capsys.readouterr().out == "1\n"
    states = {(p.name, p.distribution): (p.state, p.cause) for p in plugins.commands(COMMANDS)}
    assert states["hum", "earec-hum1"][0] is State.OK
    assert states["hum", "earec-hum2"] == (State.DUPLICATE_NAME, "The command 'hum' is that of earec-hum1.")
    assert states["align", "earec-hum1"] == (
        State.DUPLICATE_NAME,
        "The command 'align' is that of earec itself.",
    )
    assert states["dumb", "earec-dumb"] == (
        State.INVALID_SPEC,
        "json:loads is a function, not a click command.",
    )
    assert run(["dumb"]) == 3
    assert "not a click command" in capsys.readouterr().err


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
    modules = _imported("from earec_core import plugins; plugins.names()")
    assert not any(name.startswith(packages) for name in modules)
    modules = _imported("from earec_core import plugins; plugins.discover()")
    assert not modules & heavy


def _names() -> list[str]:
    """Names of the modalities and commands of the distributions under plugins/."""
    found = set()
    for file in ROOT.glob("plugins/*/pyproject.toml"):
        groups = tomllib.loads(file.read_text())["project"].get("entry-points", {})
        found |= {name for entries in groups.values() for name in entries}
    return sorted(found)


WORDS = {
    ("catalog/formats.py", "text"): "a column of the reviews' own files",
    ("explain/__init__.py", "text"): "a column of the table of texts",
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
