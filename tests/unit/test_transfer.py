"""A recommender of one catalog as the start of another's: what goes over, what is refused, what it is worth."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from earec_core.artifacts import ItemVectors
from earec_core.catalog import Catalog, LeaveOneOut, Sequences
from earec_core.catalog.splits import leave_one_out
from earec_core.cli import run
from earec_core.config import RecommenderConfig, resolve
from earec_core.errors import UsageError
from earec_core.recommend import MODELS, Recommender, Retriever, TrainedRecommender, evaluate, train
from earec_core.recommend.scaling import SCALINGS, scaled
from earec_core.recommend.stage import RegisteredRecommender, train_registered
from earec_core.recommend.tables import Items
from earec_core.workspace import Workspace

N, D_IN = 40, 6
SMALL = RecommenderConfig(dim=8, inner=16, dropout=0.0, max_len=6, lr=0.01, batch_size=64, epochs=2)
SETTINGS = {"dim": 16, "inner": 32, "dropout": 0.1, "max_len": 8, "lr": 0.01, "batch_size": 256, "epochs": 25}


def _vectors(n: int = N, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(D_IN, D_IN, generator=torch.Generator().manual_seed(7))
    return torch.randn(n, D_IN, generator=generator) @ mixing * 5 + 3


def _split(n_items: int = N, n_users: int = 30) -> LeaveOneOut:
    rng = np.random.default_rng(0)
    users = np.array([f"u{i}" for i in range(n_users)])
    return leave_one_out(Sequences(users, np.arange(n_users + 1) * 6, rng.integers(0, n_items, 6 * n_users)))


def _source(model: str, **changes: Any) -> TrainedRecommender:
    config = SMALL.model_copy(update=changes)
    return train(MODELS[model], _split(), N, config, vectors=_vectors())


def _started(model: str, source: TrainedRecommender, vectors: torch.Tensor, **changes: Any) -> Recommender:
    config = source.model.config.model_copy(update={"pretrain": False, **changes})
    counts = torch.ones(len(vectors), dtype=torch.long)
    return MODELS[model].started(config, Items(counts, vectors), source.model.to_transfer()).eval()


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize(
    ("model", "table"), [("earec", "linear"), ("earec", "mlp+ids"), ("unisrec", "moe")], ids=str
)
def test_an_item_is_in_every_catalog_what_its_vector_was_in_the_source(
    model: str, table: str, scaling: str
) -> None:
    """The target holds some of the source's vectors: the source's scaling and map give the same items again."""
    rows = torch.tensor([3, 30, 11, 8, 25])
    source = _source(model, table=table, scaling=scaling)
    target = _started(model, source, _vectors()[rows])
    before = source.model.table
    plain = before.table if table.endswith("+ids") else before  # type: ignore[union-attr]
    after = target.table.table if table.endswith("+ids") else target.table  # type: ignore[union-attr]
    torch.testing.assert_close(after.vectors, plain.vectors[rows])  # type: ignore[union-attr, index]
    with torch.inference_mode():
        torch.testing.assert_close(target.items(), plain()[rows])  # type: ignore[operator]
        if not table.endswith("+ids"):
            theirs = source.model.users([torch.tensor([3, 11, 25])], source.model.items())
            ours = target.users([torch.tensor([0, 2, 4])], target.items())
            torch.testing.assert_close(ours, theirs)
    if scaling != "none":
        fitted = scaled(_vectors()[rows], source.model.config)
        assert not torch.allclose(after.vectors, fitted, atol=0.1)  # type: ignore[union-attr, arg-type]


@pytest.mark.parametrize("fusion", ["dynamic", "static"])
def test_missrec_maps_each_modality_as_the_source_did_and_finds_interests_anew(fusion: str) -> None:
    """A target with all of the source's items, in another order, is the source; its ids are its own."""
    rows = torch.randperm(N, generator=torch.Generator().manual_seed(3))
    vectors, widths = torch.cat([_vectors(), _vectors(seed=5)], dim=1), (D_IN, D_IN)
    vectors[4, :D_IN] = 0  # an item that lacks a modality
    config = SMALL.model_copy(update={"table": "linear+ids", "fusion": fusion, "scaling": "standardise"})
    source = train(MODELS["missrec"], _split(), N, config, vectors=vectors, widths=widths)
    counts = torch.ones(N, dtype=torch.long)

    def started(table: str) -> Recommender:
        items = Items(counts, vectors[rows], widths)
        settings = source.model.config.model_copy(update={"table": table})
        return MODELS["missrec"].started(settings, items, source.model.to_transfer()).eval()

    target = started("linear")
    places = rows.argsort()
    with torch.inference_mode():
        theirs = source.model.items()[:, : 2 * config.dim]
        torch.testing.assert_close(target.items(), theirs[rows])
        target.users([torch.arange(3)], target.items())
        ours, before = target.members[places].flatten(), source.model.members.flatten()  # type: ignore[index, operator]
    # The same vectors are together, whatever the clusters' numbers.
    assert torch.equal(ours[:, None] == ours, before[:, None] == before)
    with_ids = started("linear+ids")
    assert not torch.isclose(with_ids.items(), source.model.items()[rows])[:, 2 * config.dim :].any()
    half = vectors.clone()
    half[:, :D_IN] = (
        0  # nobody has the first modality: what the second's map is, is not known of a source like it
    )
    lacking = train(MODELS["missrec"], _split(), N, config, vectors=half, widths=widths)
    with pytest.raises(UsageError, match="1 modalities in place of 2"):
        MODELS["missrec"].started(config, Items(counts, vectors, widths), lacking.model.to_transfer())
    with pytest.raises(UsageError, match="2 modalities in place of 1"):
        MODELS["missrec"].started(config, Items(counts, _vectors()), source.model.to_transfer())


