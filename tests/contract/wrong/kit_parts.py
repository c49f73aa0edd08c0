"""A good modality of numbers, and many that are good but for one part."""

import itertools
import os
from pathlib import Path

import numpy as np
import torch
from pydantic import ConfigDict, Field
from torch import nn

from earec_core.modality import (
    DamagedInputError,
    Encoded,
    Encoder,
    Item,
    MlpProjector,
    Modality,
    PluginConfig,
    pad,
)


class Config(PluginConfig):
    field: str = Field("n", description="Item field with numbers.")


class Waves(Encoder):
    d_enc = 6

    def __init__(self):
        super().__init__()
        self.register_buffer("batches", torch.tensor(0))  # of no dimension, as BatchNorm's

    def forward(self, batch):
        return pad([torch.from_numpy(row)[:, None] * torch.linspace(-1, 1, self.d_enc) for row in batch])


class Good(Modality[Config]):
    cache_features = property(lambda self: False)
    encoder, projector = Waves, MlpProjector

    def read(self, item):
        value = item.fields.get(self.config.field)
        if value is None:
            return None
        try:
            array = np.array(value, dtype=np.float64)
            if array.ndim != 1 or not array.size or not (np.abs(array) < 1e9).all():
                raise ValueError("no finite numbers")
            return array.astype(np.float32)[:3]
        except (TypeError, ValueError):
            raise DamagedInputError(f"The numbers of item {item.id} are {value!r}.", "Mend them.") from None

    def build_encoder(self, llm):
        return self.encoder().eval().requires_grad_(False)

    def build_projector(self, d_enc, d_llm):
        return self.projector(d_enc, d_llm)

    def positions(self):
        return 3

    def describe(self, item):
        return str(item.fields.get("n", ""))

    @classmethod
    def examples(cls, folder):
        return Config(), [
            Item(i, f"e{i}", None, {"n": n}) for i, n in enumerate(([1.0], [2.0, -3.0], [0.5, 4.0, 0.1]))
        ]


good_config, good_factory = Config, Good


class Mixing(Waves):
    def forward(self, batch):
        h, mask = super().forward(batch)
        return Encoded((h - h.mean(0)) * mask[..., None], mask)


class Drawn(Waves):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(6, 6)

    def forward(self, batch):
        h, mask = super().forward(batch)
        return Encoded(self.out(h) * mask[..., None], mask)


class Noisy(Waves):
    def forward(self, batch):
        h, mask = super().forward(batch)
        return Encoded((h + torch.randn(h.shape)) * mask[..., None], mask)


class Counting(Waves):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, batch):
        self.calls += 1
        return super().forward(batch)


class Wearing(Waves):
    worn = False

    def forward(self, batch):
        h, mask = super().forward(batch)
        self.worn |= len(batch) == 1
        return Encoded(h * float("nan") if self.worn else h, mask)


class Padded(Waves):
    def forward(self, batch):
        h, mask = super().forward(batch)
        return Encoded(h.masked_fill(~mask[..., None], 7.0), mask)


class Narrow(Waves):
    def forward(self, batch):
        h, mask = super().forward(batch)
        return Encoded(h[..., :4], mask)


class Infinite(Waves):
    def forward(self, batch):
        h, mask = super().forward(batch)
        return Encoded(h / h, mask)


class IntMask(Waves):
    def forward(self, batch):
        h, mask = super().forward(batch)
        return Encoded(h, mask.long())


class Thresholded(MlpProjector):
    def forward(self, x):
        h, mask = super().forward(x)
        return Encoded(h, mask & (x.h.abs().sum(-1) > 0.3))


class Pooled(MlpProjector):
    def forward(self, x):
        h, mask = super().forward(x)
        return Encoded(h.mean(1, keepdim=True), mask.any(1, keepdim=True))


class Empty(MlpProjector):
    def forward(self, x):
        h, mask = super().forward(x)
        return Encoded(h, mask & (mask.sum(1, keepdim=True) > 1))


class Loud(MlpProjector):
    def calibrate(self, x, rms):
        pass


class Forgetful(MlpProjector):
    def __init__(self, d_enc, d_llm):
        super().__init__(d_enc, d_llm)
        self.scale = torch.rand(1)

    def forward(self, x):
        h, mask = super().forward(x)
        return Encoded(h * self.scale, mask)


class Dead(MlpProjector):
    def __init__(self, d_enc, d_llm):
        super().__init__(d_enc, d_llm)
        self.unused = nn.Parameter(torch.zeros(1))


class Detached(MlpProjector):
    def forward(self, x):
        h, mask = super().forward(x)
        return Encoded(h.detach(), mask)


class Restless(MlpProjector):
    def forward(self, x):
        h, mask = super().forward(x)
        return Encoded(h * (1 + torch.rand(h.shape)), mask)


class OwnSeed(MlpProjector):
    calls = itertools.count()

    def __init__(self, d_enc, d_llm):
        super().__init__(d_enc, d_llm)
        nn.init.normal_(self.out.weight, generator=torch.Generator().manual_seed(next(self.calls)))


class Undocumented(Config):
    size: int = 3


class Lenient(Config):
    model_config = ConfigDict(extra="ignore")


class Thawed(Config):
    model_config = ConfigDict(frozen=False)


