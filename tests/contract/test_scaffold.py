"""`earec plugins new`: what it writes is a plugin that passes the kit and its own tests as it is."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from earec_core import plugins
from earec_core.cli import run
from earec_core.errors import UsageError
from earec_core.plugins import State
from earec_core.testing import scaffold

NAME = "shelf_life"
# What the pytest around must keep to itself.
_OURS = ("cacheprovider", "faulthandler")


@pytest.fixture
def written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Path]:
    """A new plugin's folder, installed as an editable install does: on the path, with its entry points."""
    assert run(["plugins", "new", NAME, "--into", str(tmp_path / "deep" / "er")]) == 0
    folder = Path(capsys.readouterr().out.strip())
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    info = folder / f"earec_{NAME}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Name: {project['name']}\nVersion: {project['version']}\n")
    groups = [
        line
        for group, entries in project["entry-points"].items()
        for line in (f"[{group}]", *(f"{name} = {value}" for name, value in entries.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(groups))
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    for module in [name for name in sys.modules if name.startswith(f"earec_{NAME}")]:
        del sys.modules[module]


def test_a_new_plugin_is_ok_and_passes_the_kit(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert written == written.parent / f"earec-{NAME}"
    plugin = plugins.get(NAME)
    assert (plugin.state, plugin.distribution, plugin.version) == (State.OK, f"earec-{NAME}", "0.1.0")
    assert run(["plugins", "check", NAME]) == 0
    assert {line.split("\t")[1] for line in capsys.readouterr().out.splitlines()[1:]} == {"passed"}


def test_a_new_plugin_passes_its_own_tests(
    written: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.chdir(written)
    assert pytest.main(["-q", "-W", "error", "--capture=no", *(f"-pno:{part}" for part in _OURS)]) == 0
    said = capsys.readouterr().out
    assert "passed" in said
    assert not {"failed", "error", "skipped"} & set(said.split())


def test_the_files_are_complete_and_the_places_to_change_marked(written: Path) -> None:
    files = {str(f.relative_to(written)): f.read_text() for f in written.rglob("*") if f.is_file()}
    own = {name: text for name, text in files.items() if "dist-info" not in name}
    assert set(own) == {
        "pyproject.toml",
        "README.md",
        ".github/workflows/test.yml",
        f"earec_{NAME}/__init__.py",
        f"earec_{NAME}/spec.py",
        f"earec_{NAME}/modality.py",
        f"earec_{NAME}/py.typed",
        f"tests/test_{NAME}.py",
    }
    for name, text in own.items():
        assert "$" not in text.replace("${{ matrix.python }}", ""), name
        if name.endswith(".py"):
            compile(text, name, "exec")
    for name in (
        "pyproject.toml",
        f"earec_{NAME}/spec.py",
        f"earec_{NAME}/modality.py",
        f"tests/test_{NAME}.py",
    ):
        assert "# CHANGE" in own[name], name
    project = tomllib.loads(own["pyproject.toml"])["project"]
    assert project["license"]
    assert project["optional-dependencies"]["test"] == ["earec[testing]"]
    page = (Path(__file__).parents[2] / "docs" / "plugin-kit.md").read_text()
    table = page.partition("<!-- scaffold -->")[2].split("\n\n")[0].splitlines()[3:]
    assert {row.split("`")[1].replace("price", NAME) for row in table} == set(own)
    assert not list(written.parent.glob(".*")), "a temporary folder was left behind"


def test_it_prints_the_path_and_then_what_to_type(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plugins", "new", NAME, "--into", str(tmp_path)]) == 0
    said = capsys.readouterr()
    folder = tmp_path / f"earec-{NAME}"
    assert said.out == f"{folder}\n"
    assert f"pip install -e '{folder}[test]'" in said.err
    assert f"earec plugins check {NAME}" in said.err


def test_it_overwrites_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / f"earec-{NAME}").mkdir()
    (tmp_path / f"earec-{NAME}" / "mine").write_text("kept")
    assert run(["plugins", "new", NAME, "--into", str(tmp_path)]) == 2
    assert "is there already; nothing was written" in capsys.readouterr().err
    assert [f.name for f in tmp_path.rglob("*")] == [f"earec-{NAME}", "mine"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("shelf-life", "letters, digits and underscores"),
        ("2price", "a letter first"),
        ("_", "a letter first"),
        ("../up", "letters, digits and underscores"),
        ("prix_é", "letters, digits and underscores"),
        ("class", "no word of Python"),
        ("", "letters, digits and underscores"),
        ("text", "installed already"),
        ("core", "package earec_core is installed already"),
        ("title", "column of every catalog"),
        ("align", "section of the configuration"),
    ],
)
def test_a_name_that_cannot_be_one_is_refused(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason) as caught:
        scaffold.new(name, tmp_path)
    assert caught.value.exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be written"):
        scaffold.new(NAME, tmp_path / "file")
