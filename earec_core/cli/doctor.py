"""`earec doctor`."""

from __future__ import annotations

import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import click

import earec_core
from earec_core import plugins
from earec_core.cli.options import home, json_option, open_registry, registry_option
from earec_core.cli.output import out

_LIBRARIES = ("torch", "transformers", "peft", "polars", "faiss-cpu", "tensorboard")


@click.command(short_help="Say what this installation has, and how to mend what it lacks.")
@registry_option
@json_option
def command(registry: Path, as_json: bool) -> None:
    """Report versions, device, plugins, registry and disk; a line that needs attention names its fix."""
    rows = [_row("earec", earec_core.__version__), _row("python", platform.python_version())]
    for name in _LIBRARIES:
        try:
            rows.append(_row(name, version(name)))
        except PackageNotFoundError:
            fix = "pip install 'earec[tensorboard]'" if name == "tensorboard" else f"pip install {name}"
            rows.append(_row(name, "not installed", fix))
    rows.append(_row("device", _device()))
    rows += [_row(f"plugin {p.name}", f"{p.state} {p.cause}".strip(), p.fix) for p in plugins.discover()]
    folder = home()
    present = next(p for p in (folder, *folder.parents) if p.exists())
    free = shutil.disk_usage(present).free / 2**30
    rows.append(_row("home", str(folder)))
    rows.append(
        _row("free disk", f"{free:.1f} GiB", "Free some space or set EAREC_HOME." if free < 5 else "")
    )
    if registry.exists():
        problems = open_registry(registry).list().problems
        state = f"{len(problems)} unreadable" if problems else "ok"
        rows.append(_row("registry", f"{registry}: {state}", "earec registry verify" if problems else ""))
    out.table(rows, ["what", "value", "fix"], as_json)


def _row(what: str, value: str, fix: str = "") -> dict[str, str | None]:
    return {"what": what, "value": value, "fix": fix or None}


def _device() -> str:
    import torch

    if torch.cuda.is_available():
        return f"cuda: {torch.cuda.get_device_name()}"
    return f"cpu, {torch.get_num_threads()} threads"
