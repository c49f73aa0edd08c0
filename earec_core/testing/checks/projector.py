"""A modality's projector."""

from __future__ import annotations

from contextlib import suppress

import torch
from safetensors.torch import load_file, save_file

from earec_core.errors import DamagedInputError
from earec_core.modality import Encoded
from earec_core.testing import compare
from earec_core.testing.clauses import expecting, require
from earec_core.testing.damage import lengthened
from earec_core.testing.kit import Kit


class Projection:
    """`build_projector` and what it gives."""

    def test_the_projector_fits_the_llm(self, ready: Kit) -> None:
        """The projector gives (b k d_llm), at least one position an item."""
        used = ready.project(ready.new_projector(), ready.encoded).mask.sum(1)
        require(
            int(used.min()) >= 1,
            "The projector must use a position of every example at least, but uses none of some.",
        )

    def test_no_item_takes_more_than_its_positions(self, ready: Kit) -> None:
        """`positions()` is an integer of 1 or more that no item exceeds, however long its input."""
        with expecting("positions() must give an integer"):
            positions = ready.modality.positions()
        require(
            type(positions) is int and positions >= 1,
            f"positions() must give an integer of 1 or more, but it gives {positions!r}.",
        )
        raws, projector = list(ready.raws), ready.new_projector()
        for item in (longer for example in ready.items for longer in lengthened(example)):
            with expecting("read must take an input that is longer"), suppress(DamagedInputError):
                raws.append(ready.modality.read(item))
        used = [
            int(ready.project(projector, ready.encode([raw])).mask.sum()) for raw in raws if raw is not None
        ]
        require(
            max(used) <= positions,
            f"An item must take at most positions() = {positions} positions, but one takes {max(used)}.",
        )

    def test_the_mask_of_the_projector_follows_from_the_input_mask_alone(self, ready: Kit) -> None:
        """The projector's mask does not depend on values or weights: lengths are measured once."""
        h, mask = ready.encoded
        expected = ready.project(ready.new_projector(), ready.encoded).mask
        noise = torch.randn(h.shape, generator=torch.Generator().manual_seed(0))
        for other in (noise, -noise, 100 * noise, torch.zeros_like(h)):
            for seed in (0, 1):
                found = ready.project(ready.new_projector(seed), Encoded(other * mask[..., None], mask)).mask
                require(
                    torch.equal(found, expected),
                    "The projector's mask must follow from the input's mask alone, but it changes with the "
                    "values.",
                )

    def test_projection_does_not_depend_on_the_batch(self, ready: Kit) -> None:
        """An item is projected the same alone and padded in a batch."""
        projector = ready.new_projector().eval()
        batch = compare.rows(ready.project(projector, ready.encoded))
        for item, raw, one in zip(ready.items, ready.raws, batch, strict=True):
            other = compare.rows(ready.project(projector, ready.encode([raw])))[0]
            require(
                compare.same(one, other),
                f"The projector must give an item the same alone and in a batch, padding left out, but item "
                f"{item.id} differs ({compare.difference(one, other)}).",
            )

    def test_the_projector_is_drawn_from_the_global_generator(self, ready: Kit) -> None:
        """Two projectors built at one seed are the same: a run's seed fixes its result."""
        first, second = (ready.new_projector(7).state_dict() for _ in range(2))
        differ = compare.differ(first, second)
        require(
            not differ and first.keys() == second.keys(),
            "build_projector must draw from torch's global generator alone, but at one seed "
            f"{', '.join(differ) or 'the names'} differ.",
        )

    def test_the_projector_round_trips_through_safetensors(self, ready: Kit) -> None:
        """A projector stored as safetensors and loaded into a new one gives the same bits."""
        projector, other = ready.calibrated_projector(0).eval(), ready.new_projector(1).eval()
        file = ready.folder / "projector.safetensors"
        with expecting("The projector's state_dict must survive safetensors"):
            save_file({k: v.detach().contiguous() for k, v in projector.state_dict().items()}, file)
            other.load_state_dict(load_file(file))
        one, two = (ready.project(p, ready.encoded) for p in (projector, other))
        require(
            torch.equal(one.h[one.mask], two.h[two.mask]),
            "A projector loaded from its state_dict must give the same bits, but it gives others: something "
            "that forward uses is not in the state_dict.",
        )

    def test_calibrate_brings_the_output_to_the_size_of_words(self, ready: Kit) -> None:
        """After `calibrate(x, rms)` the output's root mean square is within a factor of 3 of rms."""
        rms = ready.backbone.embedding_rms
        h, mask = ready.project(ready.calibrated_projector().eval(), ready.encoded)
        got = float(h[mask].square().mean().sqrt())
        require(
            rms / 3 <= got <= rms * 3,
            f"calibrate must bring the projector's output to the size of the LLM's words (rms {rms:.3g}, "
            f"within a factor of 3), but it has {got:.3g}.",
        )
