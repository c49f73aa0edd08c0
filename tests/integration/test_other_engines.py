"""The merged model and the prompts, read by plain transformers, give the vectors of `earec encode`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from earec_core.artifacts import ItemVectors

from .conftest import Pipeline


def test_merged_model_and_prompts_give_the_vectors(
    in_home: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModel

    from earec_core.encode import prompts

    monkeypatch.setattr(prompts, "_ITEMS", 7)  # so that there are several files
    settings = ["--data", str(in_home.data), *in_home.settings()]
    merged, written = str(tmp_path / "merged"), str(tmp_path / "prompts")
    base = ["--backbone", str(in_home.llm)]
    assert in_home.run("export", "composite", "--as", "merged", "--out", merged, *base) == 0
    assert in_home.run("encode", "composite", *settings, "--name", "vectors/here") == 0
    assert in_home.run("encode", "composite", *settings, "--prompts", written) == 0
    expected = ItemVectors.open(in_home.workspace.registry, "vectors/here", in_home.catalog).vectors
    llm = AutoModel.from_pretrained(merged, dtype=torch.float32).eval()
    vectors = []
    for file in sorted(Path(written).glob("*.safetensors")):
        tensors = load_file(file)
        for row in tensors["embeddings"].split(tensors["starts"].diff().tolist()):
            with torch.no_grad():
                vectors.append(llm(inputs_embeds=row[None]).last_hidden_state[0, -1].numpy())
    np.testing.assert_allclose(np.stack(vectors), expected, atol=1e-4)
    about = json.loads((Path(written) / "prompts.json").read_text())
    assert about["item_ids"] == in_home.catalog.items["item_id"].to_list()
    assert about["d"] == expected.shape[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--set", "encode.readout=mean"], "Other engines read the last position"),
        (["--set", "encode.layer=1"], "Other engines read the last position"),
        (["--plan"], "--plan writes nothing"),
        (["--name", "vectors/x"], "--prompts makes no vectors"),
    ],
)
def test_what_another_engine_cannot_read_is_refused(
    in_home: Pipeline, arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "prompts"
    argv = ["encode", "composite", "--data", str(in_home.data), *in_home.settings(), "--prompts", str(out)]
    assert in_home.run(*argv, *arguments) == 2
    assert said in capsys.readouterr().err
    assert not out.exists()
