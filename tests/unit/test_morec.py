"""MoRec against its formula with transformers alone; what is trained at which rate, stored and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from earec_core.artifacts import RecommenderManifest, open_as
from earec_core.catalog import Catalog, LeaveOneOut, import_dataset
from earec_core.cli import run
from earec_core.config import RecommenderConfig
from earec_core.errors import UsageError
from earec_core.modality.sentences import SentenceEncoder
from earec_core.recommend import MODELS, Retriever, TrainedRecommender, evaluate, train
from earec_core.recommend.models.morec import MoRec
from earec_core.recommend.models.transformer import TransformerRecommender
from earec_core.recommend.tables import Items
from earec_core.recommend.texts import ItemTexts
from earec_core.workspace import Workspace

N = 12
TEXTS = [f"{('red', 'blue')[row % 2]} {('pen', 'lamp')[row // 6]} {row}" for row in range(N)]
SMALL = RecommenderConfig(
    dim=8, inner=16, dropout=0.0, max_len=6, lr=0.01, encoder_lr=0.002, batch_size=64, epochs=3, patience=9
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A catalog whose item i is followed by i + 1."""
    source = tmp_path / "source"
    source.mkdir()
    items = [{"item_id": f"i{row:02}", "title": text} for row, text in enumerate(TEXTS)]
    (source / "items.jsonl").write_text("\n".join(map(json.dumps, items)))
    lines = [f"u{user},i{(user + step) % N:02},{step}" for user in range(3 * N) for step in range(6)]
    (source / "interactions.csv").write_text("\n".join(["user_id,item_id,timestamp", *lines]))
    import_dataset(source, tmp_path / "data", core=1)
    return tmp_path / "data"


def _texts(data: Path, encoder: Path, config: RecommenderConfig = SMALL) -> ItemTexts:
    config = config.model_copy(update={"encoder": str(encoder)})
    settings = {"text": {"template": "{title}"}}
    return ItemTexts.open(Workspace.open(), Catalog.open(data), config, ["text"], settings)


def _split(data: Path) -> LeaveOneOut:
    return Catalog.open(data).leave_one_out()


def _model(texts: ItemTexts, config: RecommenderConfig = SMALL) -> MoRec:
    torch.manual_seed(0)
    counts = torch.arange(N)
    model = MODELS["morec"].build(config, Items(counts, texts=texts))
    assert isinstance(model, MoRec)
    return model.eval()


