"""Broken distributions, really installed, all at once: nobody notices but who asks for one of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.forks import Forks

from .conftest import MODALITY, Site

HOOK = "from earec_core.plugins.hooks import hookimpl\n"
BREAKAGES: dict[str, tuple[str, str, str]] = {
    # name: kind, state, a word of its own exception or cause
    "raises": ("modality", "import-error", "RuntimeError: no luck"),
    "syntax": ("modality", "import-error", "SyntaxError"),
    "exits": ("modality", "import-error", "SystemExit: 7"),
    "gone": ("modality", "missing-dependency", "a_module_that_is_not_there"),
    "needy": ("modality", "missing-dependency", "another_that_is_not_there"),
    "older": ("modality", "incompatible-api", "written for plugin API 1.0; this earec has 2.2"),
    "newer": ("modality", "incompatible-api", "plugin API 2.9"),
    "untyped": ("modality", "invalid-spec", "dict, not a ModalitySpec"),
    "nowhere": ("modality", "invalid-spec", "no module kit_nowhere.elsewhere"),
    "unlined": ("modality", "invalid-spec", "not of the form package.module:name"),
    "nameless": ("modality", "invalid-spec", "METADATA"),
    "twice": ("modality", "duplicate-name", "earec-twice1 (kit_twice1:SPEC) and earec-twice2"),
    "argued": ("observer", "invalid-spec", "mood"),
    "unhooked": ("observer", "invalid-spec", "earec_run_middle"),
    "former": (
        "observer",
        "invalid-spec",
        "now earec_run_step: called for every stage, with the new argument stage",
    ),
    "halting": ("observer", "import-error", "no luck either"),
    "breaks": ("command", "import-error", "no luck at all"),
}


def install_broken(site: Site) -> None:
    """One distribution per way of breaking (two for the name that is brought twice)."""

    def add(name: str, source: str, *, group: str = "modalities", metadata: str | None = None) -> None:
        points = f"[earec.{group}]\n{name} = kit_{name}:SPEC\n"
        site.add(f"earec-{name}", points, {f"kit_{name}.py": source}, metadata=metadata)

    add("raises", "raise RuntimeError('no luck')")
    add("syntax", "def (:")
    add("exits", "print('to stdout'); raise SystemExit(7)")
    add("gone", "import a_module_that_is_not_there")
    site.modality("needy", more=", requires=('another_that_is_not_there',)")
    site.modality("newer", api="(2, 9)")
    site.modality("older", api="(1, 0)")
    add("untyped", "SPEC = {'name': 'untyped'}")
    site.modality("nowhere")
    spec = site.folder / "kit_nowhere" / "spec.py"
    spec.write_text(spec.read_text().replace("nowhere.modality:Factory", "nowhere.elsewhere:Factory"))
    site.add("earec-unlined", "[earec.modalities]\nunlined = see:the:manual\n")
    add("nameless", "raise RuntimeError('never imported')", metadata="\xff\xfe")
    for module in ("twice1", "twice2"):
        points = f"[earec.modalities]\ntwice = kit_{module}:SPEC\n"
        site.add(f"earec-{module}", points, {f"kit_{module}.py": "raise RuntimeError('never imported')"})
    wrong = "class SPEC:\n    @hookimpl\n    def {}: pass\n"
    add("argued", HOOK + wrong.format("earec_run_step(self, mood)"), group="observers")
    add("unhooked", HOOK + wrong.format("earec_run_middle(self, run)"), group="observers")
    add("former", HOOK + wrong.format("earec_align_step(self, run, step)"), group="observers")
    add("halting", "raise RuntimeError('no luck either')", group="observers")
    add("breaks", "raise RuntimeError('no luck at all')", group="commands")


def _path(site: Site) -> str:
    return os.pathsep.join(filter(None, (str(site.folder), os.environ.get("PYTHONPATH"))))


@pytest.fixture
def earec(site: Site, tmp_path: Path, forks: Forks) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command in a process of its own that sees the site folder."""
    environment = {
        **os.environ,
        "PYTHONPATH": _path(site),
        "EAREC_HOME": str(tmp_path / "home"),
        "OMP_NUM_THREADS": "1",
    }

    def call(*argv: str, **more: str) -> subprocess.CompletedProcess[str]:
        return forks.run(argv, environment | more, cwd=tmp_path)

    return call


