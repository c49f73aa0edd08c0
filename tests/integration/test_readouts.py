"""How item vectors are read off, against plain passes over one prompt at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from earec_core.aligned.model import AlignedModel
from earec_core.aligned.readouts import READOUTS
from earec_core.aligned.stored import adapter_of, open_model, stored_model
from earec_core.artifacts import ItemVectors
from earec_core.config import BackboneConfig
from earec_core.llm.backbone import Backbone
from earec_core.types import Slot

from .conftest import Pipeline


def _expected(model: AlignedModel, row: int, readout: str, layer: int | None) -> np.ndarray:
    """One item's vector: its whole prompt alone through the bare LLM, positions counted piece by piece."""
    prompt, backbone = model.prompts.prompt(row), model.backbone
    batch = model.splice([prompt])
    whole = torch.cat([backbone.embed(batch.prefix), batch.body[0]])[None]
    output = backbone.model(inputs_embeds=whole, output_hidden_states=True, use_cache=False)
    hidden = output.hidden_states[-1 if layer is None else layer][0]
    at, own = 0, dict[str, list[torch.Tensor]]()
    for piece in prompt.pieces:
        if isinstance(piece, Slot):
            n = int((model.splice([type(prompt)(row, ((0,), piece))]).owners >= 0).sum())
            if piece.item == row:
                own.setdefault(piece.modality, []).append(hidden[at : at + n])
        else:
            n = len(piece)
        at += n
    assert at == len(hidden)
    if readout == "last":
        return hidden[-1].numpy()
    means = {m: torch.cat(parts).mean(0) for m, parts in own.items()}
    if readout == "slots":
        return torch.cat([means.get(m, torch.zeros(len(hidden[0]))) for m in model.inputs]).numpy()
    own_states = [state for parts in own.values() for state in parts]
    assert own_states
    return torch.cat(own_states).mean(0).numpy()


@pytest.mark.parametrize("layer", [None, 1])
@pytest.mark.parametrize("readout", list(READOUTS))
def test_a_vector_is_that_of_its_prompt_alone_whatever_the_batch(
    readout: str, layer: int | None, in_home: Pipeline
) -> None:
    workspace, catalog = in_home.workspace, in_home.catalog
    settings = {"encode__readout": readout} | ({"encode__layer": layer} if layer else {})
    vectors = []
    for batch in (64, 4096):
        name = f"vectors/{readout}-{batch}"
        argv = ["encode", "composite", "--data", str(in_home.data), "--name", name]
        assert in_home.run(*argv, *in_home.settings(**settings, encode__batch_tokens=batch)) == 0
        vectors.append(ItemVectors.open(workspace.registry, name, catalog))
    assert vectors[0].manifest.method == READOUTS[readout].method
    assert vectors[0].manifest.layer == layer
    np.testing.assert_allclose(vectors[0].vectors, vectors[1].vectors, rtol=1e-4, atol=1e-5)
    backbone = Backbone.load(BackboneConfig(model=str(in_home.llm), dtype="float32"))
    stored = open_model(workspace.registry, "composite")
    model = stored_model(workspace, catalog, backbone, stored)
    with backbone.adapted(adapter_of(stored)), torch.inference_mode():
        rows = [row for row in range(len(catalog)) if model.prompts.has(row)]
        expected = np.stack([_expected(model, row, readout, layer) for row in rows])
    np.testing.assert_allclose(vectors[0].vectors[rows], expected, rtol=1e-3, atol=1e-5)


def test_a_layer_that_the_backbone_has_not_is_refused(
    in_home: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["encode", "composite", "--data", str(in_home.data), *in_home.settings(encode__layer=99)]
    assert in_home.run(*argv) == 2
    assert "layers, encode.layer is 99" in capsys.readouterr().err
