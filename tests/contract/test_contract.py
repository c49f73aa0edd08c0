"""What a modality may count on: files of any column, an adapter of its own shape."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from earec_core.catalog import Catalog
from earec_core.cli import run
from earec_registry import Registry

from .conftest import MODALITY, Site

VIDEO = MODALITY.replace(
    'return np.array([len(item.title or "")], dtype=np.float32)',
    """path = item.path("video")
        if path is None:
            return None
        with open(path, "rb") as file:
            return np.array([len(file.read())], dtype=np.float32)""",
)
ADAPTED = (
    MODALITY
    + """
    def adapter_config(self, settings):
        return settings.model_copy(update={"r": 3, "dropout": 0.125})
"""
)


def _settings(llm: Path) -> list[str]:
    values = ("align.max_steps=1", "align.rouge_items=0", "align.eval_items=2", "lora.r=2", "lora.seed=5")
    return ["--backbone", str(llm), *(part for value in values for part in ("--set", value)), "--json"]


def _import(folder: Path) -> Path:
    """A dataset of 12 items, the first ten of which have a file in the column `video`."""
    source = folder / "source"
    (source / "clips").mkdir(parents=True)
    rows = [{"item_id": f"i{n}", "title": f"thing {n}", "video": f"clips/{n}.bin"} for n in range(12)]
    for n in range(12):
        (source / "clips" / f"{n}.bin").write_bytes(b"x" * n)
    rows[10:] = [{"item_id": f"i{n}", "title": f"thing {n}"} for n in (10, 11)]
    (source / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run(["data", "import", str(source), "--out", str(folder / "data")]) == 0
    return folder / "data"


@pytest.fixture
def on_the_path(site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Site:
    monkeypatch.syspath_prepend(str(site.folder))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return site


def test_a_modality_that_the_core_does_not_know_finds_its_files(
    on_the_path: Site, tmp_path: Path, tiny_llm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    on_the_path.modality("film", source=VIDEO)
    data = _import(tmp_path)
    assert [item.fields.get("video") for item in Catalog.open(data).all_items()][8:] == [
        "clips/8.bin",
        "clips/9.bin",
        None,
        None,
    ]
    assert run(["align", "--modality", "film", "--data", str(data), *_settings(tiny_llm)]) == 0
    capsys.readouterr()
    assert run(["encode", "film/data", "--data", str(data), "--backbone", str(tiny_llm), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["coverage"] == {"film": 10, "none": 2}


def test_a_modality_chooses_its_adapter_and_a_parents_settings_stay(
    on_the_path: Site, tmp_path: Path, tiny_llm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_the_path.modality("own", source=ADAPTED)
    data = _import(tmp_path)
    registry = Registry.open(tmp_path / "registry")

    def align(*more: str) -> tuple[dict[str, Any], Path]:
        argv = ["align", "--modality", "own", "--data", str(data), "--registry", str(registry.root)]
        assert run([*argv, *_settings(tiny_llm), *more]) == 0
        return dict(registry.manifest("own/data").data), registry.materialize("own/data")

    manifest, folder = align()
    assert manifest["lora"] == {"r": 3, "alpha": 32, "dropout": 0.125, "seed": 5}
    stored = json.loads((folder / "adapter_config.json").read_text())
    assert (stored["r"], stored["lora_alpha"], stored["lora_dropout"]) == (3, 32, 0.125)
    with safe_open(str(folder / "adapter_model.safetensors"), framework="pt") as tensors:
        ranks = {tensors.get_tensor(key).shape[0] for key in tensors.keys() if "lora_A" in key}  # noqa: SIM118
    assert ranks == {3}
    later = importlib.import_module("kit_own.modality").Factory
    monkeypatch.setattr(later, "adapter_config", lambda self, lora: lora.model_copy(update={"r": 5}))
    manifest, _ = align("--from", "own/data")
    assert (manifest["lora"]["r"], manifest["lora"]["dropout"]) == (3, 0.125)
    assert manifest["parents"]
