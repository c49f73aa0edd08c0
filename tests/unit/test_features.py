"""The feature store and what reads a catalog through it: encoded once, alone when new, shared by workers."""

from __future__ import annotations

import importlib
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from earec_core.aligned import features as reading
from earec_core.aligned.feature_store import FeatureStore
from earec_core.aligned.features import ModalityInputs, encode_part, read_inputs
from earec_core.errors import DamagedInputError, EarecError, PluginError
from earec_core.modality import (
    Context,
    Encoded,
    Encoder,
    Modality,
    PluginConfig,
    content_digest,
    pad,
)
from earec_core.modality.projectors import MlpProjector
from earec_core.types import Item

LLM: Any = SimpleNamespace(tokenizer=None, word_embedding=nn.Embedding(4, 8), d_llm=8)


class Config(PluginConfig):
    power: int = 1


class Bytes(Encoder):
    """One embedding a byte; 255 is a bad one."""

    d_enc = 3
    bad = 1.0

    def __init__(self, power: int) -> None:
        super().__init__()
        self.power, self.batches = power, list[list[bytes]]()

    def forward(self, batch: Sequence[bytes]) -> Encoded:
        self.batches.append(list(batch))
        return pad([self._row(raw) for raw in batch])

    def _row(self, raw: bytes) -> torch.Tensor:
        x = torch.tensor([float(b) for b in raw])[:, None] ** self.power
        return torch.where(x == 255, self.bad, torch.cat([x, x / 3, x * 7], dim=1))


class Named(Modality[Config]):
    """Reads an item's title as bytes."""

    encoder: Bytes

    def read(self, item: Item) -> bytes | None:
        if item.title == "damaged":
            raise DamagedInputError("It is.", "Mend it.")
        return item.fields.get("raw")

    def build_encoder(self, llm: Any) -> Bytes:
        self.encoder = Bytes(self.config.power)
        return self.encoder

    def build_projector(self, d_enc: int, d_llm: int) -> MlpProjector:
        return MlpProjector(d_enc, d_llm, tokens=2)

    def positions(self) -> int:
        return 20

    def describe(self, item: Item) -> str:
        return ""


class Fresh(Named):
    @property
    def cache_features(self) -> bool:
        return False


def _items(raws: Sequence[bytes | None]) -> list[Item]:
    return [Item(i, f"i{i}", None, {} if raw is None else {"raw": raw}, ()) for i, raw in enumerate(raws)]


RAWS = [b"abc", b"de", None, b"abc", b"f", b"ghij"]


def _read(
    raws: Sequence[bytes | None], cache: Path | None, power: int = 1
) -> tuple[ModalityInputs, list[list[bytes]]]:
    modality = Named(Config(power=power), Context())
    inputs = read_inputs("named", modality, _items(raws), LLM, cache=cache)
    return inputs, modality.encoder.batches


def _expect(inputs: ModalityInputs, raws: Sequence[bytes | None], power: int = 1) -> None:
    rows = [i for i, raw in enumerate(raws) if raw is not None]
    assert list(inputs.rows) == rows
    h, mask = inputs.encoded(rows)
    for i, row in enumerate(rows):
        raw = raws[row]
        assert raw is not None
        assert torch.equal(h[i][mask[i]], Bytes(power)._row(raw))
        assert inputs.positions[row] == 2 * len(raw)


def _shards(cache: Path) -> list[Path]:
    return sorted(cache.glob("*/*.safetensors"))


@pytest.mark.parametrize("cached", [True, False])
def test_every_distinct_input_is_encoded_once(cached: bool, tmp_path: Path) -> None:
    cache = tmp_path if cached else None
    inputs, batches = _read(RAWS, cache)
    assert [sorted(batch) for batch in batches] == [[b"abc", b"de", b"f", b"ghij"]]
    _expect(inputs, RAWS)
    again, batches = _read(RAWS, cache)
    assert len(batches) == (0 if cached else 1)
    _expect(again, RAWS)


