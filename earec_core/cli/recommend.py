"""`earec recommend`."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from earec_core.cli import options
from earec_core.cli.output import out
from earec_core.config import RunConfig
from earec_core.errors import DataError, UsageError

if TYPE_CHECKING:
    from earec_core.recommend import TrainedRecommender

_SLICES = ["all", "unseen", "cold", "warm", "short", "long"]
_COMPETE = {
    True: "Items of a user's history compete with the target",
    False: "Items of a user's history do not compete with the target",
}
"""The rule behind every figure, by whether they do."""
_split_option = click.option(
    "--split", type=click.Choice(["valid", "test"]), default="test", show_default=True, help="Whose targets."
)
_exclude_seen_option = click.option(
    "--exclude-seen", is_flag=True, help="Items of the user's history do not compete."
)


@click.group()
def command() -> None:
    """Predict a user's next item from the item vectors of `earec encode`, or from ids (SASRec)."""


@command.command()
@options.data_option
@click.option(
    "--vectors", multiple=True, help="Item vectors (see `earec encode`); several stand side by side."
)
@click.option("--ids", is_flag=True, help="Use no item vectors: ids alone.")
@click.option(
    "--model",
    metavar="NAME",
    help="sasrec, esasrec, earec, unisrec, missrec, popularity, markov, morec, or one that a plugin brings.  "
    "[default: that of --from, else earec with --vectors, sasrec with --ids]",
)
@options.names_option("--modalities", help="Comma-separated: whose words morec reads of an item.")
@click.option("--from", "start", metavar="REF", help="Start from this recommender of another catalog.")
@click.option("--name", help="What to register it as.  [default: recommender/DATASET]")
@options.force_option
@options.config_options("preset")
@options.session_options
@options.json_option
def train(
    data: Path,
    vectors: tuple[str, ...],
    ids: bool,
    model: str | None,
    modalities: list[str] | None,
    start: str | None,
    name: str | None,
    force: bool,
    config: RunConfig,
    session: options.Session,
    as_json: bool,
) -> None:
    """Train with early stopping on validation NDCG@10 and report the test figures. Prints the id."""
    from earec_core.catalog import Catalog
    from earec_core.recommend.stage import train_registered

    if (ids and vectors) or not (ids or vectors or model):
        raise UsageError("Exactly one of --vectors and --ids is needed.", "Give --vectors REF or --ids.")
    catalog = Catalog.open(data)
    with session("recommend train") as workspace:
        recommender = train_registered(
            workspace,
            catalog,
            config.recommender,
            name=name,
            vectors=vectors,
            model=model,
            start=start,
            words=modalities or (),
            settings=config.modalities,
            force=force,
        )
    if not as_json:
        _tell_end(recommender.training.recommender)
        for metric, value in recommender.training.metrics.get("test", {}).items():
            out.note(f"test {metric}: {value:.4f}")
        out.note(f"{_COMPETE[True]}; `evaluate --exclude-seen` leaves them out.")
    options.follow_up("recommend", "evaluate", recommender.name, "--data", str(data), "--slices")
    out.result(recommender.id, recommender.as_json(), as_json)


def _tell_end(trained: TrainedRecommender) -> None:
    """Say where a training ended, and why."""
    config, epochs = trained.model.config, len(trained.history)
    if not epochs:
        return
    if epochs < config.epochs:
        why = f"since none of the last {epochs - trained.best_epoch} had a better validation NDCG@10"
    else:
        why = "which is recommender.epochs"
    out.note(f"Ended after epoch {epochs}, {why}; kept is epoch {trained.best_epoch}.")


