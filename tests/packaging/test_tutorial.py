"""docs/tutorial-modality.md, followed step by step in a new virtual environment, on a tiny LLM."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

from earec_registry import Registry
from tests.forks import Forks

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/tutorial-modality.md").read_text()
STEP = re.compile(r"<!-- (file: (?P<file>\S+)|run) -->\n```\w*\n(?P<text>.*?)```", re.DOTALL)


def steps() -> Iterator[tuple[str, str]]:
    """(file, its text) and ("", a command), in the page's order."""
    for step in STEP.finditer(PAGE):
        if step["file"]:
            yield step["file"], step["text"]
        else:
            yield from (("", line) for line in step["text"].splitlines())


@pytest.fixture
def environment(tmp_path: Path, tiny_llm: Path) -> dict[str, str]:
    """A new virtual environment that has this one's packages, and none that the page installs."""
    venv.create(tmp_path / "venv", with_pip=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    mine = sysconfig.get_path("purelib")
    site = tmp_path / "venv/lib" / version / "site-packages/this.pth"
    site.write_text(f"import site; site.addsitedir({mine!r})\n")
    tool = tmp_path / "venv/bin/earec"
    tool.write_text(f"#!{tmp_path}/venv/bin/python\nfrom earec_core.cli import main\nmain()\n")
    tool.chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{tmp_path}/venv/bin:{os.environ['PATH']}",
        "EAREC_HOME": str(tmp_path / "home"),
        "EAREC_BACKBONE__MODEL": str(tiny_llm),
        "EAREC_ALIGN__MAX_STEPS": "4",
        "EAREC_EXPLAIN__MAX_NEW_TOKENS": "4",
        "OMP_WAIT_POLICY": "PASSIVE",
    }


@pytest.fixture
def there(tmp_path: Path, environment: dict[str, str]) -> Iterator[Forks]:
    """Runs `earec` in the new environment, in processes that need not import it."""
    forks = Forks(python=f"{tmp_path}/venv/bin/python")
    yield forks
    forks.close()


def test_the_tutorial_can_be_followed(tmp_path: Path, environment: dict[str, str], there: Forks) -> None:
    said, installed = {}, False
    for file, text in steps():
        if file:
            assert file == "make_shop.py" or (tmp_path / file).exists(), f"{file} is not what `new` wrote"
            (tmp_path / file).write_text(text)
            continue
        program, *argv = shlex.split(text)
        installed |= program == "pip"
        if installed and program == "earec":
            done = there.run(argv, environment, cwd=tmp_path)
        else:
            done = subprocess.run(
                [program, *argv], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
            )
        assert done.returncode == 0, f"$ {text}\n{done.stdout}\n{done.stderr}"
        said[text] = done.stdout
    assert any("tabular" in out for line, out in said.items() if "plugins show" in line)
    registry = Registry.open(tmp_path / "home/registry", create=False)
    composite = registry.manifest("composite/shop").data
    assert composite["weights"] == {"tabular": 0.7, "text": 0.3}
    vectors = registry.manifest("vectors/shop").data
    assert registry.resolve("composite/shop") in vectors["parents"]
    checks = next(out for line, out in said.items() if "plugins check" in line)
    assert "failed" not in checks
    assert checks.count("passed") > 20
    counts = json.loads((tmp_path / "data/shop/manifest.json").read_text())["counts"]
    assert counts["items"] == 40


@pytest.mark.parametrize("name", ["modality.py", "spec.py"])
def test_the_example_is_what_the_tutorial_builds(name: str) -> None:
    built = {Path(file).name: text for file, text in steps() if file}
    assert (ROOT / "examples/earec-tabular/earec_tabular" / name).read_text() == built[name]


def test_the_modality_is_under_a_hundred_lines() -> None:
    lines = (ROOT / "examples/earec-tabular/earec_tabular/modality.py").read_text().splitlines()
    assert len(lines) < 100
