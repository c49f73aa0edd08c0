"""Methods of composition that distributions bring by the entry-point group `earec.methods`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from earec_core import plugins
from earec_core.cli import run
from earec_core.compose import METHODS, Recipe, compose, get_method, method_names
from earec_core.compose.methods import METHOD
from earec_core.errors import PluginError, UsageError
from earec_core.plugins import State

GOOD = """
import numpy as np
from earec_core.compose import Factors, Method

def heaviest(parts):
    part = max(parts, key=lambda part: part.weight)
    return Factors(part.a, part.b, part.scale)

def mean(parts, density):
    changes = [part.scale * part.b.astype(np.float64) @ part.a for part in parts]
    return density * sum(changes) / len(changes)

METHOD = Method("heaviest", "the heaviest adapter alone", "equal", False, heaviest)
MEAN = Method("mean", "density times the plain mean", "dense", False, mean, {"density": 1.0})
"""
FAULTS = """
import numpy as np
from earec_core.compose import Factors, Method

def raises(parts):
    raise KeyError("no such part")

def flat(parts):
    return Factors(parts[0].a[0], parts[0].b)

def dense(parts):
    return np.zeros((2, 2))

def text(parts):
    return "text"

def short(parts):
    return Factors(parts[0].a, parts[0].b)

RAISES = Method("raises", "", "sum", False, raises)
FLAT = Method("flat", "", "equal", False, flat)
DENSE = Method("dense", "", "dense", False, dense)
TEXT = Method("text", "", "sum", False, text)
SHORT = Method("short", "", "sum", False, short)
"""


class Site:
    """A folder of installed distributions."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def add(self, distribution: str, points: dict[str, str], module: str, source: str) -> None:
        info = self.folder / f"{distribution.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        lines = [f"{name} = {module}:{attribute}\n" for name, attribute in points.items()]
        (info / "entry_points.txt").write_text("[earec.methods]\n" + "".join(lines))
        (self.folder / f"{module}.py").write_text(source)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    found = Site(tmp_path / "site")
    monkeypatch.syspath_prepend(str(found.folder))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield found
    for name in [name for name in sys.modules if name.startswith("kit_")]:
        sys.modules.pop(name)


@pytest.fixture
def adapters(tmp_path: Path) -> dict[str, Path]:
    paths = {}
    for seed, name in enumerate(("a", "b")):
        generator = np.random.default_rng(seed)
        paths[name] = tmp_path / name
        paths[name].mkdir()
        shapes = {"A": (2, 5), "B": (4, 2)}
        tensors = {
            f"base_model.model.layer.lora_{x}.weight": generator.normal(size=s).astype(np.float32)
            for x, s in shapes.items()
        }
        save_file(tensors, paths[name] / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["layer"]}
        (paths[name] / "adapter_config.json").write_text(json.dumps(config))
    return paths


WEIGHTS = {"a": 0.25, "b": 0.75}


def change(path: Path) -> Any:
    tensors = load_file(path / "adapter_model.safetensors")
    a, b = (tensors[f"base_model.model.layer.lora_{x}.weight"].astype(np.float64) for x in "AB")
    return b @ a


