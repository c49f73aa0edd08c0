"""`earec serve`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from earec_core.cli import options
from earec_core.cli.output import out
from earec_core.config import RunConfig

if TYPE_CHECKING:
    import socket

    from earec_core.serve import Service


@click.command()
@click.argument("model")
@options.data_option
@click.option("--recommender", help="REF of a recommender over vectors of MODEL.  [default: none]")
@click.option("--vectors", help="REF of MODEL's vectors.  [default: the recommender's, else vectors/DATASET]")
@click.option(
    "--beside", multiple=True, metavar="REF", help="Further vectors to compare items by. Repeatable."
)
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Others than this machine's need a token."
)
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: a free one.")
@click.option(
    "--token-file", type=options.PathType, help="Has the bearer token to ask for.  [env: EAREC_TOKEN]"
)
@click.option(
    "--timeout",
    type=click.FloatRange(0.1),
    default=60.0,
    show_default=True,
    help="Seconds a request may take.",
)
@options.config_options("preset", "backbone")
@options.registry_option
@options.json_option
def command(
    model: str,
    data: Path,
    recommender: str | None,
    vectors: str | None,
    beside: tuple[str, ...],
    host: str,
    port: int,
    token_file: Path | None,
    timeout: float,
    config: RunConfig,
    registry: Path,
    as_json: bool,
) -> None:
    """Serve MODEL over a dataset by HTTP: items, similar ones, recommendations, explanations, new items.

    Prints its address once it answers, where a browser shows a page, and runs until it is interrupted. An item
    that is added is encoded at once, recommended, and kept in EAREC_HOME. When the tag of what is served moves,
    the new one takes its place.
    """
    from earec_core.serve.server import bind, check_address, check_installed

    check_installed()
    from earec_core.catalog import Catalog
    from earec_core.serve import Limits, Service
    from earec_core.serve.guard import read_token
    from earec_core.workspace import Reporter, Workspace

    token = read_token(token_file, os.environ.get("EAREC_TOKEN"))
    check_address(host, token)
    with out.alone(), bind(host, port) as listening:
        watch = options.Session(registry).observers
        workspace = Workspace.open(registry=registry, reporter=Reporter(out.note), watch=watch)
        service = Service(
            workspace,
            model,
            Catalog.open(data),
            recommender=recommender,
            vectors=vectors,
            beside=beside,
            config=config,
            limits=Limits(timeout_s=timeout),
        )
        out.note(f"Loading {model} ...")
        try:
            _serve(service, listening, host, token, as_json)
        finally:
            service.close()


def _serve(service: Service, listening: socket.socket, host: str, token: str | None, as_json: bool) -> None:
    """Serve until a signal; whatever loading came to is raised."""
    from earec_core.serve.app import create_app
    from earec_core.serve.guard import LOOPBACK
    from earec_core.serve.server import Server, url

    failures: list[BaseException] = []

    def failed(error: BaseException) -> None:
        failures.append(error)
        server.stop()

    def loaded() -> None:
        about, address = service.about(), url(listening)
        out.result(address, {"url": address, **about.model_dump(exclude={"columns"})}, as_json)
        out.stream.flush()
        out.note(f"Serving {about.items} items, {about.added} of them added. Ctrl-C ends it.")
        out.note(f"Next: open {address} in a browser, or curl '{address}/v1/items?limit=3'")

    def reloaded() -> None:
        error = service.failed
        out.note(f"Not reloaded: {error}" if error else "Reloaded: what is served has moved.")

    hosts = None if token else {*LOOPBACK, host}
    app = create_app(service, token=token, hosts=hosts, loaded=loaded, failed=failed, reloaded=reloaded)
    server = Server(app, service.limits.timeout_s)
    server.run(listening)
    if failures:
        raise failures[0]
