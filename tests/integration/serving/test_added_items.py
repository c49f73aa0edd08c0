"""Items that are added while it serves: what they are then, after another start, after a kill."""

from __future__ import annotations

import json
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from earec_core.catalog import Catalog, import_dataset
from earec_core.encode import encode
from earec_core.errors import EarecError, UsageError
from earec_core.recommend.serving import history
from earec_core.recommend.snapshots import open_retriever
from earec_core.serve import Service
from earec_core.serve.app import create_app
from earec_core.serve.errors import TakenError
from tests.forks import Forks

from ..conftest import Pipeline, write_source
from .conftest import JSON, MISSREC, NEW, RECOMMENDER, call, configured, opened


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
    service = opened(trained, tmp_path / "home", recommender=recommender)
    (added,), new = service.add([NEW])
    assert new
    assert (added.title, added.anchor, added.added) == ("red lamp & pen", "red lamp & pen", True)
    assert added.inputs == {"text": "a lamp that is red"}
    assert service.search("lamp red").items[-1].item_id == NEW["item_id"]
    assert service.search("amp").total == 0

    whole, ids = _with_the_new_one(trained, tmp_path)
    assert ids[-1] == NEW["item_id"]
    name = "vectors/with-new"
    vectors = encode(trained.workspace, whole, "composite", configured(trained), name=name)
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
    first = opened(trained, tmp_path / "home")
    first.add([NEW])
    vector = first.snapshot.vectors.copy()
    with pytest.raises(UsageError, match="Another process serves"):
        opened(trained, tmp_path / "home")
    first.close()
    (journal,) = (tmp_path / "home" / "serve").glob("*/items.jsonl")
    whole = journal.read_bytes()
    journal.write_bytes(whole + whole[: len(whole) // 2])
    second = opened(trained, tmp_path / "home")
    assert np.array_equal(second.snapshot.vectors, vector)
    second.add([{**NEW, "item_id": "another"}])
    second.close()
    assert len(journal.read_text().splitlines()) == 2
    third = opened(trained, tmp_path / "home")
    assert [third.item(id_).added for id_ in (NEW["item_id"], "another", "i0")] == [True, True, False]
    third.close()
    journal.write_bytes(b"{}\n" + whole)
    with pytest.raises(EarecError, match=r"Line 1 of the journal .* is damaged"):
        opened(trained, tmp_path / "home")


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


def test_an_added_item_is_there_after_a_kill(trained: Pipeline, tmp_path: Path, forks: Forks) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "cache").symlink_to(trained.workspace.home / "cache")
    argv = ["serve", "composite", "--data", str(trained.data), "--recommender", RECOMMENDER, "--port", "0"]
    argv += [*trained.settings(), "--registry", str(trained.registry), "--json"]
    with _running(forks, argv, home) as (address, pid, ended):
        assert call(address, "/v1/items/%252F")[0] == 404
        status, item = call(address, "/v1/items", {**NEW, "item_id": "%2F"})
        assert (status, item["item_id"]) == (201, "%2F")
        os.kill(pid, signal.SIGKILL)
        assert ended() == -signal.SIGKILL
    with _running(forks, argv, home) as (address, pid, ended):
        assert call(address, "/v1/items/%252F")[1]["added"]
        best = call(address, "/v1/recommend", {"histories": [["i0"]], "k": 99})[1]["results"][0]["items"]
        assert "%2F" in [one["item_id"] for one in best]
        asked, answers = {"ids": ["i0", "i1", "i2", "i3"]}, queue.Queue[int]()
        ask = lambda: answers.put(call(address, "/v1/explain", asked)[0])  # noqa: E731
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


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just({"base64": "AAEC"}),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


def test_whatever_a_new_item_holds_it_is_added_or_refused_with_a_sentence(
    trained: Pipeline, tmp_path: Path
) -> None:
    service, texts = opened(trained, tmp_path / "home"), st.text(max_size=20)
    with TestClient(create_app(service), raise_server_exceptions=False) as client:
        seen: list[int] = []

        @given(item_id=texts, title=texts | VALUES, description=texts | VALUES)
        @settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
        def holds(**item: Any) -> None:
            answer = client.post("/v1/items", content=json.dumps(item), headers=JSON)
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
    again = opened(trained, tmp_path / "home")
    assert again.about().added == seen.count(201)
    again.close()
