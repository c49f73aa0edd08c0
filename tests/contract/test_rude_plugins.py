"""Plugins that do something to the process: end it, keep it, write into its results, stop other libraries."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from earec_core.cli import inspection, run

from .conftest import MODALITY, Site
from .test_broken_plugins import _settings, _write_items, earec

__all__ = ["earec"]
Earec = Callable[..., subprocess.CompletedProcess[str]]

WRITES = """
import ctypes, os, subprocess, sys
print("in python")
sys.__stdout__.write("in python, the first stdout")
os.write(1, b"to the descriptor")
ctypes.CDLL(None).printf(b"in C, kept until the process ends")
subprocess.run(["echo", "in a child"])
"""
UNREADABLE = {
    "line": b"[console_scripts]\nno equals sign\n",
    "bytes": b"[console_scripts]\nx = \xff\xfe:y\n",
}


@pytest.fixture
def data(tmp_path: Path) -> str:
    """A dataset directory."""
    source = _write_items(tmp_path / "source")
    assert run(["data", "import", str(source), "--out", str(tmp_path / "data"), "--core", "1"]) == 0
    return str(tmp_path / "data")


def _listed(text: str) -> dict[str, dict[str, str]]:
    return {f"{row['kind']} {row['name']}": row for row in json.loads(text)}


def test_entry_points_that_no_library_can_read_stop_no_command(
    site: Site, data: str, tiny_llm: Path, tmp_path: Path
) -> None:
    """pydantic, torch and others ask for all entry points there are when they are imported."""
    asks = "import importlib.metadata as m; m.entry_points(group='x')"
    for name, content in UNREADABLE.items():
        own = Site(tmp_path / name)
        for folder in (own, site):
            folder.add(f"unreadable-{name}", "")
            next(folder.folder.glob(f"unreadable_{name}-*/entry_points.txt")).write_bytes(content)
        asked = subprocess.run(
            [sys.executable, "-c", asks], env={**os.environ, "PYTHONPATH": str(own.folder)}
        )
        assert asked.returncode == 1, name

    def earec(*argv: str) -> subprocess.CompletedProcess[str]:
        # Not a fork of one that has imported everything: the imports are what would fail.
        environment = {**os.environ, "PYTHONPATH": str(site.folder), "EAREC_HOME": str(tmp_path / "home")}
        command = [sys.executable, "-m", "earec_core", *argv]
        return subprocess.run(command, capture_output=True, text=True, env=environment)

    done = earec("align", "--modality", "text", "--data", data, *_settings(tiny_llm))
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    done = earec("doctor", "--json")
    assert done.returncode == 0, done.stderr
    rows = {row["what"]: row for row in json.loads(done.stdout)}
    assert (rows["modality text"]["state"], rows["device"]["state"]) == ("ok", "ok")


def test_a_plugin_of_pydantics_own_stops_no_command(site: Site, earec: Earec, data: str) -> None:
    site.add("rude", "[pydantic]\nrude = kit_rude:plugin\n", {"kit_rude.py": "raise RuntimeError('no luck')"})
    done = earec("align", "--modality", "text", "--data", data, "--set", "align.steps=1")
    assert (done.returncode, "no luck" in done.stderr) == (2, False), done.stderr


def test_results_are_alone_on_stdout_whatever_a_plugin_writes(
    site: Site, earec: Earec, data: str, tiny_llm: Path
) -> None:
    site.modality(
        "loud",
        source=WRITES
        + MODALITY.replace("def read(self, item):", "def read(self, item):\n        print('reading')"),
    )
    spec = site.folder / "kit_loud" / "spec.py"
    spec.write_text(WRITES + spec.read_text())
    for argv in (["plugins", "list"], ["doctor"]):
        done = earec(*argv, "--json")
        assert json.loads(done.stdout), argv
        assert "to the descriptor" in done.stderr
    done = earec("align", "--modality", "loud", "--data", data, *_settings(tiny_llm), "--json")
    assert json.loads(done.stdout)["name"] == "loud/data"
    for written in ("in python", "first stdout", "to the descriptor", "in C", "in a child", "reading"):
        assert written in done.stderr


def test_listing_outlives_plugins_that_end_or_keep_the_process(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    killed = "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"
    sources = {
        "abort": ("modality", "import os\nos.abort()", "ended the process (SIGABRT)"),
        "kill": ("modality", killed, "ended the process (SIGKILL)"),
        "leave": ("modality", "import os\nos._exit(0)", "SystemExit: 0"),
        "loop": ("observer", "while True: pass", "did not end within 4 seconds"),
        "wait": ("command", "import sys\nsys.stdin.read()\nraise OSError('nobody types')", "nobody types"),
    }
    groups = {"modality": "modalities", "observer": "observers", "command": "commands"}
    for name, (kind, source, _) in sources.items():
        points = f"[earec.{groups[kind]}]\n{name} = kit_{name}:SPEC\n"
        site.add(f"earec-{name}", points, {f"kit_{name}.py": source})
    monkeypatch.syspath_prepend(str(site.folder))
    monkeypatch.setattr(inspection, "_PATIENCE", 4)
    assert run(["plugins", "list", "--json"]) == 0
    listed = _listed(capsys.readouterr().out)
    for name, (kind, _, cause) in sources.items():
        row = listed[f"{kind} {name}"]
        assert (row["state"], cause in row["cause"]) == ("import-error", True), row
        assert f"earec-{name}" in row["fix"]
    # Those asked after them are looked at all the same.
    for plugin in ("modality text", "modality vision", "command behavior"):
        assert listed[plugin]["state"] == "ok"
    assert "kit_kill" not in sys.modules


def test_the_doctor_outlives_a_factory_that_ends_the_process(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    site.modality("deadly", source="import os\nos.abort()")
    monkeypatch.syspath_prepend(str(site.folder))
    assert run(["doctor", "--json"]) == 0
    rows = {row["what"]: row for row in json.loads(capsys.readouterr().out)}
    assert "import-error" in rows["modality deadly"]["value"]
    assert "ended the process (SIGABRT)" in rows["modality deadly"]["value"]
    assert {rows[f"modality {name}"]["state"] for name in ("audio", "text", "vision")} == {"ok"}
    assert run(["plugins", "show", "text"]) == 0


HOOK = """
import os
from earec_core.plugins.hooks import hookimpl

