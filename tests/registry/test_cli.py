"""`earec registry`: data on stdout, everything else on stderr, documented exit codes."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from filelock import FileLock

from earec_core.cli import run
from earec_registry import Registry


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    root = tmp_path / "registry"
    monkeypatch.setenv("EAREC_REGISTRY", str(root))
    return Registry.open(root)


@pytest.fixture
def stored(tmp_path: Path, registry: Registry) -> str:
    (tmp_path / "w").write_text("weights")
    said = {"kind": "adapter", "modality": {"name": "text"}, "metrics": {"rouge_l": 0.5}}
    return registry.add(said, {"w.bin": tmp_path / "w"}, name="text/demo", why="first")


def test_list_as_json_and_as_text(stored, capsys) -> None:
    assert run(["registry", "list", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert {k: row[k] for k in ("name", "tag", "id", "kind")} == {
        "name": "text/demo",
        "tag": "latest",
        "id": stored,
        "kind": "adapter",
    }
    assert run(["registry", "list"]) == 0
    said = capsys.readouterr()
    assert stored[:12] in said.out
    assert said.err == ""


def test_an_empty_registry_lists_as_an_empty_json_array(registry, capsys) -> None:
    assert run(["registry", "list", "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == []
    assert "is empty" in said.err


def test_a_damaged_model_is_noted_beside_the_list(registry, stored, capsys) -> None:
    (registry.root / f"manifests/sha256/{stored}.json").unlink()
    assert run(["registry", "list", "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == []
    assert "text/demo:latest" in said.err


def test_show_gives_the_manifest_and_the_directory(registry, stored, capsys) -> None:
    assert run(["registry", "show", "text/demo", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown == {"id": stored, **registry.manifest(stored).data}
    assert run(["registry", "show", stored[:8]]) == 0
    text = capsys.readouterr().out
    assert "modality.name\ttext" in text
    assert "file w.bin" in text
    assert run(["registry", "show", "text/demo", "--path"]) == 0
    assert (Path(capsys.readouterr().out.strip()) / "w.bin").read_text() == "weights"


def test_tag_and_log(registry, stored, capsys) -> None:
    argv = ["registry", "tag", "text/demo", "text/demo", "best", "--why", "highest ROUGE-L", "--json"]
    assert run(argv) == 0
    assert json.loads(capsys.readouterr().out) == {"id": stored, "name": "text/demo", "tag": "best"}
    assert registry.resolve("text/demo:best") == stored
    assert run(["registry", "log", "text/demo", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(r["tag"], r["new"], r["why"], r["stored"]) for r in rows] == [
        ("latest", stored, "first", True),
        ("best", stored, "highest ROUGE-L", True),
    ]


def test_verify_exits_4_when_something_is_damaged(registry, stored, capsys) -> None:
    assert run(["registry", "verify", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"ok": True, "checked": 2, "problems": []}
    blob = next((registry.root / "blobs/sha256").iterdir())
    blob.chmod(0o644)
    blob.write_text("Weights")
    for args in ([], ["text/demo"]):
        assert run(["registry", "verify", "--json", *args]) == 4
        said = capsys.readouterr()
        report = json.loads(said.out)
        assert [(p["path"], p["used_by"]) for p in report["problems"]] == [
            (f"blobs/sha256/{blob.name}", ["text/demo:latest"])
        ]
        assert said.err.count("\n") == 1
    assert run(["registry", "verify"]) == 4
    assert "text/demo:latest" in capsys.readouterr().out


def test_gc_removes_what_is_not_reached(registry, stored, capsys) -> None:
    (registry.root / "refs/text/demo/latest").unlink()
    assert run(["registry", "gc", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["manifests"] == []
    assert run(["registry", "gc", "--grace", "0", "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["manifests"] == [stored]
    assert run(["registry", "gc", "--grace", "0"]) == 0
    assert stored in capsys.readouterr().out
    assert registry.objects.all("blobs") == []


def test_rm_removes_the_tag_and_gc_the_model_then(registry, stored, capsys) -> None:
    assert run(["registry", "tag", stored, "text/demo", "old"]) == 0
    capsys.readouterr()
    assert run(["registry", "rm", "text/demo:old", "gone"]) == 2
    assert "no model named 'gone'" in capsys.readouterr().err
    assert registry.resolve("text/demo:old") == stored  # nothing is removed where one is not there
    assert run(["registry", "rm", "text/demo:old", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [{"name": "text/demo", "tag": "old"}]
    assert registry.resolve("text/demo") == stored
    assert run(["registry", "gc", "--grace", "0"]) == 0
    assert registry.is_whole("text/demo")
    assert run(["registry", "rm", "text/demo"]) == 0
    assert run(["registry", "rm", "text/demo"]) == 2
    assert run(["registry", "rm", stored]) == 2
    assert [(entry.tag, entry.new) for entry in registry.log("text/demo")] == [
        ("latest", stored),
        ("old", stored),
    ]
    capsys.readouterr()
    assert run(["registry", "gc", "--grace", "0"]) == 0
    assert ["manifest", stored, "text/demo:old"] in [
        line.split("\t") for line in capsys.readouterr().out.splitlines()
    ]
    assert not registry.objects.all("manifests")
    assert registry.verify().ok


def test_du_counts_a_shared_file_for_each_name_and_once_in_all(
    registry, stored, tmp_path, monkeypatch, capsys
) -> None:
    (tmp_path / "more").write_text("0123456789")
    said = {"kind": "adapter", "modality": {"name": "text"}}
    registry.add(said, {"w.bin": tmp_path / "w", "m.bin": tmp_path / "more"}, name="text/both")
    home = tmp_path / "home"
    (home / "runs" / "one").mkdir(parents=True)
    (home / "runs" / "one" / "state").write_bytes(b"x" * 33)
    monkeypatch.setenv("EAREC_HOME", str(home))
    assert run(["registry", "du", "--json"]) == 0
    sizes = {row["what"]: row["bytes"] for row in json.loads(capsys.readouterr().out)}
    assert sizes["text/demo:latest"] == 7
    assert sizes["text/both:latest"] == 17
    assert sizes["all of these"] == 17
    assert sizes[str(home / "runs")] == 33
    assert sizes[str(registry.root)] >= 17


def test_clean_removes_what_is_old_and_nobody_is_at(tmp_path, monkeypatch, capsys) -> None:
    home, day = tmp_path / "home", 86400
    monkeypatch.setenv("EAREC_HOME", str(home))
    for name, days in (("runs/old", 40), ("runs/new", 1), ("runs/owned", 40), ("cache/features/old", 31)):
        (home / name / "inner").mkdir(parents=True)
        file = home / name / "inner" / "state"
        file.write_bytes(b"x" * 9)
        for path in (file, file.parent, home / name):
            os.utime(path, (time.time() - days * day,) * 2)
    (home / "registry").mkdir()
    gone = {str(home / name): 9 for name in ("runs/old", "cache/features/old")}
    with FileLock(home / "runs" / ".owned.lock"):
        for dry in (["--dry-run"], []):
            assert run(["registry", "clean", "--json", *dry]) == 0
            assert {row["what"]: row["bytes"] for row in json.loads(capsys.readouterr().out)} == gone
    assert sorted(path.name for path in home.glob("*/*") if path.is_dir()) == ["features", "new", "owned"]


def test_an_unknown_model_is_a_usage_error_in_one_line(registry, capsys) -> None:
    for command in ("show", "log", "verify"):
        assert run(["registry", command, "nothing"]) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith("Error: There is no model named 'nothing'")


def test_a_folder_that_is_not_a_registry_exits_4(tmp_path, capsys) -> None:
    (tmp_path / "notes.txt").touch()
    assert run(["registry", "list", "--registry", str(tmp_path)]) == 4
    assert "not empty and not a registry" in capsys.readouterr().err


def test_a_quota_is_a_size_and_holds_for_what_a_command_stores(
    registry, stored, tmp_path, monkeypatch, capsys
) -> None:
    other = ["registry", "pull", "text/demo", str(registry.root), "--registry", str(tmp_path / "other")]
    for text, code in (("a lot", 2), ("-1", 2), ("6", 1), ("0.006 kb", 1), ("7B", 0), ("1.5GB", 0), ("", 0)):
        monkeypatch.setenv("EAREC_REGISTRY_QUOTA", text)
        assert run(other) == code, text
        said = capsys.readouterr().err
        assert "EAREC_REGISTRY_QUOTA" in said if code else "Error" not in said
