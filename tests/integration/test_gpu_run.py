"""`benchmarks/gpu/run.sh` without a GPU: a tiny LLM, a moment of alignment, everything else as on one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu" / "run.sh"


@pytest.mark.real
def test_the_gpu_run_ends_with_figures_and_adapters(
    tiny_llm: Path, shared_data: Path, tmp_path: Path
) -> None:
    small = {"SETS": "lastfm-2k-audio", "MINUTES": "0.01", "ITEMS": "64", "ROUNDS": "1", "TABLES": ""}
    environment = {
        **os.environ,
        **small,
        "DATA": str(shared_data),
        "BACKBONE": str(tiny_llm),
        "EAREC_TEST_DEVICE": "cpu",
        "EAREC_HOME": str(tmp_path / "home"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    run = subprocess.run(
        ["bash", str(SCRIPT), str(tmp_path / "out")], env=environment, capture_output=True, text=True
    )
    summary = (tmp_path / "out" / "summary").read_text()
    assert run.returncode == 0, summary + run.stderr
    parts = ["doctor", "tests", "align.json", "encode.json", "generate.json", "read-lastfm-2k-audio"]
    assert [line.split()[:2] for line in summary.splitlines()] == [[part, "done"] for part in parts]
    with tarfile.open(tmp_path / "out" / "figures.tar.gz") as figures:
        names = figures.getnames()
        for name in ("align", "encode", "generate"):
            file = figures.extractfile(f"figures/{name}.json")
            assert file is not None
            assert json.load(file)["times_plain_bf16" if name != "align" else "times_trainer_bf16"] > 0
        tests = figures.extractfile("figures/tests")
        assert tests is not None
        assert b"passed" in tests.read()
    assert "figures/lastfm-2k-audio.parquet" in names
    assert "figures/read-explain-lastfm-2k-audio.json" in names
    pieces = sorted((tmp_path / "out").glob("adapters.tar.gz-*"))
    whole = tmp_path / "adapters.tar.gz"
    whole.write_bytes(b"".join(piece.read_bytes() for piece in pieces))
    with tarfile.open(whole) as adapters:
        assert any(name.startswith("lastfm-2k-audio/registry/blobs") for name in adapters.getnames())
