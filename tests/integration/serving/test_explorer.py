"""The explorer: why an item is recommended, pictures, the map, and the page in a browser."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from earec_core.artifacts import ItemVectors
from earec_core.catalog import import_dataset
from earec_core.encode import encode
from earec_core.recommend.serving import history
from earec_core.recommend.snapshots import over_vectors
from earec_core.recommend.stage import train_registered
from earec_core.report.words import highlight
from earec_core.serve import Service
from earec_core.serve.app import create_app
from earec_core.serve.explorer import projection
from earec_core.serve.explorer.answers import Explorer
from earec_core.workspace import Workspace

from ..conftest import Pipeline, write_source
from .conftest import SMALL, configured
from .pages import running, seen

HOSTILE = "<img src=x onerror=alert(1)> book"
VECTORS, RECOMMENDER = "vectors/explored", "recommender/explored"
TOKEN = "s3cret"


def _write_source(folder: Path) -> Path:
    """The pipeline's items with categories, and pictures in all states."""
    source = write_source(folder)
    lines = [json.loads(line) for line in (source / "items.jsonl").read_text().splitlines()]
    Image.new("RGB", (40, 30), "red").save(source / "i0.png")
    Image.new("RGB", (40, 30), "red").save(folder.parent / "outside.png")
    (source / "page.png").write_text("<script>alert(1)</script>")
    (source / "link.png").symlink_to("/etc/hostname")
    pictures = ["i0.png", "page.png", "../outside.png", "gone.png", "https://example.org/i4.png", "link.png"]
    pictures += ["items.jsonl", "file:///etc/passwd"]
    for row, picture in zip(lines, pictures, strict=False):
        row["image"] = picture
    for row in lines:
        row["category"] = f"Things > {row['title'].split()[1]}s, used"
    lines[1]["title"] = HOSTILE
    (source / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    return source


@pytest.fixture(scope="module")
def service(pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service over such a catalog, with the pipeline's composite."""
    folder = tmp_path_factory.mktemp("explored")
    catalog = import_dataset(_write_source(folder / "source"), folder / "things", core=0)
    workspace = Workspace.open(folder / "home", pipeline.registry)
    config = configured(pipeline)
    encode(workspace, catalog, "composite", config, name=VECTORS)
    train_registered(workspace, catalog, SMALL, model="earec", name=RECOMMENDER, vectors=[VECTORS])
    service = Service.open(workspace, "composite", catalog, recommender=RECOMMENDER, config=config)
    yield service
    service.close()


def test_reasons_are_the_scores_of_a_catalog_without_the_modality_and_of_a_shorter_history(
    service: Service, client: TestClient, pipeline: Pipeline
) -> None:
    """Against the catalog encoded anew from one modality alone, and a retriever over those vectors."""
    now, past = service.snapshot, ["i0", "i3", "i8"]
    catalog, registry = now.catalog.first, now.job.workspace.registry
    stored = ItemVectors.open(registry, VECTORS, catalog)
    config = configured(pipeline)

    def score(items: list[str], id_: str, vectors: np.ndarray) -> float:
        retriever = over_vectors(registry, RECOMMENDER, catalog, {"v": replace(stored, vectors=vectors)})
        asked = history(catalog, items=items)
        (ranking,) = retriever.recommend([asked], len(catalog), exclude_seen=False)
        return float(ranking.scores[ranking.ids.index(id_)])

    whole = np.array(stored.vectors)
    ids = catalog.items["item_id"].to_list()
    answers = Explorer(service).reasons(["i5", "i6"], past)
    for answer, modalities in zip(answers, (["text", "behavior"], ["behavior"]), strict=True):
        id_, row = answer.item_id, ids.index(answer.item_id)
        assert answer.score == pytest.approx(score(past, id_, whole), rel=1e-3)
        assert [one.modality for one in answer.modalities] == modalities
        for one in answer.modalities:
            others = [name for name in now.job.model.inputs if name != one.modality]
            alone = encode(now.job.workspace, catalog, "composite", config, names=others, name="vectors/part")
            altered = whole.copy()
            altered[row] = alone.vectors[row]
            assert one.score == pytest.approx(score(past, id_, altered), rel=1e-2, abs=1e-3)
            assert one.change == pytest.approx(one.score - answer.score)
        assert [one.item_id for one in answer.history] == past
        for left in answer.history:
            shorter = [other for other in past if other != left.item_id]
            assert left.score == pytest.approx(score(shorter, id_, whole), rel=1e-3)
    posted = client.post("/v1/reasons", json={"ids": ["i5", "i6"], "history": past})
    assert posted.json() == {"results": [answer.model_dump() for answer in answers]}
    of_user = client.post("/v1/reasons", json={"ids": ["i5"], "user": "u3"}).json()["results"][0]
    assert len(of_user["history"]) == 5
    alone = client.post("/v1/reasons", json={"ids": ["i5"], "history": ["i0", "i0"]}).json()["results"][0]
    assert [(one["item_id"], one["score"]) for one in alone["history"]] == [("i0", None)]


@pytest.mark.parametrize(
    ("asked", "status", "words"),
    [
        ({"ids": ["i0"] * 5, "history": ["i1"]}, 422, "4 items to explain at most"),
        ({"ids": [], "history": ["i1"]}, 422, "no items to explain"),
        ({"ids": ["i0"]}, 422, "Either a user or a history"),
        ({"ids": ["i0"], "history": ["i1"], "user": "u1"}, 422, "Either a user or a history"),
        ({"ids": ["i0"], "user": "nobody"}, 404, "no user 'nobody'"),
        ({"ids": ["gone"], "history": ["i1"]}, 404, "no item 'gone'"),
        ({"ids": ["i0"], "history": ["gone"]}, 404, "no item 'gone'"),
        ({"ids": ["i0"], "history": ["i1"] * 1001}, 422, "1000 items in a history at most"),
    ],
)
def test_what_there_are_no_reasons_for_is_a_sentence(
    client: TestClient, asked: dict[str, Any], status: int, words: str
) -> None:
    answer = client.post("/v1/reasons", json=asked)
    assert answer.status_code == status
    assert words in answer.json()["problem"]


def test_only_pictures_of_the_catalogs_folder_are_given(client: TestClient, service: Service) -> None:
    answer = client.get("/v1/pictures/i0")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.content == (service.snapshot.catalog.item(0).folder / "i0.png").read_bytes()  # type: ignore[operator]
    cases = {
        "i1": (422, "The image of item 'i1' is no picture.", False),
        "i2": (422, "outside the catalog's folder", False),
        "i3": (404, "is not there", False),
        "i4": (404, "has no picture", False),
        "i5": (422, "outside the catalog's folder", False),
        "i6": (404, "has no picture", False),
        "i7": (404, "has no picture", False),
        "i9": (404, "has no picture", False),
        "../i0.png": (404, "no item", None),
        "i0.png": (404, "no item", None),
    }
    for id_, (status, words, said) in cases.items():
        answer = client.get(f"/v1/pictures/{id_.replace('/', '%2F')}")
        assert answer.status_code == status, (id_, answer.text)
        assert words in answer.json()["problem"]
        if said is not None:
            assert client.get(f"/v1/items/{id_}").json()["picture"] is said
    assert client.get("/v1/items/i0").json()["picture"] is True


def test_the_map_has_the_two_leading_directions_and_the_categories(
    service: Service, client: TestClient
) -> None:
    found = client.get("/v1/map").json()
    catalog = service.snapshot.catalog.first
    assert [one["item_id"] for one in found["items"]] == catalog.items["item_id"].to_list()
    assert sorted(found["groups"]) == ["books", "chairs", "desks", "lamps", "pens"]
    assert [found["groups"][one["group"]] for one in found["items"][:2]] == ["pens", "books"]
    x = service.snapshot.found.vectors.vectors.astype(np.float64)
    u, _, _ = np.linalg.svd((x - x.mean(0)) / x.std(0), full_matrices=False)
    for axis, name in enumerate("xy"):
        values = [one[name] for one in found["items"]]
        assert (min(values), max(values)) == pytest.approx((0, 1))
        assert abs(np.corrcoef(values, u[:, axis])[0, 1]) == pytest.approx(1, abs=1e-5)


def test_a_large_catalog_is_sampled_and_categories_are_those_that_tell_items_apart() -> None:
    known = np.arange(20, projection.MOST + 50)
    rows = projection.sampled(known).tolist()
    assert rows == projection.sampled(known).tolist() == sorted(set(rows) & set(known.tolist()))
    assert len(rows) == projection.MOST
    assert projection.plane(np.zeros((4, 3), dtype=np.float32)).tolist() == [[0.5, 0.5]] * 4
    assert projection.groups(["A > b", "A > c", "A, c | x", None]) == (["c", "b"], [1, 0, 0, None])
    assert projection.groups(["A", None, "A"]) == ([], [None] * 3)


def test_the_page_runs_no_code_but_its_own_and_needs_no_token(service: Service) -> None:
    with TestClient(create_app(service, token=TOKEN)) as client:
        page = client.get("/")
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        policy = page.headers["content-security-policy"].split("; ")
        assert policy[0] == "default-src 'self'"
        assert not {"'unsafe-inline'", "'unsafe-eval'"} & set(" ".join(policy).split())
        assert "onclick" not in page.text
        assert (
            page.text.count("<script") == page.text.count('<script type="module" src="/static/main.js">') == 1
        )
        for name in ("main.js", "explorer.css", "icon.svg"):
            file = client.get(f"/static/{name}")
            assert (file.status_code, file.headers["x-content-type-options"]) == (200, "nosniff")
        for address in ("/v1/map", "/v1/pictures/i0", "/static/../app.py", "/static/gone.js"):
            assert client.get(address).status_code == 401
        bearing = {"authorization": f"Bearer {TOKEN}"}
        for address in ("/static/%2e%2e%2fapp.py", "/static/gone.js"):
            assert client.get(address, headers=bearing).status_code == 404


def test_a_person_finds_asks_is_recommended_to_and_told_why(service: Service, browser: Path) -> None:
    """In Chromium, wide and light, then narrow and dark: nothing fails, sticks out, or is hard to operate."""
    pairs = [
        ("Star Wars: Action <1996>", "star trek. action. 1996"),
        ("a b_a c", "A c b a"),
        ("x", ""),
        ("", "x"),
    ]
    with running(create_app(service)) as address:
        looks = seen(browser, "explore.mjs", address, "--pairs", json.dumps(pairs))
    pens = [line.title for line in service.search("pen").items]
    best = service.recommend([["i0", "i5"]])[0].items
    (why,) = Explorer(service).reasons([best[0].item_id], ["i0", "i5"])
    past = sorted(why.history, key=lambda one: one.change or 0)
    left = [*((one.modality, one) for one in why.modalities), *((one.title, one) for one in past)]
    marks = [re.findall("<mark>(.*?)</mark>", highlight(*pair)) for pair in pairs]
    (texts,) = service.explain(["i0"])
    for look in looks:
        assert look["errors"] == []
        assert look["violations"] == []
        assert look["wider"] == []
        assert look["scroll"] <= look["width"]
        assert look["found"] == pens
        assert (look["picture"], look["focus"]) == (40, "item-heading")
        assert [text.split(" ROUGE")[0] for text in look["said"]] == [
            "anchor",
            *(f"from {one.source}" for one in texts.texts),
        ]
        assert look["recommended"] == [one.title for one in best]
        assert look["why"] == [
            cell
            for name, one in left
            for cell in (name, f"{one.score:.3f}", f"{one.change:+.3f}".replace("-", "−"))
        ]
        assert look["marked"] == [[word for mark in some for word in mark.split()] for some in marks]
        assert look["pointed"] == "red pen (pens)"
        assert look["hostile"] == HOSTILE
    assert [look["width"] for look in looks] == [1280, 375]


def test_the_page_asks_for_the_token(service: Service, browser: Path) -> None:
    with running(create_app(service, token=TOKEN)) as address:
        asked = seen(browser, "explore.mjs", address, "--token", TOKEN)
    assert asked["violations"] == []
    assert [error for error in asked["errors"] if "status of 401" not in error] == []
