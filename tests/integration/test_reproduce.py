"""`earec reproduce` on a tiny LLM, against figures computed from what it stored."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from earec_core.artifacts import ItemVectors
from earec_core.catalog import Catalog
from earec_core.cli import run
from earec_core.config import BackboneConfig
from earec_core.llm.backbone import Backbone
from earec_core.metrics.rouge import rouge_l
from earec_core.plugins import code_digest
from earec_core.studies.reproduce import rows as making
from earec_registry import Registry

from .conftest import Pipeline

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
OutJson = Callable[[], Any]

ROWS = ["delta-50-50", "factor-9.5-90.5", "unaligned-text", "behavior", "mean", "concatenation", "ids"]
NAMED = ("--adapter", "text=text/things", "--adapter", "behavior=behavior/things")


def _argv(pipeline: Pipeline, *more: str) -> list[str]:
    settings = ("recommender.epochs=2", "recommender.dim=8", "recommender.dropout=0.1")
    sets = [part for setting in settings for part in ("--set", setting)]
    common = ["--data", str(pipeline.data), "--backbone", str(pipeline.llm), "--modalities", "text,behavior"]
    return ["reproduce", "--table", "4", *common, *NAMED, *sets, "--at-once", "1", *more]


def _measure(pipeline: Pipeline, *more: str) -> int:
    return pipeline.run(*_argv(pipeline, "--only", ",".join(ROWS), "--seeds", "2", "--json", *more))


@pytest.fixture
def report(in_home: Pipeline, out_json: OutJson, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert _measure(in_home) == 0
    made: dict[str, Any] = out_json()
    return made


@pytest.fixture
def stored(in_home: Pipeline) -> Registry:
    return Registry.open(in_home.registry)


def _vectors(report: dict[str, Any], pipeline: Pipeline, row: str) -> np.ndarray:
    ids = {one["row"]["name"]: one["ids"]["vectors"] for one in report["results"]}
    opened = ItemVectors.open(Registry.open(pipeline.registry), ids[row], Catalog.open(pipeline.data))
    return opened.vectors


def test_figures_and_comparisons_are_those_of_the_stored_ranks(
    report: dict[str, Any], stored: Registry
) -> None:
    assert [one["row"]["name"] for one in report["results"]] == ROWS
    assert (report["reference"], report["users"], report["seeds"]) == ("delta-50-50", 40, 2)
    ranks = {
        one["row"]["name"]: np.stack(
            [
                load_file(stored.materialize(r) / "test_ranks.safetensors")["ranks"]
                for r in one["ids"]["recommenders"]
            ]
        )
        for one in report["results"]
    }
    assert ranks["ids"].shape == (2, 40)
    gains = {name: ((r <= 10) / np.log2(r + 1)).mean(0) for name, r in ranks.items()}
    for one in report["results"]:
        name = one["row"]["name"]
        hits = (ranks[name] <= 10).mean(1)
        assert one["test"]["hr@10"]["mean"] == pytest.approx(hits.mean())
        assert one["test"]["hr@10"]["sd"] == pytest.approx(abs(hits[0] - hits[1]) / np.sqrt(2))
        assert one["test"]["ndcg@10"]["mean"] == pytest.approx(gains[name].mean())
        if name == report["reference"]:
            assert one["versus"] is None
        else:
            each = gains[name] - gains[report["reference"]]
            assert one["versus"]["difference"] == pytest.approx(each.mean())
            assert one["versus"]["se"] == pytest.approx(each.std(ddof=1) / np.sqrt(40))
            assert one["versus"]["p"] <= one["versus"]["p_holm"] <= 1


def test_with_the_history_left_out_the_same_recommenders_are_measured_again(
    report: dict[str, Any], in_home: Pipeline, out_json: OutJson, tmp_path: Path
) -> None:
    page = tmp_path / "page.md"
    assert _measure(in_home, "--exclude-seen", "--out", str(page)) == 0
    again = out_json()
    assert [one["ids"] for one in again["results"]] == [one["ids"] for one in report["results"]]
    assert "all items but those of the user's history" in page.read_text()
    ids = again["results"][-1]
    by_hand = []
    for recommender in ids["ids"]["recommenders"]:
        argv = ["recommend", "evaluate", recommender, "--data", str(in_home.data)]
        assert in_home.run(*argv, "--exclude-seen", "--json") == 0
        by_hand.append(out_json()["hr@50"])
    assert ids["test"]["hr@50"]["seeds"] == pytest.approx(by_hand, abs=1e-6)
    assert ids["test"] != report["results"][-1]["test"]


def test_a_composites_size_is_that_of_the_dense_matrices(report: dict[str, Any], stored: Registry) -> None:
    def dense(reference: str) -> dict[str, np.ndarray]:
        folder = stored.materialize(reference)
        config = json.loads((folder / "adapter_config.json").read_text())
        tensors = load_file(folder / "adapter_model.safetensors")
        scale = config["lora_alpha"] / config["r"]
        return {
            key: scale * tensors[key.replace("lora_A", "lora_B")].astype(float) @ tensors[key].astype(float)
            for key in tensors
            if "lora_A" in key
        }

    parts = {m: dense(f"{m}/things") for m in ("text", "behavior")}
    for one in report["results"]:
        if one["size"] is None:
            assert one["row"]["kind"] != "composite"
            continue
        composed = dense(one["ids"]["composite"])
        exact = {k: sum(w * parts[m][k] for m, w in one["row"]["weights"].items()) for k in composed}
        norms = [np.sqrt(sum((x**2).sum() for x in found.values())) for found in (composed, exact)]
        error = np.sqrt(sum(((composed[k] - exact[k]) ** 2).sum() for k in exact)) / norms[1]
        assert one["size"]["ratio"] == pytest.approx(norms[0] / norms[1], rel=1e-5)
        assert one["size"]["exact"] == pytest.approx(norms[1], rel=1e-5)
        assert one["size"]["relative_error"] == pytest.approx(error, rel=1e-4, abs=1e-6)
    assert report["results"][1]["size"]["relative_error"] > 1e-3


def test_composites_are_encoded_as_by_hand(report: dict[str, Any], in_home: Pipeline) -> None:
    data = ["--data", str(in_home.data), "--backbone", str(in_home.llm)]
    assert in_home.run("compose", "--weights", "text=0.5,behavior=0.5", *NAMED, "--name", "by-hand") == 0
    assert in_home.run("encode", "by-hand", *data, "--name", "vectors/by-hand") == 0
    by_hand = ItemVectors.open(
        Registry.open(in_home.registry), "vectors/by-hand", Catalog.open(in_home.data)
    ).vectors
    np.testing.assert_allclose(_vectors(report, in_home, "delta-50-50"), by_hand, atol=1e-6)


def test_routed_is_measured_with_its_own_vectors(in_home: Pipeline, out_json: OutJson) -> None:
    argv = _argv(in_home, "--only", "routed-50-50", "--seeds", "1", "--json")
    assert in_home.run(*argv) == 0
    made = out_json()
    delta, routed = (_vectors(made, in_home, row) for row in ("delta-50-50", "routed-50-50"))
    assert np.abs(delta - routed).max() > 1e-3


def test_the_controls_read_only_what_an_item_has(report: dict[str, Any], in_home: Pipeline) -> None:
    catalog = Catalog.open(in_home.data)
    without = catalog.items["description"].is_null().to_numpy()
    assert without.sum() == 2
    behavior, mean = (_vectors(report, in_home, row) for row in ("behavior", "mean"))
    text = ItemVectors.open(Registry.open(in_home.registry), "reproduce/things/text/vectors", catalog).vectors
    np.testing.assert_allclose(mean[without], behavior[without], atol=1e-6)
    np.testing.assert_allclose(mean[~without], (text + behavior)[~without] / 2, atol=1e-6)
    joined = np.hstack([np.where(without[:, None], 0, text), behavior]).astype(float)
    found = _vectors(report, in_home, "concatenation")
    # With as many components as items nothing is lost: distances are those of the joined vectors.
    distances = [np.linalg.norm(v[:, None] - v[None], axis=-1) for v in (found, joined)]
    np.testing.assert_allclose(*distances, atol=1e-3)
    plain = _vectors(report, in_home, "unaligned-text")
    assert np.abs(plain - text).max() > 1e-2


def test_what_is_made_is_not_made_again(
    report: dict[str, Any], in_home: Pipeline, out_json: OutJson, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = making.train_registered
    for step in ("compose_models", "encode", "train_registered"):
        monkeypatch.setattr(making, step, lambda *_, step=step, **__: pytest.fail(f"{step} again"))
    assert _measure(in_home) == 0
    assert out_json() == report
    trained = []

    def count(*args: Any, **kwargs: Any) -> Any:
        trained.append(kwargs["name"])
        return train(*args, **kwargs)

    monkeypatch.setattr(making, "train_registered", count)
    assert _measure(in_home, "--seeds", "3") == 0
    assert trained == [f"reproduce/things/{row}/recommender-2" for row in ROWS]
    trained.clear()
    assert _measure(in_home, "--set", "recommender.lr=0.02") == 0
    assert len(trained) == 2 * len(ROWS)


def test_trainings_in_other_processes_give_the_same_and_their_events_are_heard(
    report: dict[str, Any],
    in_home: Pipeline,
    tmp_path: Path,
    out_json: OutJson,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    registry, events = tmp_path / "registry", tmp_path / "events"
    shutil.copytree(in_home.registry, registry)
    for name in [f"reproduce/things/{row}/recommender-{seed}" for row in ROWS for seed in range(2)]:
        Registry.open(registry).untag(name)
    monkeypatch.setenv("EAREC_HOME", str(tmp_path / "home"))
    asked = ["--only", ",".join(ROWS), "--seeds", "2", "--json", "--jsonl", str(events)]
    assert run([*_argv(in_home, *asked, "--at-once", "2"), "--registry", str(registry)]) == 0
    for one, other in zip(out_json()["results"], report["results"], strict=True):
        assert one["row"] == other["row"]
        # Sums over another number of threads may end in other digits.
        assert one["valid"] == pytest.approx(other["valid"], abs=1e-6)
        for metric, figures in one["test"].items():
            assert figures["seeds"] == pytest.approx(other["test"][metric]["seeds"], abs=1e-6)
    heard = [json.loads(line) for line in events.read_text().splitlines()]
    ended = [event for event in heard if (event["event"], event.get("stage")) == ("end", "recommend")]
    assert len(ended) == 2 * len(ROWS)


def test_what_fails_in_another_process_is_its_sentence(
    in_home: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    failing = (
        "--set",
        "recommender.max_len=2",
        "--set",
        "recommender.lr=1e30",
        "--set",
        "recommender.epochs=3",
    )
    assert _measure(in_home, "--at-once", "2", *failing) == 1
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert "lr" in said.splitlines()[-1] or "lr" in said.splitlines()[-2]


def test_what_is_damaged_is_made_again_and_whole_then(
    report: dict[str, Any], in_home: Pipeline, stored: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = {entry["row"]["name"]: entry["ids"] for entry in report["results"]}["delta-50-50"]
    blobs = {}
    for identity, file in [
        (ids["composite"], "adapter_model.safetensors"),
        (ids["vectors"], "vectors.safetensors"),
        (ids["recommenders"][0], "test_ranks.safetensors"),
    ]:
        stored.materialize(identity)
        blob = stored.root / "blobs/sha256" / stored.manifest(identity).files[file].sha256
        blobs[blob] = blob.read_bytes()
        blob.chmod(0o644)
        if file == "vectors.safetensors":
            blob.unlink()
        else:
            blob.write_bytes(blobs[blob][:-1] + bytes([blobs[blob][-1] ^ 1]))
    capsys.readouterr()
    assert _measure(in_home) == 0
    again = capsys.readouterr()
    assert again.err.count("delta-50-50/composite is made again") == 1
    assert again.err.count("delta-50-50/vectors is made again") == 1
    assert json.loads(again.out)["results"] == report["results"]
    assert {blob: blob.read_bytes() for blob in blobs} == blobs
    assert stored.verify().ok


def test_one_llm_serves_every_row(
    in_home: Pipeline, monkeypatch: pytest.MonkeyPatch, out_json: OutJson
) -> None:
    loads: list[Backbone] = []
    load = Backbone.load

    def watched(*args: Any) -> Backbone:
        loads.append(load(*args))
        return loads[-1]

    monkeypatch.setattr(Backbone, "load", watched)
    # A setting of its own, so that nothing is in the registry yet.
    assert _measure(in_home, "--set", "text.max_tokens=7") == 0
    assert len(loads) == 1
    plain = load(BackboneConfig(model=str(in_home.llm))).model.state_dict()
    assert all(torch.equal(tensor, plain[name]) for name, tensor in loads[0].model.state_dict().items())


def test_other_settings_of_a_plugin_encode_again(
    report: dict[str, Any], in_home: Pipeline, out_json: OutJson
) -> None:
    assert _measure(in_home, "--set", "text.max_tokens=5") == 0
    shorter = {one["row"]["name"]: one["ids"]["vectors"] for one in out_json()["results"]}
    before = {one["row"]["name"]: one["ids"]["vectors"] for one in report["results"]}
    assert {row for row in ROWS if shorter[row] == before[row]} == {"behavior", "ids"}


def test_an_edited_plugin_encodes_again(
    report: dict[str, Any], in_home: Pipeline, out_json: OutJson, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is stored was made by other code, as when a source file of the plugin was written to in between."""

    def edited(cls: type) -> str:
        return "0" * 64 if cls.__module__.startswith("earec_text") else code_digest(cls)

    for module in ("earec_core.studies.reproduce.rows", "earec_core.aligned.features"):
        monkeypatch.setattr(f"{module}.code_digest", edited)
    assert _measure(in_home) == 0
    after = {one["row"]["name"]: one["ids"]["vectors"] for one in out_json()["results"]}
    before = {one["row"]["name"]: one["ids"]["vectors"] for one in report["results"]}
    assert {row for row in ROWS if after[row] == before[row]} == {"behavior", "ids"}


