"""Plugin discovery: states, isolation, and that nothing heavy is imported for a listing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from earec_core import plugins
from earec_core.cli import run
from earec_core.errors import PluginError
from earec_core.plugins import State

GOOD = """
from earec_core.spec import ModalitySpec
SPEC = ModalitySpec("{name}", {api}, "A test.", "{module}:Config", "{module}:Factory", "<{name}>"{more})
"""


class _Entry(EntryPoint):
    """An entry point with a distribution."""

    @property
    def dist(self) -> Any:
        return SimpleNamespace(name=f"earec-{self.value.partition(':')[0]}", version="1.2")


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Install modules as plugins: (entry point name, module name, source)."""
    monkeypatch.syspath_prepend(str(tmp_path))
    found: list[EntryPoint] = []
    real = plugins.entry_points

    def entry_points(group: str) -> Any:
        return [*real(group=group), *found] if group == plugins.MODALITY_GROUP else real(group=group)

    monkeypatch.setattr(plugins, "entry_points", entry_points)
    plugins.discover.cache_clear()

    def add(name: str, module: str, source: str) -> None:
        (tmp_path / f"{module}.py").write_text(source)
        found.append(_Entry(name, f"{module}:SPEC", plugins.MODALITY_GROUP))
        plugins.discover.cache_clear()

    yield add
    plugins.discover.cache_clear()


def _good(name: str, module: str, api: str = "(1, 0)", more: str = "") -> str:
    return GOOD.format(name=name, module=module, api=api, more=more)


def _break_everything(install: Callable[..., None]) -> dict[str, State]:
    install("raises", "p_raises", "raise RuntimeError('no luck')")
    install("syntax", "p_syntax", "def (:")
    install("exits", "p_exits", "raise SystemExit(3)")
    install("gone", "p_gone", "import a_module_that_is_not_there")
    install("newer", "p_newer", _good("newer", "p_newer", "(1, 9)"))
    install("older", "p_older", _good("older", "p_older", "(0, 1)"))
    install("untyped", "p_untyped", "SPEC = {'name': 'untyped'}")
    install("misnamed", "p_misnamed", _good("other", "p_misnamed"))
    install("needy", "p_needy", _good("needy", "p_needy", more=", requires=('a_module_that_is_not_there',)"))
    install("twice", "p_twice1", _good("twice", "p_twice1"))
    install("twice", "p_twice2", _good("twice", "p_twice2"))
    return {
        "raises": State.IMPORT_ERROR,
        "syntax": State.IMPORT_ERROR,
        "exits": State.IMPORT_ERROR,
        "gone": State.IMPORT_ERROR,
        "newer": State.INCOMPATIBLE_API,
        "older": State.INCOMPATIBLE_API,
        "untyped": State.INVALID_SPEC,
        "misnamed": State.INVALID_SPEC,
        "needy": State.MISSING_DEPENDENCY,
        "twice": State.DUPLICATE_NAME,
    }


def test_each_way_of_breaking_is_its_own_state_with_cause_and_fix(
    install: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    expected = _break_everything(install)
    assert run(["plugins", "list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    states = {row["name"]: row["state"] for row in rows}
    assert {name: states[name] for name in expected} == {n: str(s) for n, s in expected.items()}
    assert {states[name] for name in ("text", "vision", "behavior")} == {"ok"}
    assert all(row["cause"] and row["fix"] for row in rows if row["state"] != "ok")
    assert "no luck" in next(row["cause"] for row in rows if row["name"] == "raises")


def test_a_broken_plugin_exits_3_when_asked_for(
    install: Callable[..., None], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name in _break_everything(install):
        assert run(["align", "--modality", name, "--data", str(tmp_path)]) == 3
        said = capsys.readouterr().err.strip().splitlines()
        assert len(said) == 1
        assert name in said[0]
    with pytest.raises(PluginError) as caught:
        plugins.get("raises")
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_disabled_and_strict(install: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    install("fine", "p_fine", _good("fine", "p_fine"))
    assert plugins.get("fine").spec is not None
    monkeypatch.setenv("EAREC_DISABLE_PLUGINS", "fine, other")
    plugins.discover.cache_clear()
    assert next(p for p in plugins.discover() if p.name == "fine").state is State.DISABLED
    monkeypatch.setenv("EAREC_STRICT_PLUGINS", "1")
    install("raises", "p_raises", "raise RuntimeError('no luck')")
    with pytest.raises(RuntimeError, match="no luck"):
        plugins.discover()


def _imported(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_help_and_listing_import_nothing_heavy() -> None:
    heavy = {"torch", "transformers", "peft", "polars", "numpy", "pydantic", "rich"}
    quiet = "from contextlib import redirect_stdout; import io\nwith redirect_stdout(io.StringIO()):"
    for argv in (["--help"], ["--version"]):
        modules = _imported(f"from earec_core.cli import run\n{quiet} run({argv!r})")
        assert not modules & heavy
        assert not any(name.startswith(("earec_text", "earec_vision", "earec_behavior")) for name in modules)
    modules = _imported("from earec_core import plugins; plugins.names()")
    assert not any(name.startswith(("earec_text", "earec_vision", "earec_behavior")) for name in modules)
    modules = _imported("from earec_core import plugins; plugins.discover()")
    assert not modules & heavy


def test_the_core_names_no_modality() -> None:
    """No branch of the core can turn on a plugin's name: none stands in its code as a constant."""
    import ast

    root = Path(__file__).parents[2]
    wrong = [
        f"{file.relative_to(root)}:{node.lineno}"
        for file in [*root.glob("earec_core/**/*.py"), *root.glob("registry/**/*.py")]
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and node.value in ("vision", "behavior", "earec_text")
    ]
    assert not wrong
