"""The conformance kit: what the contract wants of a modality, one check a clause.

    from earec_core.testing import ModalityConformance

    class TestPrice(ModalityConformance):
        modality = "price"

`earec plugins check price` and `pytest --earec-plugin price` run the same checks. A check's docstring is the
clause; its failure says what the contract wants and what was found instead.
"""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from earec_core import config as configuration
from earec_core import plugins
from earec_core.align import samples
from earec_core.align.train import response_loss
from earec_core.aligned.features import ModalityInputs
from earec_core.aligned.instructions import Instructions
from earec_core.errors import DamagedInputError, EarecError, UsageError
from earec_core.modality import Encoded, PluginConfig, content_digest
from earec_core.plugins.spec import MODALITY_GROUP
from earec_core.testing.damage import damaged
from earec_core.testing.kit import ContractError, Kit, expecting, require, said, seeded, states
from earec_core.types import Item

HEAVY = ("torch", "transformers", "peft", "numpy", "polars", "pydantic")
TOLERANCE = 1e-5
"""Largest difference of two results that must be the same but for floating-point rounding, relative to 1."""

_KITS = pytest.StashKey[dict[type, Kit]]()
_IMPORT = """
import importlib, json, sys
sys.path[:] = json.loads(sys.argv[1])
before = set(sys.modules)
importlib.import_module(sys.argv[2])
print("\\n" + json.dumps(sorted(set(sys.modules) - before)))
"""


