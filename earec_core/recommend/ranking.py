"""The rank of every user's target where scores are inner products: tile by tile, so that no row of scores is held.

A tile is some hundred users by some thousand items, whose scores stay in a processor's cache from the product to
the comparison. Users whose targets are of one tile go together: that tile is made first, and the target's score is
read from it, so that all that is compared comes from products alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from earec_core.metrics.ranking import ScoresError

_USERS, _ITEMS, _TILES = 512, 2048, 64
"""Of a tile: users at most; items at least; tiles of a catalog at most."""


def ranks_by_products(
    queries: Float[Tensor, "u d"],
    keys: Float[Tensor, "n d"],
    targets: Int[Tensor, " u"],
    seen: Sequence[Int[Tensor, " _"]] | None = None,
) -> Int[Tensor, " u"]:
    """Rank of each user's target among all items by `queries @ keys.T`, as `earec_core.metrics.ranking` has it.

    Args:
        seen: items of each user that do not compete; the target does, whatever they are.

    Raises:
        ScoresError: a score is not a number.
    """
    queries, keys = queries.float(), keys.float()
    if not _largest(queries) * _largest(keys) * keys.shape[1] < torch.finfo(torch.float32).max:
        raise ScoresError
    width = max(_ITEMS, -(-len(keys) // _TILES))
    tiles = torch.split(keys, width)
    homes = targets // width
    ranks = torch.empty_like(targets)
    alike = torch.argsort(homes, stable=True).split_with_sizes(homes.bincount(minlength=len(tiles)).tolist())
    for home, together in enumerate(alike):
        for users in torch.split(together, _USERS) if len(together) else ():
            own = None if seen is None else [seen[user] for user in users.tolist()]
            ranks[users] = 1 + _ahead(queries[users], tiles, home, targets[users], own)
    return ranks


def _ahead(
    queries: Float[Tensor, "b d"],
    tiles: Sequence[Float[Tensor, "_ d"]],
    home: int,
    targets: Int[Tensor, " b"],
    seen: Sequence[Int[Tensor, " _"]] | None,
) -> Int[Tensor, " b"]:
    """How many items stand before the targets of some users, all of them items of the tile `home`."""
    width = len(tiles[0])
    room = queries.new_empty(len(queries), width)
    left_out = None if seen is None else _by_tile(seen, targets, width, len(tiles))

    def scores(tile: int) -> Tensor:
        made = torch.mm(queries, tiles[tile].T, out=room[:, : len(tiles[tile])])
        if left_out is not None:
            made[left_out[tile]] = -math.inf
        return made

    made, places = scores(home), targets[:, None] - home * width
    own = made.gather(1, places)
    earlier = torch.arange(made.shape[1], device=made.device) < places
    ahead = ((made > own) | ((made == own) & earlier)).sum(1)
    for tile in range(len(tiles)):
        if tile != home:
            made = scores(tile)
            # In place and as numbers: that is several times as fast as counting booleans.
            ahead += (made.ge_(own) if tile < home else made.gt_(own)).sum(1).long()
    return ahead


def _by_tile(
    seen: Sequence[Int[Tensor, " _"]], targets: Int[Tensor, " b"], width: int, tiles: int
) -> list[tuple[Int[Tensor, " _"], Int[Tensor, " _"]]]:
    """Where in the scores of each tile the items of the users' own are, but for their targets."""
    lengths = torch.tensor([len(items) for items in seen])
    users, items = torch.arange(len(seen)).repeat_interleave(lengths).to(targets.device), torch.cat([*seen])
    items = items.to(targets.device)
    kept = items != targets[users]
    order = torch.argsort(items[kept])
    users, items = users[kept][order], items[kept][order]
    ends = torch.searchsorted(items, torch.arange(1, tiles + 1, device=items.device) * width)
    sizes = torch.diff(ends, prepend=ends.new_zeros(1)).tolist()
    return [*zip(users.split_with_sizes(sizes), (items % width).split_with_sizes(sizes), strict=True)]


def _largest(values: Float[Tensor, "_ d"]) -> float:
    """The largest number without its sign; NaN if one is none."""
    return float(values.abs().max()) if values.numel() else 0.0
