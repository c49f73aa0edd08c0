"""`earec doctor`: reports whatever it finds, each thing for itself, and exits 0."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from earec_core import plugins
from earec_core.cli import COMMAND, run
from earec_registry import Registry

Report = dict[str, list[dict[str, str]]]


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[[], Report]:
    """Run it on `tmp_path/registry`; rows by what they are about."""

    def doctor() -> Report:
        capsys.readouterr()
        assert run(["doctor", "--json", "--registry", str(tmp_path / "registry")]) == 0
        found: Report = {}
        for row in json.loads(capsys.readouterr().out):
            assert set(row) == {"what", "state", "value", "fix"}
            assert row["state"] in ("ok", "optional", "problem")
            assert (row["fix"] is not None) >= (row["state"] == "problem")
            found.setdefault(row["what"], []).append(row)
        return found

    return doctor


def test_a_sound_installation(report: Callable[[], Report], tmp_path: Path) -> None:
    import torch

    from earec_core.llm.backbone import auto_dtype

    found = report()
    assert found["torch"][0]["value"] == torch.__version__
    assert found["engine torch"][0]["value"].startswith(torch.__version__)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    assert found["dtype auto"][0]["value"].startswith(str(auto_dtype(device)[0]).removeprefix("torch."))
    for name in plugins.names(plugins.MODALITY):
        assert found[f"modality {name}"][0]["state"] == "ok"
    assert {f"command {name}" for name in plugins.names(COMMAND)} <= set(found)
    assert float(found["free disk"][0]["value"].removesuffix(" GiB")) > 0
    assert "not there yet" in found["registry"][0]["value"]
    assert not (tmp_path / "registry").exists()


def test_a_damaged_registry_is_named_with_its_command(report: Callable[[], Report], tmp_path: Path) -> None:
    (tmp_path / "w").write_text("w")
    registry = Registry.open(tmp_path / "registry")
    for name in ("a/whole", "b/damaged"):
        registry.add({"kind": "index", "method": name}, {"w": tmp_path / "w"}, name=name)
    assert report()["registry"][0]["state"] == "ok"
    (tmp_path / "registry" / "refs" / "b" / "damaged" / "latest").write_text("nonsense")
    whole, *rest = report()["registry"]
    assert whole["state"] == "problem"
    assert len(rest) == 1
    assert "b/damaged" in rest[0]["value"]
    assert rest[0]["fix"] == f"earec registry verify --registry {tmp_path / 'registry'}"


def test_a_check_that_fails_hides_no_other(
    report: Callable[[], Report], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "registry").write_text("a file")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**30))
    monkeypatch.setitem(sys.modules, "earec_core.llm.backbone", None)
    found = report()
    assert found["registry"][0]["state"] == "problem"
    assert found["free disk"][0]["state"] == "problem"
    assert "cannot be checked" in found["device"][-1]["value"]
    assert found["modality text"][0]["state"] == "ok"
