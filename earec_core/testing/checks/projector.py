"""A modality's projector."""

from __future__ import annotations

from contextlib import suppress

import torch
from safetensors.torch import load_file, save_file

from earec_core.errors import DamagedInputError
from earec_core.modality import Encoded
from earec_core.testing import compare
from earec_core.testing.clauses import clause
from earec_core.testing.damage import lengthened
from earec_core.testing.kit import Kit


class Projection:
    """`build_projector` and what it gives."""

    def test_the_projector_fits_the_llm(self, ready: Kit) -> None:
        """The projector gives (b k d_llm), at least one position an item."""
        with clause("The projector must use a position of every example at least") as require:
            positions = ready.project(ready.new_projector(), ready.encoded).mask.sum(1)
            require(int(positions.min()) >= 1, "it uses none of some")

    def test_no_item_takes_more_than_its_positions(self, ready: Kit) -> None:
        """`positions()` is an integer of 1 or more that no item exceeds, however long its input."""
        with clause("positions() must give an integer of 1 or more") as require:
            positions = ready.modality.positions()
            require(type(positions) is int and positions >= 1, f"it gives {positions!r}")
        raws, projector = list(ready.raws), ready.new_projector()
        with clause("read must take an input that is longer"):
            for item in (longer for example in ready.items for longer in lengthened(example)):
                with suppress(DamagedInputError):
                    raws.append(ready.modality.read(item))
        with clause(f"An item must take at most positions() = {positions} positions") as require:
            encoded = (ready.encode([raw]) for raw in raws if raw is not None)
            most = max(int(ready.project(projector, item).mask.sum()) for item in encoded)
            require(most <= positions, f"one takes {most}")

    def test_the_mask_of_the_projector_follows_from_the_input_mask_alone(self, ready: Kit) -> None:
        """The projector's mask does not depend on values or weights: lengths are measured once."""
        h, mask = ready.encoded
        expected = ready.project(ready.new_projector(), ready.encoded).mask
        noise = torch.randn(h.shape, generator=torch.Generator().manual_seed(0))
        with clause("The projector's mask must follow from the input's mask alone") as require:
            for other in (noise, -noise, 100 * noise, torch.zeros_like(h)):
                for seed in (0, 1):
                    projected = ready.project(
                        ready.new_projector(seed), Encoded(other * mask[..., None], mask)
                    )
                    require(torch.equal(projected.mask, expected), "it changes with the values")

    def test_projection_does_not_depend_on_the_batch(self, ready: Kit) -> None:
        """An item is projected the same alone and padded in a batch."""
        projector = ready.new_projector().eval()
        batch = compare.rows(ready.project(projector, ready.encoded))
        with clause("The projector must give an item the same alone and padded in a batch") as require:
            for item, raw, row in zip(ready.items, ready.raws, batch, strict=True):
                alone = compare.rows(ready.project(projector, ready.encode([raw])))[0]
                difference = compare.difference(alone, row)
                require(not difference, f"item {item.id} differs ({difference})")

    def test_the_projector_is_drawn_from_the_global_generator(self, ready: Kit) -> None:
        """Two projectors built at one seed are the same: a run's seed fixes its result."""
        with clause("build_projector must draw from torch's global generator alone") as require:
            first, second = (ready.new_projector(7).state_dict() for _ in range(2))
            changed = compare.changed(first, second)
            require(not changed, f"at one seed {', '.join(changed)} differ")

    def test_the_projector_round_trips_through_safetensors(self, ready: Kit) -> None:
        """A projector stored as safetensors and loaded into a new one gives the same bits."""
        projector, loaded = ready.calibrated_projector(0).eval(), ready.new_projector(1).eval()
        file = ready.folder / "projector.safetensors"
        with clause("A projector loaded from its state_dict must give the same bits") as require:
            save_file({k: v.detach().contiguous() for k, v in projector.state_dict().items()}, file)
            loaded.load_state_dict(load_file(file))
            stored, again = (ready.project(p, ready.encoded) for p in (projector, loaded))
            require(
                torch.equal(stored.h[stored.mask], again.h[again.mask]),
                "it gives others: something that forward uses is not in the state_dict",
            )

    def test_calibrate_brings_the_output_to_the_size_of_words(self, ready: Kit) -> None:
        """After `calibrate(x, rms)` the output's root mean square is within a factor of 3 of rms."""
        rms = ready.backbone.embedding_rms
        with clause(f"calibrate must bring the output's rms within a factor of 3 of {rms:.3g}") as require:
            h, mask = ready.project(ready.calibrated_projector().eval(), ready.encoded)
            calibrated = float(h[mask].square().mean().sqrt())
            require(rms / 3 <= calibrated <= rms * 3, f"it is {calibrated:.3g}")
