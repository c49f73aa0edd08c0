"""`earec encode`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from earec_core.cli import options
from earec_core.cli.output import out
from earec_core.config import RecommenderConfig, RunConfig
from earec_core.errors import UsageError
from earec_registry import Registry


@click.command()
@click.argument("model", required=False)
@options.data_option
@options.names_option("--modalities", help="Comma-separated; default: all of the model's.")
@click.option(
    "--encoder",
    metavar="NAME|DIR",
    help="An encoder of text reads the words of --modalities, no LLM; no MODEL then. all-minilm-l6-v2, or a "
    "model's directory.",
)
@click.option(
    "--unaligned", is_flag=True, help="The backbone without adapter, for comparison; no MODEL then."
)
@click.option("--name", help="What to register the vectors as.  [default: vectors/DATASET]")
@click.option(
    "--export",
    "exported_to",
    type=options.OutFile,
    help="Also write them to this file: .parquet, .npy or .faiss (see `earec export`).",
)
@options.index_option
@options.scaling_option
@click.option(
    "--plan", is_flag=True, help="Say what it would do and cost, from ten seconds of trying; no vectors."
)
@click.option(
    "--prompts",
    "prompts_to",
    type=options.PathType,
    help="Write what the LLM reads, as embeddings, to a new directory, for another engine; no vectors.",
)
@click.option(
    "--engine",
    default="local",
    show_default=True,
    help="local, or ray: processes of this machine or of the cluster of RAY_ADDRESS.",
)
@click.option(
    "--workers",
    type=click.IntRange(1),
    help="Processes of --engine ray.  [default: one a GPU, without any one a machine]",
)
@options.force_option
@options.config_options("preset", "backbone")
@options.session_options
@options.json_option
def command(
    model: str | None,
    data: Path,
    modalities: list[str] | None,
    encoder: str | None,
    unaligned: bool,
    name: str | None,
    exported_to: Path | None,
    index: str,
    scaling: str,
    plan: bool,
    prompts_to: Path | None,
    engine: str,
    workers: int | None,
    force: bool,
    config: RunConfig,
    session: options.Session,
    as_json: bool,
) -> None:
    """Encode every item of a dataset with MODEL, from whichever modalities it has; or its words with --encoder.

    A killed run goes on at the last shard of vectors, and what was encoded before is not encoded again. Prints the
    vectors' id.
    """
    from earec_core.catalog import Catalog
    from earec_core.encode import encode, encode_words, write_prompts
    from earec_core.encode import plan as planned
    from earec_core.encode.engines import get_engine

    _check_model(model, encoder, unaligned)
    _check(plan, prompts_to, name)
    _check_encoder(encoder, any((plan, prompts_to, engine != "local", workers, force)))
    get_engine(engine, workers)
    catalog = Catalog.open(data)
    _check_export(exported_to, index, scaling, plan or prompts_to is not None, len(catalog))
    with session("encode") as workspace:
        if plan:
            worked_out = planned(workspace, catalog, model, config, names=modalities)
            out.facts(worked_out.lines(), {"plan": worked_out.facts()}, as_json)
            return
        if prompts_to is not None:
            prompts = write_prompts(workspace, catalog, model, config, prompts_to, names=modalities)
            counts = {"items": prompts.items, "positions": prompts.positions}
            out.result(str(prompts_to), {"out": prompts_to, **counts}, as_json)
            return
        if encoder is not None:
            vectors = encode_words(workspace, catalog, encoder, config, names=modalities or (), name=name)
        else:
            how: Any = {"engine": engine, "workers": workers, "force": force}
            vectors = encode(workspace, catalog, model, config, names=modalities, name=name, **how)
        facts = {"id": vectors.id, "shapes": vectors.manifest.shapes.model_dump()}
        facts["coverage"] = vectors.manifest.coverage
        if exported_to is not None:
            scaled = config.recommender.model_copy(update={"scaling": scaling})
            facts["export"] = _export(workspace.registry, vectors.id, exported_to, scaled, index)
    named = name or f"vectors/{catalog.name}"
    options.follow_up("recommend", "train", "--vectors", named, "--data", str(data))
    out.result(vectors.id, facts, as_json)


def _export(
    registry: Registry, vectors: str, file: Path, scaled: RecommenderConfig, index: str
) -> dict[str, Any]:
    """Write the vectors to a file and say so; gives what was written."""
    from earec_core.export import export_vectors

    written = export_vectors(registry, vectors, file, scaled, index=index)
    for line in written.lines():
        out.note(line)
    return written.facts()


def _check_model(model: str | None, encoder: str | None, unaligned: bool) -> None:
    """Raises UsageError unless one thing that encodes is named."""
    if sum((model is not None, encoder is not None, unaligned)) != 1:
        raise UsageError(
            "Exactly one of MODEL, --encoder and --unaligned is needed.",
            "Name a model, name an encoder of text, or say --unaligned.",
        )


def _check_encoder(encoder: str | None, others: bool) -> None:
    """Raises UsageError for options that an encoder of text has no use for."""
    if encoder is not None and others:
        raise UsageError(
            "--encoder reads no prompts, works in one process and keeps nothing.",
            "Leave --plan, --prompts, --engine, --workers and --force out.",
        )


def _check(plan: bool, prompts_to: Path | None, name: str | None) -> None:
    """Raises UsageError for options of which one would be without effect."""
    if prompts_to is not None and plan:
        raise UsageError("--plan writes nothing.", "Leave --plan or --prompts out.")
    if prompts_to is not None and name is not None:
        raise UsageError("--prompts makes no vectors that --name could name.", "Leave --name out.")


def _check_export(file: Path | None, index: str, scaling: str, no_vectors: bool, items: int) -> None:
    """Raises UsageError for an export that cannot be written, and for options of one that is none."""
    from earec_core.export import check_vectors_file

    if file is None and (index, scaling) != ("auto", "none"):
        raise UsageError("--index and --scaling are of --export.", "Name a file: --export vectors.faiss")
    if file is not None and no_vectors:
        raise UsageError("--plan and --prompts make no vectors to export.", "Leave them or --export out.")
    if file is not None:
        check_vectors_file(file, index, items)
