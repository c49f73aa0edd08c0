"""The method end to end on a tiny LLM: what a user relies on, checked against independent computations."""

from __future__ import annotations

import importlib
import json
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from html import unescape
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import polars as pl
import pytest
import torch

from earec_core.align import align
from earec_core.align import train as training
from earec_core.aligned.model import AlignedModel
from earec_core.aligned.stored import adapter_of, open_model, stored_model
from earec_core.artifacts import ItemVectors
from earec_core.catalog import Catalog, import_dataset
from earec_core.cli import run
from earec_core.cli.demo import run_command
from earec_core.config import BackboneConfig, EncodeConfig, RunConfig, resolve
from earec_core.encode import encode, item_vectors
from earec_core.errors import EarecError, UsageError
from earec_core.explain import Text, explain
from earec_core.llm.backbone import Backbone
from earec_core.testing import tiny_backbone
from earec_registry import Registry

from .conftest import FAST, Pipeline, write_source

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
OutJson = Callable[[], Any]


@contextmanager
def _model(pipeline: Pipeline, reference: str, **kwargs: Any) -> Iterator[AlignedModel]:
    backbone = Backbone.load(BackboneConfig(model=str(pipeline.llm), dtype="float32"))
    stored = open_model(pipeline.workspace.registry, reference)
    model = stored_model(pipeline.workspace, pipeline.catalog, backbone, stored, **kwargs)
    with backbone.adapted(adapter_of(stored)):
        yield model


def _vectors(pipeline: Pipeline, reference: str) -> np.ndarray:
    with _model(pipeline, reference) as model:
        return item_vectors(model, range(20))


def test_alignment_lowers_the_validation_loss(in_home: Pipeline, out_json: OutJson) -> None:
    for modality in ("text", "behavior"):
        in_home.run("registry", "show", f"{modality}/things", "--json")
        metrics = out_json()["metrics"]
        assert metrics["valid_loss"] < metrics["valid_loss_before"]


def test_a_finished_alignment_is_not_repeated(
    in_home: Pipeline, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training.Trainer, "run", lambda *_: pytest.fail("trained again"))
    argv = ["align", "--modality", "text", "--data", str(in_home.data), *in_home.settings()]
    assert in_home.run(*argv) == 0
    said = capsys.readouterr()
    assert "Already aligned" in said.err
    assert said.out.strip() == Registry.open(in_home.registry).resolve("text/things")


def test_checkpointed_blocks_train_the_same_adapter(in_home: Pipeline) -> None:
    losses = []
    for on in (False, True):
        more = {"align.gradient_checkpointing": on, "align.max_steps": 3, "backbone.model": str(in_home.llm)}
        config = resolve(flags={**FAST, **more})
        alignment = align(in_home.workspace, in_home.catalog, "text", config, name="text/checkpointed")
        losses.append([point["loss"] for point in alignment.history if "loss" in point])
    assert len(losses[0]) == 3
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_an_adapter_trained_on_an_llm_in_4_bits_is_one_of_the_plain_llm(
    in_home: Pipeline, tmp_path: Path
) -> None:
    llm = tiny_backbone(tmp_path / "llm", hidden=64)
    more = {"align.quantization": "nf4", "align.max_steps": 8, "backbone.model": str(llm)}
    config = resolve(flags={**FAST, **more})
    alignment = align(in_home.workspace, in_home.catalog, "text", config, name="text/packed")
    losses = [point["loss"] for point in alignment.history if "loss" in point]
    assert losses[-1] < losses[0]
    vectors = encode(in_home.workspace, in_home.catalog, "text/packed", config, name="vectors/packed").vectors
    assert np.isfinite(vectors).all()
    deepspeed = resolve(flags={**FAST, **more, "engine.name": "deepspeed"})
    with pytest.raises(UsageError, match="does not train behind weights in 4 bits"):
        align(in_home.workspace, in_home.catalog, "text", deepspeed, name="text/packed")


