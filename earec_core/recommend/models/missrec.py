"""MISSRec (Wang et al., ACM MM 2023, arXiv 2308.11175), trained on the catalog that it recommends from.

Every modality of an item has a vector of its own. A user is read twice: as the interests that the items belong
to, which an encoder sees, and as the items in their order, which a decoder reads beside them. The score of an
item mixes its modalities by how well each suits the user.

The authors' settings (github.com/gimpong/MM23-MISSRec): linear adaptors of the vectors as they are
(`table=linear`, `scaling=none`), 2 `layers` (one of the encoder, one of the decoder), 4 `heads`, `dim` 300,
`inner` 256, `dropout` 0.5, `temperature` 0.07, `max_len` 50, `interests` 0.5, `interest_neighbours` 0.1, Adam at
1e-3, batches of 512, 10 epochs of patience; with ids `linear+ids` and `id_dropout` 0. The interests' penalty
(gamma) is 1e-4 on its sum over such a batch beside the mean of the cross-entropies: 0.05 for each prediction,
which is what `interest_penalty` says.

The formulas are those of the authors' code, except that clusters are of density peaks, as in the paper (their
trainer takes k-means); that the interests' penalty counts no padding; that an item is neither read, clustered nor
scored by a modality that it lacks (there, by the adaptor of zeros); and that an item's id counts as much as one
modality, however many there are. Left out is pre-training on other catalogs (the contrasts of sequences with
items and with augmented sequences), and with it training the adaptors alone on a pre-trained transformer.

Symbols: b users, s positions, k interests of a sequence, n items, m modalities, d the model's width. `items` has
m d columns, with ids (m + 1) d; users have d.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from math import ceil

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from earec_core.config import RecommenderConfig
from earec_core.errors import UsageError
from earec_core.recommend.density_peaks import density_peaks
from earec_core.recommend.dropout import Dropout
from earec_core.recommend.loss import FullSoftmax
from earec_core.recommend.models.base import Recommender
from earec_core.recommend.scaling import Scaling
from earec_core.recommend.tables import PLUS_IDS, Items, ItemTable, build_table
from earec_core.recommend.tables.base import transferred_scaling
from earec_core.recommend.tables.ids import IdTable, TrainedIds

_CHUNK, _PARTS = 1 << 22, 8
_ITEMS, _INTERESTS, _MEMBERS = "items", "interests", "members"
_ADAPTORS = "adaptors."
_MADE = (_ADAPTORS, "ids.")
"""What makes the items, by its parameters' names."""


class Adaptor(ItemTable):
    """One modality of the items that have it, through a table of `recommender.table`; zeros for the others.

    Args:
        config: of the table, with `+ids` or without.
        items: their training interactions and vectors of this modality.
    """

    rows: Tensor

    def __init__(self, config: RecommenderConfig, items: Items) -> None:
        super().__init__()
        vectors = items.known()
        self.n, self.dim = len(items), config.dim
        self.register_buffer("rows", vectors.any(1).nonzero().squeeze(1), persistent=False)
        plain = config.model_copy(update={"table": config.table.removesuffix(PLUS_IDS)})
        self.table = build_table(
            plain, Items(items.counts[self.rows], vectors[self.rows], scaling=items.scaling)
        )

    def forward(self) -> Float[Tensor, "n d"]:
        known: Tensor = self.table()
        return known.new_zeros(self.n, self.dim).index_copy(0, self.rows, known)

    def to_transfer(self) -> dict[str, Tensor]:
        return self.table.to_transfer()

    def transfer_from(self, tensors: Mapping[str, Tensor]) -> None:
        self.table.transfer_from(tensors)


