"""A served pipeline: vectors of its composite, recommenders over them, a service with a journal of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from earec_core.config import RecommenderConfig, resolve
from earec_core.encode import encode
from earec_core.recommend.stage import train_registered
from earec_core.serve import Service
from earec_core.serve.app import create_app
from earec_core.workspace import Workspace

from ..conftest import FAST, Pipeline

VECTORS, RECOMMENDER, MISSREC = "vectors/served", "recommender/served", "recommender/missrec"
NEW = {"item_id": "new/1 ?#", "title": "red  lamp &amp; pen", "description": "a lamp that is red"}
JSON = {"content-type": "application/json"}
SMALL = RecommenderConfig(epochs=2, dim=8, lr=0.01)


def configured(pipeline: Pipeline) -> Any:
    return resolve(flags={**FAST, "backbone.model": str(pipeline.llm)})


@pytest.fixture(scope="session")
def trained(pipeline: Pipeline) -> Pipeline:
    """The pipeline with vectors of the composite and two recommenders over them."""
    config = configured(pipeline)
    encode(pipeline.workspace, pipeline.catalog, "composite", config, name=VECTORS)
    for model, name in (("earec", RECOMMENDER), ("missrec", MISSREC)):
        over = {"model": model, "name": name, "vectors": [VECTORS]}
        train_registered(pipeline.workspace, pipeline.catalog, SMALL, **over)
    return pipeline


def opened(pipeline: Pipeline, home: Path, **more: Any) -> Service:
    """A service with a journal of its own; the caches are the pipeline's."""
    home.mkdir(exist_ok=True)
    if not (home / "cache").exists():
        (home / "cache").symlink_to(pipeline.workspace.home / "cache")
    workspace = Workspace.open(home, pipeline.registry)
    given = {"recommender": RECOMMENDER, "config": configured(pipeline), **more}
    return Service.open(workspace, "composite", pipeline.catalog, **given)


@pytest.fixture
def service(trained: Pipeline, tmp_path: Path) -> Iterator[Service]:
    one = opened(trained, tmp_path / "home")
    yield one
    one.close()


@pytest.fixture
def client(service: Service) -> Iterator[TestClient]:
    with TestClient(create_app(service), raise_server_exceptions=False) as one:
        yield one


def call(address: str, path: str, body: Any = None) -> tuple[int, Any]:
    """The status and the JSON of an answer; a body is posted."""
    connection = HTTPConnection(address.removeprefix("http://"), timeout=60)
    with closing(connection):
        connection.request("GET" if body is None else "POST", path, body and json.dumps(body), JSON)
        answer = connection.getresponse()
        return answer.status, json.load(answer)