class ModalityConformance:
    """Checks of one modality; subclass it in a test module and name the modality.

    Class attributes:
        modality: an installed modality's name; "" takes that of `--earec-plugin`.
    """

    modality: ClassVar[str] = ""

    @classmethod
    def examples(cls, folder: Path) -> tuple[PluginConfig, Sequence[Item]] | None:
        """Configuration and items to check with in place of the plugin's own (`Modality.examples`)."""
        return None

    @pytest.fixture
    def kit(self, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Kit:
        """The modality's parts, made once a class."""
        kits = request.config.stash.setdefault(_KITS, {})
        cls = type(self)
        if cls not in kits:
            name = self.modality or request.config.getoption("earec_plugin", None)
            if not name:
                pytest.fail(f"Set `modality` in {cls.__name__}, or give --earec-plugin NAME.")
            own = cls.examples.__func__ is not ModalityConformance.examples.__func__  # type: ignore[attr-defined]
            kits[cls] = Kit(name, tmp_path_factory.mktemp("earec-kit"), cls.examples if own else None)
        return kits[cls]

    @pytest.fixture
    def ready(self, kit: Kit) -> Kit:
        """The kit of a usable plugin with examples; without these there is nothing to check."""
        try:
            _ = kit.items
        except (ContractError, EarecError):
            pytest.skip("needs a usable plugin with examples")
        return kit

    # What it declares

    def test_the_spec_is_valid(self, kit: Kit) -> None:
        """The spec, the configuration and the factory can be imported and are of this contract's version."""
        try:
            _ = kit.plugin, kit.config_model, kit.factory
        except EarecError as error:
            raise ContractError(str(error)) from error

    def test_importing_the_spec_is_light(self, kit: Kit) -> None:
        """Importing the spec imports no torch, transformers, peft, numpy, polars or pydantic."""
        values = [e.value for e in plugins.entry_points(MODALITY_GROUP) if e.name == kit.name]
        require(bool(values), f"The plugin must be installed, but no entry point is named {kit.name!r}.")
        module = values[0].partition(":")[0]
        done = subprocess.run(
            [sys.executable, "-c", _IMPORT, json.dumps(sys.path), module],
            capture_output=True,
            text=True,
            check=False,
        )
        reason = (done.stderr.strip().splitlines() or ["it exited"])[-1]
        require(done.returncode == 0, f"The spec's module {module} must be importable alone, but: {reason}.")
        heavy = sorted(
            {name.partition(".")[0] for name in json.loads(done.stdout.splitlines()[-1])} & {*HEAVY}
        )
        require(
            not heavy,
            f"Importing the spec must import nothing heavy, so that listing plugins stays fast, but importing "
            f"{module} imports {', '.join(heavy)}.",
        )

    def test_every_config_field_is_documented(self, kit: Kit) -> None:
        """Every field of the configuration has a description: `earec plugins show` prints it."""
        bare = [name for name, field in kit.config_model.model_fields.items() if not field.description]
        require(
            not bare,
            f"Every field of {kit.config_model.__name__} must have a description (Field(..., "
            f"description=...)), but {', '.join(bare)} has none.",
        )

    def test_examples_are_given(self, kit: Kit) -> None:
        """`examples(folder)` gives a configuration and at least three items to check with."""
        _ = kit.items

    def test_the_config_round_trips_through_json(self, ready: Kit) -> None:
        """A configuration stored as JSON with a model comes back equal."""
        with expecting("resolved_config() must give the configuration to store"):
            configs = (ready.config, ready.modality.resolved_config())
        for config in configs:
            with expecting("The configuration must survive a round trip through JSON"):
                stored = json.loads(json.dumps(config.model_dump(mode="json")))
                back = ready.config_model.model_validate(stored)
            require(
                back == config,
                f"The configuration must come back from JSON equal, but {config!r} is {back!r}.",
            )

    def test_the_config_refuses_unknown_keys(self, ready: Kit) -> None:
        """A key that the configuration does not have is refused: a typing error must not pass unnoticed."""
        values = {**ready.config.model_dump(mode="json"), "a_key_that_is_not_there": 1}
        try:
            configuration.validate(ready.config_model, values, "configuration")
        except UsageError:
            return
        raise ContractError(
            f"{ready.config_model.__name__} must refuse unknown keys (extra='forbid', as PluginConfig), but it "
            "takes 'a_key_that_is_not_there'."
        )

    def test_the_config_is_frozen(self, ready: Kit) -> None:
        """A configuration cannot be changed once made: what is stored with a model is what was used."""
        config = ready.config.model_copy()
        for name in type(config).model_fields:
            try:
                setattr(config, name, getattr(config, name))
            except ValueError:
                continue
            raise ContractError(
                f"{type(config).__name__} must be frozen, as PluginConfig, but its field {name} can be set."
            )

    def test_the_prompt_slot_has_the_token_of_the_spec(self, ready: Kit) -> None:
        """The prompt slot has the spec's token and at least one position."""
        with expecting("prompt_slot() must give a PromptSlot"):
            slot = ready.modality.prompt_slot()
            token, positions = slot.token, slot.positions
        require(
            token == ready.spec.slot_token and type(positions) is int and positions >= 1,
            f"prompt_slot() must have the spec's token {ready.spec.slot_token} and 1 or more positions, but it "
            f"has {token!r} and {positions!r}.",
        )

    def test_sources_are_ids(self, ready: Kit) -> None:
        """`sources()` gives ids of registry artifacts, 64 hexadecimal digits each."""
        with expecting("sources() must give ids of registry artifacts"):
            sources = ready.modality.sources()
        wrong = [s for s in sources if not re.fullmatch("[0-9a-f]{64}", str(s))]
        require(
            isinstance(sources, tuple) and not wrong,
            f"sources() must give a tuple of ids (64 hexadecimal digits), but it gives {sources!r}.",
        )

    def test_the_fingerprint_is_stable(self, ready: Kit) -> None:
        """`fingerprint()` is the same text for two modalities of one configuration: it finds cached features."""
        with expecting("fingerprint() must give a text"):
            first, second = ready.modality.fingerprint(), ready.new_modality().fingerprint()
        require(
            isinstance(first, str) and first == second,
            "fingerprint() must be one text for one configuration, but two modalities give "
            f"{first!r} and {second!r}.",
        )

    # What it reads

    def test_read_gives_the_same_typed_input_every_time(self, ready: Kit) -> None:
        """`read` gives a str, bytes or numeric array, the same each time, and another for another example."""
        digests = []
        for item, first in zip(ready.items, ready.raws, strict=True):
            _check_raw(first, f"item {item.id}")
            digests.append(content_digest(first))
            require(
                digests[-1] == content_digest(ready.new_modality().read(item)),
                f"read must give the same input every time, but that of item {item.id} changes.",
            )
        require(
            len(set(digests)) == len(digests),
            "The examples' inputs must differ, or rows that mix cannot be seen, but some are the same.",
        )

    def test_read_gives_none_without_the_modality(self, ready: Kit) -> None:
        """`read` gives None for an item that lacks the modality: it is skipped, not damaged."""
        with expecting("read must give None for an item without fields and title"):
            raw = ready.modality.read(ready.bare)
        require(
            raw is None,
            f"read must give None for an item without fields and title, but it gives {raw!r:.60}.",
        )

    def test_damaged_input_is_none_or_an_error_never_a_wrong_vector(self, ready: Kit) -> None:
        """Damaged input gives None or DamagedInputError; what `read` accepts has a finite vector."""
        folder = ready.new_folder("damaged")
        projector = ready.calibrated_projector()
        for what, item in damaged(ready.items[0], folder):
            try:
                raw = ready.modality.read(item)
            except DamagedInputError:
                continue
            except Exception as error:
                raise ContractError(
                    f"read must answer damaged input with None or DamagedInputError, but {what} raises "
                    f"{said(error)}."
                ) from error
            if raw is None:
                continue
            _check_raw(raw, what)
            with expecting(f"The encoder must take whatever read accepts, such as {what}"):
                encoded = ready.encode([raw])
            h, mask = ready.project(projector, encoded)
            require(
                bool(torch.isfinite(encoded.h).all() and torch.isfinite(h[mask]).all()),
                "read must refuse what gives no finite vector (None or DamagedInputError), but "
                f"{what} gives a vector with NaN or infinity.",
            )

    def test_describe_shows_every_item(self, ready: Kit) -> None:
        """`describe` gives plain text or a `data:` image for every item, one without the modality included."""
        for item in (*ready.items, ready.bare):
            with expecting(f"describe must give text for every item, {item.id!r} included"):
                text = ready.modality.describe(item)
            require(
                isinstance(text, str),
                f"describe must give a str for every item, but for {item.id!r} a {type(text).__name__}.",
            )
            require(
                not text.startswith("data:") or _is_image(text),
                f"A data: address of describe must be a base64 image, but that of {item.id!r} is {text:.40}...",
            )

    # The encoder

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
        batch = _rows(ready.encoded)
        turned = _rows(ready.encode(ready.raws[::-1]))[::-1]
        alone = [_rows(ready.encode([raw]))[0] for raw in ready.raws]
        for how, rows in (("in a batch of another order", turned), ("alone", alone)):
            for item, one, other in zip(ready.items, batch, rows, strict=True):
                require(
                    _same(one, other),
                    f"The encoder's row i must depend on batch[i] alone, but item {item.id} is encoded "
                    f"otherwise {how} ({_difference(one, other)}).",
                )

    def test_encoding_is_deterministic(self, ready: Kit) -> None:
        """An encoder built twice, whatever torch's seed, encodes alike: it is not stored with a model."""
        again = ready.encode(ready.raws)
        rebuilt = ready.encode(ready.raws, ready.new_encoder(1))
        for how, other in (("called again", again), ("built again at another seed", rebuilt)):
            for one, two in zip(_rows(ready.encoded), _rows(other), strict=True):
                require(
                    _same(one, two),
                    f"The encoder must give the same for the same input, but {how} it differs "
                    f"({_difference(one, two)}).",
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
        before = states(encoder)
        ready.encode(ready.raws, encoder)
        changed = _differ(states(encoder), before)
        require(
            not changed,
            f"Encoding must not change the encoder's parameters or buffers, but it changes {', '.join(changed)}.",
        )

    # The projector

    def test_the_projector_fits_the_slot_and_the_llm(self, ready: Kit) -> None:
        """The projector gives (b k d_llm), k at most the slot's positions, at least one position an item."""
        projected = ready.project(ready.new_projector(), ready.encoded)
        used = projected.mask.sum(1)
        positions = ready.modality.prompt_slot().positions
        require(
            int(used.min()) >= 1 and int(used.max()) <= positions,
            f"The projector must use 1 to {positions} positions an item (prompt_slot().positions), but uses "
            f"{int(used.min())} to {int(used.max())}.",
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
        batch = _rows(ready.project(projector, ready.encoded))
        for item, raw, one in zip(ready.items, ready.raws, batch, strict=True):
            other = _rows(ready.project(projector, ready.encode([raw])))[0]
            require(
                _same(one, other),
                f"The projector must give an item the same alone and in a batch, padding left out, but item "
                f"{item.id} differs ({_difference(one, other)}).",
            )

    def test_the_projector_is_drawn_from_the_global_generator(self, ready: Kit) -> None:
        """Two projectors built at one seed are the same: a run's seed fixes its result."""
        first, second = (ready.new_projector(7).state_dict() for _ in range(2))
        differ = _differ(first, second)
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

    # The whole way

    def test_gradient_reaches_projector_and_adapter(self, ready: Kit) -> None:
        """The alignment's loss (Eq. 3) sends a gradient to every projector parameter and to the adapter."""
        backbone, items = ready.backbone, ready.items
        with seeded(0), expecting("The examples must be usable as inputs of an alignment"):
            inputs = ModalityInputs(ready.name, ready.modality, items, backbone)
            inputs.calibrate(backbone.embedding_rms)
        settings = ready.run_config
        instructions = Instructions(items, backbone, {ready.name: inputs}, settings.prompt, "examples")
        built = samples.build(instructions, ready.name, range(len(items))).samples
        require(len(built) == len(items), "Every example must make a training sample, but some do not.")
        lora = backbone.attach_lora(settings.lora)
        try:
            with expecting("The loss must send a gradient back through projector and encoder"):
                torch.autograd.backward(response_loss(instructions, built))
        finally:
            backbone.detach_lora()
        dead = [
            name
            for name, p in inputs.projector.named_parameters()
            if p.requires_grad and (p.grad is None or not torch.isfinite(p.grad).all())
        ]
        trained = [p for p in inputs.projector.parameters() if p.requires_grad]
        require(
            not dead and (not trained or any(p.grad is not None and bool(p.grad.any()) for p in trained)),
            "The loss must send a finite gradient to every parameter of the projector, but "
            f"{', '.join(dead) or 'all of them'} gets none.",
        )
        require(
            any(p.grad is not None and bool(p.grad.any()) for p in lora.values()),
            "The loss must send a gradient to the adapter (LoRA), but it gets none.",
        )

    def test_a_tiny_alignment_lowers_the_loss(self, ready: Kit) -> None:
        """Aligned on its own examples, the modality makes their titles likelier."""
        metrics = ready.alignment.metrics
        before, after = metrics["valid_loss_before"], metrics["valid_loss"]
        # The tiny LLM's logits are small: perfectly aligned, its loss falls by about half a nat.
        require(
            after < before - 0.1,
            f"An alignment of 12 passes must lower the loss on its own examples by 0.1 at least, but it goes "
            f"from {before:.3f} to {after:.3f}.",
        )

    def test_composing_one_adapter_gives_it_back(self, ready: Kit) -> None:
        """Composed alone at weight 1 the adapter gives the same item vectors."""
        from earec_core.compose import Recipe
        from earec_core.compose.stage import compose_models

        adapter = ready.alignment.id
        with expecting("The adapter must compose at weight 1"):
            composite, _ = compose_models(
                ready.registry, {ready.name: adapter}, Recipe({ready.name: 1.0}), name="kit/one"
            )
        one, other = (torch.from_numpy(ready.vectors(reference)) for reference in (adapter, composite))
        require(
            _same(one, other),
            f"Composed at weight 1, an adapter must give the same item vectors, but they differ "
            f"({_difference(one, other)}).",
        )


def _check_raw(raw: Any, what: str) -> None:
    numeric = isinstance(raw, np.ndarray) and raw.dtype.kind in "biufc"
    found = f"array of {raw.dtype}" if isinstance(raw, np.ndarray) else type(raw).__name__
    require(
        isinstance(raw, str | bytes) or numeric,
        f"read must give str, bytes or a numeric numpy array, or None, but {what} gives {found}.",
    )


def _is_image(text: str) -> bool:
    found = re.fullmatch(r"data:image/[\w.+-]+;base64,([A-Za-z0-9+/]+=*)", text)
    return found is not None and bool(base64.b64decode(found[1]))


def _differ(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> list[str]:
    """Names of the tensors that the other has not, or has otherwise."""
    return [name for name, t in one.items() if name not in other or not torch.equal(t, other[name])]


def _rows(encoded: Encoded) -> list[torch.Tensor]:
    """Each item's positions, padding left out."""
    return [h[mask] for h, mask in zip(encoded.h, encoded.mask, strict=True)]


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal but for rounding; NaN is equal to nothing."""
    if one.shape != other.shape:
        return False
    size = max(1.0, float(one.abs().max())) if one.numel() else 1.0
    return bool(((one - other).abs() <= TOLERANCE * size).all())


def _difference(one: torch.Tensor, other: torch.Tensor) -> str:
    if one.shape != other.shape:
        return f"{tuple(one.shape)} instead of {tuple(other.shape)}"
    return f"by up to {float((one - other).abs().max()):.2g}"
