"""Distributions that are installed for a test: a folder of `dist-info` and modules on the path."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

SPEC = """
from earec_core.plugins.spec import ModalitySpec
{name} = SPEC = ModalitySpec(
    "{name}", {api}, "A test.", "{module}.modality:Config", "{module}.modality:Factory", "<{name}>"{more}
)
"""
MODALITY = """
import numpy as np
import torch

from earec_core.modality import Encoded, Encoder, MlpProjector, Modality, PluginConfig


class Config(PluginConfig):
    pass


class Lengths(Encoder):
    d_enc = 4

    def forward(self, batch):
        h = torch.from_numpy(np.stack(batch))[:, None] * torch.arange(1.0, 5.0)
        return Encoded(h.sin(), torch.ones(h.shape[:2], dtype=torch.bool))


class Factory(Modality[Config]):
    @property
    def cache_features(self):
        return False

    def read(self, item):
        return np.array([len(item.title or "")], dtype=np.float32)

    def build_encoder(self, llm):
        return Lengths()

    def build_projector(self, d_enc, d_llm):
        return MlpProjector(d_enc, d_llm)

    def positions(self):
        return 1

    def describe(self, item):
        return str(len(item.title or ""))
"""


class Site:
    """A folder of installed distributions, as pip leaves them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def add(
        self,
        distribution: str,
        entry_points: str,
        modules: dict[str, str] | None = None,
        *,
        version: str = "1.0",
        metadata: str | None = None,
    ) -> None:
        """Install a distribution; `modules` are path to source."""
        self.remove(distribution)
        info = self.folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        text = f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
        if metadata != "":
            (info / "METADATA").write_bytes((metadata or text).encode("latin-1"))
        (info / "entry_points.txt").write_text(entry_points)
        for path, source in (modules or {}).items():
            file = self.folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(source)

    def remove(self, distribution: str) -> None:
        """Uninstall it; its modules stay, as nothing refers to them."""
        for info in self.folder.glob(f"{distribution.replace('-', '_')}-*.dist-info"):
            shutil.rmtree(info)

    def modality(
        self, name: str, *, version: str = "1.0", api: str = "(2, 0)", more: str = "", source: str = MODALITY
    ) -> None:
        """Install a modality of this name that works, unless `more` or `source` make it otherwise."""
        module = f"kit_{name}"
        files = {
            f"{module}/__init__.py": "",
            f"{module}/spec.py": SPEC.format(name=name, module=module, api=api, more=more),
            f"{module}/modality.py": source,
        }
        points = f"[earec.modalities]\n{name} = {module}.spec:SPEC\n"
        self.add(f"earec-{name}", points, files, version=version)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """An empty site folder, not yet on the path."""
    return Site(tmp_path / "site")
