"""`align --plan` and `--show-samples`: what they say is what an alignment then does, and they do nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from earec_core.align import planning
from earec_core.aligned.model import AlignedModel
from earec_core.artifacts import AdapterManifest, open_as
from earec_core.cli import run
from earec_core.encode import planning as encoding
from earec_core.llm.backbone import Spliced

from .conftest import Pipeline

ON = {"align__epochs": 2, "align__batch_size": 4, "align__micro_batch": 3}


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps are calibration enough here; a batch is in as many parts on any machine."""
    monkeypatch.setattr(planning, "_SECONDS", 0.0)
    monkeypatch.setattr(encoding, "_SECONDS", 0.0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)


def _asked(pipeline: Pipeline, capsys: pytest.CaptureFixture[str], *options: str, **more: Any) -> Any:
    on = ["--data", str(pipeline.data), *pipeline.settings(**{**ON, **more})]
    capsys.readouterr()
    assert pipeline.run("align", "--modality", "text", *on, *options, "--json") == 0
    return json.loads(capsys.readouterr().out)


def test_samples_are_shown_as_the_llm_reads_them(
    in_home: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = _asked(in_home, capsys, "--show-samples", "100")["samples"]
    items = {item.id: item for item in in_home.catalog.all_items()}
    assert len(samples) > 5
    assert len({sample["item"] for sample in samples}) == len(samples)
    for sample in samples:
        pieces = [*sample["pieces"], sample["loss"]]
        assert sum(piece["positions"] for piece in pieces) == sample["positions"]
        assert sample["loss"]["words"].startswith(items[sample["item"]].title)
        said = "".join(piece.get("words", "") for piece in sample["pieces"])
        assert "Say it." in said
        assert items[sample["item"]].title not in said
        assert {"modality": "text", "item": sample["item"]}.items() <= next(
            piece for piece in sample["pieces"] if piece.get("item") == sample["item"]
        ).items()


def test_prompts_call_the_items_what_the_import_was_told_whatever_the_folder(
    in_home: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, moved = in_home.folder / "source", tmp_path / "elsewhere"
    for out, domain in ((tmp_path / "lamps", ["--domain", "brass lamps"]), (tmp_path / "bare", [])):
        assert run(["data", "import", str(source), "--out", str(out), *domain]) == 0
        out.rename(moved)
        told = ["--data", str(moved), "--modality", "text", *in_home.settings(), "--show-samples", "1"]
        capsys.readouterr()
        assert in_home.run("align", *told, "--json", "--set", "prompt.item={item} is of {domain}.") == 0
        said = "".join(
            piece.get("words", "") for piece in json.loads(capsys.readouterr().out)["samples"][0]["pieces"]
        )
        assert f"is of {domain[-1] if domain else 'bare'}." in said
        moved.rename(out)


def test_a_plan_is_what_the_alignment_then_does(
    in_home: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = _asked(in_home, capsys, "--plan", "--show-samples", "100", align__lr=0.011)
    plan, lengths = asked["plan"], sorted(sample["positions"] for sample in asked["samples"])
    assert (plan["samples"]["least"], plan["samples"]["most"]) == (lengths[0], lengths[-1])
    assert plan["samples"]["median"] == pytest.approx(lengths[len(lengths) // 2], abs=1)
    responses = [sample["loss"]["positions"] for sample in asked["samples"]]
    assert (plan["anchors"]["least"], plan["anchors"]["most"]) == (min(responses), max(responses))
    assert 0 <= plan["padding"] < 0.5
    llm = AutoModelForCausalLM.from_pretrained(in_home.llm)
    blocks = sum(p.numel() for n, p in llm.named_parameters() if n.endswith("proj.weight"))
    assert plan["teraflops"] == pytest.approx(4 * blocks * plan["positions"] / 1e12)
    kept = plan["gibibytes"]
    assert kept["weights"] * 2**30 == pytest.approx(4 * sum(p.numel() for p in llm.parameters()))
    assert kept["a batch"] > 0
    names = {entry.name for entry in in_home.workspace.registry.list().entries}
    aligned = _asked(in_home, capsys, "--name", "text/planned", align__lr=0.011)
    assert "text/planned" not in names
    stored = open_as(in_home.workspace.registry, aligned["id"], AdapterManifest)
    manifest, factors = stored.manifest, load_file(stored.folder / "adapter_model.safetensors")
    trained = sum(factor.numel() for factor in factors.values())
    assert kept["adapter and optimizer"] * 2**30 == pytest.approx(16 * trained)
    assert manifest.training.steps == plan["steps"]
    assert manifest.training.items == plan["items"]
    again = _asked(in_home, capsys, "--plan", align__lr=0.011)["plan"]
    assert {key: again[key] for key in ("items", "positions", "padding", "steps")} == {
        key: plan[key] for key in ("items", "positions", "padding", "steps")
    }


def test_a_plan_says_what_each_of_several_processes_holds(
    in_home: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    one = _asked(in_home, capsys, "--plan")["plan"]
    four = _asked(in_home, capsys, "--plan", "--processes", "4", "--engine", "deepspeed", engine__stage=3)[
        "plan"
    ]
    assert (one["processes"], four["processes"]) == (1, 4)
    llm = AutoModelForCausalLM.from_pretrained(in_home.llm)
    table = llm.get_input_embeddings().weight.nbytes / 2**30
    assert four["gibibytes"]["weights"] == pytest.approx(one["gibibytes"]["weights"] / 4 + table)
    assert four["gibibytes"]["a batch"] == one["gibibytes"]["a batch"]
    assert four["gibibytes"]["adapter and optimizer"] < one["gibibytes"]["adapter and optimizer"] / 2


def test_positions_and_padding_are_those_of_the_batches(
    in_home: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    """All samples in one batch, one pass: every row is as long as the longest, the prefix is there once."""
    asked = _asked(
        in_home, capsys, "--plan", "--show-samples", "100", align__batch_size=100, align__micro_batch=100
    )
    plan, prefix = asked["plan"], asked["samples"][0]["pieces"][0]["positions"]
    bodies = [sample["positions"] - prefix - 1 for sample in asked["samples"]]
    computed = prefix + len(bodies) * max(bodies)
    assert plan["shared"] == prefix
    assert plan["positions"] == plan["steps"] * computed
    assert plan["padding"] == pytest.approx(1 - (prefix + sum(bodies)) / computed)


def test_a_larger_batch_keeps_more_and_small_parts_of_it_less(
    in_home: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = {}
    for size, most in ((2, 2), (8, 8), (8, 1)):
        plan = _asked(in_home, capsys, "--plan", align__batch_size=size, align__micro_batch=most)["plan"]
        kept[size, most] = plan["gibibytes"]["a batch"]
    assert 2 * kept[2, 2] < kept[8, 8] < 8 * kept[2, 2]
    assert kept[8, 1] < kept[8, 8] / 3


def test_with_dropout_the_prefix_is_read_in_every_row(
    in_home: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    one = {"align__batch_size": 100, "align__micro_batch": 100}
    plain, random = (
        _asked(in_home, capsys, "--plan", "--show-samples", "100", lora__dropout=p, **one) for p in (0.0, 0.1)
    )
    prefix, rows = plain["plan"]["shared"], len(plain["samples"])
    assert random["plan"]["shared"] == 0
    more = random["plan"]["positions"] - plain["plan"]["positions"]
    assert more == plain["plan"]["steps"] * prefix * (rows - 1)


def test_a_run_without_a_sample_is_refused_with_the_reason(
    in_home: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    on = ["--data", str(in_home.data), *in_home.settings(prompt__max_tokens=16)]
    assert in_home.run("align", "--modality", "text", *on, "--plan") == 2
    assert "prompt.max_tokens" in capsys.readouterr().err


def test_a_plan_of_an_encoding_counts_the_positions_that_the_llm_then_reads(
    in_home: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EAREC_HOME", str(tmp_path))  # where no other test has stored these vectors
    on = ["--data", str(in_home.data), *in_home.settings(encode__batch_tokens=100)]
    encode = ["encode", "--unaligned", "--modalities", "text", *on]
    capsys.readouterr()
    before = in_home.workspace.registry.list().entries
    assert in_home.run(*encode, "--plan", "--json") == 0
    plan = json.loads(capsys.readouterr().out)["plan"]
    assert in_home.workspace.registry.list().entries == before
    bodies: list[tuple[int, ...]] = []
    states = AlignedModel.states

    def counted(model: AlignedModel, batch: Spliced, **options: Any) -> Any:
        bodies.append(tuple(batch.body.shape[:2]))
        return states(model, batch, **options)

    monkeypatch.setattr(AlignedModel, "states", counted)
    assert in_home.run(*encode, "--json") == 0
    assert len(bodies) > 2
    assert plan["reused"] == plan["items"]["none"] - 1 > 0  # their prompts are one and the same
    assert sum(rows for rows, _ in bodies) == len(in_home.catalog) - plan["reused"]
    assert plan["positions"] == sum(plan["shared"] + rows * length for rows, length in bodies)
    assert plan["items"] == json.loads(capsys.readouterr().out)["coverage"]
    assert in_home.run(*encode, "--plan", "--json") == 0
    again = json.loads(capsys.readouterr().out)["plan"]
    assert (again["reused"], again["positions"], again["minutes"]) == (len(in_home.catalog), 0, 0)
