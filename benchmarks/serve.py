"""`earec serve` under load: `GET /v1/recommend` by many clients at once, beside what it is made of.

A made-up catalog through a tiny LLM, so that everything is quick but the size: the LLM has no part in recommending.
The service runs in a process of its own, the clients in this one. Beside it, by the same clients: a bare Starlette
endpoint that sends an answer of the same bytes; and one FAISS search of the same items after another. An answer is
compared with the library's before anything is timed; errors are counted, and how the service's memory grows.

    python benchmarks/serve.py [--items 25986] [--clients 200] [--seconds 60] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import faiss
import numpy as np
import polars as pl
import psutil
import torch

from earec_core.align import align
from earec_core.catalog import Catalog, import_dataset
from earec_core.config import resolve
from earec_core.encode import encode
from earec_core.recommend.snapshots import open_retriever
from earec_core.recommend.stage import train_registered
from earec_core.testing import tiny_backbone
from earec_core.workspace import Workspace

MODEL, VECTORS, RECOMMENDER = "text/shop", "vectors/shop", "recommender/shop"
USERS, HISTORY, K = 5000, 10, 10
BARE = """
import sys
import uvicorn
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

body = sys.argv[2].encode()

async def answer(request):
    return Response(body, media_type="application/json")

uvicorn.run(Starlette(routes=[Route("/", answer)]), port=int(sys.argv[1]), log_config=None, access_log=False)
"""


def prepare(folder: Path, n: int) -> tuple[Workspace, Catalog, Path]:
    """A model, its vectors of n made-up items, and a recommender over them."""
    source, rng = folder / "source", np.random.default_rng(0)
    source.mkdir()
    ids = [f"i{row}" for row in range(n)]
    pl.DataFrame({"item_id": ids, "title": [f"thing {row}" for row in range(n)]}).write_csv(
        source / "items.csv"
    )
    chosen = rng.integers(0, n, (USERS, HISTORY))
    pl.DataFrame(
        {
            "user_id": np.repeat(np.arange(USERS), HISTORY),
            "item_id": [ids[row] for row in chosen.ravel()],
            "timestamp": np.tile(np.arange(HISTORY), USERS),
        }
    ).write_csv(source / "interactions.csv")
    catalog = import_dataset(source, folder / "shop", core=0, relations="none")
    workspace, llm = Workspace.open(folder / "home"), tiny_backbone(folder / "llm")
    settings = {
        "backbone.model": str(llm),
        "align.max_steps": 1,
        "recommender.epochs": 1,
        "align.rouge_items": 0,
    }
    config = resolve(flags={**settings, "text.template": "{title}"})
    align(workspace, catalog, "text", config, name=MODEL)
    encode(workspace, catalog, MODEL, config, name=VECTORS)
    train_registered(workspace, catalog, config.recommender, vectors=[VECTORS], name=RECOMMENDER)
    return workspace, catalog, llm


@contextmanager
def served(workspace: Workspace, catalog: Catalog, llm: Path) -> Iterator[tuple[str, psutil.Process]]:
    """The address of the service, and its process."""
    command = [sys.executable, "-m", "earec_core", "serve", MODEL, "--data", str(catalog.path), "--json"]
    options = ["--recommender", RECOMMENDER, "--vectors", VECTORS, "--backbone", str(llm), "--port", "0"]
    environment = {**os.environ, "EAREC_HOME": str(workspace.home)}
    with subprocess.Popen(
        [*command, *options], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            assert process.stdout is not None
            said = ""
            while not said.rstrip().endswith("}"):
                said += process.stdout.readline()
            yield f"{json.loads(said)['url']}/v1/recommend", psutil.Process(process.pid)
        finally:
            process.terminate()


@contextmanager
def bare(body: str, port: int = 8799) -> Iterator[str]:
    """The address of an endpoint that sends `body`."""
    with subprocess.Popen([sys.executable, "-c", BARE, str(port), body]) as process:
        try:
            time.sleep(3)
            yield f"http://127.0.0.1:{port}/"
        finally:
            process.terminate()


async def load(url: str, queries: Sequence[str], clients: int, seconds: float) -> tuple[list[float], int]:
    """Seconds of every answer to clients that each ask again once they are answered, and how many errors."""
    times, errors, end = list[float](), 0, time.perf_counter() + seconds

    async def client(session: aiohttp.ClientSession, draws: random.Random) -> None:
        nonlocal errors
        while (started := time.perf_counter()) < end:
            try:
                async with session.get(url + draws.choice(queries)) as answer:
                    await answer.read()
                    errors += answer.status != 200
            except aiohttp.ClientError:
                errors += 1
            times.append(time.perf_counter() - started)

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=clients)) as session:
        await asyncio.gather(*(client(session, random.Random(seed)) for seed in range(clients)))  # noqa: S311
    return times, errors


def search_times(workspace: Workspace, catalog: Catalog, searches: int = 2000) -> list[float]:
    """Seconds of one flat search after another among the recommender's items, by their inner product."""
    items = open_retriever(workspace.registry, RECOMMENDER, catalog).items.detach().numpy()
    index = faiss.IndexFlatIP(items.shape[1])
    index.add(items)
    times = []
    for row in np.random.default_rng(0).integers(0, len(items), searches):
        started = time.perf_counter()
        index.search(items[row : row + 1], K + HISTORY)
        times.append(time.perf_counter() - started)
    return times