class MissRec(Recommender):
    """The model over adapted modalities.

    Interests are found among the items as they are at the start of an epoch, and are no parameters.

    Args:
        config: sizes, temperature, and the settings that are missrec's alone; the similarity is always the cosine.
        adaptors: a table for each modality.
        ids: a table of trained embeddings.

    Raises:
        UsageError: `layers` is odd.
    """

    interests: Tensor
    members: Tensor
    found_in: Tensor

    def __init__(
        self, config: RecommenderConfig, adaptors: Sequence[ItemTable], ids: ItemTable | None = None
    ) -> None:
        super().__init__(config)
        if config.layers % 2:
            raise UsageError(
                f"missrec divides its layers between encoder and decoder; {config.layers} is odd.",
                "Set recommender.layers to an even number.",
            )
        self.adaptors, self.ids = nn.ModuleList(adaptors), ids
        d, half = config.dim, config.layers // 2
        self.positions = nn.Parameter(torch.randn(config.max_len, d) * 0.02)
        self.norm, self.dropout = nn.LayerNorm(d), Dropout(config.dropout)
        shape = (d, config.heads, config.inner, config.dropout, F.gelu)
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(*shape, batch_first=True),
            half,
            nn.LayerNorm(d),
            enable_nested_tensor=False,
        )
        self.decoder = nn.TransformerDecoder(
            nn.TransformerDecoderLayer(*shape, batch_first=True), half, nn.LayerNorm(d)
        )
        for module in [*self.encoder.modules(), *self.decoder.modules()]:
            for name, child in module.named_children():
                if isinstance(child, nn.Dropout):
                    setattr(module, name, Dropout(config.dropout))
        for name, parameter in (*self.encoder.named_parameters(), *self.decoder.named_parameters()):
            if name.endswith("in_proj_weight"):
                nn.init.xavier_uniform_(parameter)
            elif parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)
        if not self.inner_product:
            self.sharpness = nn.Parameter(torch.zeros(()))
        self.register_buffer(_INTERESTS, torch.empty(0), persistent=False)
        self.register_buffer(_MEMBERS, torch.empty(0, dtype=torch.long), persistent=False)
        self.register_buffer("found_in", torch.empty(0), persistent=False)
        self._outdated = True

    @property
    def inner_product(self) -> bool:
        """False where modalities are mixed by their similarities to the user: their weights depend on both."""
        return len(self.adaptors) == 1 or self.config.fusion == "static"

    def train(self, mode: bool = True) -> MissRec:
        if not mode:
            self._outdated = True
        return super().train(mode)

    def items(self) -> Float[Tensor, "n md"]:
        """Every item's adapted modalities side by side, and its id's embedding; zeros for what it lacks."""
        tables = (*self.adaptors, self.ids) if self.ids is not None else self.adaptors
        return torch.cat([table() for table in tables], dim=1)

    def users(
        self, histories: Sequence[Int[Tensor, " _"]], items: Float[Tensor, "n md"]
    ) -> Float[Tensor, "b d"]:
        recent = [history[-self.config.max_len :] for history in histories]
        lengths = torch.tensor([len(history) for history in recent], device=items.device)
        padded = nn.utils.rnn.pad_sequence(recent, batch_first=True).to(items.device)
        found: Tensor = self(items, padded, lengths)[0]
        return found

    def forward(
        self, items: Float[Tensor, "n md"], sequences: Int[Tensor, "b s"], lengths: Int[Tensor, " b"]
    ) -> tuple[Float[Tensor, "b d"], Float[Tensor, " b"]]:
        """Users by sequences that are padded on the right (with any row), and how alike their interests are.

        Returns:
            The decoder's output at the last item; |sum of the encoder's outputs|^2 / d, which is the inner products
            of all pairs of interests, summed (the term that is to make them orthogonal).
        """
        self._find_interests(items)
        padding = _beyond(lengths, sequences.shape[1])
        interests, no_interest = self._interests_of(sequences, padding)
        memory = self.encoder(self.interests[interests], src_key_padding_mask=no_interest)
        alike = memory.masked_fill(no_interest[..., None], 0.0).sum(1).square().mean(1)
        read = F.embedding(sequences, self._blocks(items).sum(1)) + self.positions[: sequences.shape[1]]
        states = self.decoder(
            self.dropout(self.norm(read)),
            memory,
            tgt_key_padding_mask=padding,
            memory_key_padding_mask=no_interest,
        )
        return states[torch.arange(len(states), device=states.device), lengths - 1], alike

    def loss(self, windows: Sequence[Int[np.ndarray, " _"]]) -> tuple[Float[Tensor, ""], int]:
        """Cross-entropy over the catalog and the interests' penalty, every beginning of a window a user of its own.

        No position of the decoder is hidden from another, so what comes later has to be cut off.
        """
        sequences, lengths, targets = (part.to(self.positions.device) for part in beginnings(windows))
        items, order = self.items(), lengths.argsort()
        # Those of similar length go together, so that little is padding.
        parts = [
            self(items, sequences[rows, : int(lengths[rows].max())], lengths[rows])
            for rows in order.chunk(_PARTS)
        ]
        users, alike = (torch.cat(each) for each in zip(*parts, strict=True))
        penalty = self.config.interest_penalty * alike.sum()
        return self._cross_entropy(users, items, targets[order]) + penalty, len(targets)

    def scores(self, users: Float[Tensor, "b d"], items: Float[Tensor, "n md"]) -> Float[Tensor, "b n"]:
        """What modalities score by cosine, mixed by softmax(sharpness x cosine), and an id as one modality more."""
        if self.inner_product:
            return self.queries(users) @ self.keys(items).T
        m, blocks = len(self.adaptors), self._blocks(items)
        directions = F.normalize(blocks, dim=-1).flatten(0, 1)
        cosines = (F.normalize(users, dim=-1) @ directions.T).float().view(len(users), len(items), -1)
        known, has_id = torch.split(_known(blocks), [m, blocks.shape[1] - m], dim=1)
        # An item without any modality has equal weights, of cosines that are 0.
        lacking = (~known & known.any(1, keepdim=True))[None]
        weights = (self.sharpness * cosines[..., :m]).masked_fill(lacking, -torch.inf).softmax(-1)
        fused = (weights * cosines[..., :m]).sum(-1) * known.sum(1) + cosines[..., m:].sum(-1)
        mean: Tensor = fused / (known.sum(1) + has_id.sum(1)).clamp_min(1)
        return mean / self.config.temperature

    def queries(self, users: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        return F.normalize(users, dim=-1) / self.config.temperature

    def keys(self, items: Float[Tensor, "n md"]) -> Float[Tensor, "n d"]:
        """The mean of an item's directions, one of each modality and of its id: `scores` with equal weights."""
        blocks = self._blocks(items)
        mean: Tensor = F.normalize(blocks, dim=-1).sum(1) / _known(blocks).sum(1, keepdim=True).clamp_min(1)
        return mean

    def to_store(self) -> dict[str, Tensor]:
        """The layers, the items in place of what makes them, the interests and who belongs to them."""
        with torch.inference_mode():
            items = self.items()
            self._find_interests(items)
        return {**self._layers(), _ITEMS: items, _INTERESTS: self.interests, _MEMBERS: self.members}

    def to_transfer(self) -> dict[str, Tensor]:
        """The layers, and of each modality's adaptor what is not its catalog's own."""
        parts = enumerate(self._tables())
        adaptors = {
            f"{_ADAPTORS}{m}.{name}": t for m, part in parts for name, t in part.to_transfer().items()
        }
        return {**self._layers(), **adaptors}

    def transfer_from(self, tensors: Mapping[str, Tensor]) -> None:
        """Start from the tensors of `to_transfer`.

        Raises:
            RuntimeError: they are not those of a model of these sizes over such adaptors, as many.
        """
        parts = _of_adaptors(tensors)
        if len(parts) != len(self.adaptors):
            raise RuntimeError(f"{len(parts)} modalities in place of {len(self.adaptors)}")
        for adaptor, part in zip(self._tables(), parts, strict=True):
            adaptor.transfer_from(part)
        layers = {name: t for name, t in tensors.items() if not name.startswith(_ADAPTORS)}
        own = {name: t for name, t in self.state_dict().items() if name.startswith(_MADE)}
        self.load_state_dict({**own, **layers})

    def _tables(self) -> list[ItemTable]:
        return [adaptor for adaptor in self.adaptors if isinstance(adaptor, ItemTable)]

    def _layers(self) -> dict[str, Tensor]:
        return {name: t for name, t in super().to_store().items() if not name.startswith(_MADE)}

    @classmethod
    def stored(cls, config: RecommenderConfig, tensors: Mapping[str, Tensor]) -> MissRec:
        """The model over stored items.

        Raises:
            KeyError, RuntimeError: the tensors are not those of `to_store` with this configuration.
        """
        layers = dict(tensors)
        blocks, interests, members = (layers.pop(name) for name in (_ITEMS, _INTERESTS, _MEMBERS))
        parts = torch.split(blocks, config.dim, dim=1)
        tables = [IdTable(len(blocks), config.dim) for _ in parts]
        for table, block in zip(tables, parts, strict=True):
            table.embedding.data.copy_(block)
        ids = tables.pop() if config.table.endswith(PLUS_IDS) else None
        model = cls(config, tables, ids)
        model.interests, model.members, model.found_in = interests, members, blocks
        missing, unexpected = model.load_state_dict(layers, strict=False)
        wrong = [*unexpected, *(name for name in missing if not name.startswith(_MADE))]
        if wrong:
            raise RuntimeError(f"other layers: {', '.join(wrong)}")
        return model

    def _blocks(self, items: Float[Tensor, "n md"]) -> Float[Tensor, "n m d"]:
        return items.view(len(items), -1, self.config.dim)

    def _cross_entropy(
        self, users: Float[Tensor, "b d"], items: Float[Tensor, "n md"], targets: Int[Tensor, " b"]
    ) -> Float[Tensor, ""]:
        """Of the targets among all items, summed; scores of some users at a time are held, and made twice."""
        if self.inner_product:
            whole: Tensor = FullSoftmax.apply(self.queries(users), self.keys(items), targets)  # type: ignore[no-untyped-call]
            return whole

        def of(some: Tensor, items: Tensor, targets: Tensor) -> Tensor:
            return F.cross_entropy(self.scores(some, items), targets, reduction="sum")

        rows = max(1, _CHUNK // (len(items) * len(self.adaptors)))
        parts = zip(torch.split(users, rows), torch.split(targets, rows), strict=True)
        losses = [checkpoint(of, some, items, wanted, use_reentrant=False) for some, wanted in parts]
        return torch.stack(losses).sum()

    def _find_interests(self, items: Float[Tensor, "n md"]) -> None:
        """Find interests among items, where those that there are may be of other items.

        An interest is the mean of a cluster of all modalities' vectors; behind them stands one of zeros, for what
        belongs to none.
        """
        if not self._outdated:
            return
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(items.device.type, enabled=False):
            current = self._without_dropout() if self.training else items.clone()
            if not torch.equal(self.found_in, current):
                blocks = self._blocks(current)[:, : len(self.adaptors)]
                known = _known(blocks)
                points = blocks[known]
                count, near = (
                    ceil(part * len(points))
                    for part in (self.config.interests, self.config.interest_neighbours)
                )
                clusters = density_peaks(points, count, near)
                sums = points.new_zeros(count + 1, points.shape[1]).index_add(0, clusters, points)
                self.interests = sums / clusters.bincount(minlength=count + 1).clamp_min(1)[:, None]
                self.members = torch.full_like(known, count, dtype=torch.long)
                self.members[known] = clusters
                self.found_in = current
        self._outdated = False

    def _without_dropout(self) -> Float[Tensor, "n md"]:
        super().train(False)
        items = self.items()
        super().train(True)
        return items

    def _interests_of(
        self, sequences: Int[Tensor, "b s"], padding: Bool[Tensor, "b s"]
    ) -> tuple[Int[Tensor, "b k"], Bool[Tensor, "b k"]]:
        """The interests that a sequence's items belong to, each once, and where there is none.

        A sequence without any has that of zeros, so that there is one to attend to.
        """
        none = len(self.interests) - 1
        found = self.members[sequences].masked_fill(padding[..., None], none).flatten(1).sort(1).values
        found[:, 1:] = found[:, 1:].masked_fill(found[:, 1:] == found[:, :-1], none)
        found = found.sort(1).values
        lengths = (found != none).sum(1).clamp_min(1)
        found = found[:, : int(lengths.max())]
        return found, _beyond(lengths, found.shape[1])


def build(config: RecommenderConfig, items: Items, scalings: Sequence[Scaling] = ()) -> MissRec:
    """MISSRec for items, each of their modalities through the table that the configuration names.

    A modality that fewer than two items have is left out.

    Args:
        scalings: of each modality's vectors; default: those fitted to them.

    Raises:
        UsageError: none is left, or see `MissRec`.
    """
    had = [vectors for vectors in items.modalities() if vectors.any(1).sum() > 1]
    if not had:
        raise UsageError("The item vectors are all zeros.", "Encode again, or give others: --vectors REF.")
    pairs = zip_longest(had, scalings[: len(had)])
    adaptors = [Adaptor(config, Items(items.counts, vectors, scaling=scaling)) for vectors, scaling in pairs]
    return MissRec(config, adaptors, TrainedIds(items, config) if config.table.endswith(PLUS_IDS) else None)


def transfer(config: RecommenderConfig, items: Items, tensors: Mapping[str, Tensor]) -> MissRec:
    """A new model that starts from one of another catalog, whose scalings its vectors get.

    Raises:
        UsageError: see `build`.
        RuntimeError: the source has other modalities, or see `MissRec.transfer_from`.
    """
    parts, given = _of_adaptors(tensors), len(items.modalities())
    if len(parts) != given:  # which one the source lacked is not known
        raise RuntimeError(f"{len(parts)} modalities in place of {given}")
    model = build(config, items, [transferred_scaling(part) for part in parts])
    model.transfer_from(tensors)
    return model


def _of_adaptors(tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """Of the tensors of `MissRec.to_transfer` those of each adaptor, as it names them."""
    parts = defaultdict[int, dict[str, Tensor]](dict)
    for name, tensor in tensors.items():
        if name.startswith(_ADAPTORS):
            number, _, own = name.removeprefix(_ADAPTORS).partition(".")
            parts[int(number)][own] = tensor
    return [parts[number] for number in sorted(parts)]


def beginnings(
    windows: Sequence[Int[np.ndarray, " _"]],
) -> tuple[Int[Tensor, "b s"], Int[Tensor, " b"], Int[Tensor, " b"]]:
    """Every beginning of the windows, padded on the right with row 0; their lengths; the item that follows each."""
    steps = [len(window) - 1 for window in windows]
    sequences = torch.zeros(sum(steps), max(steps), dtype=torch.long)
    for start, window in zip(np.cumsum([0, *steps]), windows, strict=False):
        n = len(window) - 1
        sequences[start : start + n, :n] = torch.from_numpy(window[:-1]).expand(n, n).tril()
    lengths = torch.cat([torch.arange(1, n + 1) for n in steps])
    return sequences, lengths, torch.from_numpy(np.concatenate([window[1:] for window in windows]))


def _known(blocks: Float[Tensor, "n m d"]) -> Bool[Tensor, "n m"]:
    return blocks.any(-1)


def _beyond(lengths: Int[Tensor, " b"], width: int) -> Bool[Tensor, "b w"]:
    """Where padding is."""
    return torch.arange(width, device=lengths.device)[None] >= lengths[:, None]