class Lossy(Config):
    place: object = Field(default_factory=object, exclude=True, description="Not in JSON.")


def wrong(name, config=Config, **parts):
    """A plugin that is good but for these parts."""
    examples = Good.examples
    if config is not Config:
        parts["examples"] = classmethod(lambda cls, folder: (config(), examples(folder)[1]))
    globals()[f"wrong_{name}_config"] = config
    globals()[f"wrong_{name}_factory"] = type(name, (Good,), parts)


def nan(self, item):
    try:
        return Good.read(self, item)
    except DamagedInputError:
        return np.array([np.nan], dtype=np.float32)


def opened(self, item):
    """Opens what the field says, from wherever the process is."""
    return np.array([float(Path(item.fields["n"]).read_text())], dtype=np.float32)


def named(cls, folder):
    for n in range(3):
        (folder / f"{n}.txt").write_text(str(n))
    return Config(), [Item(n, f"e{n}", None, {"n": str(folder / f"{n}.txt")}) for n in range(3)]


def worded(cls, folder):
    return Config(), [Item(n, f"e{n}", None, {"w": f"word{n} word"}) for n in range(3)]


def spelled(self, item):
    """Trusts what comes behind a good beginning."""
    words = str(item.fields.get("w") or "").split()
    if not words or not words[0].startswith("word"):
        return None
    return np.array([ord(letter.encode("ascii")) for letter in words[0]], dtype=np.float32)


class Tampered(Config):
    names: list = Field(default_factory=list, description="A list can be changed.")


def moving(self, item):
    os.chdir("/")
    return Good.read(self, item)


def tampering(self, item):
    self.config.names.append(item.id)
    return Good.read(self, item)


class Seeding(Waves):
    def forward(self, batch):
        torch.manual_seed(7)
        return super().forward(batch)


class Patching(MlpProjector):
    def forward(self, x):
        before = nn.functional.gelu
        nn.functional.gelu = lambda *given, **named: before(*given, **named)
        return super().forward(x)


numbers = itertools.count()
wrong("moving", read=moving)
wrong("seeding", encoder=Seeding)
wrong("patching", projector=Patching)
wrong("tampering", config=Tampered, read=tampering)
wrong("mixing", encoder=Mixing)
wrong("drawn", encoder=Drawn)
wrong("noisy", encoder=Noisy)
wrong("counting", encoder=Counting)
wrong("wearing", encoder=Wearing)
wrong("trainable", build_encoder=lambda self, llm: Drawn().eval())
wrong("training", build_encoder=lambda self, llm: Waves())
wrong("padded", encoder=Padded)
wrong("narrow", encoder=Narrow)
wrong("infinite", encoder=Infinite)
wrong("intmask", encoder=IntMask)
wrong("thresholded", projector=Thresholded)
wrong("pooled", projector=Pooled)
wrong("empty", projector=Empty)
wrong("loud", projector=Loud)
wrong("forgetful", projector=Forgetful)
wrong("dead", projector=Dead)
wrong("detached", projector=Detached)
wrong("restless", projector=Restless)
wrong("ownseed", projector=OwnSeed)
wrong("long", projector=staticmethod(lambda *widths: MlpProjector(*widths, tokens=4)))
wrong("setting")
wrong("undocumented", config=Undocumented)
wrong("lenient", config=Lenient)
wrong("thawed", config=Thawed)
wrong("lossy", config=Lossy)
wrong("nan", read=nan)
wrong("spelled", read=spelled, examples=classmethod(worded))
wrong("raising", read=lambda self, item: np.array(item.fields["n"], dtype=np.float32))
wrong(
    "fragile",
    read=lambda self, item: (
        np.array([float(n) for n in item.fields.get("n") or ()], "f") if item.fields.get("n") else None
    ),
)
wrong("objects", read=lambda self, item: item.fields.get("n"))
wrong("changing", read=lambda self, item: np.array([next(numbers)], dtype=np.float32))
wrong("silent", describe=lambda self, item: str(item.fields["n"]))
wrong("markup", describe=lambda self, item: "data:text/html,<b>")
wrong("token")
wrong("cached", cache_features=1)
wrong("seed", adapter_config=lambda self, settings: settings.model_copy(update={"seed": 1}))
wrong("rank", adapter_config=lambda self, settings: settings.model_copy(update={"r": 0}))
wrong("zero", positions=lambda self: 0)
wrong("endless", read=lambda self, item: np.array(item.fields["n"], dtype=np.float32))
wrong("opened", read=opened, examples=classmethod(named))
wrong("sources", sources=lambda self: ("embeddings/shop",))
wrong("fingerprint", fingerprint=lambda self: str(id(self)))
wrong("none", examples=classmethod(lambda cls, folder: None))
wrong("few", examples=classmethod(lambda cls, folder: (Config(), Good.examples(folder)[1][:2])))
wrong(
    "alike",
    examples=classmethod(
        lambda cls, folder: (Config(), [Item(i, f"e{i}", None, {"n": [1.0]}) for i in range(3)])
    ),
)
wrong(
    "without",
    examples=classmethod(
        lambda cls, folder: (Config(), [*Good.examples(folder)[1], Item(3, "e3", None, {})])
    ),
)