@command.command()
@options.data_option
@click.option("--vectors", multiple=True, help="Item vectors; several: the best of them is chosen.")
@click.option("--ids", is_flag=True, help="Use no item vectors: ids alone.")
@click.option("--model", metavar="NAME", help="As in `earec recommend train`.")
@click.option(
    "--trials", type=click.IntRange(1), default=30, show_default=True, help="Budget, those of before too."
)
@click.option("--minutes", type=click.FloatRange(0, min_open=True), help="Budget: no trial starts later.")
@click.option("--grid", is_flag=True, help="Try the paper's learning rates and widths, and those alone.")
@click.option(
    "--out",
    "target",
    type=options.PathType,
    help="The file of settings.  [default: best.toml in the run's folder]",
)
@options.force_option
@options.config_options("preset")
@options.session_options
@options.json_option
def tune(
    data: Path,
    vectors: tuple[str, ...],
    ids: bool,
    model: str | None,
    trials: int,
    minutes: float | None,
    grid: bool,
    target: Path | None,
    force: bool,
    config: RunConfig,
    session: options.Session,
    as_json: bool,
) -> None:
    """Find settings of a recommender by validation NDCG@10, and write them to a file for --config.

    Learning rate, width, dropout, similarity, candidates; on vectors also the item table, its dropout, the scaling
    and which vectors. Test targets are never ranked. Safe to interrupt: the same command goes on. Prints the file.
    """
    from earec_core.catalog import Catalog
    from earec_core.files import write_atomic
    from earec_core.recommend.tune import tune as search

    if (ids and vectors) or not (ids or vectors or model):
        raise UsageError("Exactly one of --vectors and --ids is needed.", "Give --vectors REF or --ids.")
    catalog = Catalog.open(data)
    with session("recommend tune") as workspace:
        tuning = search(
            workspace,
            catalog,
            config.recommender,
            trials=trials,
            minutes=minutes,
            model=model,
            vectors=vectors,
            grid=grid,
            force=force,
        )
    target, best = target or tuning.run.folder / "best.toml", tuning.best
    write_atomic(target, tuning.toml())
    if as_json:
        rows = [trial.model_dump(mode="json") for trial in tuning.trials]
        out.json(
            {"file": target, "run": tuning.run.folder, "best": best.model_dump(mode="json"), "trials": rows}
        )
        return
    settings = ", ".join(f"{key}={value}" for key, value in best.settings.items()) or "the settings as given"
    out.note(f"Best of {len(tuning.trials)}: valid NDCG@10 {best.ndcg10:.4f} with {settings}.")
    items = ["--vectors", best.vectors] if best.vectors else [] if model else ["--ids"]
    items += ["--model", model] if model else []
    again = ["earec", "recommend", "train", "--data", str(data), *items, "--config", str(target)]
    out.note(f"Next: {shlex.join(again)}")
    out.data(str(target))


@command.command()
@click.argument("model")
@options.data_option
@_split_option
@_exclude_seen_option
@click.option("--slices", "sliced", is_flag=True, help="Also for cold targets and short histories; coverage.")
@options.registry_option
@options.json_option
def evaluate(
    model: str,
    data: Path,
    split: Literal["valid", "test"],
    exclude_seen: bool,
    sliced: bool,
    registry: Path,
    as_json: bool,
) -> None:
    """HR@10/50 and NDCG@10/50 of MODEL with leave-one-out and full ranking, with standard errors.

    With --slices a row for all users, for targets that training never or hardly saw, and for short histories;
    beside them the part of the catalog that is recommended to anybody, and how popular it is (0.5: as items drawn
    at random).
    """
    from earec_core.catalog import Catalog
    from earec_core.recommend.slices import TOP, breadth, slices
    from earec_core.recommend.stage import evaluate_registered

    catalog = Catalog.open(data)
    metrics = evaluate_registered(
        options.open_registry(registry),
        model,
        catalog,
        split,
        exclude_seen=exclude_seen,
        top=TOP if sliced else 0,
    )
    out.note(f"{_COMPETE[not exclude_seen]}.")
    if sliced:
        parts = catalog.leave_one_out()
        rows, lists = slices(metrics, parts, split, len(catalog)), breadth(metrics, parts, len(catalog))
        if as_json:
            out.json({"slices": rows, **lists})
        else:
            out.table(rows, ["slice", "what", "users", "hr@10", "ndcg@10", "hr@50", "ndcg@50"])
            for name, value in lists.items():
                out.note(f"{name}@{TOP}: {value:.4f}")
    elif as_json:
        out.json(metrics.summary())
    else:
        rows = [{"metric": name, "value": value} for name, value in metrics.summary().items()]
        out.table(rows, ["metric", "value"])


@command.command()
@click.argument("contestants", metavar="LABEL=REF[,REF...]...", nargs=-1, required=True)
@options.data_option
@click.option("--to", metavar="LABEL", help="Whom the others are compared with.  [default: the first]")
@click.option("--slice", "part", type=click.Choice(_SLICES), default="all", show_default=True)
@_split_option
@_exclude_seen_option
@options.registry_option
@options.json_option
def compare(
    contestants: tuple[str, ...],
    data: Path,
    to: str | None,
    part: str,
    split: Literal["valid", "test"],
    exclude_seen: bool,
    registry: Path,
    as_json: bool,
) -> None:
    """HR@10 and NDCG@10 of trained recommenders, and paired differences to the first.

    Trainings of one contestant with several seeds stand behind one label and are averaged by user. Each difference
    (_less) has its 95% interval and the p of a paired test over users, by Holm's correction for all that are shown.
    Choose on --split valid.
    """
    from earec_core.catalog import Catalog
    from earec_core.recommend.compare import compare as side_by_side

    named: dict[str, list[str]] = {}
    for contestant in contestants:
        label, equals, references = contestant.rpartition("=")
        label = label if equals else contestant
        if label in named or not all(references.split(",")):
            raise UsageError(
                f"{contestant!r} is no LABEL=REF[,REF...] of its own label.", "Give each its label."
            )
        named[label] = references.split(",")
    rows = side_by_side(
        options.open_registry(registry),
        Catalog.open(data),
        named,
        to=to or next(iter(named)),
        part=part,
        split=split,
        exclude_seen=exclude_seen,
    )
    out.note(f"{_COMPETE[not exclude_seen]}.")
    columns = list(dict.fromkeys(key for row in (*rows[1:], rows[0]) for key in row))
    out.table(rows, columns, as_json)


