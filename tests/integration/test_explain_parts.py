"""What is copied is told apart from what is known, and whether a text depends on its input."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import polars as pl
import pytest
from rouge_score.rouge_scorer import RougeScorer

from .conftest import Pipeline

TITLE_IN_TEXT = {
    "prompt__anchor": '["title", "description"]',
    "text__template": "thing: {title}",
    "align__epochs": 1,
}


def _plain(text: str) -> list[str]:
    return "".join(c if c.isalnum() else " " for c in text.lower()).split()


def test_fields_and_new_words_are_scored_apart(in_home: Pipeline, capsys: pytest.CaptureFixture[str]) -> None:
    """Against the same by hand from the texts that were written, without stemming."""
    settings = in_home.settings(**TITLE_IN_TEXT)
    on = ["--data", str(in_home.data), *settings]
    assert in_home.run("align", "--modality", "text", *on, "--name", "text/copied") == 0
    # "red pen. a pen that is red" from "thing: red pen": all but a, that, is.
    assert "% of the anchors' words stand in what the LLM reads of text" in capsys.readouterr().err
    texts = in_home.folder / "texts.parquet"
    argv = [
        "explain",
        "text/copied",
        *on,
        "--set",
        "explain.stemmer=false",
        "--split",
        "all",
        "--out",
        str(texts),
    ]
    assert in_home.run(*argv, "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    parts: dict[str, dict[str, Any]] = {part["part"]: part for part in row["parts"]}
    assert set(parts) == {"title", "description", "new words"}
    items = {item.id: item for item in in_home.catalog.all_items()}
    scorer = RougeScorer(["rougeL"])
    by_hand: dict[tuple[str, str], dict[str, float]] = {}
    for text in pl.read_parquet(texts).iter_rows(named=True):
        item, said = items[text["item_id"]], text["text"]
        read = set(_plain(f"thing: {item.title}"))
        new = " ".join(word for word in _plain(text["anchor"]) if word not in read)
        pairs = {"title": (item.title, said), "description": (item.fields.get("description"), said)}
        pairs["new words"] = (new, " ".join(word for word in _plain(said) if word not in read))
        if text["variant"] == "copied":
            assert said == f"thing: {item.title}"
            del pairs["new words"]  # it has none
        for part, (wanted, given) in pairs.items():
            if wanted:
                score = scorer.score(wanted, given)["rougeL"].fmeasure
                by_hand.setdefault((part, text["variant"]), {})[item.id] = score
    for (part, variant), scores in by_hand.items():
        assert parts[part][variant] == pytest.approx(np.mean(list(scores.values())))
    assert parts["title"]["items"] == 20
    assert parts["description"]["items"] == 18 == parts["new words"]["items"]
    for part, scored in parts.items():
        gaps = [
            by_hand[part, "aligned"][id_] - by_hand[part, "shuffled"][id_] for id_ in by_hand[part, "aligned"]
        ]
        assert scored["difference"] == pytest.approx(np.mean(gaps))
        assert scored["difference_low"] <= scored["difference"] <= scored["difference_high"]
    assert row["difference"] == pytest.approx(row["aligned"] - row["shuffled"])
    assert row["copied"] > row["shuffled"]


def test_a_modality_without_words_has_none_to_copy(
    in_home: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    on = ["--data", str(in_home.data), *in_home.settings(explain__max_new_tokens=3)]
    assert in_home.run("explain", "behavior/things", *on, "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["parts"] == []
    assert "copied" not in row
    assert in_home.run("explain", "behavior/things", *on) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split("\t")[:3] == ["source", "part", "items"]
    assert [line.split("\t")[1] for line in lines] == ["anchor"]
