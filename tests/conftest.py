"""Fixtures shared by all tests: a private home, a tiny LLM, a small catalog."""

from __future__ import annotations

import os
from pathlib import Path

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest

SHARED = (Path(__file__).parents[1] / ".." / "shared" / "data").resolve()
CASES = SHARED.parent / "cases"


@pytest.fixture(autouse=True)
def _private_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EAREC_HOME", str(tmp_path_factory.mktemp("home")))
    monkeypatch.delenv("EAREC_REGISTRY", raising=False)


@pytest.fixture(scope="session")
def tiny_llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a tiny random Llama."""
    from earec_core.testing import tiny_backbone

    return tiny_backbone(tmp_path_factory.mktemp("tiny-llm"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets."""
    if not SHARED.is_dir():
        pytest.skip("the real data sets (../shared/data) are not here")
    return SHARED


@pytest.fixture(scope="session")
def cases() -> Path:
    """The folder of small inputs that are hard to read; its README says what is right."""
    if not CASES.is_dir():
        pytest.skip("the hard inputs (../shared/cases) are not here")
    return CASES
