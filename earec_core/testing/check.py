"""The conformance kit as a function: pytest inside, plain results outside."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from earec_core import plugins
from earec_core.errors import EarecError, MissingDependencyError, UsageError

if TYPE_CHECKING:
    import pytest

_PLAIN = ("terminal", "cacheprovider", "faulthandler")
"""Parts of pytest that would print, write beside the package, or take over this process' signals."""


@dataclass(frozen=True)
class Finding:
    """One check of the kit.

    Attributes:
        check: the clause of the contract, in words.
        outcome: `skipped` where an earlier failure leaves nothing to check.
        why: for one that has not passed, what the contract wants and what was found, one sentence.
        trace: pytest's own account of a failure.
    """

    check: str
    outcome: Literal["passed", "failed", "skipped"]
    why: str = ""
    trace: str = ""


def check(
    name: str,
    show: Callable[[int, int, str], None] = lambda *_: None,
    settings: Mapping[str, Any] | None = None,
) -> list[Finding]:
    """Run the conformance kit on an installed modality.

    Args:
        name: the modality.
        show: called with (checks done, checks in all, the one just done).
        settings: of the plugin, in place of those that its examples have.

    Raises:
        MissingDependencyError: pytest is not installed.
        PluginError: the plugin is not usable.
        UsageError: it has no such setting. A value that it does not take fails a check.
        EarecError: pytest did not come to its end.
    """
    if importlib.util.find_spec("pytest") is None:
        raise MissingDependencyError(
            "The conformance kit needs pytest, not installed here.", "Run: pip install 'earec[testing]'"
        )
    plugin = plugins.get(name)
    if settings:
        _check_settings(plugin, settings)
    import pytest

    from earec_core.testing import pytest_plugin

    collect = _Collect(show)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        # Whatever else is installed for pytest here has no say in the result.
        patch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
        for variable in ("PYTEST_ADDOPTS", "PYTEST_PLUGINS"):
            patch.delenv(variable, raising=False)
        arguments = [
            pytest_plugin.SUITE,
            f"--earec-plugin={name}",
            f"--earec-settings={json.dumps(dict(settings or {}))}",
            "--capture=no",
            "--noconftest",
            f"--config-file={os.devnull}",
            f"--rootdir={Path(pytest_plugin.SUITE).parent}",
            f"--basetemp={folder}/pytest",
            *(f"-pno:{part}" for part in _PLAIN),
        ]
        with redirect_stdout(sys.stderr):
            code = pytest.main(arguments, plugins=[pytest_plugin, collect])
    if code == pytest.ExitCode.INTERRUPTED:
        raise KeyboardInterrupt
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED) or not collect.findings:
        raise EarecError(
            f"pytest ended with code {int(code)} before the checks were done.",
            f"See what it says: python -m pytest --earec-plugin {name}",
        )
    return collect.findings


def _check_settings(plugin: plugins.Plugin, settings: Mapping[str, Any]) -> None:
    """Raises UsageError for settings that the plugin does not have; what it requires beside may be missing."""
    from earec_core.modality import PluginConfig

    fields = plugins.part(plugin, "config", PluginConfig).model_fields
    if unknown := set(settings) - set(fields):
        raise UsageError(
            f"{plugin.name} has no setting {', '.join(sorted(unknown))}.",
            f"Its settings are: {', '.join(fields)}.",
        )


class _Collect:
    """A pytest plugin that keeps what every check came to."""

    def __init__(self, show: Callable[[int, int, str], None]) -> None:
        self.findings: list[Finding] = []
        self._show, self._total = show, 0
        self._sentences: dict[str, str] = {}

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._total = len(session.items)

    def pytest_runtest_makereport(self, item: Any, call: pytest.CallInfo[Any]) -> None:
        from earec_core.testing.clauses import ContractError, one_line

        error = call.excinfo.value if call.excinfo else None
        if isinstance(error, ContractError):
            self._sentences[item.nodeid] = str(error)
        elif error is not None:
            clause = " ".join((item.obj.__doc__ or item.name).split()).rstrip(".")
            self._sentences[item.nodeid] = f"{clause}, but the check raised {one_line(error)}."

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.passed:
            return
        check = report.nodeid.rpartition("::")[2].removeprefix("test_").replace("_", " ")
        why = self._sentences.get(report.nodeid, "")
        if isinstance(report.longrepr, tuple):
            why = report.longrepr[2].removeprefix("Skipped: ")
        self.findings.append(
            Finding(check, report.outcome, why, report.longreprtext if report.failed else "")
        )
        self._show(len(self.findings), self._total, check)