def _by_hand(model: MoRec, folder: Path) -> torch.Tensor:
    """Every item: the mean of its tokens' states by transformers, one text at a time, a linear map, GELU."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer, bert = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    means = [bert(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0) for text in TEXTS]
    return F.gelu(torch.stack(means) @ model.table.map.weight.T + model.table.map.bias)


@pytest.mark.parametrize("layers", [None, 1, 2])
def test_the_loss_is_a_corrected_softmax_over_the_items_of_the_batch(
    layers: int | None, data: Path, tiny_encoder: Path
) -> None:
    model = _model(_texts(data, tiny_encoder), SMALL.model_copy(update={"encoder_layers": layers}))
    items = _by_hand(model, tiny_encoder)
    torch.testing.assert_close(model.items(), items, atol=1e-5, rtol=1e-4)
    loss, count = model.loss([np.array([1, 4, 2, 9]), np.array([4, 4, 3])])
    rows = [1, 2, 3, 4, 9]
    states = torch.cat([model(items, torch.tensor([[1, 4, 2]]))[0], model(items, torch.tensor([[4, 4]]))[0]])
    chance = torch.tensor([1 - (1 - row / sum(range(N))) ** 7 for row in rows])
    logits = states @ items[rows].T - chance.log()
    targets = torch.tensor([rows.index(row) for row in (4, 2, 9, 4, 3)])
    expected = F.cross_entropy(logits, targets, reduction="sum")
    assert count == 5
    torch.testing.assert_close(loss, expected, atol=1e-4, rtol=1e-5)


def test_each_item_of_a_batch_is_encoded_once_and_no_other(
    data: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, encoded = _model(_texts(data, tiny_encoder)), list[tuple[int, ...]]()
    forward = SentenceEncoder.forward

    def watch(self: SentenceEncoder, rows: Any) -> torch.Tensor:
        encoded.extend(map(tuple, rows))
        return forward(self, rows)

    monkeypatch.setattr(SentenceEncoder, "forward", watch)
    model.loss([np.array([1, 4, 2, 9]), np.array([4, 4, 3])])
    assert sorted(encoded) == sorted(tuple(model.table.tokens[row]) for row in (1, 2, 3, 4, 9))


def test_the_last_layer_learns_as_it_does_in_the_whole_encoder(data: Path, tiny_encoder: Path) -> None:
    texts = _texts(data, tiny_encoder)
    gradients = []
    for layers in (None, 1):
        model = _model(texts, SMALL.model_copy(update={"encoder_layers": layers}))
        loss, _ = model.loss([np.array([1, 4, 2, 9])])
        loss.backward()
        named = {
            name: p.grad for name, p in model.named_parameters() if p.requires_grad and p.grad is not None
        }
        gradients.append(named)
    whole, last = gradients
    encoder = {name for name in last if name.startswith("table.encoder")}
    assert encoder == {name for name in whole if ".encoder.layer.1." in name}
    for name, gradient in last.items():
        torch.testing.assert_close(gradient, whole[name], atol=1e-5, rtol=1e-4)


def test_the_encoder_has_a_rate_of_its_own(data: Path, tiny_encoder: Path) -> None:
    """The first step of Adam changes a parameter by its rate where it has a gradient."""
    model = _model(_texts(data, tiny_encoder))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.Adam(model.parameter_groups(), lr=SMALL.lr)
    model.loss([np.array([1, 4, 2, 9])])[0].backward()
    optimizer.step()
    changes = {name: float((p.detach() - before[name]).abs().max()) for name, p in model.named_parameters()}
    for name in ("table.encoder.model.encoder.layer.0.output.dense.weight", "table.map.weight", "positions"):
        rate = SMALL.encoder_lr if ".encoder." in name else SMALL.lr
        assert changes[name] == pytest.approx(rate, rel=0.01)


def test_training_learns_what_follows_and_leaves_the_encoder_given_as_it_is(
    data: Path, tiny_encoder: Path
) -> None:
    texts, split = _texts(data, tiny_encoder), _split(data)
    before = {name: p.detach().clone() for name, p in texts.encoder.named_parameters()}
    config = SMALL.model_copy(update={"dim": 16, "epochs": 60, "patience": 60})
    trained = train(MODELS["morec"], split, N, config, texts=texts)
    assert evaluate(trained.model, split, "test").hr(1) > 0.5
    assert type(trained.model) is TransformerRecommender
    for name, parameter in texts.encoder.named_parameters():
        assert torch.equal(parameter, before[name])


@pytest.mark.parametrize("layers", [None, 1])
def test_a_killed_training_goes_on_to_the_same_result(
    layers: int | None, data: Path, tiny_encoder: Path, tmp_path: Path
) -> None:
    texts, split = _texts(data, tiny_encoder), _split(data)
    config = SMALL.model_copy(update={"dropout": 0.3, "encoder_layers": layers})
    whole = train(MODELS["morec"], split, N, config, texts=texts)

    def kill(stats: Any) -> None:
        if stats.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(MODELS["morec"], split, N, config, texts=texts, checkpoint=tmp_path / "c", progress=kill)
    resumed = train(MODELS["morec"], split, N, config, texts=texts, checkpoint=tmp_path / "c")
    assert [e.loss for e in resumed.history] == [e.loss for e in whole.history]
    np.testing.assert_array_equal(resumed.item_embeddings(), whole.item_embeddings())


def test_what_is_stored_needs_no_encoder(
    data: Path, tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = _split(data)
    trained = train(MODELS["morec"], split, N, SMALL, texts=_texts(data, tiny_encoder))
    trained.save(tmp_path)
    monkeypatch.setattr(SentenceEncoder, "forward", lambda *_: pytest.fail("it encodes"))
    again = TrainedRecommender.load(tmp_path)
    assert again.name == "morec"
    ranks = [evaluate(one.model, split, "test").ranks for one in (trained, again)]
    np.testing.assert_array_equal(*ranks)
    (ranking,) = Retriever.open(tmp_path, [str(i) for i in range(N)]).recommend([torch.tensor([3])], 2)
    assert len(ranking.ids) == 2


def test_the_command_records_the_encoder_and_whose_words_it_read(
    data: Path, tiny_encoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = [f"recommender.encoder={tiny_encoder}", "recommender.dim=8", "recommender.epochs=1"]
    options = [part for one in (*sets, "text.template={title}") for part in ("--set", one)]
    command = [
        "recommend",
        "train",
        "--model",
        "morec",
        "--modalities",
        "text",
        "--data",
        str(data),
        "--name",
        "m",
    ]
    assert run([*command, *options]) == 0
    capsys.readouterr()
    manifest = open_as(Workspace.open().registry, "m", RecommenderManifest).manifest
    assert manifest.modalities["text"]["template"] == "{title}"
    assert manifest.base is not None
    assert manifest.base.id == tiny_encoder.name
    assert run(["recommend", "topk", "m", "--data", str(data), "--user", "u1", "-k", "1", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["train", "--model", "morec"], "reads items' words. Give --modalities"),
        (["train", "--model", "sasrec", "--modalities", "text"], "'sasrec' reads no words"),
        (["train", "--model", "morec", "--modalities", "text", "--vectors", "v"], "takes no item vectors"),
        (
            ["train", "--model", "morec", "--modalities", "text", "--set", "recommender.encoder=no"],
            "no encoder 'no'",
        ),
        (["tune", "--model", "morec"], "too much for many trials"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_does_not_go_together_is_said(
    options: list[str], said: str, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["recommend", *options, "--data", str(data)]) == 2
    assert said in capsys.readouterr().err


def test_more_layers_than_there_are_is_said(data: Path, tiny_encoder: Path) -> None:
    with pytest.raises(UsageError, match=r"has 2 layers of its own, recommender\.encoder_layers is 3"):
        _model(_texts(data, tiny_encoder), SMALL.model_copy(update={"encoder_layers": 3}))


def test_a_text_is_cut_behind_so_many_tokens_and_keeps_its_end_mark(data: Path, tiny_encoder: Path) -> None:
    short = _texts(data, tiny_encoder, SMALL.model_copy(update={"encoder_tokens": 4})).tokens
    whole = _texts(data, tiny_encoder).tokens
    assert [list(row) for row in short] == [[*row[:3], row[-1]] for row in whole]
