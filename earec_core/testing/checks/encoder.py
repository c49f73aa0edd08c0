"""A modality's encoder."""

from __future__ import annotations

import torch

from earec_core.testing import compare
from earec_core.testing.clauses import require
from earec_core.testing.kit import Kit


class Encoding:
    """`build_encoder` and what it gives."""

    def test_the_encoder_gives_finite_values_of_the_stated_shape(self, ready: Kit) -> None:
        """The encoder gives finite h (b t d_enc) and a bool mask (b t), at least one position an item."""
        h, mask = ready.encoded
        require(
            bool(torch.isfinite(h).all() and mask.any(1).all()),
            "The encoder must give every example at least one position and finite values, but it does not.",
        )

    def test_padding_holds_zeros(self, ready: Kit) -> None:
        """Where the encoder's mask is False, h is zero."""
        h, mask = ready.encoded
        require(
            bool((h[~mask] == 0).all()),
            "Positions where the encoder's mask is False must hold zeros (see earec_core.modality.pad), but "
            f"some hold up to {h[~mask].abs().max() if (~mask).any() else 0:.3g}.",
        )

    def test_row_i_depends_on_input_i_alone(self, ready: Kit) -> None:
        """An item is encoded the same alone, in a batch and in a batch of another order."""
        batch = compare.rows(ready.encoded)
        turned = compare.rows(ready.encode(ready.raws[::-1]))[::-1]
        alone = [compare.rows(ready.encode([raw]))[0] for raw in ready.raws]
        for how, rows in (("in a batch of another order", turned), ("alone", alone)):
            for item, one, other in zip(ready.items, batch, rows, strict=True):
                require(
                    compare.same(one, other),
                    f"The encoder's row i must depend on batch[i] alone, but item {item.id} is encoded "
                    f"otherwise {how} ({compare.difference(one, other)}).",
                )

    def test_encoding_is_deterministic(self, ready: Kit) -> None:
        """An encoder built twice, whatever torch's seed, encodes alike: it is not stored with a model."""
        again = ready.encode(ready.raws)
        rebuilt = ready.encode(ready.raws, ready.new_encoder(1))
        for how, other in (("called again", again), ("built again at another seed", rebuilt)):
            for one, two in zip(compare.rows(ready.encoded), compare.rows(other), strict=True):
                require(
                    compare.same(one, two),
                    f"The encoder must give the same for the same input, but {how} it differs "
                    f"({compare.difference(one, two)}).",
                )

    def test_the_encoder_is_frozen(self, ready: Kit) -> None:
        """The encoder has no trainable parameter, is in evaluation mode, and encoding changes nothing in it."""
        encoder = ready.new_encoder(0)
        trainable = [name for name, p in encoder.named_parameters() if p.requires_grad]
        require(
            not trainable,
            f"build_encoder must give a frozen encoder (requires_grad_(False)), but {len(trainable)} parameters "
            f"train, {', '.join(trainable[:1])} first.",
        )
        require(
            not any(module.training for module in encoder.modules()),
            "build_encoder must give an encoder in evaluation mode (.eval()), but it is in training mode.",
        )
        before = compare.states(encoder)
        ready.encode(ready.raws, encoder)
        changed = compare.differ(compare.states(encoder), before)
        require(
            not changed,
            f"Encoding must not change the encoder's parameters or buffers, but it changes {', '.join(changed)}.",
        )
