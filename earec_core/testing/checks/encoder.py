"""A modality's encoder."""

from __future__ import annotations

import torch

from earec_core.testing import compare, process
from earec_core.testing.clauses import clause
from earec_core.testing.kit import Kit


class Encoding:
    """`build_encoder` and what it gives."""

    def test_the_encoder_gives_finite_values_of_the_stated_shape(self, ready: Kit) -> None:
        """The encoder gives finite h (b t d_enc) and a bool mask (b t), at least one position an item."""
        with clause("The encoder must give every example at least one position and finite values") as require:
            h, mask = ready.encoded
            require(bool(torch.isfinite(h).all() and mask.any(1).all()), "it does not")

    def test_padding_holds_zeros(self, ready: Kit) -> None:
        """Where the encoder's mask is False, h is zero."""
        with clause("Padding must hold zeros where the mask is False (earec_core.modality.pad)") as require:
            h, mask = ready.encoded
            largest = h[~mask].abs().max().item() if (~mask).any() else 0.0
            require(largest == 0, f"some hold up to {largest:.3g}")

    def test_row_i_depends_on_input_i_alone(self, ready: Kit) -> None:
        """An item is encoded the same alone, in a batch and in a batch of another order."""
        batch = compare.rows(ready.encoded)
        reordered = compare.rows(ready.encode(ready.raws[::-1]))[::-1]
        alone = [compare.rows(ready.encode([raw]))[0] for raw in ready.raws]
        with clause("The encoder's row i must depend on batch[i] alone") as require:
            for how, rows in (("in a batch of another order", reordered), ("alone", alone)):
                for item, row, expected in zip(ready.items, rows, batch, strict=True):
                    difference = compare.difference(row, expected)
                    require(not difference, f"item {item.id} is encoded otherwise {how} ({difference})")

    def test_encoding_is_deterministic(self, ready: Kit) -> None:
        """An encoder built twice, whatever torch's seed, encodes alike: it is not stored with a model."""
        again = ready.encode(ready.raws)
        rebuilt = ready.encode(ready.raws, ready.new_encoder(1))
        with clause("The encoder must give the same for the same input") as require:
            for how, encoded in (("called again", again), ("built again at another seed", rebuilt)):
                for row, expected in zip(compare.rows(encoded), compare.rows(ready.encoded), strict=True):
                    difference = compare.difference(row, expected)
                    require(not difference, f"{how} it differs ({difference})")

    def test_the_encoder_is_frozen(self, ready: Kit) -> None:
        """The encoder has no trainable parameter, is in evaluation mode, and encoding changes nothing in it."""
        encoder = ready.new_encoder(0)
        trainable = [name for name, p in encoder.named_parameters() if p.requires_grad]
        with clause("build_encoder must give a frozen encoder (requires_grad_(False))") as require:
            require(not trainable, f"{len(trainable)} parameters train, {', '.join(trainable[:1])} first")
        with clause("build_encoder must give an encoder in evaluation mode (.eval())") as require:
            require(not any(module.training for module in encoder.modules()), "it is in training mode")
        with clause("Encoding must not change the encoder's parameters or buffers") as require:
            before = compare.states(encoder)
            ready.encode(ready.raws, encoder)
            changed = compare.changed(before, compare.states(encoder))
            require(not changed, f"it changes {', '.join(changed)}")

    def test_the_process_is_left_alone(self, ready: Kit) -> None:
        """Reading, encoding and projecting change nothing outside the plugin, nor its configuration."""
        modality, encoder, projector = ready.new_modality(), ready.new_encoder(0), ready.new_projector()
        items = list(ready.items)
        contract = (
            "read, describe, the encoder and the projector must leave process and configuration as they are"
        )
        with clause(contract) as require:
            before, config = process.shared(), modality.config.model_dump_json()
            raws = [modality.read(item) for item in items]
            _ = [modality.describe(item) for item in items]
            with torch.no_grad():
                projector(encoder(raws))
            changed = list(process.changes(before))
            if modality.config.model_dump_json() != config:
                changed.append("the configuration")
            require(not changed, f"they change {', '.join(changed[:5])}")
