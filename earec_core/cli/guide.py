"""What `--help` says beside the options: two lines to type for every command; and which options it leaves out."""

from __future__ import annotations

from collections.abc import Mapping, Set

import click

EXAMPLES: Mapping[str, tuple[str, str]] = {
    "demo": ("earec demo", "earec demo --out my-demo"),
    "doctor": ("earec doctor", "earec doctor --json"),
    "data import": (
        "earec data import ml-100k/ --out movies --domain movies",
        "earec data import shop/ --out shop --column title=name --core 1",
    ),
    "data join": (
        "earec data join movies office --out both",
        "earec data join movies office --out both --name both --force",
    ),
    "data show": ("earec data show movies", "earec data show movies --json"),
    "data export": (
        "earec data export movies --format recbole --out recbole/movies",
        "earec data export movies --format rectools --vectors vectors/movies --out tables",
    ),
    "backbones list": ("earec backbones list", "earec backbones list --json"),
    "backbones pull": ("earec backbones pull smollm2-135m", "earec backbones pull smollm2-135m --source hub"),
    "plugins list": ("earec plugins list", "earec plugins list --json"),
    "plugins show": ("earec plugins show vision", "earec plugins show vision --json"),
    "plugins new": ("earec plugins new price", "earec plugins new audio-from-files"),
    "plugins check": ("earec plugins check vision", "earec plugins check vision --set vision.positions=9"),
    "align": (
        "earec align --modality text --data movies --plan --show-samples 2",
        "earec align --modality text --data movies --set align.max_minutes=30",
    ),
    "explain": (
        "earec explain composite/movies --data movies --report composite.html",
        "earec explain composite/movies 50 172 --data movies",
    ),
    "search": (
        "earec search learn --data movies --modalities text,behavior --out weights.json",
        "earec search grid --objective ndcg@10 --step 0.25 --data movies --modalities text,behavior",
    ),
    "compose": (
        "earec compose --weights text=0.05,vision=0.05,behavior=0.9 --data movies",
        "earec compose --weights @weights.json",
    ),
    "export": (
        "earec export composite/movies --as peft --out plain",
        "earec export vectors/movies --out movies.faiss --index hnsw",
    ),
    "encode": (
        "earec encode composite/movies --data movies",
        "earec encode --unaligned --modalities text --data movies --name vectors/unaligned",
    ),
    "compare": (
        "earec compare composite/movies text/movies --data movies --out compared.html",
        "earec compare a b --data movies --recommender-a recommender/a --recommender-b recommender/b",
    ),
    "similar": (
        "earec similar 50 --data movies",
        "earec similar 50 --data movies -k 20 --set recommender.scaling=none",
    ),
    "recommend train": (
        "earec recommend train --data movies --vectors vectors/movies",
        "earec recommend train --data movies --ids --name recommender/sasrec",
    ),
    "recommend tune": (
        "earec recommend tune --data movies --ids --out sasrec.toml",
        "earec recommend tune --data movies --vectors vectors/movies --trials 20 --minutes 30",
    ),
    "recommend evaluate": (
        "earec recommend evaluate recommender/movies --data movies --slices",
        "earec recommend evaluate recommender/movies --data movies --exclude-seen",
    ),
    "recommend compare": (
        "earec recommend compare ids=recommender/sasrec vectors=recommender/movies --data movies",
        "earec recommend compare ids=recommender/sasrec vectors=recommender/movies --data movies --slice cold",
    ),
    "recommend topk": (
        "earec recommend topk recommender/movies --data movies --history 50,172,181",
        "earec recommend topk recommender/movies --data movies --all-users --out next",
    ),
    "serve": (
        "earec serve composite/movies --data movies --recommender recommender/movies",
        "earec serve composite/movies --data movies --host 0.0.0.0 --token-file token",
    ),
    "reproduce": (
        "earec reproduce --table 2 --data movies --dry-run",
        "earec reproduce --table 2 --data movies --trials 5 --minutes 10 --out table2.html",
    ),
    "registry list": ("earec registry list", "earec registry list --json"),
    "registry show": ("earec registry show composite/movies", "earec registry show composite/movies --path"),
    "registry log": ("earec registry log composite/movies", "earec registry log text/movies --json"),
    "registry tag": (
        "earec registry tag composite/movies movies stable",
        'earec registry tag composite/movies movies stable --why "best on validation"',
    ),
    "registry push": (
        "earec registry push composite/movies s3://bucket/models",
        "earec registry push composite/movies /mnt/shared/registry --as movies:stable",
    ),
    "registry pull": (
        "earec registry pull composite/movies s3://bucket/models",
        "earec registry pull movies:stable /mnt/shared/registry --as composite/movies",
    ),
    "registry import": (
        "earec registry import peft-dir --modality text --backbone models/llama --name text/theirs",
        "earec registry import card --name text/movies",
    ),
    "registry rm": (
        "earec registry rm composite/movies",
        "earec registry rm composite/movies:old text/movies",
    ),
    "registry du": ("earec registry du", "earec registry du --json"),
    "registry verify": ("earec registry verify", "earec registry verify composite/movies"),
    "registry gc": ("earec registry gc --dry-run", "earec registry gc --grace 0"),
    "registry clean": ("earec registry clean --dry-run", "earec registry clean --days 7"),
}
"""By the command's words."""