def test_ids_may_be_added_or_left_out() -> None:
    with_ids, without = _source("earec", table="mlp+ids"), _source("earec", table="mlp")
    vectors = _vectors(9, seed=1)
    for source, table in ((with_ids, "mlp"), (without, "mlp+ids")):
        target = _started("earec", source, vectors, table=table)
        names = dict(target.named_parameters())
        assert ("table.embedding" in names) == table.endswith("+ids")
    target.loss([np.array([1, 2, 3])])[0].backward()
    assert names["table.embedding"].grad is not None
    assert names["table.embedding"].grad.any()


def test_all_of_earec_is_trained_on_and_of_unisrec_the_table_alone() -> None:
    """Pre-training that goes on, and UniSRec's parameters under `earec`, train all as well."""
    source = _source("unisrec", pretrain=True)
    for model, pretrain in (("earec", False), ("unisrec", False), ("unisrec", True)):
        vectors = _vectors(N, seed=1)
        config = source.model.config.model_copy(update={"pretrain": pretrain, "patience": 50, "epochs": 30})
        trained = train(MODELS[model], _split(), N, config, vectors=vectors, start=source.model.to_transfer())
        assert trained.best_epoch > 0
        before, after = source.model.to_transfer(), trained.model.to_transfer()
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert changed >= {"table.gate", "table.experts.0.weight"}
        assert not any(name.startswith("table.scaling") for name in changed)
        layers = {name for name in changed if not name.startswith("table.")}
        assert (layers == set()) == (model == "unisrec" and not pretrain)


def test_the_start_is_kept_where_no_epoch_is_better() -> None:
    source = _source("earec")
    start, vectors = source.model.to_transfer(), _vectors(seed=1)
    config = SMALL.model_copy(update={"lr": 1.0, "epochs": 3})
    split = _split()
    zero = train(
        MODELS["earec"], split, N, config.model_copy(update={"epochs": 0}), vectors=vectors, start=start
    )
    assert (zero.history, zero.best_epoch) == ((), 0)
    few = train(MODELS["earec"], split, N, config, vectors=vectors, start=start)
    best = max([evaluate(zero.model, split, "valid").ndcg(10), *(epoch.ndcg10 for epoch in few.history)])
    assert evaluate(few.model, split, "valid").ndcg(10) == pytest.approx(best)


@pytest.mark.parametrize("model", ["earec", "unisrec", "missrec"])
def test_a_killed_training_from_a_start_goes_on_to_the_same_result(model: str, tmp_path: Path) -> None:
    source = _source(model, table="moe")
    config = source.model.config.model_copy(update={"dropout": 0.3, "epochs": 4, "train_users": 0.5})
    arguments: Any = (MODELS[model], _split(), N, config)
    options: Any = {"vectors": _vectors(seed=1), "start": source.model.to_transfer()}
    whole = train(*arguments, **options)

    def kill(stats: Any) -> None:
        if stats.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(*arguments, **options, checkpoint=tmp_path / "c", progress=kill)
    resumed = train(*arguments, **options, checkpoint=tmp_path / "c")
    assert [e.loss for e in resumed.history] == [e.loss for e in whole.history]
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name])


