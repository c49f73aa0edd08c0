"""The service over a small pipeline, without HTTP and behind it, against numpy and what the stages give."""

from __future__ import annotations

import asyncio
import json
import os
import queue
import re
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from earec_core.artifacts import ItemVectors
from earec_core.catalog import Catalog, import_dataset
from earec_core.config import RecommenderConfig, resolve
from earec_core.encode import encode
from earec_core.errors import DataError, EarecError, UsageError
from earec_core.explain import explain, text_rows
from earec_core.recommend.serving import history
from earec_core.recommend.snapshots import open_retriever
from earec_core.recommend.stage import train_registered
from earec_core.serve import Limits, Service
from earec_core.serve.app import create_app
from earec_core.serve.errors import BusyError, SlowError, TakenError, UnknownIdError
from earec_core.serve.guard import LOOPBACK
from earec_core.serve.server import HEAD_S, Server, bind
from earec_core.workspace import Workspace
from tests.forks import Forks

from .conftest import FAST, Pipeline, write_source

VECTORS, RECOMMENDER, MISSREC = "vectors/served", "recommender/served", "recommender/missrec"
NEW = {"item_id": "new/1 ?#", "title": "red  lamp &amp; pen", "description": "a lamp that is red"}
TOKEN = "s3cret"
_JSON = {"content-type": "application/json"}
SMALL = RecommenderConfig(epochs=2, dim=8, lr=0.01)


def conforming(schemathesis: Any) -> list[Any]:
    """The checks that every answer passes, whatever is asked."""
    names = ("not_a_server_error", "status_code_conformance", "content_type_conformance")
    return [getattr(schemathesis.checks, name) for name in (*names, "response_schema_conformance")]


def _config(pipeline: Pipeline) -> Any:
    return resolve(flags={**FAST, "backbone.model": str(pipeline.llm)})


@pytest.fixture(scope="module")
def trained(pipeline: Pipeline) -> Pipeline:
    """The pipeline with vectors of the composite and two recommenders over them."""
    config = _config(pipeline)
    encode(pipeline.workspace, pipeline.catalog, "composite", config, name=VECTORS)
    for model, name in (("earec", RECOMMENDER), ("missrec", MISSREC)):
        over = {"model": model, "name": name, "vectors": [VECTORS]}
        train_registered(pipeline.workspace, pipeline.catalog, SMALL, **over)
    return pipeline


def _opened(pipeline: Pipeline, home: Path, **more: Any) -> Service:
    """A service with a journal of its own; the caches are the pipeline's."""
    home.mkdir(exist_ok=True)
    if not (home / "cache").exists():
        (home / "cache").symlink_to(pipeline.workspace.home / "cache")
    workspace = Workspace.open(home, pipeline.registry)
    given = {"recommender": RECOMMENDER, "config": _config(pipeline), **more}
    return Service.open(workspace, "composite", pipeline.catalog, **given)


@pytest.fixture
def service(trained: Pipeline, tmp_path: Path) -> Iterator[Service]:
    one = _opened(trained, tmp_path / "home")
    yield one
    one.close()


@pytest.fixture
def client(service: Service) -> Iterator[TestClient]:
    with TestClient(create_app(service), raise_server_exceptions=False) as one:
        yield one


