"""Encoders of text: vectors against transformers alone, one text at a time; what is stored says what made it."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from earec_core.artifacts import ItemVectors
from earec_core.catalog import Catalog, import_dataset
from earec_core.cli import run
from earec_core.errors import UsageError
from earec_core.modality import sentences
from earec_core.modality.sentences import SentenceEncoder, encoder_folder
from earec_core.packages import Wheel
from earec_core.workspace import Workspace

TEXTS = ["A red pen", "", "lamp", "a blue lamp and a red lamp beside a pen with 3 ends of 12", "Red"]


def _by_hand(folder: Path, text: str, *, longest: int, pooling: str = "mean") -> np.ndarray:
    """The vector of one text, nothing padded, by transformers and numpy."""
    from transformers import AutoModel, AutoTokenizer

    ids = AutoTokenizer.from_pretrained(folder)(text, truncation=True, max_length=longest)["input_ids"]
    assert 2 <= len(ids) <= longest
    with torch.no_grad():
        states = AutoModel.from_pretrained(folder).eval()(input_ids=torch.tensor([ids])).last_hidden_state
    rows = states[0].double().numpy()
    vector = rows[0] if pooling == "first" else rows.mean(0)
    return vector / np.linalg.norm(vector)


def _described(tiny_encoder: Path, out: Path, **files: Any) -> Path:
    """The encoder with files of sentence-transformers beside it."""
    shutil.copytree(tiny_encoder, out)
    (out / "1_Pooling").mkdir()
    for name, content in files.items():
        place = {"pooling": "1_Pooling/config.json", "settings": "sentence_bert_config.json"}.get(
            name, f"{name}.json"
        )
        (out / place).write_text(json.dumps(content))
    return out


@pytest.mark.parametrize("positions", [1, 30, 1000])
def test_vectors_are_those_of_transformers_whatever_stands_beside_a_text(
    tiny_encoder: Path, positions: int
) -> None:
    encoder = SentenceEncoder.load(tiny_encoder)
    with torch.inference_mode():
        found = encoder.batched(encoder.tokens(TEXTS), positions).numpy()
    # 24 positions are all that the model has.
    expected = np.stack([_by_hand(tiny_encoder, text, longest=24) for text in TEXTS])
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert (encoder.width, encoder.max_tokens, encoder.method) == (16, 24, "mean-token-state-normalised")


def test_sentence_transformers_own_files_are_followed(tiny_encoder: Path, tmp_path: Path) -> None:
    folder = _described(
        tiny_encoder,
        tmp_path / "first",
        pooling={
            "word_embedding_dimension": 16,
            "pooling_mode_cls_token": True,
            "pooling_mode_mean_tokens": False,
        },
        settings={"max_seq_length": 5, "do_lower_case": True},
        modules=[
            {"type": f"sentence_transformers.models.{name}"}
            for name in ("Transformer", "Pooling", "Normalize")
        ],
    )
    encoder = SentenceEncoder.load(folder)
    with torch.inference_mode():
        found = encoder(encoder.tokens(TEXTS)).numpy()
    expected = [_by_hand(folder, text.lower(), longest=5, pooling="first") for text in TEXTS]
    np.testing.assert_allclose(found, np.stack(expected), atol=1e-6)
    assert encoder.method == "first-token-state-normalised"


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"pooling": {"pooling_mode_max_tokens": True}}, "not known here: pooling_mode_max_tokens"),
        (
            {"pooling": {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}},
            "pooling_mode_cls_token",
        ),
        ({"modules": [{"type": "sentence_transformers.models.Dense"}]}, "not known here: Dense"),
    ],
)
def test_another_way_to_a_vector_is_refused(
    files: dict[str, Any], said: str, tiny_encoder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=said):
        SentenceEncoder.load(_described(tiny_encoder, tmp_path / "other", **files))


def test_what_is_no_encoder_is_said(tiny_encoder: Path, tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path)
    with pytest.raises(UsageError, match="no encoder 'bert'"):
        encoder_folder("bert", workspace)
    shutil.copytree(tiny_encoder, tmp_path / "empty")
    (tmp_path / "empty/model.safetensors").unlink()
    with pytest.raises(UsageError, match="has no safetensors weights"):
        SentenceEncoder.load(encoder_folder(str(tmp_path / "empty"), workspace))


def test_a_named_encoder_is_the_folder_inside_its_package(
    tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = tmp_path / "e.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("e/__init__.py", "")
        archive.writestr("e/model/1_Pooling/config.json", '{"pooling_mode_cls_token": true}')
        for file in tiny_encoder.iterdir():
            archive.write(file, f"e/model/{file.name}")
    monkeypatch.setitem(
        sentences.NAMED,
        "e",
        sentences.NamedEncoder(Wheel("e==1", "0" * 64, 1), "e/model/", "MIT"),  # type: ignore[arg-type]
    )
    monkeypatch.setattr(sentences, "fetch", lambda *_: wheel)
    folder = encoder_folder("e", Workspace.open(tmp_path / "home"))
    assert {file.name for file in folder.iterdir()} == {f.name for f in tiny_encoder.iterdir()} | {
        "1_Pooling"
    }
    assert SentenceEncoder.load(folder).pooling == "first"
    assert not wheel.exists()
    assert encoder_folder("e", Workspace.open(tmp_path / "home")) == folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    source.mkdir()
    items = [
        {"item_id": f"i{row}", "title": f"Thing {row}", "description": text} for row, text in enumerate(TEXTS)
    ]
    (source / "items.jsonl").write_text("\n".join(map(json.dumps, items)))
    import_dataset(source, tmp_path / "data", core=1)
    return tmp_path / "data"


def test_the_command_encodes_what_the_text_plugin_reads(
    data: Path, tiny_encoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["encode", "--encoder", str(tiny_encoder), "--modalities", "text", "--data", str(data), "--json"]
    assert run([*common, "--name", "v"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["coverage"] == {"text": 4, "none": 1}
    assert "1 of 5 items have no words" in said.err
    catalog, registry = Catalog.open(data), Workspace.open().registry
    vectors = ItemVectors.open(registry, "v", catalog)
    expected = np.stack([_by_hand(tiny_encoder, text, longest=24) for text in TEXTS])
    np.testing.assert_allclose(vectors.vectors, expected, atol=1e-6)
    manifest = vectors.manifest
    assert (manifest.method, manifest.prompt, manifest.chat) == ("mean-token-state-normalised", None, None)
    assert manifest.modalities["text"]["fields"] == ["description"]
    assert manifest.base is not None
    assert manifest.base.id == tiny_encoder.name
    assert run([*common, "--name", "titled", "--set", 'text.template="{title}: {description}"']) == 0
    titled = ItemVectors.open(registry, "titled", catalog)
    assert titled.manifest.modalities["text"]["template"] == "{title}: {description}"
    np.testing.assert_allclose(
        titled.vectors[0], _by_hand(tiny_encoder, "Thing 0: A red pen", longest=24), atol=1e-6
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--encoder", "E"], "Name modalities"),
        (["--encoder", "E", "--modalities", "vision"], "has words in vision"),
        (["--encoder", "E", "--modalities", "text", "--set", "text.template='{plot}'"], "has words in text"),
        (["--encoder", "E", "--modalities", "text", "--plan"], "--encoder reads no prompts"),
        (["--encoder", "E", "--modalities", "text", "--engine", "ray"], "--encoder reads no prompts"),
        (["--encoder", "E", "--unaligned", "--modalities", "text"], "Exactly one of MODEL, --encoder"),
        (["--modalities", "text"], "Exactly one of MODEL, --encoder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_does_not_go_together_is_said(
    options: list[str], said: str, data: Path, tiny_encoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(tiny_encoder) if option == "E" else option for option in options]
    assert run(["encode", *given, "--data", str(data)]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.real
def test_minilm_gives_the_vectors_that_others_computed(shared_data: Path, tmp_path: Path) -> None:
    """A row of the published table for some artists, whose text is their tags."""
    folder = encoder_folder("all-minilm-l6-v2", Workspace.open(tmp_path))
    encoder = SentenceEncoder.load(folder)
    table = np.load(shared_data / "lastfm-2k-audio/all-MiniLM-L6-v2.npy")
    lines = (shared_data / "lastfm-2k-audio/items.jsonl").read_text().splitlines()[::100]
    items = [json.loads(line) for line in lines]
    with torch.inference_mode():
        found = encoder.batched(encoder.tokens([item["text"] for item in items]), 1024).numpy()
    np.testing.assert_allclose(found, table[[item["feature_row"] for item in items]], atol=1e-5)
