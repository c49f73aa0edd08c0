"""The user transformer (Eqs. 6-7) over an item table.

Symbols: b users of a batch, s positions, n items of the catalog, d the model's width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from earec_core.config import RecommenderConfig
from earec_core.recommend.batches import transitions
from earec_core.recommend.dropout import Dropout
from earec_core.recommend.loss import FullSoftmax, sampled_softmax
from earec_core.recommend.models.base import Recommender
from earec_core.recommend.tables import IdTable, ItemTable

_TABLE = "table."


class SelfAttention(nn.Module):
    """Causal self-attention of several heads: what the blocks have in common.

    A block takes all positions, and gives all, or of each sequence that at a place alone: a user's last.
    """

    def __init__(self, config: RecommenderConfig) -> None:
        super().__init__()
        d = config.dim
        self.heads = config.heads
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.dropout = Dropout(config.dropout)

    def _draw(self) -> None:
        """Draw every linear map of the block; called when it has them all."""
        for linear in self.children():
            if isinstance(linear, nn.Linear):
                nn.init.normal_(linear.weight, std=0.02)
                if linear.bias is not None:
                    nn.init.zeros_(linear.bias)
        nn.init.xavier_uniform_(self.qkv.weight)

    def _own(self, h: Float[Tensor, "b s d"], at: Int[Tensor, " b"] | None) -> Float[Tensor, "b _ d"]:
        """The positions that are asked for: one of each sequence, by its place, or all."""
        return h if at is None else h[torch.arange(len(h), device=h.device), at][:, None]

    def _attention(
        self, h: Float[Tensor, "b s d"], at: Int[Tensor, " b"] | None = None
    ) -> Float[Tensor, "b _ d"]:
        """What the positions asked for take from those before them and from themselves."""
        if at is not None:
            return self._attention_at(h, at)
        b, s, d = h.shape
        q, k, v = self.qkv(h).view(b, s, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if self.training and self.dropout.p:
            later = torch.full((s, s), -torch.inf, device=h.device).triu(1)
            weights = torch.softmax(later + q @ k.mT * q.shape[-1] ** -0.5, dim=-1)
            seen = self.dropout(weights) @ v
        else:
            seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        joined: Tensor = self.out(seen.transpose(1, 2).reshape(b, s, d))
        return joined

    def _attention_at(self, h: Float[Tensor, "b s d"], at: Int[Tensor, " b"]) -> Float[Tensor, "b 1 d"]:
        b, s, d = h.shape
        of_q, of_kv = self.qkv.weight.split_with_sizes([d, 2 * d])
        more_q, more_kv = self.qkv.bias.split_with_sizes([d, 2 * d])
        q = F.linear(self._own(h, at), of_q, more_q).view(b, 1, self.heads, -1).transpose(1, 2)
        k, v = F.linear(h, of_kv, more_kv).view(b, s, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        earlier = torch.arange(s, device=h.device) <= at[:, None]
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=earlier[:, None, None])
        joined: Tensor = self.out(seen.transpose(1, 2).reshape(b, 1, d))
        return joined


class Block(SelfAttention):
    """One layer of Eq. 7: causal self-attention, then a feed-forward network, each added and normalised.

    The arithmetic of `nn.TransformerEncoderLayer` (post-norm, GELU), with the dropout above.
    """

    def __init__(self, config: RecommenderConfig) -> None:
        super().__init__(config)
        d = config.dim
        self.up, self.down = nn.Linear(d, config.inner), nn.Linear(config.inner, d)
        self.norm_attention, self.norm = nn.LayerNorm(d), nn.LayerNorm(d)
        self._draw()

    def forward(
        self, h: Float[Tensor, "b s d"], at: Int[Tensor, " b"] | None = None
    ) -> Float[Tensor, "b _ d"]:
        h = self.norm_attention(self._own(h, at) + self.dropout(self._attention(h, at)))
        changed: Tensor = self.norm(h + self.dropout(self.down(self.dropout(F.gelu(self.up(h))))))
        return changed


class TransformerRecommender(Recommender):
    """A causal transformer over a user's items (Eqs. 6-7), post-norm as in SASRec of RecBole.

    Args:
        table: the items, read and scored against.
        config: sizes and similarity.
        candidates: rows of the items that compete in training, every target among them; default: all, and none is
            left to a sample (`config.negatives`).
        prior: what is added to each item's score in training (Menon et al., arXiv 2007.07314); default: nothing.

    Attributes:
        block: what its layers are.
    """

    block: ClassVar[type[SelfAttention]] = Block
    candidates: Tensor | None
    prior: Tensor | None

    def __init__(
        self,
        table: ItemTable,
        config: RecommenderConfig,
        *,
        candidates: Int[Tensor, " c"] | None = None,
        prior: Float[Tensor, " n"] | None = None,
    ) -> None:
        super().__init__(config)
        self.table = table
        self.register_buffer("candidates", candidates, persistent=False)
        self.register_buffer("prior", prior, persistent=False)
        self.positions = nn.Parameter(torch.randn(config.max_len, config.dim) * 0.02)
        self.norm = nn.LayerNorm(config.dim)
        self.dropout = Dropout(config.dropout)
        self.layers = nn.ModuleList(self.block(config) for _ in range(config.layers))

    def forward(
        self,
        items: Float[Tensor, "n d"],
        sequences: Int[Tensor, "b s"],
        at: Int[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b _ d"]:
        """State after each position of sequences that are padded on the right (with any row).

        Args:
            items: `items()`, computed once for inputs and candidates.
            sequences: item rows, s at most `max_len`; no position sees a later one, so none sees padding.
            at: the one place of each sequence whose state is asked for; default: all.
        """
        h = self.dropout(self.norm(F.embedding(sequences, items) + self.positions[: sequences.shape[1]]))
        *others, last = self.layers
        for layer in others:
            h = layer(h)
        states: Tensor = last(h, at)
        return states

    def loss(self, windows: Sequence[Int[np.ndarray, " _"]]) -> tuple[Float[Tensor, ""], int]:
        """Eq. 8 over the candidates, summed over every position of the windows but the last, and their number."""
        inputs, places, targets = transitions(windows, self.positions.device)
        if self.config.negatives is not None and self.candidates is not None:
            drawn = self.candidates[self._sample(len(targets), len(self.candidates), self.config.negatives)]
            return self._sampled(inputs, places, targets, drawn), len(targets)
        items = self.items()
        queries, keys = self._competing(self(items, inputs).flatten(0, 1)[places], items, self.prior)
        if self.candidates is not None:
            keys, targets = keys[self.candidates], torch.searchsorted(self.candidates, targets)
        loss: Tensor = FullSoftmax.apply(queries, keys, targets)  # type: ignore[no-untyped-call]
        return loss, len(targets)

    def _sample(self, predictions: int, population: int, count: int) -> Int[Tensor, "*m c"]:
        """A sample of a population for a batch's predictions, by default one for all."""
        return torch.randperm(population, device=self.positions.device)[:count]

    def _sampled(
        self,
        inputs: Int[Tensor, "b s"],
        places: Int[Tensor, " m"],
        targets: Int[Tensor, " m"],
        drawn: Int[Tensor, "*m c"],
    ) -> Float[Tensor, ""]:
        """Eq. 8 with a sample of the candidates in place of all; no item is made that does not occur."""
        assert self.candidates is not None  # noqa: S101 - what the sample was drawn from
        occurring = torch.cat([inputs.flatten(), targets, drawn.flatten()])
        rows, occurring = torch.unique(occurring, return_inverse=True)
        read, wanted, negatives = occurring.split([inputs.numel(), len(targets), drawn.numel()])
        items = self.table.some(rows)
        states = self(items, read.view_as(inputs)).flatten(0, 1)[places]
        prior = None if self.prior is None else self.prior[rows]
        queries, keys = self._competing(states, items, prior)
        return sampled_softmax(queries, keys, wanted, negatives.view_as(drawn), len(self.candidates))

    def _competing(
        self, states: Float[Tensor, "m d"], items: Float[Tensor, "k d"], prior: Float[Tensor, " k"] | None
    ) -> tuple[Float[Tensor, "m e"], Float[Tensor, "k e"]]:
        """What the scores of training are the inner products of."""
        queries, keys = self.queries(states), self.keys(items)
        if prior is None:
            return queries, keys
        return F.pad(queries, (0, 1), value=1.0), torch.cat([keys, prior[:, None]], dim=1)

    def items(self) -> Float[Tensor, "n d"]:
        embeddings: Tensor = self.table()
        return embeddings

    def users(
        self, histories: Sequence[Int[Tensor, " _"]], items: Float[Tensor, "n d"]
    ) -> Float[Tensor, "b d"]:
        """User vectors u = f_n^L: the state after the last of each user's most recent `max_len` items."""
        recent = [history[-self.config.max_len :] for history in histories]
        lengths = torch.tensor([history.numel() for history in recent], device=items.device)
        padded = nn.utils.rnn.pad_sequence(recent, batch_first=True).to(items.device)
        states: Tensor = self(items, padded, lengths - 1)
        return states[:, 0]

    def to_store(self) -> dict[str, Tensor]:
        """The layers, and the items as they are read and scored (n d) in place of what makes them."""
        with torch.inference_mode():
            return {**self._layers(), f"{_TABLE}embedding": self.items()}

    def to_transfer(self) -> dict[str, Tensor]:
        """The layers, and of the table what is not its catalog's own; none over a table of ids."""
        table = {f"{_TABLE}{name}": tensor for name, tensor in self.table.to_transfer().items()}
        return {**self._layers(), **table} if table else {}

    def transfer_from(self, tensors: Mapping[str, Tensor]) -> None:
        """Start from the tensors of `to_transfer`.

        Raises:
            RuntimeError: they are not those of a model of these sizes over such a table.
        """
        self.table.transfer_from(of_table(tensors))
        layers = {name: tensor for name, tensor in tensors.items() if not name.startswith(_TABLE)}
        own = {name: tensor for name, tensor in self.state_dict().items() if name.startswith(_TABLE)}
        self.load_state_dict({**own, **layers})

    def _layers(self) -> dict[str, Tensor]:
        return {name: t for name, t in super().to_store().items() if not name.startswith(_TABLE)}

    @classmethod
    def stored(cls, config: RecommenderConfig, tensors: Mapping[str, Tensor]) -> TransformerRecommender:
        """The transformer over a stored table: whatever made the items, it is as one of ids.

        Raises:
            KeyError, RuntimeError: the tensors are not those of `to_store` with this configuration.
        """
        model = cls(IdTable(len(tensors[f"{_TABLE}embedding"]), config.dim), config)
        model.load_state_dict(tensors)
        return model


def of_table(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of the tensors of a model's `to_transfer` those of its table, as the table names them."""
    return {name.removeprefix(_TABLE): t for name, t in tensors.items() if name.startswith(_TABLE)}