def _trained_on(share: float, seed: int, monkeypatch: pytest.MonkeyPatch) -> tuple[set[int], torch.Tensor]:
    """The users that a training reads, each with items of its own but one alone; and the counts of its items."""
    n, length = 40, 5
    items = np.concatenate([np.arange(n * length), [n * length]])
    offsets = np.concatenate([np.arange(n + 1) * length, [n * length + 1]])
    split = leave_one_out(Sequences(np.arange(n + 1).astype(str), offsets, items))
    module = importlib.import_module("earec_core.recommend.train")
    original, users, counts = module.epoch_batches, set[int](), []

    def watched(*arguments: Any) -> Any:
        for batch in original(*arguments):
            users.update(int(row) // length for window in batch for row in window)
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(module, "epoch_batches", watched)
        build = MODELS["sasrec"].build

        def seen(config: RecommenderConfig, given: Items) -> Recommender:
            counts.append(given.counts)
            return build(config, given)

        config = SMALL.model_copy(update={"train_users": share, "seed": seed, "epochs": 1})
        train(replace(MODELS["sasrec"], build=seen), split, n * length + 1, config)
    return users, counts[0]


def test_a_share_of_the_users_is_fixed_and_part_of_a_larger_one(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = {share: _trained_on(share, 0, monkeypatch) for share in (0.01, 0.1, 0.5, 1.0)}
    assert [len(users) for users, _ in drawn.values()] == [1, 4, 20, 40]
    assert drawn[0.01][0] < drawn[0.1][0] < drawn[0.5][0] < drawn[1.0][0]
    assert drawn[0.1][0] != {0, 1, 2, 3}
    users, counts = drawn[0.5]
    again, _ = _trained_on(0.5, 3, monkeypatch)
    assert again == users
    assert {int(row) // 5 for row in counts.nonzero().squeeze(1)} == users


def _world(tmp_path: Path) -> Callable[..., Path]:
    """Writes catalogs whose items lie on a circle, on which every user goes on by about the same angle each time.

    An item's vector is one map of its angle's harmonics, whatever the catalog: all vectors are in one space.
    """
    mixing = np.random.default_rng(5).normal(size=(6, 12))

    def made(name: str, n: int, *, seed: int, users: int = 150) -> Path:
        rng = np.random.default_rng(seed)
        angles = rng.uniform(0, 2 * np.pi, n)
        folder = tmp_path / f"{name}-source"
        folder.mkdir()
        rows = [json.dumps({"item_id": f"{name}{row:03}", "title": f"thing {row}"}) for row in range(n)]
        (folder / "items.jsonl").write_text("\n".join(rows))
        lines = ["user_id,item_id,timestamp"]
        for user in range(users):
            at = rng.uniform(0, 2 * np.pi)
            for time in range(8):
                gaps = np.abs(np.angle(np.exp(1j * (angles - at))))
                item = int(rng.choice(np.argsort(gaps)[:2]))
                lines.append(f"u{user},{name}{item:03},{time}")
                at = angles[item] + 0.9 + rng.normal(0, 0.05)
        (folder / "interactions.csv").write_text("\n".join(lines))
        out = tmp_path / name
        assert run(["data", "import", str(folder), "--out", str(out), "--name", name]) == 0
        catalog = Catalog.open(out)
        own = angles[[int(item.removeprefix(name)) for item in catalog.items["item_id"]]]
        harmonics = [f(k * own) for k in (1, 2, 3) for f in (np.cos, np.sin)]
        _save(tmp_path, catalog, np.stack(harmonics, axis=1) @ mixing, f"vectors/{name}")
        return out

    return made


def _save(tmp_path: Path, catalog: Catalog, vectors: np.ndarray, name: str, **manifest: Any) -> ItemVectors:
    registry = Workspace.open(tmp_path / "home").registry
    table = vectors.astype(np.float32)
    return ItemVectors.save(
        registry, table, catalog, name=name, why="test", **{"method": "angles", **manifest}
    )


def _options(tmp_path: Path, **settings: Any) -> list[str]:
    sets = [part for key, value in settings.items() for part in ("--set", f"recommender.{key}={value}")]
    return ["--registry", str(tmp_path / "home" / "registry"), *sets]


@pytest.fixture
def train_cli(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., dict[str, Any]]:
    """`earec recommend train`, which must succeed; what it prints as JSON."""
    monkeypatch.setenv("EAREC_HOME", str(tmp_path / "home"))

    def trained(data: Path, *argv: str, **settings: Any) -> dict[str, Any]:
        capsys.readouterr()
        command = ["recommend", "train", "--data", str(data), "--json", *argv]
        assert run([*command, *_options(tmp_path, **settings)]) == 0
        answer: dict[str, Any] = json.loads(capsys.readouterr().out)
        return answer

    return trained


@pytest.mark.parametrize(
    "settings",
    [
        {"table": "mlp", "scaling": "standardise"},
        {"table": "mlp+ids", "id_dropout": 0.8, "scaling": "soften"},
        {"model": "unisrec", "pretrain": "true", "scaling": "standardise"},
        {"model": "unisrec", "pretrain": "true", "scaling": "standardise", "joined": True},
        {"model": "missrec", "table": "linear", "scaling": "standardise", "epochs": 10},
    ],
    ids=["earec", "earec-ids", "unisrec", "unisrec-joined", "missrec"],
)
def test_what_one_catalog_taught_is_of_use_in_another_without_training_and_with_little(
    settings: dict[str, Any], train_cli: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    settings = dict(settings)
    made = _world(tmp_path)
    source, target = made("a", 80, seed=1), made("t", 120, seed=2, users=100)
    model = ["--model", settings.pop("model", "earec")]
    if settings.pop("joined", False):
        other = made("b", 70, seed=3)
        assert run(["data", "join", str(source), str(other), "--out", str(tmp_path / "ab")]) == 0
        registry = Workspace.open(tmp_path / "home").registry
        parts = [
            ItemVectors.open(registry, f"vectors/{name}", Catalog.open(path)).vectors
            for name, path in (("a", source), ("b", other))
        ]
        source = tmp_path / "ab"
        _save(tmp_path, Catalog.open(source), np.concatenate(parts), "vectors/a")
    train_cli(source, "--vectors", "vectors/a", "--name", "r/a", *model, **{**SETTINGS, **settings})

    start = ["--from", "r/a", "--vectors", "vectors/t"]
    zero = train_cli(target, *start, epochs=0)
    catalog = Catalog.open(target)
    chance = 10 / len(catalog)
    assert zero["epochs"] == 0
    assert zero["test"]["hr@10"] > 5 * chance
    # The same items with each other's vectors: nothing is left but chance.
    own = ItemVectors.open(Workspace.open(tmp_path / "home").registry, "vectors/t", catalog).vectors
    _save(tmp_path, catalog, np.random.default_rng(0).permutation(own), "vectors/other")
    shuffled = train_cli(target, "--from", "r/a", "--vectors", "vectors/other", epochs=0)
    assert shuffled["test"]["hr@10"] < 3 * chance
    few = train_cli(target, *start, epochs=4, train_users=0.1)
    assert few["epochs"] == 4
    assert few["valid"]["ndcg@10"] >= zero["valid"]["ndcg@10"]
    assert few["test"]["hr@10"] > 5 * chance


@pytest.fixture
def source(tmp_path: Path) -> tuple[Workspace, Catalog, RegisteredRecommender]:
    """A registered recommender on a small catalog with vectors `vectors/a`."""
    data = _world(tmp_path)("a", 20, seed=1, users=20)
    workspace, catalog = Workspace.open(tmp_path / "home"), Catalog.open(data)
    config = SMALL.model_copy(update={"epochs": 1, "dim": 12})
    trained = train_registered(workspace, catalog, config, name="r/a", vectors=["vectors/a"])
    return workspace, catalog, trained


Source = tuple[Workspace, Catalog, RegisteredRecommender]


def test_what_is_stored_names_its_source_and_its_run_depends_on_it(source: Source, tmp_path: Path) -> None:
    workspace, catalog, first = source
    target = Catalog.open(_world(tmp_path)("t", 25, seed=2, users=60))
    other = train_registered(
        workspace, catalog, SMALL.model_copy(update={"dim": 12, "seed": 1}), name="r/b", vectors=["vectors/a"]
    )
    config = resolve(flags={"recommender.epochs": 1, "recommender.table": "mlp+ids"}).recommender
    made = [
        train_registered(workspace, target, config, name="r/t", vectors=["vectors/t"], start=start)
        for start in ("r/a", "r/b")
    ]
    vectors = workspace.registry.resolve("vectors/t")
    parents = [[p.id for p in workspace.registry.manifest(each.id).parents] for each in made]
    assert parents == [[vectors, first.id], [vectors, other.id]]
    assert made[0].training.run.folder != made[1].training.run.folder
    kept = made[0].training.recommender.model.config
    assert (kept.dim, kept.max_len, kept.table, kept.epochs) == (12, 6, "mlp+ids", 1)
    both = ["vectors/t", "vectors/t"]
    with pytest.raises(UsageError, match="'r/a' reads 1 item vectors, not 2"):
        train_registered(workspace, target, config, name="r/t", vectors=both, start="r/a")
    # What came of a transfer can be a source itself.
    again = train_registered(
        workspace,
        catalog,
        resolve(flags={"recommender.epochs": 0}).recommender,
        vectors=["vectors/a"],
        start="r/t",
    )
    assert again.training.recommender.name == "earec"


def test_recommending_reads_nothing_of_it_and_one_stored_before_is_loaded(source: Source) -> None:
    _, catalog, first = source
    folder = first.training.run.folder
    first.training.recommender.save(folder)
    transfer = load_file(folder / "transfer.safetensors")
    assert {"positions", "norm.weight", "table.adaptor.0.weight", "table.scaling.directions"} <= set(transfer)
    assert [name for name in load_file(folder / "model.safetensors") if name.startswith("table.")] == [
        "table.embedding"
    ]
    ids, histories = catalog.items["item_id"].to_list(), [torch.tensor([1, 2])]
    (before,) = Retriever.open(folder, ids).recommend(histories, 3)
    (folder / "transfer.safetensors").unlink()
    (after,) = Retriever.open(folder, ids).recommend(histories, 3)
    assert before.ids == after.ids
    # A model over ids has nothing for another catalog.
    assert not train(MODELS["sasrec"], _split(), N, SMALL).model.to_transfer()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--vectors", "vectors/t", "--set", "recommender.epochs=0"], "epochs = 0 nothing is learned"),
        (["--ids", "--from", "r/ids"], "'r/ids' is stored without anything that another catalog"),
        (["--ids", "--from", "r/a"], "'earec' is built on item vectors"),
        (["--ids", "--from", "r/a", "--model", "sasrec"], "'sasrec' cannot start from another"),
        (["--ids", "--from", "r/a", "--model", "esasrec"], "'esasrec' cannot start from another"),
        (["--vectors", "vectors/t", "--from", "vectors/t"], "is of kind vectors, not a recommender"),
        (["--vectors", "vectors/wide", "--from", "r/a"], "their width differ"),
        (
            ["--vectors", "vectors/mean", "--from", "r/a"],
            "'vectors/mean' are not in the space .* their method, layer differ",
        ),
        (
            ["--vectors", "vectors/t", "--from", "r/a", "--set", "recommender.dim=8"],
            "'r/a' has recommender.dim = 12, not 8",
        ),
        (
            ["--vectors", "vectors/t", "--from", "r/a", "--set", "recommender.table=moe"],
            "'r/a' has recommender.table = mlp, not moe",
        ),
        (
            ["--vectors", "vectors/t", "--from", "r/a", "--model", "unisrec"],
            "'unisrec' cannot start from one of other layers",
        ),
        (
            [
                *("--vectors", "vectors/t", "--model", "unisrec"),
                *("--set", "recommender.pretrain=true", "--set", "recommender.table=moe+ids"),
            ],
            "Pre-training takes no embeddings of ids",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_start_is_said_in_one_sentence(
    argv: Sequence[str],
    said: str,
    source: Source,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    workspace, catalog, _ = source
    monkeypatch.setenv("EAREC_HOME", str(tmp_path / "home"))
    data = _world(tmp_path)("t", 25, seed=2, users=60)
    target = Catalog.open(data)
    _save(tmp_path, target, np.ones((len(target), 4)), "vectors/wide")
    _save(tmp_path, target, np.ones((len(target), 12)), "vectors/mean", method="mean", layer=3)
    if "r/ids" in argv:
        train_registered(workspace, catalog, SMALL.model_copy(update={"epochs": 1}), name="r/ids")
    capsys.readouterr()
    assert run(["recommend", "train", "--data", str(data), *argv, *_options(tmp_path)]) == 2
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert re.search(said, error)