def test_a_plugins_method_is_listed_by_name_and_composes(
    site: Site, adapters: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site.add("earec-heaviest", {"heaviest": "METHOD", "mean": "MEAN"}, "kit_good", GOOD)
    site.add("earec-halts", {"halts": "METHOD"}, "kit_halts", "raise RuntimeError('no luck')")
    assert method_names() == [*METHODS, "halts", "heaviest", "mean"]
    compose(adapters, Recipe(WEIGHTS), tmp_path / "delta")
    with pytest.raises(UsageError, match=r"no composition method 'mode'\. Choose .*dare, halts, heaviest"):
        get_method("mode")
    assert not {"kit_good", "kit_halts"} & set(sys.modules)
    report = compose(adapters, Recipe(WEIGHTS, method="heaviest"), tmp_path / "heaviest")
    assert "kit_halts" not in sys.modules
    np.testing.assert_array_equal(change(tmp_path / "heaviest"), change(adapters["b"]))
    assert report.method == "heaviest"
    report = compose(adapters, Recipe(WEIGHTS, method="mean", density=0.5), tmp_path / "mean")
    wanted = (change(adapters["a"]) + change(adapters["b"])) / 4
    np.testing.assert_allclose(change(tmp_path / "mean"), wanted, atol=1e-6)
    assert report.options == {"density": 0.5}
    assert run(["plugins", "show", "heaviest"]) == 0
    assert "method" in capsys.readouterr().out


BROKEN = {
    # name: source, state, a word of its cause
    "raises": ("raise RuntimeError('no luck')", State.IMPORT_ERROR, "RuntimeError: no luck"),
    "gone": ("import a_library_not_here", State.MISSING_DEPENDENCY, "a_library_not_here"),
    "untyped": ("METHOD = print", State.INVALID_SPEC, "builtin_function_or_method, not a Method"),
    "renamed": (GOOD, State.INVALID_SPEC, "the method 'heaviest', not a Method named 'renamed'"),
    "unranked": (
        "from earec_core.compose import Method\nMETHOD = Method('unranked', '', 'half', True, sum)",
        State.IMPORT_ERROR,
        "rank is 'half'",
    ),
    "delta": (GOOD, State.DUPLICATE_NAME, "that of earec itself"),
}


def test_a_broken_one_is_a_state_and_is_refused_only_when_asked_for(
    site: Site,
    adapters: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, (source, _, _) in BROKEN.items():
        site.add(f"earec-{name}", {name: "METHOD"}, f"kit_{name}", source)
    for module in ("kit_twice1", "kit_twice2"):
        site.add(f"earec-{module}", {"twice": "METHOD"}, module, GOOD)
    site.add("earec-off", {"off": "METHOD"}, "kit_off", GOOD)
    monkeypatch.setenv("EAREC_DISABLE_PLUGINS", "off")
    compose(
        adapters, Recipe(WEIGHTS), tmp_path / "delta"
    )  # the core's own, whatever a plugin of its name says

    assert run(["plugins", "list", "--json"]) == 0
    listed = {
        (row["kind"], row["name"]): row
        for row in json.loads(capsys.readouterr().out)
        if row["kind"] == "method"
    }
    expected = {name: (state, said) for name, (_, state, said) in BROKEN.items()}
    expected |= {"twice": (State.DUPLICATE_NAME, "kit_twice2"), "off": (State.DISABLED, "EAREC_DISABLE")}
    assert {name for _, name in listed} == set(expected)
    for name, (state, said) in expected.items():
        row = listed["method", name]
        assert (row["state"], row["fix"] is not None) == (str(state), True)
        assert said in row["cause"]
        if name == "delta":
            continue
        with pytest.raises(PluginError, match=rf"The method '{name}' is unusable \({state}\)") as caught:
            compose(adapters, Recipe(WEIGHTS, method=name), tmp_path / "never")
        assert said in str(caught.value)
        assert caught.value.exit_code == 3
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("raises", r"'raises' failed in layer \(KeyError: 'no such part'\)"),
        ("flat", "'flat' gave shapes"),
        ("dense", r"'dense' gave shapes \[\(2, 2\)\] for layer, not \[\(4, 5\)\]"),
        ("text", "'text' gave shapes"),
        ("short", r"'short' gave shapes \[\(2, 5\), \(4, 2\)\] for layer, not \[\(4, 5\), \(4, 4\)\]"),
    ],
)
def test_one_that_fails_at_work_is_named(
    name: str, message: str, site: Site, adapters: dict[str, Path], tmp_path: Path
) -> None:
    points = {one: one.upper() for one in ("raises", "flat", "dense", "text", "short")}
    site.add("earec-faults", points, "kit_faults", FAULTS)
    with pytest.raises(PluginError, match=message):
        compose(adapters, Recipe(WEIGHTS, method=name), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_strict_raises_what_the_plugin_raised(
    site: Site, adapters: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.add("earec-faults", {"raises": "RAISES"}, "kit_faults", FAULTS)
    site.add("earec-halts", {"halts": "METHOD"}, "kit_halts", "raise RuntimeError('no luck')")
    monkeypatch.setenv("EAREC_STRICT_PLUGINS", "1")
    with pytest.raises(KeyError, match="no such part"):
        compose(adapters, Recipe(WEIGHTS, method="raises"), tmp_path / "out")
    with pytest.raises(RuntimeError, match="no luck"):
        plugins.load(METHOD, "halts")