def test_one_new_item_is_encoded_alone(tmp_path: Path) -> None:
    _read(RAWS, tmp_path)
    changed = [*RAWS[:1], b"xy", *RAWS[2:]]
    inputs, batches = _read(changed, tmp_path)
    assert batches == [[b"xy"]]
    _expect(inputs, changed)
    more = [*changed, b"new", b"f"]
    inputs, batches = _read(more, tmp_path)
    assert batches == [[b"new"]]
    _expect(inputs, more)
    assert _read(RAWS, tmp_path)[1] == []


def test_another_configuration_has_features_of_its_own(tmp_path: Path) -> None:
    _read(RAWS, tmp_path)
    inputs, batches = _read(RAWS, tmp_path, power=2)
    assert len(batches) == 1
    _expect(inputs, RAWS, power=2)
    assert len(list(tmp_path.iterdir())) == 2
    assert all(folder.name.startswith("named-") for folder in tmp_path.iterdir())


def _raise(*_: Any, **__: Any) -> Any:
    raise ZeroDivisionError("it  is\nso")


@pytest.mark.parametrize("kind", [Named, Fresh])
@pytest.mark.parametrize(
    ("spoiled", "part"),
    [
        ("read", "read of item i0"),
        ("build_encoder", "build_encoder"),
        ("build_projector", "build_projector"),
        ("Bytes.forward", "its encoder"),
        ("MlpProjector.forward", "its projector"),
        ("MlpProjector.calibrate", "its projector's calibrate"),
    ],
)
def test_an_exception_of_a_plugin_is_one_sentence_that_says_where(
    spoiled: str, part: str, kind: type[Named], monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, _, method = spoiled.rpartition(".")
    monkeypatch.setattr({"Bytes": Bytes, "MlpProjector": MlpProjector}.get(owner, Named), method, _raise)

    def use() -> None:
        read_inputs("named", kind(Config(), Context()), _items(RAWS), LLM).calibrate(1.0)

    told = f"The modality 'named' failed in {part}: ZeroDivisionError: it is so (test_features.py, line "
    with pytest.raises(PluginError) as error:
        use()
    assert str(error.value).startswith(told)
    assert isinstance(error.value.__cause__, ZeroDivisionError)
    monkeypatch.setenv("EAREC_STRICT_PLUGINS", "1")
    with pytest.raises(ZeroDivisionError):
        use()


@pytest.mark.parametrize("kind", [Named, Fresh])
@pytest.mark.parametrize("wrong", ["rows", "width", "mask", "dimensions"])
@pytest.mark.parametrize("module", [Bytes, MlpProjector])
def test_embeddings_of_another_shape_are_refused(
    module: type[nn.Module], wrong: str, kind: type[Named], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = module.forward

    def spoiled(*given: Any) -> Any:
        h, mask = right(*given)
        match wrong:
            case "rows":
                return Encoded(h[:-1], mask[:-1])
            case "width":
                return Encoded(h[..., 1:], mask)
            case "mask":
                return Encoded(h, mask[:, 1:])
        return Encoded(h[0], mask)

    monkeypatch.setattr(module, "forward", spoiled)
    part = "its encoder" if module is Bytes else "its projector"
    with pytest.raises(PluginError, match=rf"'named' gives embeddings of shape .* in {part}, of \d+ inputs"):
        read_inputs("named", kind(Config(), Context()), _items(RAWS), LLM).calibrate(1.0)


def test_an_edited_plugin_has_features_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever file of its package is edited, and no other plugin's."""
    package = tmp_path / "tinkered"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "parts.py").write_text("POWER = 1\n")
    (package / "modality.py").write_text(
        "from tinkered.parts import POWER\n"
        f"from {__name__} import Bytes, Named\n"
        "class Tinkered(Named):\n"
        "    def build_encoder(self, llm):\n"
        "        self.encoder = Bytes(POWER)\n"
        "        return self.encoder\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    def read() -> tuple[ModalityInputs, int]:
        for name in [name for name in sys.modules if name.partition(".")[0] == "tinkered"]:
            del sys.modules[name]
        modality = importlib.import_module("tinkered.modality").Tinkered(Config(), Context())
        inputs = read_inputs("named", modality, _items(RAWS), LLM, cache=tmp_path / "cache")
        return inputs, len(modality.encoder.batches)

    inputs, encoded = read()
    _expect(inputs, RAWS)
    assert (encoded, read()[1]) == (1, 0)
    own = _read(RAWS, tmp_path / "cache")
    (package / "parts.py").write_text("POWER = 2  # edited\n")
    inputs, encoded = read()
    _expect(inputs, RAWS, power=2)
    assert encoded == 1
    assert _read(RAWS, tmp_path / "cache")[1] == [] != own[1]


@pytest.mark.parametrize("damage", ["cut", "empty", "garbage", "no digests", "fewer lengths"])
def test_a_damaged_shard_is_removed_and_its_items_encoded_again(damage: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    _read(RAWS, tmp_path)
    other = [b"other"]
    _read(other, tmp_path)
    shards = {file: file.read_bytes() for file in _shards(tmp_path)}
    victim = max(shards, key=lambda file: len(shards[file]))
    h = torch.zeros(10, 3)
    digests = {"digests": content_digest(b"abc").hex()}
    {
        "cut": lambda: victim.write_bytes(shards[victim][:-8]),
        "empty": lambda: victim.write_bytes(b""),
        "garbage": lambda: victim.write_bytes(os.urandom(200)),
        "no digests": lambda: save_file({"h": h, "lengths": torch.tensor([10])}, victim),
        "fewer lengths": lambda: save_file({"h": h, "lengths": torch.tensor([9])}, victim, metadata=digests),
    }[damage]()
    inputs, batches = _read([*RAWS, *other], tmp_path)
    assert [sorted(batch) for batch in batches] == [[b"abc", b"de", b"f", b"ghij"]]
    _expect(inputs, [*RAWS, *other])
    assert not victim.exists()
    assert _read(RAWS, tmp_path)[1] == []


@pytest.mark.parametrize("kind", [Named, Fresh])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_an_item_whose_encoding_is_not_finite_loses_the_modality(
    kind: type[Named], value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Bytes, "bad", value)
    items = _items([b"abc", b"a\xffb", None, b"a\xffb", b"d"])
    for _ in range(2):
        modality = kind(Config(), Context())
        inputs = read_inputs("named", modality, items, LLM, cache=tmp_path)
        inputs.calibrate(1.0)
        assert inputs.rows == (0, 4)
        assert [row in inputs for row in range(5)] == [True, False, False, False, True]
        assert inputs.damaged.keys() == {"i1", "i3"}
        assert all("NaN or infinity" in why for why in inputs.damaged.values())
        assert inputs.encoded([0, 4]).h.isfinite().all()
        assert any(b"a\xffb" in batch for batch in modality.encoder.batches)
    stored = [FeatureStore(folder) for folder in tmp_path.iterdir()]
    assert not any(content_digest(b"a\xffb") in store for store in stored)
    assert any(content_digest(b"abc") in store for store in stored) == (kind is Named)
    # Mended, it is read without anything else to be done.
    monkeypatch.setattr(Bytes, "bad", 1.0)
    inputs = read_inputs("named", kind(Config(), Context()), items, LLM, cache=tmp_path)
    assert (inputs.rows, inputs.damaged) == ((0, 1, 3, 4), {})


def test_what_is_behind_the_mask_may_be_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = Bytes.forward

    def padded(self: Bytes, batch: Sequence[bytes]) -> Encoded:
        encoded = forward(self, batch)
        return Encoded(encoded.h.masked_fill(~encoded.mask[:, :, None], torch.nan), encoded.mask)

    monkeypatch.setattr(Bytes, "forward", padded)
    inputs, _ = _read(RAWS, tmp_path)
    assert not inputs.damaged
    _expect(inputs, RAWS)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_projector_that_is_not_finite_is_refused_before_anything_is_trained(
    value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def calibrate(self: MlpProjector, x: Encoded, rms: float) -> None:
        next(self.parameters()).data.fill_(value)

    monkeypatch.setattr(MlpProjector, "calibrate", calibrate)
    inputs, _ = _read(RAWS, tmp_path)
    with pytest.raises(PluginError, match="The projector of named gives NaN or infinity"):
        inputs.calibrate(1.0)


def test_damaged_items_and_items_without_are_told_apart(tmp_path: Path) -> None:
    items = _items(RAWS)
    items[1] = Item(1, "broken", "damaged")
    inputs = read_inputs("named", Named(Config(), Context()), items, LLM, cache=tmp_path)
    assert inputs.damaged == {"broken": "It is. Mend it."}
    assert [row in inputs for row in range(6)] == [True, False, False, True, True, True]


def _content(cache: Path) -> dict[bytes, list[list[float]]]:
    (folder,) = cache.iterdir()
    store = FeatureStore(folder)
    digests = [content_digest(raw) for raw in {raw for raw in MANY if raw is not None}]
    return {digest: store.read(digest).tolist() for digest in digests}


MANY = [bytes(range(i % 7 + 1)) + bytes([i]) for i in range(150)] + [None, b"zz", b"zz"]


def test_parts_together_store_what_one_worker_stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_SHARD_ITEMS", 20)
    workers = [Named(Config(), Context()) for _ in range(2)]
    together = [
        threading.Thread(
            target=encode_part,
            args=("named", worker, _items(MANY), LLM),
            kwargs={"cache": tmp_path / "two", "part": (i, 2)},
        )
        for i, worker in enumerate(workers)
    ]
    for thread in together:
        thread.start()
    for thread in together:
        thread.join()
    seen = [{raw for batch in worker.encoder.batches for raw in batch} for worker in workers]
    assert not seen[0] & seen[1]
    assert abs(len(seen[0]) - len(seen[1])) <= 1
    assert len(_shards(tmp_path / "two")) > 2
    _read(MANY, tmp_path / "one")
    assert _content(tmp_path / "two") == _content(tmp_path / "one")
    inputs, batches = _read(MANY, tmp_path / "two")
    assert batches == []
    _expect(inputs, MANY)


def test_a_killed_encoding_keeps_the_shards_it_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_SHARD_ITEMS", 64)
    forward = Bytes.forward

    def killed(self: Bytes, batch: Sequence[bytes]) -> Encoded:
        if len(self.batches) == 2:
            raise KeyboardInterrupt
        return forward(self, batch)

    monkeypatch.setattr(Bytes, "forward", killed)
    with pytest.raises(KeyboardInterrupt):
        _read(MANY, tmp_path)
    monkeypatch.setattr(Bytes, "forward", forward)
    inputs, batches = _read(MANY, tmp_path)
    assert sum(map(len, batches)) == 151 - 128
    _expect(inputs, MANY)


def test_a_store_takes_up_what_another_wrote_and_survives_its_removal(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path)
    features = {bytes([i]) * 32: torch.randn(i, 3) for i in range(4)}
    store.write(features)
    other = FeatureStore(tmp_path)
    for shard in tmp_path.iterdir():
        shard.unlink()
    assert [other.length(digest) for digest in features] == [0, 1, 2, 3]
    for reader in (store, other):
        assert all(torch.equal(reader.read(digest), h) for digest, h in reversed(features.items()))
        assert bytes(32) in reader
        assert b"x" * 32 not in reader


def test_a_store_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EarecError, match=r"features could not be written to .*file"):
        FeatureStore(tmp_path / "file").write({bytes(32): torch.zeros(1, 3)})
