"""Collected by `pytest --earec-plugin NAME`."""

from __future__ import annotations

from earec_core.testing.conformance import ModalityConformance


class TestModality(ModalityConformance):
    """The modality that the option names."""
