"""The conformance kit as a pytest plugin: `pytest --earec-plugin NAME`. Imports nothing until it is asked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

SUITE = str(Path(__file__).with_name("suite.py"))
"""The module that the option adds to what is collected."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    parser.getgroup("earec").addoption(
        "--earec-plugin",
        metavar="NAME",
        help="Also run EAREC's conformance kit on this installed modality plugin.",
    )
    parser.getgroup("earec").addoption(
        "--earec-settings",
        metavar="JSON",
        default="{}",
        help="Settings of the plugin in place of those that its examples have.",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Collect the kit too if it is asked for."""
    if config.getoption("earec_plugin") and SUITE not in config.args:
        config.args.append(SUITE)
