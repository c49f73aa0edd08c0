"""The explorer: vectors beside the model's own, other weights, added items; behind HTTP and in a browser."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient

from earec_core.aligned.stored import open_model
from earec_core.artifacts import ItemVectors
from earec_core.catalog import import_dataset
from earec_core.compose import Recipe
from earec_core.compose.stage import compose_models
from earec_core.encode import encode
from earec_core.errors import UsageError
from earec_core.explain import explain, text_rows
from earec_core.recommend.serving import history
from earec_core.recommend.snapshots import over_vectors
from earec_core.recommend.stage import train_registered
from earec_core.serve import Service
from earec_core.serve.app import create_app
from earec_core.serve.errors import SlowError
from earec_core.serve.explorer.models import AtWeights, Reranked
from earec_core.serve.explorer.weights import recipe_at, weighed
from earec_core.serve.listing import weights_of
from earec_core.serve.models import Ranked
from earec_core.workspace import Workspace

from ..conftest import Pipeline, write_source
from .conftest import SMALL, configured
from .pages import running, seen

OWN, TEXT, BEHAVIOR, OTHER = (f"vectors/weighed{part}" for part in ("", "-text", "-behavior", "-other"))
RECOMMENDER, IDS, MISSREC = (f"recommender/weighed{part}" for part in ("", "-ids", "-missrec"))
PARTS = {"text": "text/things", "behavior": "behavior/things"}
NEW = {"item_id": "new", "title": "red lamp", "description": "a lamp that is red"}
TRIED = {"text": 0.9, "behavior": 0.1}
PAST = ["i0", "i3", "i8"]


@pytest.fixture(scope="module")
def made(pipeline: Pipeline) -> Pipeline:
    """The pipeline with vectors of its composite, of each modality alone, and of another composite."""
    workspace, catalog, config = pipeline.workspace, pipeline.catalog, configured(pipeline)
    compose_models(workspace, PARTS, Recipe(TRIED), name="composite/other")
    for model, names, name in (
        ("composite", None, OWN),
        ("composite", ["text"], TEXT),
        ("composite", ["behavior"], BEHAVIOR),
        ("composite/other", None, OTHER),
    ):
        encode(workspace, catalog, model, config, names=names, name=name)
    ids = SMALL.model_copy(update={"table": "linear+ids"})
    for name, model, settings in (
        (RECOMMENDER, "earec", SMALL),
        (IDS, "earec", ids),
        (MISSREC, "missrec", SMALL),
    ):
        train_registered(workspace, catalog, settings, model=model, name=name, vectors=[OWN])
    return pipeline


def _opened(made: Pipeline, home: Path, model: str = "composite", **more: Any) -> Service:
    home.mkdir(exist_ok=True)
    (home / "cache").symlink_to(made.workspace.home / "cache")
    workspace = Workspace.open(home, made.registry)
    given = {
        "recommender": RECOMMENDER,
        "beside": [TEXT, BEHAVIOR, OTHER],
        "config": configured(made),
        **more,
    }
    return Service.open(workspace, model, made.catalog, **given)


@pytest.fixture(scope="module")
def service(made: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    one = _opened(made, tmp_path_factory.mktemp("served") / "home")
    yield one
    one.close()


def _near(client: TestClient, id_: str, name: str | None, k: int = 99) -> Any:
    asked = {"id": id_, "k": k} | ({"vectors": name} if name else {})
    return client.get("/v1/similar", params=asked)


def _whitened(fitted_to: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Of length 1 and by the ZCA of other vectors: the n / 4 leading directions of their standardised columns."""
    mean, deviation = fitted_to.mean(0), np.maximum(fitted_to.std(0, ddof=1), 1e-6)
    _, s, vt = np.linalg.svd((fitted_to - mean) / deviation, full_matrices=False)
    keep = max(1, min(fitted_to.shape[1], len(fitted_to) // 4))
    v = vt[:keep].T
    scaled = (table - mean) / deviation @ v / (s[:keep] / len(fitted_to) ** 0.5) @ v.T
    return np.asarray(scaled / np.linalg.norm(scaled, axis=1, keepdims=True))


def _stored(made: Pipeline, name: str) -> np.ndarray:
    return ItemVectors.open(made.workspace.registry, name, made.catalog).vectors.astype(np.float64)


def test_items_are_compared_by_each_of_the_vectors_beside(made: Pipeline, client: TestClient) -> None:
    ids = made.catalog.items["item_id"].to_list()
    about = client.get("/v1/about").json()
    assert about["weights"] == {"behavior": 0.5, "text": 0.5}
    assert [(one["name"], sorted(one["modalities"]), one["takes_new"]) for one in about["beside"]] == [
        (TEXT, ["text"], True),
        (BEHAVIOR, ["behavior"], True),
        (OTHER, ["behavior", "text"], False),
    ]
    for name in (None, TEXT, BEHAVIOR, OTHER):
        table = _stored(made, name or OWN)
        cosines = _whitened(table, table) @ _whitened(table, table)[2]
        best = [row for row in np.argsort(-cosines, kind="stable") if row != 2][:5]
        found = _near(client, "i2", name, 5).json()["items"]
        assert [one["score"] for one in found] == pytest.approx(cosines[best].tolist(), abs=1e-3)
        posted = client.post("/v1/similar", json={"ids": ["i2"], "k": 5, "vectors": name}).json()
        assert posted["results"][0]["items"] == found
        expected = {ids[row]: cosines[row] for row in range(len(ids)) if row != 2}
        assert {
            one["item_id"]: one["score"] for one in _near(client, "i2", name).json()["items"]
        } == pytest.approx(expected, abs=1e-3)
    for id_, name, words in (
        ("i6", TEXT, "The item 'i6' has no text"),
        ("i2", "gone", f"No vectors 'gone' are served; there are: {TEXT}, {BEHAVIOR}, {OTHER}."),
        ("i2", OWN, "No vectors"),
    ):
        answer = _near(client, id_, name)
        assert (answer.status_code, words in answer.json()["problem"]) == (422, True), answer.text


def test_an_added_item_is_compared_by_vectors_of_the_same_model(made: Pipeline, tmp_path: Path) -> None:
    """Its vectors are those of a catalog that is imported and encoded with it."""
    service = _opened(made, tmp_path / "home")
    client = TestClient(create_app(service))
    assert client.post("/v1/items", json=NEW).status_code == 201
    source = write_source(tmp_path / "source")
    with (source / "items.jsonl").open("a") as out:
        out.write(json.dumps(NEW) + "\n")
    whole = import_dataset(source, tmp_path / "things", core=0)
    ids = whole.items["item_id"].to_list()
    encoded = encode(
        made.workspace, whole, "composite", configured(made), names=["text"], name="vectors/whole"
    )
    directions = _whitened(_stored(made, TEXT), encoded.vectors.astype(np.float64))
    found = {one["item_id"]: one["score"] for one in _near(client, "new", TEXT).json()["items"]}
    expected = dict(zip(ids, (directions @ directions[ids.index("new")]).tolist(), strict=True))
    del expected["new"]
    assert found == pytest.approx(expected, abs=1e-3)
    for name, there, words in (
        (TEXT, True, ""),
        (BEHAVIOR, False, "The item 'new' has no behavior"),
        (OTHER, False, "The item 'new' was added"),
    ):
        assert ("new" in {one["item_id"] for one in _near(client, "i2", name).json()["items"]}) is there
        answer = _near(client, "new", name)
        assert there or (answer.status_code, words in answer.json()["problem"]) == (422, True), answer.text
    service.close()


def test_what_cannot_be_served_beside_is_refused_before_anything_is_loaded(
    made: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_source(tmp_path / "source")
    (source / "items.jsonl").write_text((source / "items.jsonl").read_text().replace('"i19"', '"x19"'))
    others = import_dataset(source, tmp_path / "others", core=0)
    table = np.ones((len(others), 4), dtype=np.float32)
    ItemVectors.save(made.workspace.registry, table, others, name="vectors/others", why="test", method="mean")
    monkeypatch.delenv("EAREC_TOKEN", raising=False)
    argv = ["serve", "composite", "--data", str(made.data), "--vectors", OWN, "--port", "0"]
    for beside, words in (
        (["vectors/others"], "are of 'others', whose items are not those of 'things'"),
        (["vectors/gone"], "vectors/gone"),
        (["composite"], "not a table of item vectors"),
        ([OWN], f"The vectors '{OWN}' are served already"),
        ([TEXT, TEXT], f"The vectors '{TEXT}' are served already"),
    ):
        options = [part for one in beside for part in ("--beside", one)]
        assert made.run(*argv, *options, "--backbone", "no-such-llm") == 2
        said = capsys.readouterr().err
        assert words in said
        assert "no-such-llm" not in said


def test_vectors_beside_move_with_their_tag(made: Pipeline, tmp_path: Path) -> None:
    registry = made.workspace.registry
    registry.tag(registry.resolve(TEXT), "vectors/moving", "latest", why="test")
    service = _opened(made, tmp_path / "home", beside=["vectors/moving"])
    assert not service.refresh()
    registry.tag(registry.resolve(BEHAVIOR), "vectors/moving", "latest", why="test")
    assert service.refresh()
    assert service.about().beside[0].modalities == ["behavior"]
    service.close()


@pytest.mark.parametrize("method", ["delta", "routed"])
def test_other_weights_are_those_of_a_composite_that_is_stored(
    made: Pipeline, tmp_path: Path, method: str
) -> None:
    """Cosines, scores and texts, by composing, encoding, explaining; what is served stays bit for bit."""
    workspace, catalog, config = made.workspace, made.catalog, configured(made)
    ids, registry = catalog.items["item_id"].to_list(), workspace.registry
    model, own, recommender = "composite", OWN, RECOMMENDER
    if method != "delta":
        model, own, recommender = f"composite/{method}", f"vectors/{method}", f"recommender/{method}"
        compose_models(workspace, PARTS, Recipe({"text": 0.5, "behavior": 0.5}, method=method), name=model)
        encode(workspace, catalog, model, config, name=own)
        train_registered(workspace, catalog, SMALL, model="earec", name=recommender, vectors=[own])
    truth = f"composite/{method}-tried"
    compose_models(workspace, PARTS, Recipe(TRIED, method=method), name=truth)
    vectors = encode(workspace, catalog, truth, config, name=f"vectors/{method}-tried").vectors
    # All 20 items are candidates, so what moves them alike is the mean of all.
    vectors = vectors - (vectors - _stored(made, own)).mean(0, keepdims=True).astype(np.float32)

    service = _opened(made, tmp_path / "home", model=model, recommender=recommender, beside=[])
    (texts,) = service.explain(["i5"])
    before = [p.clone() for p in service.snapshot.job.model.llm.parameters()]
    found = weighed(service, {"text": 9, "behavior": 1}, "i5", PAST)
    assert service.explain(["i5"]) == [texts]
    assert all(map(torch.equal, before, service.snapshot.job.model.llm.parameters()))

    assert found.served == AtWeights(weights={"text": 0.5, "behavior": 0.5}, texts=texts.texts)
    assert found.tried.weights == pytest.approx(TRIED)
    said = explain(workspace, catalog, truth, config, items=["i5"], variants=["aligned"])
    expected = {row["source"]: (row["text"], row["rouge_l"]) for row in text_rows(said, catalog)}
    assert {one.source: (one.text, one.rouge_l) for one in found.tried.texts} == expected

    directions = _whitened(_stored(made, own), vectors.astype(np.float64))
    cosines = dict(zip(ids, (directions @ directions[ids.index("i5")]).tolist(), strict=True))
    _check(found.similar, service.similar(["i5"], 24)[0].items, cosines)
    stored = ItemVectors.open(registry, own, catalog)
    retriever = over_vectors(registry, recommender, catalog, {"v": replace(stored, vectors=vectors)})
    (ranking,) = retriever.recommend([history(catalog, items=PAST)], 99)
    scores = dict(zip(ranking.ids, ranking.scores.tolist(), strict=True))
    _check(found.recommended, service.recommend([PAST], k=24)[0].items, scores)
    service.close()


def _check(found: list[Reranked], served: list[Ranked], scores: dict[str, float]) -> None:
    """The served candidates, in the order of other scores."""
    assert [one.rank for one in found] == list(range(1, len(served) + 1))
    assert {one.item_id: (one.served_rank, one.served_score) for one in found} == {
        one.item_id: (one.rank, one.score) for one in served
    }
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    for one in found:
        assert one.score == pytest.approx(scores[one.item_id], rel=1e-2, abs=2e-3)


@pytest.mark.parametrize("recommender", [IDS, MISSREC])
def test_the_served_weights_change_nothing(made: Pipeline, tmp_path: Path, recommender: str) -> None:
    """Of an added item, for a user, by one that learned of ids and one that reads users by all items."""
    service = _opened(made, tmp_path / "home", recommender=recommender)
    service.add([NEW])
    with TestClient(create_app(service)) as client:
        asked = {"weights": {"text": 3, "behavior": 3}, "item_id": "new", "user": "u3"}
        found = client.post("/v1/weights", json=asked).json()
    assert found["tried"] == found["served"]
    assert len(found["similar"]) == 20
    assert len(found["recommended"]) == 16
    for one in (*found["similar"], *found["recommended"]):
        assert one["score"] == pytest.approx(one["served_score"], rel=1e-3, abs=1e-3)
    service.close()


@pytest.mark.parametrize(
    ("asked", "status", "words"),
    [
        ({"weights": {}}, 422, "Every weight is 0."),
        ({"weights": {"text": 0, "behavior": 0}}, 422, "Every weight is 0."),
        ({"weights": {"text": -1, "behavior": 2}}, 422, "The weight of text, -1, is not from 0 to 1000."),
        ({"weights": {"text": 1e308, "behavior": 1e308}}, 422, "is not from 0 to 1000"),
        ({"weights": {"vision": 1}}, 422, "The composite has no 'vision'."),
        ({"weights": {"text": "much"}}, 422, "body.weights.text"),
        ({"item_id": "gone"}, 404, "no item 'gone'"),
        ({"user": "nobody"}, 404, "no user 'nobody'"),
        ({"history": ["gone"]}, 404, "no item 'gone'"),
        ({"history": ["i1"], "user": "u1"}, 422, "A user and a history are too much."),
        ({"history": ["i1"] * 1001}, 422, "1000 items in a history at most"),
    ],
)
def test_weights_that_mean_nothing_are_a_sentence(
    client: TestClient, asked: dict[str, Any], status: int, words: str
) -> None:
    answer = client.post("/v1/weights", json={"weights": TRIED, "item_id": "i5", **asked})
    assert answer.status_code == status
    assert words in answer.json()["problem"]


def test_nan_is_no_weight_and_a_single_adapter_has_none(made: Pipeline, tmp_path: Path) -> None:
    registry = made.workspace.registry
    with pytest.raises(UsageError, match="is not from 0"):
        recipe_at(open_model(registry, "composite"), {"text": float("nan")})
    with pytest.raises(UsageError, match="a single adapter"):
        recipe_at(open_model(registry, "text/things"), {"text": 1.0})
    assert weights_of(open_model(registry, "text/things")) is None
    kept = Recipe({"text": 0.2, "behavior": 0.6}, method="dare", density=0.3, seed=5, rank=3, sum_rule="any")
    compose_models(made.workspace, PARTS, kept, name="composite/kept")
    tried = recipe_at(open_model(registry, "composite/kept"), {"text": 1.0})
    assert dict(tried.used) == pytest.approx({"text": 0.8, "behavior": 0.0})
    assert (tried.method, tried.options, tried.rank) == ("dare", {"density": 0.3, "seed": 5}, 3)


def test_weights_that_take_too_long_are_given_up_and_the_served_model_answers(service: Service) -> None:
    (before,) = service.explain(["i5"])
    with pytest.raises(SlowError):
        weighed(service, TRIED, "i5", timeout_s=1e-9)
    assert service.explain(["i5"]) == [before]


HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>"


def test_a_person_compares_moves_the_weights_and_adds_an_item_that_looks_like_markup(
    made: Pipeline, tmp_path: Path, browser: Path
) -> None:
    """In Chromium, wide and light, then narrow and dark; nothing that an item says runs."""
    service = _opened(made, tmp_path / "home")
    kinds = {
        "by the model (text, behavior)": service.similar(["i5"])[0].items,
        f"by {TEXT} (text)": service.similar(["i5"], vectors=TEXT)[0].items,
        f"by {BEHAVIOR} (behavior)": service.similar(["i5"], vectors=BEHAVIOR)[0].items,
        f"by {OTHER} (behavior, text)": service.similar(["i5"], vectors=OTHER)[0].items,
    }
    expected = weighed(service, {"behavior": 99, "text": 1}, "i5", ["i0", "i3"])
    with running(create_app(service)) as address:
        looks = seen(browser, "change.mjs", address, "--hostile", HOSTILE)
    service.close()
    for look in looks:
        assert [one for one in look["errors"] if not re.search("status of (409|422)", one)] == []
        assert look["violations"] == []
        assert look["wider"] == []
        assert look["scroll"] <= look["width"]
        assert look["labels"] == ["behavior", "text"]
        assert look["before"] == look["reset"] == ["50%", "50%"]
        assert look["after"] == ["99%", "1%"]
        assert look["spoken"] == ["99% of the weights", "1% of the weights"]
        assert look["heads"] == ["Served: behavior 50%, text 50%", "These weights: behavior 99%, text 1%"]
        assert set(look["fields"]) == {"item_id", "title", "description"}
        assert look["refused"].startswith("There is another item 'i0' already.")
        assert look["added"] == "It is added; a search finds it."
        assert look["focus"] == "item-heading"
        assert f"red {HOSTILE}" in look["stored"]
        assert look["found"][0] == HOSTILE
        assert look["scripts"] == ["/static/main.js"]
        assert look["pictures"] == []
    first, second = looks
    assert [look["width"] for look in looks] == [1280, 375]
    assert first["about"].startswith("things: 21 items")
    assert second["about"].startswith("things: 22 items")

    everywhere = Counter(one.item_id for items in kinds.values() for one in items)
    alone = {one.item_id for items in kinds.values() for one in items if everywhere[one.item_id] == 1}
    assert first["near"] == [
        [f"Nearest items {title}", [_line(one, "only here" if one.item_id in alone else "") for one in items]]
        for title, items in kinds.items()
    ]
    assert first["compared"].startswith(
        f"{list(everywhere.values()).count(4)} of {len(everywhere)} items are in all 4"
    )
    assert first["said"] == [
        one.text or "(nothing)" for one in (*expected.served.texts, *expected.tried.texts)
    ]
    ranked = {"Nearest items": expected.similar, "Recommended": expected.recommended}
    served = {name: sorted(some, key=lambda one: one.served_rank) for name, some in ranked.items()}
    assert first["ranked"] == [
        *(
            [f"{name}, served", [_line(one, _then(one), one.served_score) for one in some[:10]]]
            for name, some in served.items()
        ),
        *(
            [f"{name}, these weights", [_line(one, _was(one)) for one in some[:10]]]
            for name, some in ranked.items()
        ),
    ]
    assert any("from" in line for _, lines in first["ranked"] for line in lines)


def _line(one: Ranked, beside: str = "", score: float | None = None) -> str:
    """A line of a list as it is read."""
    shown = f"{one.score if score is None else score:.3f}"
    return " ".join(part for part in (one.title, shown, beside, "+") if part)


def _then(one: Reranked) -> str:
    return f"then {one.rank}." if one.rank > 10 else ""


def _was(one: Reranked) -> str:
    if one.rank == one.served_rank:
        return "same"
    return f"{'up' if one.rank < one.served_rank else 'down'} from {one.served_rank}."