def _whitened(table: np.ndarray) -> np.ndarray:
    """ZCA of the n / 4 leading directions of standardised columns, by SVD; and of length 1."""
    x = (table - table.mean(0)) / np.maximum(table.std(0, ddof=1), 1e-6)
    _, s, vt = np.linalg.svd(x, full_matrices=False)
    keep = max(1, min(x.shape[1], len(x) // 4))
    v = vt[:keep].T
    scaled = x @ v / (s[:keep] / len(x) ** 0.5) @ v.T
    return np.asarray(scaled / np.linalg.norm(scaled, axis=1, keepdims=True))


def test_similar_items_and_recommendations_are_those_of_the_stages(
    trained: Pipeline, service: Service
) -> None:
    catalog = trained.catalog
    ids = catalog.items["item_id"].to_list()
    stored = ItemVectors.open(trained.workspace.registry, VECTORS, catalog)
    directions = _whitened(stored.vectors.astype(np.float64))
    for answer in service.similar(ids[:3], 5):
        row = ids.index(answer.item_id)
        cosines = directions @ directions[row]
        best = [other for other in np.argsort(-cosines, kind="stable") if other != row][:5]
        assert [one.score for one in answer.items] == pytest.approx(cosines[best].tolist(), abs=1e-3)
        assert [one.rank for one in answer.items] == [1, 2, 3, 4, 5]
        assert answer.items[0].title == catalog.item(ids.index(answer.items[0].item_id)).title

    retriever = open_retriever(trained.workspace.registry, RECOMMENDER, catalog)
    typed, by_user = service.recommend([[ids[4], ids[2]]], ["u3"], k=4)
    rankings = retriever.recommend([history(catalog, items=[ids[4], ids[2]]), history(catalog, user="u3")], 4)
    for answer, ranking in zip((typed, by_user), rankings, strict=True):
        assert [one.item_id for one in answer.items] == list(ranking.ids)
        assert [one.score for one in answer.items] == pytest.approx(ranking.scores.tolist(), rel=1e-4)
    (all_seen,) = service.recommend([ids], k=4, exclude_seen=False)
    assert len(all_seen.items) == 4


def test_different_questions_that_are_answered_together_have_their_own_answers(service: Service) -> None:
    ways = [
        {"histories": [["i4", "i2"]], "k": 4},
        {"users": ["u3"], "k": 2},
        {"histories": [["i1"]], "k": 4},
        {"histories": [["i4", "i2"]], "k": 4, "exclude_seen": False},
    ]
    together = service.recommended([one for way in ways for one in service.asked(**way)])
    for way, answer in zip(ways, together, strict=True):
        (alone,) = service.recommend(**way)
        assert [one.item_id for one in answer.items] == [one.item_id for one in alone.items]
        assert [one.score for one in answer.items] == pytest.approx(
            [one.score for one in alone.items], rel=1e-5
        )


def test_texts_are_those_that_explain_generates(trained: Pipeline, service: Service) -> None:
    catalog, ids = trained.catalog, ["i3", "i0"]
    said = explain(trained.workspace, catalog, "composite", _config(trained), items=ids, variants=["aligned"])
    expected = {(row["item_id"], row["source"]): row for row in text_rows(said, catalog)}
    answers = service.explain(ids)
    assert [one.item_id for one in answers] == ids
    found = {(one.item_id, text.source): (one.anchor, text) for one in answers for text in one.texts}
    assert set(found) == set(expected)
    for key, (anchor, text) in found.items():
        row = expected[key]
        assert (anchor, text.text, text.rouge_l) == (row["anchor"], row["text"], row["rouge_l"])


def _with_the_new_one(trained: Pipeline, folder: Path) -> tuple[Catalog, list[str]]:
    """The same source with the new item last, imported anew: what an added item is compared with."""
    source = write_source(folder / "source")
    with (source / "items.jsonl").open("a") as out:
        out.write(json.dumps(NEW) + "\n")
    catalog = import_dataset(source, folder / "things", core=0)
    return catalog, catalog.items["item_id"].to_list()


@pytest.mark.parametrize("recommender", [RECOMMENDER, MISSREC])
def test_an_added_item_is_what_it_would_be_had_it_been_imported(
    trained: Pipeline, tmp_path: Path, recommender: str
) -> None:
    """Its vector, its neighbours and its recommendations, from a catalog that is imported and encoded with it."""
    service = _opened(trained, tmp_path / "home", recommender=recommender)
    (added,), new = service.add([NEW])
    assert new
    assert (added.title, added.anchor, added.added) == ("red lamp & pen", "red lamp & pen", True)
    assert added.inputs == {"text": "a lamp that is red"}
    assert service.search("lamp red").items[-1].item_id == NEW["item_id"]
    assert service.search("amp").total == 0

    whole, ids = _with_the_new_one(trained, tmp_path)
    assert ids[-1] == NEW["item_id"]
    name = "vectors/with-new"
    vectors = encode(trained.workspace, whole, "composite", _config(trained), name=name)
    now = service.snapshot
    np.testing.assert_allclose(now.vectors, vectors.vectors[-1:], rtol=1e-3, atol=1e-4)
    retriever = open_retriever(trained.workspace.registry, recommender, whole, [name])
    for items in (["i0", "i3"], [NEW["item_id"], "i7"]):
        (ranking,) = retriever.recommend([history(whole, items=items)], 99)
        (answer,) = service.recommend([items], k=99)
        expected = dict(zip(ranking.ids, ranking.scores.tolist(), strict=True))
        assert {one.item_id: one.score for one in answer.items} == pytest.approx(expected, rel=1e-3, abs=1e-3)
    assert NEW["item_id"] in {one.item_id for one in service.recommend([["i0"]], k=99)[0].items}
    (near,) = service.similar([NEW["item_id"]], 30)
    back = {one.item_id: service.similar([one.item_id], 30)[0].items for one in near.items}
    for one in near.items:  # a cosine is the same from both sides
        (same,) = [other.score for other in back[one.item_id] if other.item_id == NEW["item_id"]]
        assert same == pytest.approx(one.score, abs=1e-5)
    assert {text.source for text in service.explain([NEW["item_id"]])[0].texts} == {"text", "all"}
    service.close()


def test_added_items_are_there_after_another_start_and_a_torn_line_is_passed_over(
    trained: Pipeline, tmp_path: Path
) -> None:
    first = _opened(trained, tmp_path / "home")
    first.add([NEW])
    vector = first.snapshot.vectors.copy()
    with pytest.raises(UsageError, match="Another process serves"):
        _opened(trained, tmp_path / "home")
    first.close()
    (journal,) = (tmp_path / "home" / "serve").glob("*/items.jsonl")
    whole = journal.read_bytes()
    journal.write_bytes(whole + whole[: len(whole) // 2])
    second = _opened(trained, tmp_path / "home")
    assert np.array_equal(second.snapshot.vectors, vector)
    second.add([{**NEW, "item_id": "another"}])
    second.close()
    assert len(journal.read_text().splitlines()) == 2
    third = _opened(trained, tmp_path / "home")
    assert [third.item(id_).added for id_ in (NEW["item_id"], "another", "i0")] == [True, True, False]
    third.close()
    journal.write_bytes(b"{}\n" + whole)
    with pytest.raises(EarecError, match=r"Line 1 of the journal .* is damaged"):
        _opened(trained, tmp_path / "home")


def test_what_cannot_be_added_or_asked_for_is_a_sentence_and_changes_nothing(service: Service) -> None:
    before = service.snapshot
    refused: list[tuple[list[dict[str, Any]], type[EarecError], str]] = [
        ([{"item_id": "i0", "title": "other"}], TakenError, "another item 'i0'"),
        ([{"item_id": "x", "colour": "red"}], UsageError, "no column 'colour'"),
        ([{"title": "x", "item_id": " "}], UsageError, "no item_id"),
        ([{"item_id": "x", "title": "only a title"}], UsageError, "it has no text and no behavior"),
        ([{"item_id": "x", "title": {"a": 1}}], UsageError, "title is not of the catalog's kind"),
        ([NEW, NEW], UsageError, "two items of one id"),
        ([NEW, {"item_id": "y"}], UsageError, "read nothing of item 'y'"),
        ([], UsageError, "no items"),
    ]
    for items, kind, words in refused:
        with pytest.raises(kind, match=words):
            service.add(items)
    assert service.snapshot is before
    for ask, words in (
        (lambda: service.item("gone"), "no item 'gone'"),
        (lambda: service.recommend(users=["nobody"]), "no user 'nobody'"),
        (lambda: service.recommend([[]]), "no items in a history"),
        (lambda: service.explain(["i0"] * 5), "4 items to explain at most"),
        (lambda: service.similar(["i0"], 1001), "1000 items in an answer at most"),
    ):
        with pytest.raises(UsageError, match=words):
            ask()
    same = {key: value for key, value in service.item("i0").fields.items() if key != "from_catalog"}
    assert service.add([same])[1] is False


def test_the_llm_has_a_short_queue_and_a_time_limit(trained: Pipeline, tmp_path: Path) -> None:
    service = _opened(trained, tmp_path / "home", limits=Limits(waiting=0))
    now = service.snapshot
    with service._llm.turn(lambda: now.job):
        with pytest.raises(BusyError, match="at work"):
            service.explain(["i0"])
    assert service.explain(["i0"])[0].texts
    with pytest.raises(SlowError, match="more than 1e-09 seconds"):
        service.add([NEW], timeout_s=1e-9)
    with pytest.raises(UnknownIdError):
        service.item(NEW["item_id"])
    service.close()


def test_when_a_tag_moves_the_new_model_answers_with_the_items_that_were_added(
    trained: Pipeline, tmp_path: Path
) -> None:
    """A model without vectors is not loaded, and it is said; with them it is, and encodes the added item anew."""
    shutil.copytree(trained.registry, tmp_path / "registry")
    workspace = Workspace.open(tmp_path / "home", tmp_path / "registry")
    registry, config = workspace.registry, _config(trained)
    limits = Limits(poll_s=0.02)
    service = Service.open(
        workspace, "composite", trained.catalog, vectors=VECTORS, config=config, limits=limits
    )
    service.add([NEW])
    before = service.snapshot
    assert not service.refresh()
    text = registry.resolve("text/things")
    with TestClient(create_app(service)) as client:
        registry.tag(text, "composite", "latest", why="test")
        while (said := client.get("/readyz").json())["problem"] is None:
            time.sleep(0.02)
        assert said["ready"]
        assert "are not of the model 'composite' as it is now" in said["problem"]
        assert service.snapshot is before
        vectors = encode(workspace, trained.catalog, text, config, name=VECTORS)
        while client.get("/v1/about").json()["model"] != text:
            time.sleep(0.02)
        assert 'earec_reloads_total{result="failed"} 1.0' in client.get("/metrics").text
    assert not service.refresh()
    assert service.failed is None
    assert service.about().vectors == vectors.id
    assert service.item(NEW["item_id"]).added
    assert not np.allclose(service.snapshot.vectors, before.vectors)
    assert {one.source for one in service.explain([NEW["item_id"]])[0].texts} == {"text"}
    service.close()


def test_what_does_not_belong_together_is_refused_before_anything_is_loaded(
    trained: Pipeline, tmp_path: Path
) -> None:
    workspace = Workspace.open(tmp_path, trained.registry)
    for model, more, words in (
        ("text/things", {"vectors": VECTORS}, "not of the model 'text/things'"),
        ("composite", {"recommender": "composite"}, "not a recommender"),
        (VECTORS, {}, "not an adapter"),
    ):
        with pytest.raises(UsageError, match=words):
            Service(workspace, model, trained.catalog, **more)
    with pytest.raises(DataError):
        Catalog.open(tmp_path / "nothing")


def test_what_cannot_be_loaded_ends_the_command(
    trained: Pipeline, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EAREC_TOKEN", raising=False)
    argv = ["serve", "composite", "--data", str(trained.data), "--vectors", VECTORS, "--port", "0"]
    before = signal.getsignal(signal.SIGTERM)
    assert trained.run(*argv, "--backbone", "no-such-llm") == 2
    said = capsys.readouterr()
    assert "Error: " in said.err
    assert "no-such-llm" in said.err
    assert not said.out
    assert signal.getsignal(signal.SIGTERM) is before


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
    assert both.json() == {"results": [by_history.model_dump(), by_user.model_dump()]}
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
        ("POST", "/v1/items", {"content": b'{"item_id": "\\ud800"}', "headers": _JSON}, 422, "item_id"),
        ("POST", "/v1/items", {"content": b"{", "headers": _JSON}, 422, "JSON"),
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
    service = Service(workspace, "composite", trained.catalog, vectors=VECTORS, config=_config(trained))
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


def test_a_large_or_slow_body_and_a_slow_answer_are_refused(trained: Pipeline, tmp_path: Path) -> None:
    limits = Limits(body_bytes=100, body_s=0.05, timeout_s=0.05)
    service = _opened(trained, tmp_path / "home", limits=limits)
    app = create_app(service)
    with TestClient(app) as client:
        large = client.post("/v1/items", json={"item_id": "x", "title": "y" * 200})
        assert (large.status_code, large.json()["problem"]) == (413, "The body is too large.")
        many = client.post("/v1/items", content=(b"[" for _ in range(200)), headers=_JSON)
        assert many.status_code == 413
        now = service.snapshot
        with service._llm.turn(lambda: now.job):
            slow = client.post("/v1/explain", json={"ids": ["i0"]})
        assert (slow.status_code, slow.json()["problem"]) == (504, "The answer took more than 0.05 seconds.")
    assert asyncio.run(_never_ending(app))["status"] == 408
    service.close()


def test_slow_and_endless_clients_are_cut_off_and_others_are_answered(
    trained: Pipeline, tmp_path: Path
) -> None:
    """Over sockets, against a running server; the limits are short, and so are the pauses between two bytes."""
    limits = Limits(body_bytes=1000, body_s=0.5)
    service = _opened(trained, tmp_path / "home", limits=limits)
    post = b"POST /v1/similar HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    get = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n"
    with bind("127.0.0.1", 0) as listening:
        server = Server(create_app(service), 1, head_s=0.5)
        running = threading.Thread(target=server._server.run, kwargs={"sockets": [listening]}, daemon=True)
        running.start()
        clients = {
            "nothing": _Drip(listening, b"", b""),
            "head": _Drip(listening, b"GET /healthz HTTP/1.1\r\n", b"x-slow: 1\r\n"),
            "second head": _Drip(listening, get + b"GET /healthz HTTP/1.1\r\n", b"x-slow: 1\r\n"),
            "body": _Drip(listening, post + b"content-length: 900\r\n\r\n", b"["),
            "chunked body": _Drip(listening, post + b"transfer-encoding: chunked\r\n\r\n", b"1\r\n[\r\n"),
            "large": _Drip(listening, post + b"content-length: 5000\r\n\r\n" + b"[" * 2000, b"["),
            "large chunk": _Drip(
                listening, post + b"transfer-encoding: chunked\r\n\r\n7d0\r\n" + b"[" * 2000 + b"\r\n", b""
            ),
        }
        address = "http://{}:{}".format(*listening.getsockname())
        deadline = time.monotonic() + 60
        while any(client.is_alive() for client in clients.values()):
            assert _ask(address, "/v1/similar?id=i0&k=1")[0] == 200
            assert time.monotonic() < deadline
        for name, status in (("body", 408), ("chunked body", 408), ("large", 413), ("large chunk", 413)):
            assert clients[name].answer.startswith(f"HTTP/1.1 {status} ".encode()), name
        assert [clients[name].answer for name in ("nothing", "head")] == [b"", b""]
        assert clients["second head"].answer.count(b"HTTP/1.1 200 OK") == 1
        server.stop()
        running.join()
    service.close()


class _Drip(threading.Thread):
    """A client that sends a beginning at once, and then the same few bytes again and again until it is cut off."""

    def __init__(self, listening: socket.socket, beginning: bytes, drop: bytes) -> None:
        super().__init__(daemon=True)
        self._socket = socket.create_connection(listening.getsockname()[:2])
        self._beginning, self._drop, self.answer = beginning, drop, b""
        self.start()

    def run(self) -> None:
        with self._socket as one, suppress(ConnectionError):
            one.settimeout(0.05)
            one.sendall(self._beginning)
            while True:
                try:
                    part = one.recv(4096)
                    if not part:
                        return
                    self.answer += part
                except TimeoutError:
                    one.sendall(self._drop)


async def _never_ending(app: Any) -> Any:
    """The start of the answer to a request whose body does not end."""
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/explain",
        "query_string": b"",
        "http_version": "1.1",
    }
    scope |= {"headers": [(b"content-type", b"application/json")], "client": ("c", 1), "server": ("s", 2)}
    sent: list[Any] = []
    parts = iter([{"type": "http.request", "body": b"[", "more_body": True}])

    async def receive() -> Any:
        for part in parts:
            return part
        return await asyncio.sleep(60)

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent[0]


def test_whatever_is_sent_no_answer_is_a_failure_and_each_is_as_described(
    trained: Pipeline, tmp_path: Path
) -> None:
    """Random requests by the OpenAPI description; docs/serving.md has the command for more."""
    schemathesis = pytest.importorskip("schemathesis")
    service = _opened(trained, tmp_path / "home")
    schema = schemathesis.openapi.from_asgi("/openapi.json", create_app(service))
    asked = [operation.ok() for operation in schema.get_all_operations()]
    assert len(asked) == 17

    for operation in asked:

        @given(case=operation.as_strategy())
        @settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
        def holds(case: Any) -> None:
            case.call_and_validate(checks=conforming(schemathesis))

        holds()
    service.close()


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just({"base64": "AAEC"}),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


def test_whatever_a_new_item_holds_it_is_added_or_refused_with_a_sentence(
    trained: Pipeline, tmp_path: Path
) -> None:
    service, texts = _opened(trained, tmp_path / "home"), st.text(max_size=20)
    with TestClient(create_app(service), raise_server_exceptions=False) as client:
        seen: list[int] = []

        @given(item_id=texts, title=texts | VALUES, description=texts | VALUES)
        @settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
        def holds(**item: Any) -> None:
            answer = client.post("/v1/items", content=json.dumps(item), headers=_JSON)
            seen.append(answer.status_code)
            if answer.status_code in (200, 201):
                assert answer.json() == service.item(item["item_id"]).model_dump()
                assert client.get("/v1/similar", params={"id": item["item_id"]}).status_code == 200
            else:
                assert answer.status_code in (409, 422), answer.text
                assert set(answer.json()) == {"problem", "next_step"}

        holds()
        assert {201, 422} <= set(seen)
    service.close()
    again = _opened(trained, tmp_path / "home")
    assert again.about().added == seen.count(201)
    again.close()


def test_an_added_item_is_there_after_a_kill(trained: Pipeline, tmp_path: Path, forks: Forks) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "cache").symlink_to(trained.workspace.home / "cache")
    argv = ["serve", "composite", "--data", str(trained.data), "--recommender", RECOMMENDER, "--port", "0"]
    argv += [*trained.settings(), "--registry", str(trained.registry), "--json"]
    with _running(forks, argv, home) as (address, pid, ended):
        assert _ask(address, "/v1/items/%252F")[0] == 404
        status, item = _ask(address, "/v1/items", {**NEW, "item_id": "%2F"})
        assert (status, item["item_id"]) == (201, "%2F")
        os.kill(pid, signal.SIGKILL)
        assert ended() == -signal.SIGKILL
    with _running(forks, argv, home) as (address, pid, ended):
        assert _ask(address, "/v1/items/%252F")[1]["added"]
        best = _ask(address, "/v1/recommend", {"histories": [["i0"]], "k": 99})[1]["results"][0]["items"]
        assert "%2F" in [one["item_id"] for one in best]
        asked, answers = {"ids": ["i0", "i1", "i2", "i3"]}, queue.Queue[int]()
        ask = lambda: answers.put(_ask(address, "/v1/explain", asked)[0])  # noqa: E731
        for _ in range(4):
            threading.Thread(target=ask).start()
        first = answers.get()
        os.kill(pid, signal.SIGTERM)  # those that wait for the LLM are answered, too
        assert [first, *(answers.get(timeout=60) for _ in range(3))] == [200] * 4
        assert ended() == 0


@contextmanager
def _running(forks: Forks, argv: list[str], home: Path) -> Iterator[tuple[str, int, Callable[[], int]]]:
    """The command in a process of its own: its address, its process, and how it ended."""
    about, environment = home / "about.json", {**os.environ, "EAREC_HOME": str(home)}
    about.unlink(missing_ok=True)
    # What it prints when it is ready, with its process beside.
    before = (
        "from earec_core.cli.output import Output\n"
        "Output.result = lambda self, text, facts, as_json: os.replace(open(about + '.new', 'w').write("
        "json.dumps([text, os.getpid()])) and about + '.new', about)\n"
    )
    codes: list[int] = []
    run = threading.Thread(
        target=lambda: codes.append(
            forks.run(argv, environment, before=f"about = {str(about)!r}\n{before}").returncode
        )
    )
    run.start()
    while not about.exists() and run.is_alive():
        time.sleep(0.05)
    address, pid = json.loads(about.read_text())

    def ended() -> int:
        run.join()
        return codes[0]

    try:
        yield address, pid, ended
    finally:
        if run.is_alive():
            os.kill(pid, signal.SIGKILL)
            run.join()


def _ask(address: str, path: str, body: Any = None) -> tuple[int, Any]:
    """The status and the JSON of an answer; a body is posted."""
    connection = HTTPConnection(address.removeprefix("http://"), timeout=60)
    with closing(connection):
        connection.request("GET" if body is None else "POST", path, body and json.dumps(body), _JSON)
        answer = connection.getresponse()
        return answer.status, json.load(answer)


def test_every_route_and_limit_is_documented(service: Service) -> None:
    page = (Path(__file__).parents[2] / "docs/serving.md").read_text()
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