def check(answer: dict[str, Any], workspace: Workspace, catalog: Catalog, history: Sequence[int]) -> None:
    """The service's answer is the library's."""
    retriever = open_retriever(workspace.registry, RECOMMENDER, catalog)
    (best,) = retriever.recommend([torch.tensor(history)], k=K)
    assert [item["item_id"] for item in answer["items"]] == list(best.ids)


def p99(times: Sequence[float]) -> float:
    return float(np.quantile(times, 0.99)) * 1000


def measure(
    workspace: Workspace, catalog: Catalog, llm: Path, clients: int, seconds: float
) -> dict[str, Any]:
    histories = np.random.default_rng(1).integers(0, len(catalog), (500, HISTORY)).tolist()
    queries = [f"?k={K}&" + "&".join(f"history={catalog.item(row).id}" for row in rows) for rows in histories]
    with served(workspace, catalog, llm) as (url, process):

        async def first() -> str:
            async with aiohttp.ClientSession() as session, session.get(url + queries[0]) as answer:
                return await answer.text()

        body = asyncio.run(first())
        check(json.loads(body), workspace, catalog, histories[0])
        asyncio.run(load(url, queries, clients, min(10, seconds)))
        before = process.memory_info().rss
        times, errors = asyncio.run(load(url, queries, clients, seconds))
        grown = process.memory_info().rss - before
    with bare(body) as url:
        asyncio.run(load(url, [""], clients, 2))
        plain, _ = asyncio.run(load(url, [""], clients, min(10, seconds)))
    parts = p99(plain) + p99(search_times(workspace, catalog))
    return {
        "requests": len(times),
        "requests_per_second": round(len(times) / seconds, 1),
        "errors": errors,
        "p50_ms": round(float(np.median(times)) * 1000, 1),
        "p99_ms": round(p99(times), 1),
        "bare_endpoint_p99_ms": round(p99(plain), 1),
        "search_p99_ms": round(parts - p99(plain), 2),
        "times_the_sum": round(p99(times) / parts, 2),
        "memory_grown_mib": round(grown / 2**20, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, default=25_986)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(*prepare(Path(folder), options.items), options.clients, options.seconds)
    if options.json:
        print(json.dumps(found, indent=2))
        return
    for name, value in found.items():
        print(f"{name.replace('_', ' '):28} {value}")


if __name__ == "__main__":
    main()