def test_the_page_has_every_row_and_the_papers_figures(in_home: Pipeline, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    assert _measure(in_home, "--out", str(page)) == 0
    text = page.read_text()
    tables = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert [line[0].strip("| ") for line in tables] == ["row", *ROWS, "row", *ROWS[:2]]
    assert all(len(line) in (10, 12) for line in tables)
    assert tables[-1][-4:] == ["0.1194", "0.1919", "0.0721", "0.0879 |"]
    assert "not told apart" in text


def test_methods_are_compared_over_all_weightings(
    in_home: Pipeline, stored: Registry, tmp_path: Path, out_json: OutJson
) -> None:
    rows = [f"{method}-{weights}" for method in ("delta", "factor") for weights in ("50-50", "9.5-90.5")]
    page = tmp_path / "page.md"
    argv = _argv(in_home, "--only", ",".join([*rows, "ids"]), "--seeds", "1", "--json", "--out", str(page))
    assert in_home.run(*argv) == 0
    made = out_json()
    ranks = {
        row: load_file(stored.materialize(f"reproduce/things/{row}/recommender-0") / "test_ranks.safetensors")
        for row in rows
    }
    gains = {row: (r["ranks"] <= 10) / np.log2(r["ranks"] + 1) for row, r in ranks.items()}
    each = (gains[rows[2]] + gains[rows[3]] - gains[rows[0]] - gains[rows[1]]) / 2
    delta, factor = made["effects"]["method"]
    assert (delta["level"], factor["level"], factor["rows"]) == ("delta", "factor", 2)
    assert factor["versus"]["difference"] == pytest.approx(each.mean())
    assert factor["versus"]["se"] == pytest.approx(each.std(ddof=1) / np.sqrt(40))
    assert [one["level"] for one in made["effects"]["weighting"]] == ["50-50", "9.5-90.5"]
    text = page.read_text()
    assert "Every method over all weightings" in text
    assert "Every weighting over all methods" in text


def test_the_papers_figures_stand_beside_ours(in_home: Pipeline, capsys: pytest.CaptureFixture[str]) -> None:
    assert in_home.run(*_argv(in_home, "--only", ",".join(ROWS), "--seeds", "2")) == 0
    head, *rows = (line.split("\t") for line in capsys.readouterr().out.splitlines())
    cells = {row[0]: dict(zip(head, row, strict=True)) for row in rows}
    assert list(cells) == ROWS
    assert cells["factor-9.5-90.5"]["paper HR@10"] == "0.1194"
    assert cells["delta-50-50"]["/ exact"] == "1"
    assert {cells["ids"]["paper HR@10"], cells["delta-50-50"]["p"]} == {"-"}


def test_a_dry_run_without_adapters_lists_the_rows_and_does_nothing(
    in_home: Pipeline, out_json: OutJson, tmp_path: Path
) -> None:
    from earec_core.cli import run

    argv = _argv(in_home, "--dry-run", "--json", "--methods", "delta,routed")
    argv = [part for part in argv if part not in NAMED]
    assert run([*argv, "--registry", str(tmp_path / "none")]) == 0
    listed = out_json()
    assert "training_min" not in listed[0]
    names = [row["row"] for row in listed]
    assert [n for n in names if n.startswith("routed")] == [
        f"routed-{w}" for w in ("50-50", "33.3-66.7", "26.1-73.9", "18.2-81.8", "9.5-90.5", "5.3-94.7")
    ]
    assert {"unaligned", "text", "behavior", "mean", "concatenation", "ids"} <= set(names)
    assert not (tmp_path / "none").exists()


def test_a_dry_run_says_how_long_each_row_takes_and_makes_nothing(
    in_home: Pipeline,
    out_json: OutJson,
    stored: Registry,
    tiny_encoder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    baselines = "popularity,sasrec,sasrec-text,unisrec-text,morec-text"
    rows = f"{baselines},earec-text,earec-text-behavior,earec-text-behavior-ids"
    small = ["--set", f"recommender.encoder={tiny_encoder}", "--encoder", str(tiny_encoder), "--seeds", "1"]

    def minutes(*more: str) -> dict[str, tuple[float, float]]:
        argv = _argv(in_home, *small, "--only", rows, "--dry-run", "--json", *more)
        argv[argv.index("4")] = "2"
        assert in_home.run(*argv) == 0
        return {row["row"]: (row["encoding_min"], row["training_min"]) for row in out_json()}

    before = sorted(stored.root.rglob("*"))
    assert all(training >= 0 and encoding >= 0 for encoding, training in minutes().values())
    assert sorted(stored.root.rglob("*")) == before
    # An epoch of a minute, so that what is asked does not depend on the machine.
    monkeypatch.setattr("earec_core.studies.reproduce.costs._epoch_seconds", lambda *_: 60.0)
    four = ("--set", "recommender.epochs=4")
    once, tuned = minutes(*four), minutes(*four, "--trials", "4")
    limited = minutes(*four, "--trials", "4", "--minutes", "5")
    assert list(once) == rows.split(",")
    trained = [row for row in once if row != "popularity"]
    assert once["popularity"] == (0, 0)
    assert {once[row][1] for row in trained} == {4}
    # Four trials and the training of the best; the last one that begins within the budget is ended.
    assert {tuned[row][1] for row in trained} == {20, 4}
    assert [row for row in trained if tuned[row][1] == 4] == ["morec-text"]  # an encoder is not tuned
    assert {limited[row][1] for row in trained if row != "morec-text"} == {5 + 4 + 4}
    reading = {row: encoding > 0 for row, (encoding, _) in once.items()}
    assert not any(reading[row] for row in ("sasrec", "morec-text", "earec-text-behavior-ids"))


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--table", "5"], "Table 5"),
        (["--table", "4", "--methods", "slerp"], "slerp"),
        (["--table", "4"], "no adapter of vision"),
        (["--table", "4", "--set", "recommender.lr=-1"], "lr"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(
    in_home: Pipeline, capsys: pytest.CaptureFixture[str], argv: list[str], said: str
) -> None:
    assert in_home.run("reproduce", *argv, "--data", str(in_home.data), *NAMED) == 2
    assert said in capsys.readouterr().err


def test_an_adapter_of_another_catalog_is_measured_and_said(
    in_home: Pipeline, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    other = tmp_path / "shorter"
    source = str(in_home.folder / "source")
    assert run(["data", "import", source, "--out", str(other), "--max-len", "5"]) == 0
    sets = [f"--set=recommender.{pair}" for pair in ("epochs=1", "dim=8")]
    argv = ["reproduce", "--table", "4", "--data", str(other), "--backbone", str(in_home.llm), *sets]
    argv += ["--modalities", "text", "--adapter", "text=text/things", "--only", "text", "--seeds", "1"]
    assert in_home.run(*argv) == 0
    assert "The adapter of text was aligned on 'things', not on this version of 'shorter'." in (
        capsys.readouterr().err
    )


def test_table_3_is_made_of_the_adapters_that_there_are(in_home: Pipeline, out_json: OutJson) -> None:
    argv = _argv(in_home, "--weights", "text=3,behavior=1", "--seeds", "1", "--json")
    argv[argv.index("4")] = "3"
    assert in_home.run(*argv) == 0
    report = out_json()
    assert [one["row"]["name"] for one in report["results"]] == [
        "all",
        "without-text",
        "without-behavior",
        "unaligned-text",
        "unaligned",
    ]
    stored = Registry.open(in_home.registry)
    whole, without = report["results"][0]["ids"], report["results"][1]["ids"]
    assert stored.manifest(whole["composite"]).data["weights"] == pytest.approx(
        {"text": 0.75, "behavior": 0.25}
    )
    assert without["composite"] is None
    adapter = stored.resolve("behavior/things")
    assert adapter in stored.manifest(without["vectors"]).data["parents"]


def test_table_2_compares_recommenders_tuned_alike(
    in_home: Pipeline, out_json: OutJson, tiny_encoder: Path, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    rows = "popularity,sasrec,sasrec-text,unisrec-text,unisrec-text-ids,earec-text-behavior,earec-text-behavior-ids"
    more = ["--weights", "text=1,behavior=1", "--encoder", str(tiny_encoder), "--trials", "2", "--seeds", "2"]
    argv = _argv(in_home, *more, "--only", rows, "--out", str(page), "--json")
    argv[argv.index("4")] = "2"
    assert in_home.run(*argv) == 0
    report = out_json()
    results = {one["row"]["name"]: one for one in report["results"]}
    assert [*results] == rows.split(",")
    stored = Registry.open(in_home.registry)
    settings = {}
    for name, one in results.items():
        manifests = [stored.manifest(r).data for r in one["ids"]["recommenders"]]
        settings[name] = [manifest["training"]["config"] for manifest in manifests]
        valid = [manifest["metrics"]["valid"]["ndcg@10"] for manifest in manifests]
        assert one["valid"] == pytest.approx(np.mean(valid))
    assert settings["earec-text-behavior-ids"][0]["table"].endswith("+ids")
    assert settings["unisrec-text-ids"][0]["table"] == "moe+ids"
    assert {s["seed"] for s in settings["sasrec"]} == {0, 1}
    composed = [results[f"earec-text-behavior{ids}"]["ids"] for ids in ("", "-ids")]
    assert composed[0]["vectors"] == composed[1]["vectors"]
    assert results["unisrec-text"]["ids"]["vectors"] == results["sasrec-text"]["ids"]["vectors"]
    assert [(v["ids"], v["metric"]) for v in report["verdicts"]] == [
        (ids, metric) for ids in (False, True) for metric in ("hr@10", "hr@50", "ndcg@10", "ndcg@50")
    ]
    best = max(("popularity", "sasrec-text", "unisrec-text"), key=lambda name: results[name]["valid"])
    assert report["verdicts"][0]["baseline"] == best
    text = page.read_text()
    assert "The best of ours beside the best baseline" in text
    assert text.count("<svg") == 2


def test_figure_4_shows_what_is_said_of_the_same_items(in_home: Pipeline, out_json: OutJson) -> None:
    argv = ["reproduce", "--figure", "4", "--data", str(in_home.data), "--backbone", str(in_home.llm), *NAMED]
    assert in_home.run(*argv, "--modalities", "text,behavior", "--items", "2", "--json") == 0
    cases = out_json()
    test = Catalog.open(in_home.data).items["item_id"][Catalog.open(in_home.data).item_split("test").tolist()]
    assert {case["item"] for case in cases} <= set(test)
    assert [(case["modality"], case["variant"]) for case in cases if case["item"] == cases[0]["item"]] == [
        (modality, variant) for modality in ("text", "behavior") for variant in ("unaligned", "aligned")
    ]
    for case in cases:
        expected = rouge_l([case["text"]], [case["anchor"]], stemmer=False)
        assert case["rouge_l"] == pytest.approx(float(expected[0]))


def test_figure_5_sets_rouge_l_beside_the_recommender(
    in_home: Pipeline, out_json: OutJson, tmp_path: Path
) -> None:
    page = tmp_path / "figure.html"
    argv = ["reproduce", "--figure", "5", "--data", str(in_home.data), "--backbone", str(in_home.llm), *NAMED]
    settings = ["--set", "recommender.epochs=1", "--set", "recommender.dim=8", "--seeds", "1"]
    more = ["--modalities", "text,behavior", *settings, "--out", str(page), "--json"]
    assert in_home.run(*argv, *more) == 0
    made = out_json()
    assert [(p["modality"], p["variant"]) for p in made["points"]] == [
        (m, v) for m in ("text", "behavior") for v in ("unaligned", "aligned")
    ]
    ranks = load_file(
        Registry.open(in_home.registry).materialize("reproduce/things/unaligned-text/recommender-0")
        / "test_ranks.safetensors"
    )["ranks"]
    assert made["points"][0]["test"]["hr@10"] == pytest.approx((ranks <= 10).mean())
    assert page.read_text().count("<svg") == 2


def test_a_model_that_fixes_settings_is_not_trained_again(
    in_home: Pipeline, monkeypatch: pytest.MonkeyPatch, tiny_encoder: Path
) -> None:
    rows = "sasrec,esasrec,unisrec-text"
    argv = _argv(in_home, "--encoder", str(tiny_encoder), "--only", rows, "--seeds", "1")
    argv[argv.index("4")] = "2"
    encoded: list[str] = []
    real = making.encode_words
    monkeypatch.setattr(making, "encode_words", lambda *a, **k: encoded.append("") or real(*a, **k))
    assert in_home.run(*argv, "--only", rows + ",sasrec-text", "--set", "text.template=Only {title}") == 0
    assert len(encoded) == 1
    monkeypatch.setattr(making, "train_registered", lambda *_, **__: pytest.fail("trained again"))
    assert in_home.run(*argv, "--set", "text.template=Only {title}") == 0
    assert len(encoded) == 1
