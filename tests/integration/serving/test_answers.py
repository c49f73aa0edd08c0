"""What the service answers without HTTP, against numpy and what the stages give."""

from __future__ import annotations

import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from earec_core.artifacts import ItemVectors
from earec_core.catalog import Catalog
from earec_core.encode import encode
from earec_core.errors import DataError, UsageError
from earec_core.explain import explain, text_rows
from earec_core.recommend.serving import history
from earec_core.recommend.snapshots import open_retriever
from earec_core.serve import Limits, Service
from earec_core.serve.app import create_app
from earec_core.serve.errors import BusyError, SlowError, UnknownIdError
from earec_core.workspace import Workspace

from ..conftest import Pipeline
from .conftest import NEW, RECOMMENDER, VECTORS, configured, opened

TOKEN = "s3cret"


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
    said = explain(
        trained.workspace, catalog, "composite", configured(trained), items=ids, variants=["aligned"]
    )
    expected = {(row["item_id"], row["source"]): row for row in text_rows(said, catalog)}
    answers = service.explain(ids)
    assert [one.item_id for one in answers] == ids
    found = {(one.item_id, text.source): (one.anchor, text) for one in answers for text in one.texts}
    assert set(found) == set(expected)
    for key, (anchor, text) in found.items():
        row = expected[key]
        assert (anchor, text.text, text.rouge_l) == (row["anchor"], row["text"], row["rouge_l"])


def test_the_llm_has_a_short_queue_and_a_time_limit(trained: Pipeline, tmp_path: Path) -> None:
    service = opened(trained, tmp_path / "home", limits=Limits(waiting=0))
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
    registry, config = workspace.registry, configured(trained)
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