def test_no_seed_trains_on_what_is_held_out(
    in_home: Pipeline, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: set[int] = set()
    step = training.Trainer._step

    def watched(self: Any, batch: Any) -> Any:
        seen.update(sample.prompt.item for sample in batch)
        return step(self, batch)

    monkeypatch.setattr(training.Trainer, "_step", watched)
    data = ["--data", str(in_home.data)]
    for seed in (1, 2):
        settings = in_home.settings(run__seed=seed, align__epochs=1)
        name = f"text/seed-{seed}"
        assert in_home.run("align", "--modality", "text", *data, *settings, "--name", name) == 0
    texts = tmp_path / "texts.parquet"
    assert in_home.run("explain", "text/seed-1", *data, *in_home.settings(), "--out", str(texts)) == 0
    rows = {item_id: n for n, item_id in enumerate(Catalog.open(in_home.data).items["item_id"])}
    held = {rows[item_id] for item_id in pl.read_parquet(texts)["item_id"]}
    assert seen
    assert held
    assert seen.isdisjoint(held)


@pytest.mark.parametrize(
    ("steps", "minutes", "kept"), [(2, 5.0, 2), (1000, 1e-9, 3)], ids=["steps", "minutes"]
)
def test_a_killed_alignment_resumes_to_the_same_adapter(
    steps: int,
    minutes: float,
    kept: int,
    in_home: Pipeline,
    monkeypatch: pytest.MonkeyPatch,
    out_json: OutJson,
    capsys: pytest.CaptureFixture[str],
) -> None:
    kept_at = {"align__checkpoint_every": steps, "align__checkpoint_minutes": minutes}
    settings = in_home.settings(run__seed=5, lora__dropout=0.2, align__batch_size=4, **kept_at)
    argv = ["align", "--modality", "text", "--data", str(in_home.data), *settings, "--json"]
    assert in_home.run(*argv, "--name", "whole") == 0
    whole = out_json()
    (Path(whole["run"]) / "result.json").unlink()
    step, count = training.Trainer._step, 0

    def killed(self: Any, batch: Any) -> Any:
        nonlocal count
        count += 1
        if count == 4:
            raise KeyboardInterrupt
        return step(self, batch)

    monkeypatch.setattr(training.Trainer, "_step", killed)
    assert in_home.run(*argv, "--name", "resumed") == 130
    monkeypatch.setattr(training.Trainer, "_step", step)
    capsys.readouterr()
    assert in_home.run(*argv, "--name", "resumed") == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["id"] == whole["id"]
    # Three steps were done: every second one is kept, or every one.
    assert f"align text: {kept}/" in said.err
    assert "done before, going on" in said.err


def test_the_loss_is_eq_3_computed_by_hand(in_home: Pipeline) -> None:
    from earec_core.align import samples

    with _model(in_home, "text/things") as model:
        rows = [row for row in range(6) if model.prompts.has(row, ["text"])]
        chosen = samples.build(model.prompts, "text", rows).samples
        found = model(chosen).item()
        backbone, expected = model.backbone, 0.0
        for sample in chosen:
            batch = model.splice([sample.prompt])
            words = torch.cat([backbone.embed(batch.prefix), batch.body[0], backbone.embed(sample.response)])
            logits = backbone.model(inputs_embeds=words[None]).logits[0].log_softmax(-1)
            start = len(batch.prefix) + int(batch.lengths[0])
            expected -= sum(logits[start - 1 + t, token].item() for t, token in enumerate(sample.response))
    assert found == pytest.approx(expected, rel=1e-5)


def test_composing_one_adapter_at_weight_1_gives_its_vectors_back(in_home: Pipeline) -> None:
    adapter = ["--adapter", "text=text/things"]
    assert in_home.run("compose", "--weights", "text=1", *adapter, "--name", "alone") == 0
    vectors = [_vectors(in_home, reference) for reference in ("text/things", "alone")]
    np.testing.assert_allclose(*vectors, atol=1e-5)


def test_vectors_do_not_depend_on_the_batch_size(in_home: Pipeline) -> None:
    with _model(in_home, "composite") as model:
        alone = item_vectors(model, range(20), EncodeConfig(batch_tokens=64))
        together = item_vectors(model, range(20), EncodeConfig(batch_tokens=100000))
        some = item_vectors(model, [7, 3], EncodeConfig(batch_tokens=512))
        np.testing.assert_allclose(together, alone, atol=1e-4)
        np.testing.assert_allclose(some, alone[[7, 3]], atol=1e-4)


def test_vectors_and_texts_do_not_depend_on_what_runs_beside_them(
    in_home: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("earec_core.encode.batches._POSITIONS", 64)
    # The tiny LLM says the same of every item; a number of its input tells which text is whose.
    monkeypatch.setattr(
        Backbone, "generate", lambda _, batch, new: [f"{row.sum():.2f}" for row in batch.body]
    )
    threads, shown = torch.get_num_threads(), list[int]()
    with _model(in_home, "composite") as model:
        prompts = [model.prompts.prompt(row) for row in range(20)]
        config, made = EncodeConfig(batch_tokens=512), []
        try:
            for number in (1, 3):
                torch.set_num_threads(number)
                vectors = item_vectors(model, range(20), config)
                texts = model.generate(prompts, 6, batch_size=24, show=lambda done, *_: shown.append(done))
                made.append((vectors, texts))
        finally:
            torch.set_num_threads(threads)
    (alone, texts), (beside, others) = made
    np.testing.assert_allclose(beside, alone, atol=1e-4)
    assert np.ptp(alone, axis=0).max() > 1e-2
    assert others == texts
    assert len(set(texts)) > 5
    assert shown == [20, 12, 20]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_vector_that_is_not_finite_ends_the_encoding_and_its_item_is_named(
    in_home: Pipeline, value: float
) -> None:
    with _model(in_home, "composite", names=["behavior"]) as model:
        having = next(row for row in range(20) if model.prompts.has(row))
        next(model.inputs["behavior"].projector.parameters()).data.fill_(value)
        name = re.escape(model.prompts.items[having].id)
        with pytest.raises(EarecError, match=f"The vector of item '{name}' holds NaN or infinity"):
            item_vectors(model, [having])


def test_a_vector_is_the_last_hidden_state_of_plain_transformers(in_home: Pipeline) -> None:
    with _model(in_home, "composite") as model:
        batch = model.splice([model.prompts.prompt(3)])
        words = torch.cat([model.backbone.embed(batch.prefix), batch.body[0]])
        plain = model.llm(inputs_embeds=words[None], output_hidden_states=True).hidden_states[-1][0, -1]
        np.testing.assert_allclose(item_vectors(model, [3])[0], plain.detach().numpy(), atol=1e-5)


def test_encoding_exports_what_it_registers_and_as_the_export_command_does(
    in_home: Pipeline, tmp_path: Path, out_json: OutJson, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["encode", "composite", "--data", str(in_home.data), *in_home.settings(), "--name", "vectors/out"]
    first, again = tmp_path / "first.faiss", tmp_path / "again.faiss"
    how = ["--index", "hnsw", "--scaling", "whiten"]
    assert in_home.run(*argv, "--export", str(tmp_path / "v.parquet"), "--json") == 0
    facts = out_json()
    stored = ItemVectors.open(in_home.workspace.registry, facts["id"], in_home.catalog)
    read = pl.read_parquet(facts["export"]["file"])
    assert read["item_id"].to_list() == in_home.catalog.items["item_id"].to_list()
    np.testing.assert_array_equal(read["vector"].to_numpy(), stored.vectors)
    assert in_home.run(*argv, "--export", str(first), *how) == 0
    assert in_home.run("export", "vectors/out", "--out", str(again), *how) == 0
    indexes = [faiss.read_index(str(file)) for file in (first, again)]
    assert {type(index) for index in indexes} == {faiss.IndexHNSWFlat}
    np.testing.assert_array_equal(*(index.reconstruct_n(0, 20) for index in indexes))
    capsys.readouterr()
    for wrong, said in (
        (["--export", str(tmp_path / "v.faiss"), "--index", "ivfpq"], "there are 20"),
        (["--export", str(tmp_path / "v.npy"), "--plan"], "make no vectors"),
        (["--scaling", "whiten"], "are of --export"),
    ):
        assert in_home.run(*argv, *wrong) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "v.npy").exists()


def test_a_missing_modality_equals_one_that_never_was(in_home: Pipeline) -> None:
    with (
        _model(in_home, "composite") as both,
        _model(in_home, "composite", names=["behavior"]) as only,
    ):
        without = [row for row in range(20) if not both.prompts.has(row, ["text"])]
        assert without
        np.testing.assert_allclose(item_vectors(both, without), item_vectors(only, without), atol=1e-6)


def test_explain_scores_every_source_and_control(
    in_home: Pipeline, out_json: OutJson, tmp_path: Path
) -> None:
    argv = ["explain", "composite", "--data", str(in_home.data), "--split", "all", *in_home.settings()]
    page = tmp_path / "page.html"
    outputs = ["--out", str(tmp_path / "texts.parquet"), "--report", str(page)]
    assert in_home.run(*argv, *outputs, "--json") == 0
    rows = {row["source"]: row for row in out_json()}
    assert list(rows) == ["text", "behavior", "all"]
    texts = pl.read_parquet(tmp_path / "texts.parquet")
    means = texts.group_by("source", "variant").agg(pl.col("rouge_l").mean(), pl.len())
    for source, variant, mean, count in means.iter_rows():
        assert rows[source][variant] == pytest.approx(mean)
        assert rows[source]["items"] == count or variant == "copied"
    assert rows["text"]["items"] == 18
    assert set(texts["variant"]) == {"aligned", "shuffled", "unaligned", "copied"}
    shown = page.read_text()
    means = dict(
        texts.filter(variant="aligned").group_by("item_id").agg(pl.col("rouge_l").mean()).iter_rows()
    )
    cards = re.findall(r'<p class="kicker">item (\w+)</p>', shown)
    ranked = sorted(means.values(), reverse=True)
    assert [means[item] for item in cards] == pytest.approx([*ranked[:3], *ranked[10:13]])
    things = {item.id: item for item in Catalog.open(in_home.data).all_items()}
    for item in cards:
        assert f"<h3>{things[item].title}</h3>" in shown
        assert f'<p class="in">{things[item].fields.get("description", "item embedding")}' in shown
    assert f"<code>earec {shlex.join([*argv, *outputs])}" in unescape(shown)


def test_a_plugin_that_cannot_show_an_input_is_named_after_the_scores(
    in_home: Pipeline, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plugin = importlib.import_module("earec_text.modality")
    monkeypatch.setattr(plugin.TextModality, "describe", lambda *_: {}["colour"])
    argv = ["explain", "text/things", "--data", str(in_home.data), "--items", "1", *in_home.settings()]
    assert in_home.run(*argv, "--report", str(tmp_path / "page.html")) == 3
    said = capsys.readouterr()
    assert "'text' is unusable" in said.err
    assert "KeyError" in said.err
    assert said.out.startswith("source\tpart\titems\taligned")
    assert not (tmp_path / "page.html").exists()


def test_one_loaded_llm_serves_stage_after_stage(in_home: Pipeline) -> None:
    """Control, model and another model on one backbone, in any order, as each on a backbone of its own."""
    workspace, catalog = in_home.workspace, in_home.catalog
    flags = {"backbone.model": str(in_home.llm), "backbone.dtype": "float32", "explain.max_new_tokens": 4}
    config = resolve(flags=flags)
    kept = Backbone.load(config.backbone)

    def texts(backbone: Backbone | None, *variants: str) -> list[Text]:
        explained = explain(
            workspace,
            catalog,
            "composite",
            config,
            split="all",
            variants=variants,
            backbone=backbone,
            force=True,
        )
        return list(explained.texts)

    def vectors(backbone: Backbone | None) -> np.ndarray:
        return encode(workspace, catalog, "text/things", config, name="kept", backbone=backbone).vectors

    first = [texts(kept, "aligned"), vectors(kept), texts(kept, "unaligned"), vectors(kept)]
    fresh = [texts(None, "aligned"), vectors(None), texts(None, "unaligned"), vectors(None)]
    for one, other in zip(first, fresh, strict=True):
        assert np.array_equal(one, other)
    assert first[0] != first[2]


def test_encode_recommend_and_topk(in_home: Pipeline, out_json: OutJson) -> None:
    data = ["--data", str(in_home.data)]
    assert in_home.run("encode", "composite", *data, "--json", "--backbone", str(in_home.llm)) == 0
    coverage = out_json()["coverage"]
    assert coverage == {"text": 18, "behavior": 20, "none": 0}
    fast = [f"--set=recommender.{pair}" for pair in ("epochs=15", "dim=16", "dropout=0.1", "lr=0.01")]
    assert in_home.run("recommend", "train", "--vectors", "vectors/things", *data, *fast, "--json") == 0
    trained = out_json()
    assert trained["test"]["users"] == 40
    assert in_home.run("recommend", "evaluate", "recommender/things", *data, "--json") == 0
    assert out_json() == pytest.approx(trained["test"])
    assert (
        in_home.run("recommend", "topk", "recommender/things", *data, "--user", "u1", "-k", "3", "--json")
        == 0
    )
    best = out_json()
    assert [row["rank"] for row in best] == [1, 2, 3]
    seen = set(Catalog.open(in_home.data).interactions.filter(pl.col("user_id") == "u1")["item"])
    rows = {item.id: item.index for item in Catalog.open(in_home.data).all_items()}
    assert not {rows[row["item_id"]] for row in best} & seen


def test_a_killed_explanation_goes_on_and_a_finished_one_is_not_repeated(
    in_home: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EAREC_HOME", str(tmp_path / "home"))
    settings = in_home.settings(explain__max_new_tokens=3, explain__batch_size=7)
    argv = ["explain", "text/things", "--data", str(in_home.data), "--split", "all", *settings]
    generate, batches = AlignedModel.generate, list[int]()

    def counted(model: AlignedModel, prompts: Sequence[Any], *given: Any, **named: Any) -> list[str]:
        batches.append(len(prompts))
        if len(batches) == stop:
            raise KeyboardInterrupt
        return generate(model, prompts, *given, **named)

    def texts(name: str, *more: str) -> pl.DataFrame:
        assert in_home.run(*argv, *more, "--out", str(tmp_path / name)) == 0
        return pl.read_parquet(tmp_path / name)

    monkeypatch.setattr(AlignedModel, "generate", counted)
    stop, every = 6, 3 * 18  # three variants of the 18 items with text, in batches of 7, 7 and 4
    assert in_home.run(*argv) == 130
    assert batches == [7, 7, 4, 7, 7, 4]
    stop = 0
    (journal,) = tmp_path.glob("home/runs/explain-*/texts-aligned-text.jsonl")
    with journal.open("a") as file:
        file.write('{"3": "half a l')  # what a kill in the middle of writing leaves
    batches.clear()
    capsys.readouterr()
    resumed = texts("resumed")
    said = capsys.readouterr().err
    assert [line.split()[0] for line in said.splitlines() if "texts were generated before" in line] == [
        "18",
        "14",
    ]
    assert sum(batches) == every - 18 - 14
    batches.clear()
    assert texts("again").equals(resumed)
    assert batches == []
    assert texts("forced", "--force").equals(resumed)
    assert sum(batches) == every


def test_items_that_are_named_are_explained_as_in_a_whole_split(
    in_home: Pipeline, out_json: OutJson, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--data", str(in_home.data), *in_home.settings()]
    assert in_home.run("explain", "composite", *common, "--split", "all", "--out", str(tmp_path / "t")) == 0
    whole = pl.read_parquet(tmp_path / "t").filter(pl.col("variant") != "shuffled")
    capsys.readouterr()
    assert in_home.run("explain", "composite", "i13", "i2", *common, "--json") == 0
    said = out_json()
    assert list(dict.fromkeys(row["item_id"] for row in said)) == ["i13", "i2"]
    # i13 has no description to read.
    assert {(row["item_id"], row["source"]) for row in said} == {
        *((item, source) for item in ("i13", "i2") for source in ("behavior", "all")),
        ("i2", "text"),
    }
    order = ["item_id", "source", "variant"]
    mine = pl.DataFrame(said).select(whole.columns).sort(order)
    assert mine.equals(whole.filter(pl.col("item_id").is_in(["i2", "i13"])).sort(order))
    assert in_home.run("explain", "composite", "i2", "gone", *common) == 2
    assert "no item 'gone'" in capsys.readouterr().err
    assert in_home.run("explain", "composite", "i2", "--items", "3", *common) == 2


def test_every_command_names_the_next_which_works_as_typed(
    in_home: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    def following() -> list[str]:
        said = capsys.readouterr().err
        return shlex.split(next(line for line in said.splitlines() if line.startswith("Next: ")))[2:]

    data = ["--data", str(in_home.data)]
    capsys.readouterr()
    assert in_home.run("align", "--modality", "text", *data, *in_home.settings()) == 0
    explain = following()
    assert explain[:2] == ["explain", "text/things"]
    assert run(explain) == 0
    encode = ["encode", "composite", *data, "--backbone", str(in_home.llm), "--name", "vectors/followed"]
    assert in_home.run(*encode) == 0
    train = following()
    assert train[:4] == ["recommend", "train", "--vectors", "vectors/followed"]
    assert run([*train, "--set", "recommender.epochs=1", "--name", "recommender/followed"]) == 0
    evaluate = following()
    assert evaluate[:3] == ["recommend", "evaluate", "recommender/followed"]
    assert run(evaluate) == 0
    # The demo runs commands, and says itself what comes.
    run_command([*encode, "--registry", str(in_home.registry)])
    assert "Next:" not in capsys.readouterr().err


def test_un_aligned_vectors_need_named_modalities(in_home: Pipeline, out_json: OutJson) -> None:
    data = ["--data", str(in_home.data), "--backbone", str(in_home.llm)]
    assert in_home.run("encode", "--unaligned", *data) == 2
    assert in_home.run("encode", "composite", "--unaligned", *data) == 2
    assert (
        in_home.run("encode", "--unaligned", "--modalities", "text", *data, "--name", "plain", "--json") == 0
    )
    opened = ItemVectors.open(Registry.open(in_home.registry), "plain", Catalog.open(in_home.data))
    assert opened.manifest.parents == ()


def test_continuing_starts_from_the_parent(in_home: Pipeline, out_json: OutJson) -> None:
    argv = [
        "align",
        "--modality",
        "text",
        "--data",
        str(in_home.data),
        "--from",
        "text/things",
        "--name",
        "more",
    ]
    assert in_home.run(*argv, *in_home.settings(run__seed=0, align__epochs=1), "--json") == 0
    metrics = out_json()["metrics"]
    in_home.run("registry", "show", "text/things", "--json")
    assert metrics["valid_loss_before"] == pytest.approx(out_json()["metrics"]["valid_loss"], rel=1e-4)


def test_a_materialised_adapter_loads_with_plain_peft(in_home: Pipeline) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder = open_model(in_home.workspace.registry, "composite").folder
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(in_home.llm), str(folder))
    ids = torch.tensor([[0, 30, 60, 90]])
    with _model(in_home, "composite") as model:
        torch.testing.assert_close(plain(ids).logits, model.llm(ids).logits, atol=1e-4, rtol=1e-4)


def test_identical_input_gives_an_identical_composite(in_home: Pipeline, out_json: OutJson) -> None:
    ids = set()
    adapters = ["--adapter", "text=text/things", "--adapter", "behavior=behavior/things"]
    for weights in ("text=0.25,behavior=0.75", "behavior=0.75,text=0.25"):
        assert in_home.run("compose", "--weights", weights, *adapters, "--name", "again", "--json") == 0
        ids.add(out_json()["id"])
    assert len(ids) == 1


def test_the_run_says_what_it_was(in_home: Pipeline, out_json: OutJson) -> None:
    in_home.run("registry", "show", "text/things", "--json")
    manifest = out_json()
    run = f"align-text-{manifest['training']['config'][:12]}"
    stored = json.loads((in_home.folder / "home" / "runs" / run / "config.json").read_text())
    RunConfig.model_validate({k: stored[k] for k in ("run", "prompt", "lora", "align")})
    assert manifest["base"]["weights"] == stored["base"]["weights"]


def test_two_catalogs_are_aligned_on_together(in_home: Pipeline, tmp_path: Path, out_json: OutJson) -> None:
    """The adapter is of both, and encodes either."""
    more = tmp_path / "more"
    import_dataset(write_source(tmp_path / "source"), more)
    on = ["--data", str(in_home.data), "--data", str(more), *in_home.settings(align__catalog_temperature=2.0)]
    assert in_home.run("align", "--modality", "text", *on, "--json") == 0
    aligned = out_json()
    alone = len(in_home.catalog.item_split("train"))
    assert aligned["name"] == "text/things-more"
    assert alone < aligned["items"]["train"] <= 2 * alone
    for data in (in_home.data, more):
        argv = ["encode", "text/things-more", "--data", str(data), *in_home.settings(), "--json"]
        assert in_home.run(*argv) == 0
        coverage = out_json()["coverage"]
        assert coverage["text"] + coverage["none"] == 20
