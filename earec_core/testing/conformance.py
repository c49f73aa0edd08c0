"""The conformance kit: what the contract wants of a modality, one check a clause.

    from earec_core.testing import ModalityConformance

    class TestPrice(ModalityConformance):
        modality = "price"

`earec plugins check price` and `pytest --earec-plugin price` run the same checks. A check's docstring is the
clause; its failure says what the contract wants and what was found instead.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

import pytest

from earec_core.errors import EarecError
from earec_core.testing.checks.alignment import Aligning
from earec_core.testing.checks.declaration import Declaration
from earec_core.testing.checks.encoder import Encoding
from earec_core.testing.checks.input import Input
from earec_core.testing.checks.projector import Projection
from earec_core.testing.clauses import ContractError
from earec_core.testing.kit import Examples, Kit

_KITS = pytest.StashKey[dict[type, Kit]]()


# pytest runs the checks of the last base first.
class ModalityConformance(Aligning, Projection, Encoding, Input, Declaration):
    """Checks of one modality; subclass it in a test module and name the modality.

    Class attributes:
        modality: an installed modality's name; "" takes that of `--earec-plugin`.
    """

    modality: ClassVar[str] = ""

    @classmethod
    def examples(cls, folder: Path) -> Examples | None:
        """Configuration and items to check with; None takes the plugin's own (`Modality.examples`)."""
        return None

    @pytest.fixture
    def kit(self, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Kit:
        """The modality's parts, made once a class."""
        kits = request.config.stash.setdefault(_KITS, {})
        cls = type(self)
        if cls not in kits:
            name = self.modality or request.config.getoption("earec_plugin", None)
            if not name:
                pytest.fail(f"Set `modality` in {cls.__name__}, or give --earec-plugin NAME.")
            settings = json.loads(request.config.getoption("earec_settings", "{}"))
            kits[cls] = Kit(name, tmp_path_factory.mktemp("earec-kit"), cls.examples, settings)
        return kits[cls]

    @pytest.fixture
    def ready(self, kit: Kit) -> Kit:
        """The kit of a usable plugin with examples; without these there is nothing to check."""
        try:
            _ = kit.items
        except (ContractError, EarecError):
            pytest.skip("needs a usable plugin with examples")
        return kit
