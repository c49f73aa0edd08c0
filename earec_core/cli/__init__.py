"""The `earec` command: a table of commands, each imported only when it is run."""

from __future__ import annotations

import errno
import importlib
import os
import re
import sys
import traceback
from collections.abc import Mapping
from dataclasses import replace

import click

import earec_core
from earec_core import processor
from earec_core.cli.guide import with_guide
from earec_core.cli.output import out
from earec_core.errors import PluginError, one_line
from earec_core.plugins import (
    Entry,
    Kind,
    Plugin,
    State,
    entry_points,
    imported,
    load,
    names,
    process,
    unusable,
)

_FULL = re.compile(r"No space left on device|[Dd]isk quota exceeded")
COMMANDS: Mapping[str, str] = {
    "demo": "Run the whole method on an embedded default and write a report.",
    "doctor": "Say what this installation has, and how to mend what it lacks.",
    "data": "Import a catalog, show a dataset directory.",
    "backbones": "List the named LLMs, pull one.",
    "plugins": "List the plugins and their states.",
    "align": "Stage 1: align one modality to the anchor (Eq. 3).",
    "explain": "Say what an item is from each modality, scored with ROUGE-L.",
    "search": "Find weights on validation data.",
    "compose": "Merge aligned adapters by weight (Eq. 4).",
    "export": "Write a model in the form that other tools read.",
    "encode": "Turn every item into a vector (Eq. 5).",
    "compare": "Two models beside each other: vectors, texts, recommendations.",
    "similar": "The items whose vectors are most like an item's.",
    "recommend": "Train, evaluate and use the recommender (Eqs. 6-8).",
    "serve": "Answer by HTTP: items, similar ones, recommendations, explanations.",
    "reproduce": "Measure a table of the paper on a dataset, with controls.",
    "registry": "List, show, tag, verify and clean stored models.",
}
"""The core's commands, each `command` in the module of its name here, and a line on what it does."""


def _check(entry: Entry, plugin: Plugin) -> Plugin:
    command = imported(entry, plugin)
    if not isinstance(command, click.Command):
        unusable(
            plugin,
            State.INVALID_SPEC,
            f"{entry.value} is a {type(command).__name__}, not a click command.",
            f"Point the entry point {entry.name!r} of {entry.distribution} at a click command.",
        )
    return replace(plugin, loaded=command)


COMMAND = Kind("command", "earec.commands", _check, reserved=lambda: COMMANDS)
"""The kind of plugin that brings a command."""


class LazyGroup(click.Group):
    """A group that knows its commands by name, plugins' too, and imports one when it is asked for."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta["earec.arguments"] = list(args)
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*COMMANDS, *(name for name in names(COMMAND) if name not in COMMANDS)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in COMMANDS:
            return with_guide(importlib.import_module(f"earec_core.cli.{cmd_name}").command, cmd_name)
        brought: click.Command | None = load(COMMAND, cmd_name)
        return brought

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        brought = {
            entry.name: f"(from {entry.distribution})"
            for entry in entry_points(COMMAND.group)
            if entry.name not in COMMANDS
        }
        with formatter.section("Commands"):
            formatter.write_dl([*COMMANDS.items(), *sorted(brought.items())])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(earec_core.__version__, prog_name="earec")
def cli() -> None:
    """Align any modality of an item to a readable anchor, compose, recommend."""


def main(argv: list[str] | None = None) -> None:
    """Run the command line; exit with the code documented in `earec_core.errors`."""
    processor.prepare()
    # Plugins of pydantic's own are of no use here, and one that fails to import would stop every command.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    process.skip_unreadable_entry_points()
    process.own_stdout()
    with process.kept_alive():
        sys.exit(run(argv))


def run(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code; errors that a user can act on become one line."""
    try:
        code = cli.main(args=argv, prog_name="earec", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except SystemExit as stopped:
        # A plugin's command may end as it likes; without any command it is click, which has completed one.
        if (sys.argv[1:] if argv is None else argv)[:1] not in [[name] for name in COMMANDS]:
            raise
        frames = traceback.extract_tb(stopped.__traceback__)
        place = [frame for frame in frames if frame.filename != process.__file__][-1]
        out.note(
            f"Error: {place.filename}, line {place.lineno}, ended the run (SystemExit: {stopped.code}). "
            "Mend it, or uninstall the plugin that it belongs to, and run the same command again."
        )
        return PluginError.exit_code
    except (click.Abort, KeyboardInterrupt):
        sys.stderr.write("\nInterrupted; nothing stored is lost. Run the same command again to resume.\n")
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        # Of this package and of the registry, whose errors have the same shape.
        sentence = str(error) if hasattr(error, "next_step") else _of_the_system(error)
        if sentence is None:
            raise
        out.lines(f"Error: {sentence}")
        return int(getattr(error, "exit_code", 1))


def _of_the_system(error: Exception) -> str | None:
    """What a refusal of the file system means, in whichever class a library passes it on; None for other errors."""
    number, name = getattr(error, "errno", None), getattr(error, "filename", None)
    said = one_line(error)
    if number in (errno.ENOSPC, errno.EDQUOT) or _FULL.search(said):
        where = f" at {name}" if name else ""
        return f"The disk is full{where}. Free some space and run the same command again."
    if not isinstance(error, OSError) and type(error).__name__ != "SafetensorError":
        return None
    cause = f"{name}: {getattr(error, 'strerror', said)}" if name else said
    return (
        f"A file could not be read or written ({cause}). "
        "Check that it is whole and its folder can be used, then run the same command again."
    )
