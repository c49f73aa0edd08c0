"""`earec doctor`."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import click

import earec_core
from earec_core.cli.inspection import every_plugin
from earec_core.cli.options import REGISTRY_HELP, PathType, json_option
from earec_core.cli.output import out
from earec_core.errors import one_line
from earec_core.plugins import State
from earec_core.workspace import default_home, default_registry
from earec_registry import Registry

_LIBRARIES = ("torch", "transformers", "peft", "polars", "faiss-cpu")
_OPTIONAL = {
    "tensorboard": "pip install 'earec[tensorboard]'",
    "deepspeed": "pip install 'earec[deepspeed]'",
    "s3fs": "pip install 'earec[s3]'",
}
_LEAST_GIB = 5
Row = dict[str, str | None]


@click.command()
@click.option("--registry", type=PathType, help=REGISTRY_HELP)
@json_option
def command(registry: Path | None, as_json: bool) -> None:
    """Report versions, device, engines, plugins, registry and disk; what needs attention names its fix.

    A check that fails is a line of the report and hides no other. The exit code is 0 whatever is found.
    """
    checks: list[tuple[str, Callable[[], Iterator[Row]]]] = [
        ("versions", _versions),
        ("device", _device),
        ("engines", _engines),
        ("plugins", _plugins),
        ("disk", _disk),
        ("registry", lambda: _registry(registry or default_registry())),
    ]
    rows: list[Row] = []
    for subject, check in checks:
        try:
            rows.extend(check())
        except Exception as error:  # noqa: BLE001 - a check that cannot be made is what the report is for
            fix = getattr(error, "next_step", "See the message; reinstall what it names.")
            rows.append(_row(subject, f"cannot be checked ({one_line(error)})", fix, "problem"))
    out.table(rows, ["what", "state", "value", "fix"], as_json)


def _row(subject: str, value: str, fix: str = "", state: str = "ok") -> Row:
    return {"what": subject, "state": state, "value": value, "fix": fix or None}


def _versions() -> Iterator[Row]:
    yield _row("earec", earec_core.__version__)
    yield _row("python", platform.python_version())
    for name in (*_LIBRARIES, *_OPTIONAL):
        version = _version(name)
        if version:
            yield _row(name, version)
        elif name in _OPTIONAL:
            yield _row(name, "not installed (optional)", _OPTIONAL[name], "optional")
        else:
            yield _row(name, "not installed", f"pip install {name}", "problem")


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _device() -> Iterator[Row]:
    import torch

    from earec_core.llm.backbone import auto_dtype

    cuda = torch.cuda.is_available()
    name = f"cuda: {torch.cuda.get_device_name()}" if cuda else f"cpu, {torch.get_num_threads()} threads"
    yield _row("device", name)
    dtype, why = auto_dtype(torch.device("cuda" if cuda else "cpu"))
    yield _row("dtype auto", f"{str(dtype).removeprefix('torch.')}: {why}")


def _engines() -> Iterator[Row]:
    yield _row("engine torch", f"{_version('torch')}, one process or several")
    if version := _version("deepspeed"):
        yield _row("engine deepspeed", f"{version}, ZeRO 1 to 3, one process or several")


def _plugins() -> Iterator[Row]:
    states = {State.OK: "ok", State.DISABLED: "optional"}
    for plugin in every_plugin(examined=True):
        value = f"{plugin.state}, {plugin.distribution} {plugin.version}"
        if plugin.cause:
            value += f": {plugin.cause}"
        yield _row(f"{plugin.kind} {plugin.name}", value, plugin.fix, states.get(plugin.state, "problem"))


def _disk() -> Iterator[Row]:
    folder = default_home()
    present = next(p for p in (folder, *folder.parents) if p.exists())
    free = shutil.disk_usage(present).free / 2**30
    yield _row("home", str(folder))
    if free < _LEAST_GIB:
        yield _row("free disk", f"{free:.1f} GiB", "Free some space or set EAREC_HOME.", "problem")
    else:
        yield _row("free disk", f"{free:.1f} GiB")


def _registry(root: Path) -> Iterator[Row]:
    if not root.exists():
        yield _row("registry", f"{root}: not there yet, made when it is first used")
        return
    listing = Registry.open(root, create=False).list()
    count = len(listing.problems)
    value = f"{root}: {len(listing.entries)} tags, {count} problems"
    yield _row("registry", value, "earec registry verify" if count else "", "problem" if count else "ok")
    for problem in listing.problems:
        yield _row("registry", str(problem), f"earec registry verify --registry {root}", "problem")