def _write_items(folder: Path) -> Path:
    folder.mkdir()
    rows = [
        {"item_id": f"i{n}", "title": f"thing {n}", "description": f"a thing of number {n}"}
        for n in range(12)
    ]
    (folder / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = [f"u{u},i{(u + t) % 12},{t}\n" for u in range(8) for t in range(5)]
    (folder / "interactions.csv").write_text("user_id,item_id,timestamp\n" + "".join(pairs))
    return folder


def _settings(llm: Path) -> list[str]:
    values = ["align.max_steps=1", "align.rouge_items=1", "align.eval_items=2", "align.batch_size=2"]
    return ["--backbone", str(llm), *(part for value in [*values, "lora.r=2"] for part in ("--set", value))]


def _words(text: str) -> list[str]:
    return [name for name in BREAKAGES if f"'{name}'" in text or f"earec-{name}" in text]


def test_broken_ones_are_seen_only_by_who_looks(
    site: Site, earec: Callable[..., subprocess.CompletedProcess[str]], tiny_llm: Path, tmp_path: Path
) -> None:
    install_broken(site)
    done = earec("--help")
    assert (done.returncode, done.stderr) == (0, "")
    # A command is listed by name; that it is broken is not known without importing it.
    assert "breaks" in done.stdout
    done = earec("align", "--modality", "text", "--help")
    assert (done.returncode, done.stderr) == (0, "")

    source = _write_items(tmp_path / "source")
    done = earec("data", "import", str(source), "--out", "data", "--core", "1")
    assert (done.returncode, _words(done.stdout + done.stderr)) == (0, [])
    align = ["align", "--modality", "text", "--data", "data", *_settings(tiny_llm), "--json"]
    done = earec(*align, "--jsonl", "events.jsonl")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["name"] == "text/data"
    # Observers are not asked for by name, so that one is missing is said, in a line each.
    observers = [name for name, (kind, _, _) in BREAKAGES.items() if kind == "observer"]
    warnings = [line for line in done.stderr.splitlines() if line.startswith("Warning: ")]
    assert sorted(_words("\n".join(warnings))) == sorted(observers)
    assert len(warnings) == len(observers)
    assert _words("\n".join(set(done.stderr.splitlines()) - set(warnings))) == []
    assert "Traceback" not in done.stderr
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [one["event"] for one in events] == ["start", "step", "step", "step", "registered", "end"]


def test_each_is_named_with_state_cause_and_fix_and_exits_3_when_asked_for(
    site: Site, earec: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    install_broken(site)
    done = earec("doctor", "--json")
    assert done.returncode == 0, done.stderr
    report = {row["what"]: row for row in json.loads(done.stdout)}
    for name, (kind, state, said) in BREAKAGES.items():
        row = report[f"{kind} {name}"]
        assert row["value"].startswith(f"{state}, "), row
        assert said in row["value"]
        assert row["state"] == "problem"
        assert row["fix"]
    assert report["modality text"]["state"] == "ok"

    done = earec("plugins", "list", "--json")
    assert done.returncode == 0, done.stderr
    listed = {(row["kind"], row["name"]): row for row in json.loads(done.stdout)}
    for name, (kind, state, said) in BREAKAGES.items():
        row = listed[kind, name]
        assert row["state"] == state
        assert said in row["cause"]
        assert row["fix"]
    assert listed["modality", "text"]["state"] == "ok"


def test_the_error_of_one_asked_for(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from earec_core.cli import COMMANDS, run

    install_broken(site)
    monkeypatch.syspath_prepend(str(site.folder))
    for name in COMMANDS:
        assert run([name, "--help"]) == 0
    assert _words(capsys.readouterr().err) == []
    for name, (kind, state, said) in BREAKAGES.items():
        if kind == "observer":
            continue
        argv = ["align", "--modality", name, "--data", str(tmp_path)] if kind == "modality" else [name]
        assert run(argv) == 3, name
        lines = capsys.readouterr().err.strip().splitlines()
        assert lines[-1].startswith(f"Error: The {kind} {name!r} is unusable ({state}): ")
        assert said in lines[-1]
        assert len(lines) == (2 if name == "exits" else 1)  # what it printed, kept off stdout


@pytest.mark.parametrize(
    ("source", "state", "said"),
    [
        ("import a_codec_that_is_not_there", "missing-dependency", "a_codec_that_is_not_there"),
        ("from earec_core.modality import Nothing", "import-error", "cannot import name 'Nothing'"),
        ("Config = dict", "invalid-spec", "no PluginConfig"),
        (MODALITY.replace("class Factory(", "class Other("), "invalid-spec", "Factory"),
        (MODALITY.replace("class Factory(Modality[Config])", "class Factory"), "invalid-spec", "no Modality"),
        (MODALITY.replace("def read(", "def raed("), "import-error", "abstract method"),
        (
            MODALITY.replace("def read(", "def __init__(self, *_): raise OSError('no ear')\n\n    def read("),
            "import-error",
            "no ear",
        ),
    ],
)
def test_a_spec_whose_classes_do_not_load_is_found_when_it_is_asked_for(
    site: Site, monkeypatch: pytest.MonkeyPatch, source: str, state: str, said: str
) -> None:
    from earec_core import plugins
    from earec_core.cli import run
    from earec_core.errors import PluginError
    from earec_core.modality import Context, Modality, PluginConfig, create

    for module in [name for name in sys.modules if name.startswith("kit_lame")]:
        monkeypatch.delitem(sys.modules, module)
    site.modality("lame", source=source)
    monkeypatch.syspath_prepend(str(site.folder))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    with pytest.raises(PluginError, match=rf"'lame' is unusable \({state}\)") as caught:
        create("lame", {}, Context())
    assert said in str(caught.value)
    assert caught.value.exit_code == 3
    examined = plugins.examine(plugins.get("lame"), config=PluginConfig, factory=Modality)
    made = "abstract" in said or said == "no ear"
    assert examined.state == ("ok" if made else state)
    # `align` says so before it looks at anything else.
    if not made:
        assert run(["align", "--modality", "lame", "--data", "nowhere"]) == 3
    for module in [name for name in sys.modules if name.startswith("kit_lame")]:
        monkeypatch.delitem(sys.modules, module)


def test_fifty_plugins_are_not_imported_for_their_names(
    site: Site, earec: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    for n in range(50):
        site.modality(f"m{n:02}")
    script = tmp_path / "script.py"
    script.write_text(
        "import io, sys\nfrom contextlib import redirect_stdout\nfrom earec_core import plugins\n"
        "print(*plugins.names(plugins.MODALITY))\nfrom earec_core.cli import run\n"
        "with redirect_stdout(io.StringIO()):\n    assert run(['--help']) == 0\nprint(*sys.modules)\n"
        "plugins.get('m07')\nprint(*sys.modules)\n"
    )
    environment = {**os.environ, "PYTHONPATH": _path(site)}
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, env=environment, check=True
    )
    names, loaded, after = (set(line.split()) for line in done.stdout.splitlines())
    assert {f"m{n:02}" for n in range(50)} | {"text"} <= names
    assert not loaded & {"torch", "transformers", "peft", "polars", "numpy", "pydantic", "rich"}
    assert not any(module.startswith(("kit_", "earec_text")) for module in loaded)
    # Asking for one imports that one's spec, and no other's.
    assert {m for m in after if m.startswith("kit_")} == {"kit_m07", "kit_m07.spec"}


def test_installing_and_removing_needs_nothing_else(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    from earec_core import plugins
    from earec_core.errors import PluginError

    monkeypatch.syspath_prepend(str(site.folder))
    assert "smell" not in plugins.names(plugins.MODALITY)
    site.modality("smell")
    assert plugins.get("smell").version == "1.0"
    site.modality("smell", version="1.1")
    assert plugins.get("smell").version == "1.1"
    site.remove("earec-smell")
    with pytest.raises(PluginError, match="no modality 'smell'"):
        plugins.get("smell")


def test_a_file_of_entry_points_that_does_not_parse_costs_its_own_line_alone(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Other libraries that scan all distributions stop at such a file; ours does not."""
    from earec_core import plugins
    from earec_core.cli import run

    site.add("earec-cut", "[earec.modalities]\ncut\n[earec.commands]\n = nothing:here\n")
    monkeypatch.syspath_prepend(str(site.folder))
    assert {"cut", "text"} <= set(plugins.names(plugins.MODALITY))
    assert run(["--help"]) == 0
    assert "behavior" in capsys.readouterr().out
    assert [p.state for p in plugins.installed(plugins.MODALITY) if p.name == "cut"] == ["invalid-spec"]


def test_one_distribution_through_two_paths_is_one_plugin(
    site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from earec_core import plugins

    other = Site(tmp_path / "other")
    other.modality("smell", version="0.9")
    site.modality("smell", version="1.0")
    monkeypatch.syspath_prepend(str(other.folder))
    monkeypatch.syspath_prepend(str(site.folder))
    found = [plugin for plugin in plugins.installed(plugins.MODALITY) if plugin.name == "smell"]
    assert [(plugin.state, plugin.version) for plugin in found] == [("ok", "1.0")]


def test_a_model_outlives_a_minor_update_of_its_plugin_and_not_a_major_one(
    site: Site,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tiny_llm: Path,
    tmp_path: Path,
) -> None:
    from earec_core.cli import run

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(site.folder))
    site.modality("length", version="1.2")
    assert (
        run(["data", "import", str(_write_items(tmp_path / "source")), "--out", "data", "--core", "1"]) == 0
    )
    assert run(["align", "--modality", "length", "--data", "data", *_settings(tiny_llm)]) == 0
    encode = ["encode", "length/data", "--data", "data", "--backbone", str(tiny_llm), "--json"]
    site.modality("length", version="1.9")
    capsys.readouterr()
    assert run(encode) == 0
    assert json.loads(capsys.readouterr().out)["coverage"] == {"length": 12, "none": 0}
    site.modality("length", version="2.0")
    assert run(encode) == 3
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "made by earec-length 1.2; installed is 2.0" in said
    assert said.endswith("pip install 'earec-length==1.*'")
    site.modality("length", version="1.0")
    assert run(encode) == 0


@pytest.mark.parametrize("strict", [False, True])
def test_ctrl_c_while_a_plugin_is_imported_is_ctrl_c(
    site: Site, monkeypatch: pytest.MonkeyPatch, strict: bool
) -> None:
    from earec_core import plugins

    if strict:
        monkeypatch.setenv("EAREC_STRICT_PLUGINS", "1")
    source = {"kit_stopped.py": "raise KeyboardInterrupt"}
    site.add("earec-stopped", "[earec.modalities]\nstopped = kit_stopped:SPEC\n", source)
    monkeypatch.syspath_prepend(str(site.folder))
    with pytest.raises(KeyboardInterrupt):
        plugins.get("stopped")
