"""Item tables and scalings against their formulas."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from earec_core.catalog import Sequences
from earec_core.catalog.splits import leave_one_out
from earec_core.config import RecommenderConfig
from earec_core.errors import UsageError
from earec_core.recommend import MODELS, TrainedRecommender, evaluate, train
from earec_core.recommend.scaling import SCALINGS, scaled
from earec_core.recommend.tables import TABLES, Items, ItemTable, build_table, table_names

N, D_IN = 40, 12
CONFIG = RecommenderConfig(dim=8, scaling="none", table_dropout=0.25, id_dropout=0.5)


def _items(*, unseen: int = 0) -> Items:
    torch.manual_seed(0)
    counts = torch.ones(N, dtype=torch.long)
    counts[:unseen] = 0
    return Items(counts, torch.randn(N, D_IN))


def _table(name: str, items: Items, **changes: object) -> ItemTable:
    torch.manual_seed(1)
    table = build_table(CONFIG.model_copy(update={"table": name, **changes}), items)
    with torch.no_grad():
        for parameter in table.parameters():
            parameter.normal_(0, 0.3)
    return table.eval()


def _linear(x: Tensor, p: dict[str, Tensor]) -> Tensor:
    return x @ p["adaptor.weight"].T + p["adaptor.bias"]


def _mlp(x: Tensor, p: dict[str, Tensor]) -> Tensor:
    wide = F.gelu(x @ p["adaptor.0.weight"].T + p["adaptor.0.bias"])
    return wide @ p["adaptor.3.weight"].T + p["adaptor.3.bias"]


def _moe(x: Tensor, p: dict[str, Tensor]) -> Tensor:
    rows = []
    for row in x:
        weights = torch.softmax(row @ p["gate"], 0)
        experts = [p[f"experts.{k}.weight"] @ (row - p["centres"][k]) for k in range(len(weights))]
        rows.append(sum(w * e for w, e in zip(weights, experts, strict=True)))
    return torch.stack(rows)  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "formula"), [("linear", _linear), ("mlp", _mlp), ("moe", _moe)])
def test_a_table_is_its_formula_and_drops_while_training_alone(name: str, formula: object) -> None:
    items = _items()
    table = _table(name, items)
    expected = formula(items.known(), dict(table.named_parameters()))  # type: ignore[operator]
    torch.testing.assert_close(table(), expected)
    assert not torch.equal(table.train()(), table())


@pytest.mark.parametrize("name", ["linear", "mlp", "moe", "mlp+ids"])
def test_some_items_are_those_of_all(name: str) -> None:
    table, rows = _table(name, _items(unseen=10)), torch.tensor([31, 2, 9, 31])
    torch.testing.assert_close(table.some(rows), table()[rows])


@pytest.mark.parametrize("name", ["linear", "mlp", "moe"])
def test_with_ids_trained_items_have_their_own_and_others_their_vector_alone(name: str) -> None:
    items = _items(unseen=10)
    table = _table(f"{name}+ids", items)
    alone = table.table()  # type: ignore[operator]
    torch.testing.assert_close(table()[:10], alone[:10])
    torch.testing.assert_close(table()[10:], alone[10:] + table.embedding[10:])  # type: ignore[index]


def test_an_items_embedding_is_dropped_as_a_whole_and_as_often_as_said() -> None:
    items = Items(torch.ones(4000, dtype=torch.long), torch.randn(4000, D_IN))
    table = _table("linear+ids", items, table_dropout=0.0, id_dropout=0.3)
    alone = table.table()  # type: ignore[operator]
    own = table.train()() - alone
    dropped = own.abs().amax(1) < 1e-6
    torch.testing.assert_close(own[~dropped], table.embedding[~dropped], atol=1e-5, rtol=1e-5)  # type: ignore[index]
    assert dropped.float().mean().item() == pytest.approx(0.3, abs=0.04)


def test_items_start_at_the_size_of_trained_ids() -> None:
    items = Items(torch.ones(500, dtype=torch.long), torch.randn(500, 64))
    torch.manual_seed(0)
    table = build_table(RecommenderConfig(dim=64, scaling="standardise", table="linear"), items).eval()
    assert table().std(0).mean().item() == pytest.approx(0.02, rel=0.25)


def test_what_is_no_table_or_reads_no_vectors_is_said() -> None:
    assert table_names()[: len(TABLES)] == list(TABLES)
    for name, message in (
        ("forest", "no item table 'forest'"),
        ("ids", "reads no item vectors"),
        ("ids+ids", "reads no"),
    ):
        with pytest.raises(UsageError, match=message):
            build_table(CONFIG.model_copy(update={"table": name}), _items())


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A distribution that brings the item table of docs/plugins.md."""
    page = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text()
    source = next(b for b in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "TableKind(" in b)
    info = tmp_path / "site" / "earec_weighed-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: earec-weighed\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[earec.item_tables]\nweighed = kit_weighed:TABLE\n")
    (tmp_path / "site" / "kit_weighed.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield
    sys.modules.pop("kit_weighed", None)


def test_a_plugins_table_is_listed_by_name_and_trained_stored_and_served(
    installed: None, tmp_path: Path
) -> None:
    assert table_names() == [*TABLES, "weighed"]
    assert "kit_weighed" not in sys.modules
    rng = np.random.default_rng(0)
    users = np.array([f"u{i}" for i in range(30)])
    split = leave_one_out(Sequences(users, np.arange(31) * 6, rng.integers(0, N, 180)))
    config = CONFIG.model_copy(update={"inner": 16, "epochs": 2, "max_len": 6, "table": "weighed+ids"})
    trained = train(MODELS["earec"], split, N, config, vectors=_items().known())
    assert type(trained.model.table.table).__name__ == "Weighed"  # type: ignore[union-attr]
    trained.save(tmp_path)
    sys.modules.pop("kit_weighed")
    again = TrainedRecommender.load(tmp_path)
    assert "kit_weighed" not in sys.modules
    ranks = [evaluate(one.model, split, "test").ranks for one in (trained, again)]
    assert np.array_equal(*ranks)


def _scaled(vectors: Tensor, scaling: str, **changes: object) -> Tensor:
    return scaled(vectors, RecommenderConfig(dim=8, scaling=scaling, **changes))  # type: ignore[arg-type]


@pytest.fixture
def correlated() -> Tensor:
    torch.manual_seed(0)
    mixing = torch.linspace(0.2, 5, 20) * torch.linalg.qr(torch.randn(20, 20)).Q
    return torch.randn(400, 20) @ mixing + 7


def test_scaled_vectors_are_what_their_name_says(correlated: Tensor) -> None:
    torch.testing.assert_close(_scaled(correlated, "none"), correlated)
    standard = (correlated - correlated.mean(0)) / correlated.std(0)
    torch.testing.assert_close(_scaled(correlated, "standardise"), standard)
    white = _scaled(correlated, "whiten")
    torch.testing.assert_close(white.T.cov(correction=0), torch.eye(20), atol=2e-3, rtol=0)
    # ZCA: of all whitened vectors those nearest to the standardised ones (Kessy et al. 2018), so one and no basis.
    rotation = torch.linalg.qr(torch.randn(20, 20)).Q
    assert (white - standard).square().sum() < (white @ rotation - standard).square().sum()


def test_few_vectors_are_whitened_in_their_leading_directions_alone() -> None:
    torch.manual_seed(0)
    vectors = torch.randn(40, 30)
    white = _scaled(vectors, "whiten").double()
    variance = torch.linalg.eigvalsh(white.T @ white / 40)
    torch.testing.assert_close(variance[-10:], torch.ones(10, dtype=torch.double), atol=1e-3, rtol=0)
    assert variance[:-10].abs().max() < 1e-6
    standard = _scaled(vectors, "standardise").double()
    leading = torch.linalg.svd(standard, full_matrices=False).Vh[:10]
    torch.testing.assert_close(white @ leading.T @ leading, white, atol=1e-4, rtol=0)


@pytest.mark.parametrize("soften", [0.0, 0.1, 3.0])
def test_a_softened_spectrum_is_the_formula(soften: float, correlated: Tensor) -> None:
    standard = _scaled(correlated, "standardise").double()
    variance, directions = torch.linalg.eigh(standard.T @ standard / len(standard))
    kept = (_scaled(correlated, "soften", soften=soften).double() @ directions).std(0, correction=0)
    expected = (variance / (variance + soften * variance.mean())).sqrt()
    torch.testing.assert_close(kept, expected, atol=2e-3, rtol=2e-3)
    if soften == 0:
        torch.testing.assert_close(_scaled(correlated, "soften", soften=0.0), _scaled(correlated, "whiten"))


def test_pca_keeps_the_leading_directions_in_proportion() -> None:
    torch.manual_seed(0)
    vectors = torch.randn(300, 50) * torch.linspace(0.1, 3, 50) + 2
    reduced = _scaled(vectors, "pca")
    centred = (vectors - vectors.mean(0)).double()
    left, values, _ = torch.linalg.svd(centred, full_matrices=False)
    assert reduced.shape == (300, 32)
    expected = left[:, :32] * values[:32]
    expected /= (values[:32] ** 2 / 300).mean().sqrt()
    # Up to the signs of the directions, and the largest first there.
    torch.testing.assert_close(reduced.flip(1).abs().double(), expected.abs(), atol=1e-4, rtol=1e-4)


def test_what_is_no_scaling_is_said() -> None:
    with pytest.raises(UsageError, match=r"no scaling 'bleach'.*whiten, soften"):
        _scaled(torch.randn(4, 3), "bleach")
    for scaling in SCALINGS:
        assert _scaled(torch.randn(30, 3), scaling).isfinite().all()
