"""The user transformer (Eqs. 6-7) and the item tables that it reads and scores against.

Symbols: b users of a batch, s positions, n items of the catalog, d the model's width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from earec_core.config import RecommenderConfig, Scaling


class ItemTable(nn.Module, ABC):
    """Item representations in the model's space: what is read, and what is scored against."""

    @abstractmethod
    def forward(self) -> Float[Tensor, "n d"]:
        """All items."""


class IdTable(ItemTable):
    """A trained embedding per item id: with it the model is SASRec.

    Args:
        n_items: n.
        dim: d.
    """

    def __init__(self, n_items: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(n_items, dim) * 0.02)

    def forward(self) -> Float[Tensor, "n d"]:
        return self.embedding


class VectorTable(ItemTable):
    """Frozen item vectors through one trained linear map, shared by inputs and candidates.

    Args:
        vectors: (n d_in).
        dim: d.
        scaling: see `scaled`.
    """

    vectors: Tensor

    def __init__(self, vectors: Float[Tensor, "n d_in"], dim: int, *, scaling: Scaling = "whiten") -> None:
        super().__init__()
        self.register_buffer("vectors", scaled(vectors, scaling), persistent=False)
        self.adaptor = nn.Linear(vectors.shape[1], dim)
        # Items start at the size of trained ids.
        nn.init.normal_(self.adaptor.weight, std=0.02 / vectors.shape[1] ** 0.5)

    def forward(self) -> Float[Tensor, "n d"]:
        mapped: Tensor = self.adaptor(self.vectors)
        return mapped


def scaled(vectors: Float[Tensor, "n d_in"], scaling: Scaling) -> Float[Tensor, "n d_in"]:
    """Item vectors as a linear map can use them: an LLM's hidden states have a few directions that drown the rest.

    `whiten` is ZCA on standardised dimensions, X C^(-1/2): the result is one, whatever basis LAPACK gives. It keeps
    the n / 4 leading directions at most, since with as many as items every item would be equally far from every
    other. (Whitening text vectors for recommendation: Zhang et al., ICDE 2024, arXiv 2402.10602.)

    Args:
        vectors: of the whole catalog.
        scaling: what to do.
    """
    if scaling == "none":
        return vectors.float()
    x = vectors.double()
    x = (x - x.mean(0)) / x.std(0).clamp_min(1e-6)
    if scaling == "whiten":
        variance, directions = torch.linalg.eigh(x.T @ x / len(x))
        kept = max(1, min(x.shape[1], len(x) // 4))
        variance, directions = variance[-kept:], directions[:, -kept:]
        x = x @ (directions / (variance + 1e-6 * variance.max()).sqrt()) @ directions.T
    return x.float()


class Dropout(nn.Module):
    """`nn.Dropout` from 16 random bits an element; torch's own draws took a fifth of an epoch on a processor.

    Args:
        p: the probability of a zero, kept to 1/65536; what stays is divided by 1 - p.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return x
        words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64, device=x.device).random_(-(2**63), None)
        bits = words.view(torch.int16)[: x.numel()].view(x.shape)
        kept: Tensor = x * (bits >= round(self.p * 2**16) - 2**15) / (1 - self.p)
        return kept


class Block(nn.Module):
    """One layer of Eq. 7: causal self-attention, then a feed-forward network, each added and normalised.

    The arithmetic of `nn.TransformerEncoderLayer` (post-norm, GELU), with the dropout above.
    """

    def __init__(self, config: RecommenderConfig) -> None:
        super().__init__()
        d = config.dim
        self.heads = config.heads
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.up, self.down = nn.Linear(d, config.inner), nn.Linear(config.inner, d)
        self.norm_attention, self.norm = nn.LayerNorm(d), nn.LayerNorm(d)
        self.dropout = Dropout(config.dropout)
        for linear in (self.qkv, self.out, self.up, self.down):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
        nn.init.xavier_uniform_(self.qkv.weight)

    def forward(self, h: Float[Tensor, "b s d"]) -> Float[Tensor, "b s d"]:
        h = self.norm_attention(h + self.dropout(self.out(self._attention(h))))
        changed: Tensor = self.norm(h + self.dropout(self.down(self.dropout(F.gelu(self.up(h))))))
        return changed

    def _attention(self, h: Float[Tensor, "b s d"]) -> Float[Tensor, "b s d"]:
        b, s, d = h.shape
        q, k, v = self.qkv(h).view(b, s, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if self.training and self.dropout.p:
            later = torch.full((s, s), -torch.inf, device=h.device).triu(1)
            weights = torch.softmax(later + q @ k.mT * q.shape[-1] ** -0.5, dim=-1)
            seen = self.dropout(weights) @ v
        else:
            seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        joined: Tensor = seen.transpose(1, 2).reshape(b, s, d)
        return joined


class SequenceModel(nn.Module):
    """A causal transformer over a user's items (Eqs. 6-7), post-norm as in SASRec of RecBole.

    Args:
        table: the items.
        config: sizes and similarity.
    """

    def __init__(self, table: ItemTable, config: RecommenderConfig) -> None:
        super().__init__()
        self.table, self.config = table, config
        self.positions = nn.Parameter(torch.randn(config.max_len, config.dim) * 0.02)
        self.norm = nn.LayerNorm(config.dim)
        self.dropout = Dropout(config.dropout)
        self.layers = nn.Sequential(*(Block(config) for _ in range(config.layers)))

    def forward(self, items: Float[Tensor, "n d"], sequences: Int[Tensor, "b s"]) -> Float[Tensor, "b s d"]:
        """State after each position of sequences that are padded on the right (with any row).

        Args:
            items: `table()`, computed once for inputs and candidates.
            sequences: item rows, s at most `max_len`; no position sees a later one, so none sees padding.
        """
        h = self.norm(F.embedding(sequences, items) + self.positions[: sequences.shape[1]])
        states: Tensor = self.layers(self.dropout(h))
        return states

    def scores(self, users: Float[Tensor, "b d"], items: Float[Tensor, "n d"]) -> Float[Tensor, "b n"]:
        """Score of every item for every user state (the exponent of Eq. 8)."""
        if self.config.similarity == "cosine":
            return F.normalize(users, dim=-1) @ F.normalize(items, dim=-1).T / self.config.temperature
        return users @ items.T


def last_states(
    model: SequenceModel, items: Float[Tensor, "n d"], histories: list[Int[Tensor, " _"]]
) -> Float[Tensor, "b d"]:
    """User vectors u = f_n^L: the state after the last of each user's most recent `max_len` items."""
    recent = [history[-model.config.max_len :] for history in histories]
    lengths = torch.tensor([len(history) for history in recent], device=items.device)
    padded = nn.utils.rnn.pad_sequence(recent, batch_first=True).to(items.device)
    states: Tensor = model(items, padded)
    return states[torch.arange(len(recent), device=items.device), lengths - 1]
