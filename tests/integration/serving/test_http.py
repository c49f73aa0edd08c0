"""The service behind HTTP: routes, errors, tokens and hosts."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from fastapi.testclient import TestClient

from earec_core.errors import UsageError
from earec_core.serve import Limits, Service
from earec_core.serve.app import create_app
from earec_core.serve.guard import LOOPBACK
from earec_core.serve.server import HEAD_S
from earec_core.workspace import Workspace

from ..conftest import Pipeline
from .conftest import JSON, NEW, VECTORS, configured

TOKEN = "s3cret"


def test_every_route_answers_what_the_library_does(service: Service, client: TestClient) -> None:
    about = client.get("/v1/about").json()
    assert (about["items"], about["added"], about["modalities"]) == (20, 0, ["text", "behavior"])
    assert set(about["columns"]) == set(service.snapshot.catalog.items.columns)
    posted = client.post("/v1/items", json=NEW)
    assert posted.status_code == 201
    assert client.post("/v1/items", json=NEW).status_code == 200
    address = f"/v1/items/{quote(NEW['item_id'], safe='')}"
    assert client.get(address).json() == posted.json() == service.item(NEW["item_id"]).model_dump()
    found = client.get("/v1/items", params={"q": "red", "offset": 1, "limit": 2}).json()
    assert found == service.search("red", offset=1, limit=2).model_dump()
    assert (found["total"], len(found["items"])) == (6, 2)
    (similar,) = service.similar([NEW["item_id"]], 3)
    assert client.get("/v1/similar", params={"id": NEW["item_id"], "k": 3}).json() == similar.model_dump()
    many = client.post("/v1/similar", json={"ids": [NEW["item_id"], "i1"], "k": 3}).json()["results"]
    assert many[0] == similar.model_dump()
    by_user, by_history = service.recommend([], ["u1"], k=2)[0], service.recommend([["i1", "i2"]], k=2)[0]
    assert client.get("/v1/recommend", params={"user": "u1", "k": 2}).json() == by_user.model_dump()
    given = {"history": ["i1", "i2"], "k": 2}
    assert client.get("/v1/recommend", params=given).json() == by_history.model_dump()
    both = client.post("/v1/recommend", json={"histories": [["i1", "i2"]], "users": ["u1"], "k": 2})
    together = service.recommend([["i1", "i2"]], ["u1"], k=2)  # whose scores may differ by rounding
    assert both.json() == {"results": [answer.model_dump() for answer in together]}
    ids = [[item.item_id for item in answer.items] for answer in (by_history, by_user)]
    assert [[item.item_id for item in answer.items] for answer in together] == ids
    said = client.post("/v1/explain", json={"ids": ["i1"]}).json()
    assert said == {"results": [service.explain(["i1"])[0].model_dump()]}
    batch = client.post("/v1/items/batch", json={"items": [{**NEW, "item_id": str(n)} for n in range(2)]})
    assert (batch.status_code, [one["item_id"] for one in batch.json()["results"]]) == (201, ["0", "1"])
    for id_ in ("a\nb", "../up", "100%", "ü", "batch"):
        assert client.post("/v1/items", json={**NEW, "item_id": id_}).status_code == 201
        got = client.get(f"/v1/items/{quote(id_, safe='')}").json()
        assert got["item_id"] == id_
    counted = client.get("/metrics").text
    assert 'earec_items{kind="added"} 8.0' in counted
    assert 'earec_requests_total{method="GET",route="/v1/items/{item_id}",status="200"}' in counted
    assert client.get("/readyz").json() == {"ready": True, "problem": None, "next_step": None}
    assert client.get("/docs").status_code == 404
    assert "/v1/recommend" in client.get("/openapi.json").json()["paths"]


def test_errors_are_sentences_with_the_right_status(client: TestClient) -> None:
    plain = json.dumps(NEW).encode()
    cases: list[tuple[str, str, dict[str, Any], int, str]] = [
        ("GET", "/v1/items/gone", {}, 404, "There is no item 'gone'."),
        ("GET", "/v1/nothing", {}, 404, "There is nothing at this address."),
        ("DELETE", "/v1/items", {}, 405, "The address does not take this method."),
        ("GET", "/v1/recommend?user=nobody", {}, 404, "no user 'nobody'"),
        ("GET", "/v1/recommend", {}, 422, "Either a user or a history"),
        ("GET", "/v1/similar?id=i0&k=0", {}, 422, "query.k: Input should be greater than or equal to 1."),
        ("GET", "/v1/items?limit=5000", {}, 422, "1000 items at most"),
        ("POST", "/v1/items", {"json": {"item_id": "i0", "title": "x"}}, 409, "another item 'i0'"),
        ("POST", "/v1/items", {"content": b'{"item_id": "\\ud800"}', "headers": JSON}, 422, "item_id"),
        ("POST", "/v1/items", {"content": b"{", "headers": JSON}, 422, "JSON"),
        ("POST", "/v1/items", {"content": plain, "headers": {"content-type": "text/plain"}}, 422, "body"),
        ("POST", "/v1/explain", {"json": {"ids": ["i0"] * 9}}, 422, "4 items to explain at most"),
        ("POST", "/v1/items", {"json": {**NEW, "title": {"base64": "?"}}}, 422, "no base64"),
    ]  # fmt: skip
    for method, address, more, status, words in cases:
        answer = client.request(method, address, **more)
        assert answer.status_code == status, (address, answer.text)
        assert set(answer.json()) == {"problem", "next_step"}
        assert words in answer.json()["problem"], answer.text
        assert "Traceback" not in answer.text


def test_a_failure_is_a_sentence_without_traceback(
    service: Service, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("secret/path")

    monkeypatch.setattr(service, "search", broken)
    answer = client.get("/v1/items")
    assert (answer.status_code, answer.json()["problem"]) == (500, "The service failed at this request.")
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text


def test_before_it_is_loaded_it_is_alive_and_not_ready(trained: Pipeline, tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path, trained.registry)
    service = Service(workspace, "composite", trained.catalog, vectors=VECTORS, config=configured(trained))
    begin, came_to = threading.Event(), list[BaseException]()

    def broken() -> None:
        begin.wait(20)
        raise UsageError("No memory.", "Buy some.")

    service.load = broken  # type: ignore[method-assign]
    with TestClient(create_app(service, failed=came_to.append)) as client:
        assert client.get("/healthz").status_code == 200
        assert client.get("/readyz").status_code == 503
        answer = client.get("/v1/items/i0")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        begin.set()
        while not came_to:
            pass
        said = client.get("/readyz")
        assert (said.status_code, said.json()["problem"]) == (503, "No memory.")
    assert str(came_to[0]) == "No memory. Buy some."
    service.close()


def test_who_has_no_token_or_asks_for_another_host_is_refused(service: Service) -> None:
    with TestClient(create_app(service, token=TOKEN)) as client:
        for header in (None, "Bearer wrong", "Basic s3cret", "s3cret", "Bearer"):
            answer = client.get("/v1/items", headers={"authorization": header} if header else {})
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
            assert "s3cret" not in answer.text
        assert client.get("/metrics").status_code == client.get("/openapi.json").status_code == 401
        assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200
        assert client.get("/v1/items", headers={"authorization": "Bearer s3cret"}).status_code == 200
    with TestClient(create_app(service, hosts=LOOPBACK)) as client:
        for host, status in (("evil.example", 421), ("127.0.0.1:8000", 200), ("[::1]:8000", 200), ("[", 421)):
            assert client.get("/v1/items", headers={"host": host}).status_code == status


def test_every_route_and_limit_is_documented(service: Service) -> None:
    page = (Path(__file__).parents[3] / "docs/serving.md").read_text()
    rows = re.findall(r"^\| `([A-Z]+ /\S+)` \|", page, re.MULTILINE)
    paths = create_app(service).openapi()["paths"]
    assert sorted(rows) == sorted(f"{method.upper()} {path}" for path in paths for method in paths[path])
    limits = Limits()
    for value in (f"{limits.body_bytes >> 20} MiB, in {limits.body_s:g} seconds", f"| {limits.k:,} | 422"):
        assert value in page
    for value in (f"| {limits.ids} | 422", f"| {limits.explained} | 422", f"| {limits.waiting} | 503"):
        assert value in page
    assert f"| {limits.candidates} | the others" in page
    assert f"| the head of a request | {HEAD_S:g} seconds |" in page
    assert limits.history == limits.k
    assert f"| {limits.timeout_s:g} seconds (`--timeout`) | 504" in page