class Leaver:
    @hookimpl
    def earec_run_step(self, step):
        os._exit(0)
"""


def test_an_observer_does_not_end_a_run(site: Site, earec: Earec, data: str, tiny_llm: Path) -> None:
    sources = {"leaver": HOOK, "gone": "import os\nos._exit(0)"}
    for name, source in sources.items():
        points = f"[earec.observers]\n{name} = kit_{name}:Leaver\n"
        site.add(f"earec-{name}", points, {f"kit_{name}.py": source})
    done = earec("align", "--modality", "text", "--data", data, *_settings(tiny_llm), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["name"] == "text/data"
    warnings = [line for line in done.stderr.splitlines() if line.startswith("Warning: ")]
    assert len(warnings) == 2
    assert "'gone' of earec-gone is left out (import-error)" in warnings[0]
    assert "'leaver' raised in earec_run_step and is not called again (SystemExit: 0)" in warnings[1]


@pytest.mark.parametrize("call", ["os._exit(0)", "raise SystemExit(0)"])
def test_an_encoder_that_ends_the_run_is_said(
    call: str, site: Site, earec: Earec, data: str, tiny_llm: Path
) -> None:
    source = f"import os\n{MODALITY}".replace(
        "    def forward(self, batch):", f"    def forward(self, batch):\n        {call}"
    )
    site.modality("leaver", source=source)
    done = earec("align", "--modality", "leaver", "--data", data, *_settings(tiny_llm))
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 3
    assert last.startswith("Error: ")
    line = source.splitlines().index(f"        {call}") + 1
    assert f"kit_leaver/modality.py, line {line}, ended the run (SystemExit: 0)" in last


def test_what_an_encoder_spoils_is_named_and_comes_back_once_it_is_mended(
    site: Site, earec: Earec, data: str, tiny_llm: Path, tmp_path: Path
) -> None:
    cached = MODALITY.replace("return False", "return True")
    sick = cached.replace(
        "return Encoded(h.sin(),", "h[h[:, 0, 0] == 8] *= np.nan\n        return Encoded(h.sin(),"
    )
    assert sick.count("np.nan") == 1
    site.modality("sick", source=sick)
    align = ["align", "--modality", "sick", "--data", data, *_settings(tiny_llm), "--json"]
    # Titles are `thing 0` to `thing 11`: the last two have eight characters.
    done = earec(*align)
    assert done.returncode == 0, done.stderr
    for item in ("i10", "i11"):
        assert f"Item {item} loses its sick: Its encoder gives NaN or infinity for it." in done.stderr
    first = json.loads(done.stdout)
    assert first["items"]["damaged"] == 2
    encode = ["encode", "sick/data", "--data", data, "--backbone", str(tiny_llm), "--json"]
    assert json.loads(earec(*encode).stdout)["coverage"] == {"sick": 10, "none": 2}
    site.modality("sick", source=cached)
    done = earec(*align)
    assert done.returncode == 0, done.stderr
    assert "Already aligned" not in done.stderr
    assert json.loads(done.stdout)["items"]["damaged"] == 0
    assert json.loads(earec(*encode).stdout)["coverage"] == {"sick": 12, "none": 0}


def test_an_edited_plugin_is_aligned_anew_and_force_begins_again(
    site: Site, earec: Earec, data: str, tiny_llm: Path
) -> None:
    align = ["align", "--modality", "own", "--data", data, *_settings(tiny_llm), "--json"]
    site.modality("own")
    first = earec(*align)
    assert first.returncode == 0, first.stderr
    site.modality("own", source=MODALITY.replace("h.sin()", "h.cos()"))
    edited, again, forced = earec(*align), earec(*align), earec(*align, "--force")
    ids = [json.loads(done.stdout)["id"] for done in (first, edited, again, forced)]
    assert ids[0] != ids[1] == ids[2] == ids[3]
    assert ["Already aligned" in done.stderr for done in (edited, again, forced)] == [False, True, False]