@command.command()
@click.argument("model")
@options.data_option
@click.option("--user", help="A user's id in the source data.")
@options.names_option("--history", metavar="ITEM,...", help="Items by their ids, the latest last.")
@click.option("--users", type=options.PathType, help="A text file of users' ids, one a line.")
@click.option("--all-users", is_flag=True, help="Every user of the dataset.")
@click.option("-k", "k", type=click.IntRange(1), default=10, show_default=True)
@click.option("--include-seen", is_flag=True, help="Items of the user's history may come back.")
@click.option(
    "--vectors",
    multiple=True,
    help="Of a dataset that MODEL was not trained on, or a later one: vectors of its items, made as MODEL's.",
)
@click.option("--out", "target", type=options.PathType, help="Of many users: a directory of Parquet files.")
@options.search_index_option
@options.registry_option
@options.json_option
def topk(
    model: str,
    data: Path,
    user: str | None,
    history: list[str] | None,
    users: Path | None,
    all_users: bool,
    k: int,
    include_seen: bool,
    vectors: tuple[str, ...],
    target: Path | None,
    index: str,
    registry: Path,
    as_json: bool,
) -> None:
    """The K best next items of MODEL for a user, for a history typed in, or for many users.

    The users may be later than the training; with --vectors so may the items, or the dataset be another. Of many
    users they go to a directory of Parquet files (user_id, rank, item_id, score), some thousand users each; a
    killed run goes on with the same command. Prints the directory then.
    """
    from earec_core.catalog import Catalog
    from earec_core.recommend import serving
    from earec_core.recommend.snapshots import open_retriever
    from earec_core.workspace import Workspace

    _check_whom(user is not None, history is not None, users is not None, all_users, kept=target is not None)
    catalog, workspace = Catalog.open(data), Workspace.open(registry=registry)
    stored = workspace.registry
    retriever = open_retriever(
        stored, model, catalog, vectors, index=index, cache=workspace.indexes, note=out.note
    )
    about = serving.measured(retriever, catalog)
    _note_index(about)
    if target is None:
        known = serving.history(catalog, user=user, items=history)
        (ranking,) = retriever.recommend([known], k, exclude_seen=not include_seen)
        if not ranking.ids:
            raise UsageError(
                f"The recommender {model!r} knows none of the {len(known)} items of this history.",
                "Give --vectors REF, or other items.",
            )
        out.table(serving.shown(catalog, ranking), ["rank", "item_id", "title", "score"], as_json)
        return
    ids = None if users is None else list(_lines_of(users))
    with out.progress("topk") as progress:
        count = serving.recommend_to_many(
            retriever,
            catalog,
            ids,
            k,
            target,
            model=stored.resolve(model),
            vectors=[stored.resolve(one) for one in vectors],
            exclude_seen=not include_seen,
            progress=progress,
        )
    facts = {"out": str(target), "users": count, **({"index": about} if about else {})}
    out.result(str(target), facts, as_json)


def _check_whom(user: bool, history: bool, users: bool, all_users: bool, *, kept: bool) -> None:
    """Refuse none or several of the ways to say for whom, and a directory where it has no use, or none."""
    if sum((user, history, users, all_users)) != 1:
        raise UsageError(
            "Exactly one of --user, --history, --users and --all-users is needed.", "Say for whom."
        )
    if (users or all_users) != kept:
        raise UsageError(
            "--out belongs to --users and --all-users.", "Give all of them or none: --all-users --out DIR."
        )


def _note_index(about: Mapping[str, Any] | None) -> None:
    """Say which index searches, and how much of the best it finds; nothing where it is exact."""
    if about is None:
        return
    found = "not measured" if (part := about["recall@10"]) is None else f"{part:.3f}"
    out.note(
        f"The index is {about['kind']}: {about['why']}. Recall@10 {found}, on {about['queries']:,} users."
    )


def _lines_of(file: Path) -> Iterator[str]:
    """The lines of a text file that are not blank, stripped.

    Raises:
        DataError: it cannot be read.
    """
    try:
        for line in file.read_text(encoding="utf-8-sig").splitlines():
            if line.strip():
                yield line.strip()
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read: {error}.", "Give a text file with one id a line.") from error
