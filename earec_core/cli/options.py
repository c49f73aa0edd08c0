"""Options that several commands share. Each is a decorator, named after the argument that its command gets."""

from __future__ import annotations

import functools
import inspect
import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import click

from earec_core.cli.output import out
from earec_core.config import RunConfig, resolve
from earec_core.errors import UsageError
from earec_core.plugins.hooks import Observers
from earec_core.workspace import Reporter, Workspace, default_registry
from earec_registry import Registry

Function = Callable[..., Any]
Decorator = Callable[[Function], Function]
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


GUIDED = "guided"
"""The context's `obj` of a command that is run by another one, which knows what comes next."""


def follow_up(*argv: str, along: Sequence[str] = ("--registry",)) -> None:
    """Say the command to type next, to whoever typed this one.

    Args:
        argv: its arguments, and those typed for this one's options `along` that it has, too.
    """
    given, carried = click.get_current_context().meta["earec.arguments"], list[str]()
    for place, token in enumerate(given):
        if token in along:
            carried += given[place : place + 2]
        elif token.partition("=")[0] in along:
            carried.append(token)
    _say_next(*argv, *carried)


def follow_up_without(flag: str, *valued: str) -> None:
    """Say that the same command comes next, without a flag and without options that take a value."""
    kept, tokens = list[str](), iter(click.get_current_context().meta["earec.arguments"])
    for token in tokens:
        if token in valued:
            next(tokens)
        elif token != flag and token.partition("=")[0] not in valued:
            kept.append(token)
    _say_next(*kept)


def _say_next(*argv: str) -> None:
    if click.get_current_context().obj != GUIDED:
        out.note(f"Next: {shlex.join(['earec', *argv])}")


def pairs(values: tuple[str, ...], option: str) -> dict[str, str]:
    """`("a=b", ...)` to a mapping; UsageError naming the option for anything else."""
    mapping = {}
    for text in values:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UsageError(f"{option} {text!r} is not of the form KEY=VALUE.", f"Write {option} KEY=VALUE.")
        mapping[key.strip()] = value.strip()
    return mapping


def weights(text: str) -> dict[str, float]:
    """`"m=0.05,..."` of `--weights` by modality; UsageError for anything else."""
    parts = tuple(text.split(","))
    values = pairs(parts, "--weights")
    if len(values) < len(parts):
        raise UsageError(f"--weights {text!r} names a modality twice.", "Name each once.")
    by_modality = {}
    for modality, value in values.items():
        try:
            by_modality[modality] = float(value)
        except ValueError:
            raise UsageError(
                f"The weight of {modality} is {value!r}, not a number.", "Write e.g. text=0.05."
            ) from None
    return by_modality


