"""What a modality declares: spec, configuration, and what it says of itself."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from contextlib import suppress

from earec_core import config as configuration
from earec_core import plugins
from earec_core.errors import EarecError, UsageError
from earec_core.modality import LoraSettings
from earec_core.testing import process
from earec_core.testing.clauses import ContractError, clause
from earec_core.testing.kit import Kit

HEAVY = ("torch", "transformers", "peft", "numpy", "polars", "pydantic")
_IMPORTED = """
import importlib, json, sys
sys.path[:] = json.loads(sys.argv[1])
before = set(sys.modules)
importlib.import_module(sys.argv[2])
print("\\n" + json.dumps(sorted(set(sys.modules) - before)))
"""
"""What importing a module imports."""
_CHANGES = """
import importlib, json, sys
sys.path[:] = json.loads(sys.argv[1])
import earec_core.catalog, earec_core.modality, transformers
from earec_core.testing import process
before = process.shared()
for module in json.loads(sys.argv[2]):
    importlib.import_module(module)
print("\\n" + json.dumps(list(process.changes(before))))
"""
"""What importing modules changes in a process that has the core and its libraries, and nothing of the plugin."""


def _spec_module(kit: Kit) -> str:
    """The module that the plugin's entry point names."""
    values = [e.value for e in plugins.entry_points(plugins.MODALITY.group) if e.name == kit.name]
    with clause("The plugin must be installed") as require:
        require(bool(values), f"no entry point is named {kit.name!r}")
    return values[0].partition(":")[0]


def _alone(code: str, argument: str, what: str) -> list[str]:
    """What code prints in a process of its own that finds the same modules."""
    arguments = [sys.executable, "-c", code, json.dumps(sys.path), argument]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, env=process.ENVIRONMENT)
    with clause(f"In a process of its own, {what} must work") as require:
        reason = (done.stderr.strip().splitlines() or ["it exited"])[-1]
        require(done.returncode == 0, f"it says {reason.rstrip('.')}")
    names: list[str] = json.loads(done.stdout.splitlines()[-1])
    return names


class Declaration:
    """The spec, the configuration, and what the modality says of itself."""

    def test_the_spec_is_valid(self, kit: Kit) -> None:
        """The spec, the configuration and the factory can be imported and are of this contract's version."""
        try:
            _ = kit.plugin, kit.config_model, kit.factory
        except EarecError as error:
            raise ContractError(str(error)) from error

    def test_importing_the_spec_is_light(self, kit: Kit) -> None:
        """Importing the spec imports no torch, transformers, peft, numpy, polars or pydantic."""
        module = _spec_module(kit)
        names = _alone(_IMPORTED, module, f"importing the spec's module {module}")
        with clause("Importing the spec must import nothing heavy: listing plugins stays fast") as require:
            heavy = sorted({name.partition(".")[0] for name in names}.intersection(HEAVY))
            require(not heavy, f"importing {module} imports {', '.join(heavy)}")

    def test_importing_leaves_the_process_alone(self, kit: Kit) -> None:
        """Importing the spec, the configuration and the factory changes nothing outside the plugin."""
        modules = [part.__module__ for part in (kit.config_model, kit.factory)]
        changed = _alone(_CHANGES, json.dumps([_spec_module(kit), *modules]), "importing the plugin")
        with clause("Importing the plugin must leave the process as it is") as require:
            require(not changed, f"it changes {', '.join(changed)}")

    def test_every_config_field_is_documented(self, kit: Kit) -> None:
        """Every field of the configuration has a description: `earec plugins show` prints it."""
        model = kit.config_model
        with clause(f"Every field of {model.__name__} must have Field(..., description=...)") as require:
            bare = [name for name, field in model.model_fields.items() if not field.description]
            require(not bare, f"{', '.join(bare)} has none")

    def test_examples_are_given(self, kit: Kit) -> None:
        """`examples(folder)` gives a configuration and at least three items to check with."""
        _ = kit.items

    def test_the_config_round_trips_through_json(self, ready: Kit) -> None:
        """A configuration stored as JSON with a model comes back equal."""
        with clause("resolved_config() must give the configuration to store"):
            configs = (ready.config, ready.modality.resolved_config())
        with clause("The configuration must come back from JSON equal") as require:
            for config in configs:
                stored = json.loads(json.dumps(config.model_dump(mode="json")))
                back = ready.config_model.model_validate(stored)
                require(back == config, f"{config!r} is {back!r}")

    def test_the_config_refuses_unknown_keys(self, ready: Kit) -> None:
        """A key that the configuration does not have is refused: a typing error must not pass unnoticed."""
        values = {**ready.config.model_dump(mode="json"), "a_key_that_is_not_there": 1}
        model = ready.config_model
        with clause(
            f"{model.__name__} must refuse unknown keys (extra='forbid', as PluginConfig)"
        ) as require:
            with suppress(UsageError):
                configuration.validate(model, values, "configuration")
                require(False, "it takes 'a_key_that_is_not_there'")

    def test_the_config_is_frozen(self, ready: Kit) -> None:
        """A configuration cannot be changed once made: what is stored with a model is what was used."""
        config = ready.config.model_copy()
        with clause(f"{type(config).__name__} must be frozen, as PluginConfig") as require:
            for name in type(config).model_fields:
                with suppress(ValueError):
                    setattr(config, name, getattr(config, name))
                    require(False, f"its field {name} can be set")

    def test_the_slot_token_is_a_word(self, ready: Kit) -> None:
        """The spec's slot token is one word in angle brackets: a prompt shows it to people."""
        with clause("slot_token must be one word in angle brackets, such as <image>") as require:
            token = ready.spec.slot_token
            require(re.fullmatch(r"<[\w-]+>", token) is not None, f"it is {token!r}")

    def test_cache_features_is_a_bool(self, ready: Kit) -> None:
        """`cache_features` is True or False, the same for two modalities of one configuration."""
        with clause("cache_features must be one bool for one configuration") as require:
            first, second = ready.modality.cache_features, ready.new_modality().cache_features
            require(type(first) is bool and first is second, f"two modalities give {first!r} and {second!r}")

    def test_the_adapter_keeps_the_seed(self, ready: Kit) -> None:
        """`adapter_config(settings)` gives valid LoraSettings of the same seed: all adapters start from one A."""
        with clause("adapter_config(settings) must keep the seed and give valid LoraSettings") as require:
            for seed in (0, 7):
                settings = LoraSettings(r=4, alpha=8, seed=seed)
                lora = ready.modality.adapter_config(settings)
                valid = isinstance(lora, LoraSettings) and LoraSettings(**lora.model_dump()) == lora
                require(valid and lora.seed == seed, f"for {settings!r} it gives {lora!r}")

    def test_sources_are_ids(self, ready: Kit) -> None:
        """`sources()` gives ids of registry artifacts, 64 hexadecimal digits each."""
        with clause("sources() must give a tuple of ids of artifacts (64 hexadecimal digits)") as require:
            sources = ready.modality.sources()
            valid = all(re.fullmatch("[0-9a-f]{64}", str(identity)) for identity in sources)
            require(isinstance(sources, tuple) and valid, f"it gives {sources!r}")

    def test_the_fingerprint_is_stable(self, ready: Kit) -> None:
        """`fingerprint()` is the same text for two modalities of one configuration: it finds cached features."""
        with clause("fingerprint() must be one text for one configuration") as require:
            first, second = ready.modality.fingerprint(), ready.new_modality().fingerprint()
            valid = isinstance(first, str) and first == second
            require(valid, f"two modalities give {first!r} and {second!r}")