RARE: Mapping[str, frozenset[str]] = {
    "align": frozenset({"--engine", "--processes", "--preset"}),
    "explain": frozenset({"--preset", "--registry"}),
    "search": frozenset(
        {
            "--gradients",
            "--per-layer",
            "--max-items",
            "--report",
            "--adapter",
            "--allow-mismatch",
            "--registry",
        }
    ),
    "compose": frozenset({"--density", "--seed", "--measure", "--allow-mismatch", "--registry"}),
    "encode": frozenset(
        {"--index", "--scaling", "--prompts", "--engine", "--workers", "--preset", "--registry"}
    ),
    "compare": frozenset({"--backbone-b", "--preset", "--registry"}),
    "recommend tune": frozenset({"--preset"}),
    "reproduce": frozenset(
        {
            "--methods",
            "--reference",
            "--grid",
            "--minutes",
            "--encoder",
            "--items",
            "--exclude-seen",
            "--at-once",
            "--adapter",
            "--config",
            "--preset",
            "--backbone",
            "--registry",
        }
    ),
}
"""By the command's words, the options that `--help-all` shows and `--help` does not."""
OBSERVERS = frozenset({"--tensorboard", "--jsonl"})
"""Of whatever command has them, they are of these."""
_ALL = "earec.help-all"


def with_guide(command: click.Command, words: str) -> click.Command:
    """The same command; its help, or that of those below it, fits a screen and ends with its examples."""
    if isinstance(command, click.Group):
        for name, below in command.commands.items():
            with_guide(below, f"{words} {name}")
    elif words in EXAMPLES:
        command.epilog = "\n".join(["\b", "Examples:", *(f"  {line}" for line in EXAMPLES[words])])
        rare = RARE.get(words, frozenset()) | OBSERVERS
        options = {name for parameter in command.params for name in parameter.opts}
        if options & rare and "--help-all" not in options:
            _leave_out(command, rare)
    return command


def _leave_out(command: click.Command, rare: Set[str]) -> None:
    """Keep options out of the command's help, and add the option that shows them."""

    def show_all(context: click.Context, _: click.Parameter, asked: bool) -> None:
        if asked and not context.resilient_parsing:
            context.meta[_ALL] = True
            click.echo(context.get_help(), color=context.color)
            context.exit()

    def format_options(context: click.Context, formatter: click.HelpFormatter) -> None:
        shown = [
            record
            for parameter in command.get_params(context)
            if context.meta.get(_ALL) or rare.isdisjoint(parameter.opts)
            if (record := parameter.get_help_record(context)) is not None
        ]
        with formatter.section("Options"):
            formatter.write_dl(shown)

    command.format_options = format_options  # type: ignore[method-assign, assignment]
    command.params.append(
        click.Option(
            ["--help-all"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=show_all,
            help="Show every option and exit; the rarer ones are left out here.",
        )
    )