def pairs_option(flag: str, name: str, **attributes: Any) -> Decorator:
    """A repeatable option of the form KEY=VALUE, passed as `name: dict[str, str]`."""

    def convert(_: click.Context, option: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
        return pairs(values, option.opts[0])

    return click.option(flag, name, multiple=True, callback=convert, **attributes)


def names_option(flag: str, **attributes: Any) -> Decorator:
    """An option of comma-separated names, passed as `list[str] | None`."""

    def convert(_: click.Context, __: click.Parameter, text: str | None) -> list[str] | None:
        return None if text is None else [name.strip() for name in text.split(",") if name.strip()]

    return click.option(flag, callback=convert, **attributes)


def _together(argument: str, make: Callable[..., Any], *options: Decorator) -> Decorator:
    """Options whose values `make` takes by keyword; what it gives is passed as `argument`."""

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def command(**values: Any) -> Any:
            own = {name: values.pop(name) for name in inspect.signature(make).parameters if name in values}
            return function(**values, **{argument: make(**own)})

        decorated: Function = command
        for option in reversed(options):
            decorated = option(decorated)
        return decorated

    return decorate


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
"""`--json`, passed as `as_json: bool`."""

force_option = click.option("--force", is_flag=True, help="Begin anew, whatever was made before.")
"""`--force`, passed as `force: bool`."""


def _index_option(help_: str) -> Decorator:
    """`--index`, passed as `index: str`: a row of `earec_core.recommend.indexes.INDEXES`, or auto."""
    kinds = click.Choice(["auto", "flat", "hnsw", "ivfpq"])
    return click.option("--index", type=kinds, default="auto", show_default=True, help=help_)


index_option = _index_option("Of a .faiss file: exact, a graph, or compressed; auto: by the number of items.")
"""`--index` of what is written."""

search_index_option = _index_option(
    "How the best are found: exactly, by a graph, or by codes; auto: by the number of items."
)
"""`--index` of what searches."""

scaling_option = click.option(
    "--scaling",
    type=click.Choice(["none", "standardise", "whiten", "soften", "pca"]),
    default="none",
    show_default=True,
    help="Scale the vectors that are written, as recommender.scaling does.",
)
"""`--scaling`, passed as `scaling: str`: a row of `earec_core.recommend.scaling.SCALINGS`."""

data_option = click.option(
    "--data", type=PathType, required=True, help="A dataset directory (see `earec data import`)."
)
"""`--data DIR`, passed as `data: Path`: a dataset directory made by `earec data import`."""

REGISTRY_HELP = "The model registry's folder.  [env: EAREC_REGISTRY; default: EAREC_HOME/registry]"

registry_option = click.option(
    "--registry",
    type=PathType,
    default=default_registry,
    help=REGISTRY_HELP,
)
"""`--registry PATH`, passed as `registry: Path`; default `EAREC_REGISTRY`, else under `EAREC_HOME`."""

adapters_option = pairs_option(
    "--adapter",
    "adapters",
    metavar="M=REF",
    help="The adapter of a modality.  [default: that of --data by its name, else the only one registered]",
)
"""`--adapter`, passed as `adapters: dict[str, str]`: references by modality."""

allow_option = click.option(
    "--allow-mismatch",
    "allow",
    multiple=True,
    metavar="WHAT",
    callback=lambda _, __, mismatches: frozenset(mismatches),
    help="base, tokenizer, anchor, template, seed or plugin: go on although the adapters differ in it.",
)
"""`--allow-mismatch`, passed as `allow: frozenset[str]`."""


@dataclass(frozen=True)
class Session:
    """What a stage's command was given beside its own options; `with session("align") as workspace`."""

    registry: Path
    tensorboard: Path | None = None
    jsonl: Path | None = None

    @contextmanager
    def __call__(self, title: str) -> Iterator[Workspace]:
        """A workspace that reports to the terminal, its progress under `title`."""
        watch = functools.cache(self.observers)
        if self.tensorboard or self.jsonl:
            watch()  # so that a file that cannot be written is refused before the work
        with out.progress(title) as progress, out.alone():
            yield Workspace.open(registry=self.registry, reporter=Reporter(out.note, progress), watch=watch)

    def observers(self) -> Observers:
        """The observers asked for, and those that plugins bring."""
        from earec_core.plugins import observers

        return observers.manager(self.tensorboard, self.jsonl, note=out.note)


session_options = _together(
    "session",
    Session,
    registry_option,
    click.option("--tensorboard", type=PathType, help="Write TensorBoard scalars under this folder."),
    click.option("--jsonl", type=PathType, help="Append every event to this file, one JSON object a line."),
)
"""`--registry`, `--tensorboard` and `--jsonl`, passed together as `session: Session`."""


def open_registry(path: Path) -> Registry:
    """Open the registry at `path`, making it if it is not there; plugins' observers hear of what is added to it."""
    return Workspace.open(registry=path, watch=Session(path).observers).registry


_MODEL_OPTIONS = {
    "preset": click.option(
        "--preset", default="recommended", show_default=True, help="recommended, paper or release."
    ),
    "backbone": click.option("--backbone", help="A named LLM, a local directory or a hub id."),
}


def config_options(*others: Literal["preset", "backbone"]) -> Decorator:
    """`--config`, `--set` and the `others`, passed together as `config: RunConfig`."""
    return _together(
        "config",
        run_config,
        click.option(
            "--config", "file", type=PathType, help="A TOML file with sections as in docs/method.md."
        ),
        *(_MODEL_OPTIONS[name] for name in others),
        pairs_option(
            "--set",
            "settings",
            metavar="KEY=VALUE",
            help="One setting, e.g. recommender.lr=3e-4, or a plugin's: text.max_tokens=64. Repeatable.",
        ),
    )


def run_config(
    file: Path | None, settings: Mapping[str, str], preset: str = "recommended", backbone: str | None = None
) -> RunConfig:
    """The configuration that a command's options resolve to."""
    return resolve(preset, file, {"backbone.model": backbone, **settings})
