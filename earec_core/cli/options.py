"""Options that several commands share, and the places they default to."""

from __future__ import annotations

import functools
import os
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click

from earec_core.cli.output import out
from earec_core.config import RunConfig, resolve
from earec_core.errors import UsageError
from earec_core.plugins.hooks import Observers
from earec_core.workspace import Reporter, Workspace, default_registry
from earec_registry import Registry

PathType = click.Path(path_type=Path)


class _OutFile(click.Path):
    """A file to be written when the work is done: refused before it where it could not be."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        option = param.opts[0] if param else "the option"
        if path.is_dir():
            raise UsageError(f"{option} {path} is a directory.", "Name a file in it.")
        if not path.parent.is_dir():
            raise UsageError(
                f"The folder of {option} {path} does not exist.", "Make it, or name another file."
            )
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise UsageError(f"{option} {path} cannot be written.", "Name another file.")
        return path


OutFile = _OutFile()


def typed() -> str:
    """The command that runs, as it is typed into a shell."""
    return shlex.join(["earec", *click.get_current_context().meta["earec.arguments"]])


def registry_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--registry PATH`, passed as `registry: Path`; default `EAREC_REGISTRY`, else under `EAREC_HOME`."""
    return click.option(
        "--registry",
        type=PathType,
        default=default_registry,
        help="The model registry's folder.  [env: EAREC_REGISTRY; default: EAREC_HOME/registry]",
    )(function)


@dataclass(frozen=True)
class Session:
    """What a stage's command was given beside its own options; `with session("align") as workspace`."""

    registry: Path
    tensorboard: Path | None
    jsonl: Path | None

    @contextmanager
    def __call__(self, title: str) -> Iterator[Workspace]:
        """A workspace that reports to the terminal, its progress under `title`."""
        watch = self._watch
        if self.tensorboard or self.jsonl:
            # What was asked for is tried before the work.
            observers = watch()
            watch = lambda: observers  # noqa: E731
        with out.progress(title) as bar:
            yield Workspace.open(registry=self.registry, reporter=Reporter(out.note, bar.update), watch=watch)

    def _watch(self) -> Observers:
        from earec_core.plugins import observers

        return observers.manager(self.tensorboard, self.jsonl, note=out.note)


def session_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--registry`, `--tensorboard` and `--jsonl`, passed together as `session: Session`."""

    @registry_option
    @click.option("--tensorboard", type=PathType, help="Write TensorBoard scalars under this folder.")
    @click.option("--jsonl", type=PathType, help="Append every event to this file, one JSON object a line.")
    @functools.wraps(function)
    def with_session(
        *args: Any, registry: Path, tensorboard: Path | None, jsonl: Path | None, **kwargs: Any
    ) -> Any:
        return function(*args, session=Session(registry, tensorboard, jsonl), **kwargs)

    return with_session


def json_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--json`, passed as `as_json: bool`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")(function)


def data_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--data DIR`, passed as `data: Path`: a dataset directory made by `earec data import`."""
    return click.option(
        "--data", type=PathType, required=True, help="A dataset directory (see `earec data import`)."
    )(function)


def adapter_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--adapter` and `--allow-mismatch`, passed as `adapters: dict[str, str]` and `allow: frozenset[str]`."""

    @click.option(
        "--adapter",
        "adapters",
        multiple=True,
        metavar="M=REF",
        help="The adapter of a modality.  [default: the only one registered]",
    )
    @click.option(
        "--allow-mismatch",
        "allow",
        multiple=True,
        metavar="WHAT",
        help="base, tokenizer, anchor, template, seed or plugin: go on although the adapters differ in it.",
    )
    @functools.wraps(function)
    def with_adapters(*args: Any, adapters: tuple[str, ...], allow: tuple[str, ...], **kwargs: Any) -> Any:
        return function(*args, adapters=pairs(adapters, "--adapter"), allow=frozenset(allow), **kwargs)

    return with_adapters


def config_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--config`, `--preset`, `--backbone` and `--set`, passed together as `config: RunConfig`."""

    @click.option("--config", "file", type=PathType, help="A TOML file with sections as in docs/method.md.")
    @click.option("--preset", default="recommended", show_default=True, help="recommended, paper or release.")
    @click.option("--backbone", help="A named LLM, a local directory or a hub id.")
    @click.option(
        "--set",
        "settings",
        multiple=True,
        metavar="KEY=VALUE",
        help="One setting, e.g. align.lr=2e-4, or a plugin's: text.max_tokens=64. Repeatable.",
    )
    @functools.wraps(function)
    def with_config(
        *args: Any,
        file: Path | None,
        preset: str,
        backbone: str | None,
        settings: tuple[str, ...],
        **kwargs: Any,
    ) -> Any:
        return function(*args, config=run_config(file, preset, backbone, settings), **kwargs)

    return with_config


def run_config(
    file: Path | None,
    preset: str,
    backbone: str | None,
    settings: tuple[str, ...],
    flags: Mapping[str, Any] | None = None,
) -> RunConfig:
    """The resolved configuration.

    Args:
        flags: settings that have options of their own, by dotted key; None for one that was not given.
    """
    return resolve(preset, file, {"backbone.model": backbone, **pairs(settings, "--set"), **(flags or {})})


def modality_names(text: str | None) -> list[str] | None:
    """`"text,vision"` to a list; None stays None."""
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def open_registry(path: Path, observers: Observers | None = None) -> Registry:
    """Open the registry at `path`, creating it if it is not there; what is added to it fires `earec_registered`.

    Args:
        observers: who is told; default: those that plugins bring.
    """
    from earec_core.plugins.observers import registered

    added = partial(observers.fire, "earec_registered") if observers is not None else registered(out.note)
    return Registry.open(path, added=added)


def pairs(values: tuple[str, ...], option: str) -> dict[str, str]:
    """`("a=b", ...)` to a mapping; UsageError naming the option for anything else."""
    found = {}
    for value in values:
        key, sep, rest = value.partition("=")
        if not sep or not key:
            raise UsageError(
                f"{option} {value!r} is not of the form KEY=VALUE.", f"Write {option} KEY=VALUE."
            )
        found[key.strip()] = rest.strip()
    return found


__all__ = [
    "OutFile",
    "PathType",
    "Session",
    "adapter_options",
    "config_options",
    "data_option",
    "json_option",
    "modality_names",
    "open_registry",
    "pairs",
    "registry_option",
    "run_config",
    "session_options",
    "typed",
]
