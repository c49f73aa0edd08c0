"""The table "Where to add" of docs/architecture.md: every name in it is there, and a row more is a format more.

What else is added from outside: a modality in tests/contract/test_contract.py and tests/packaging/test_tutorial.py,
a command and a kind of plugin in tests/contract/test_plugins.py, a method in test_compose_plugins.py, a recommender
in test_recommend_models.py, an observer in test_observers.py, an engine in test_model.py; a search strategy and a
readout in tests/integration/test_where_to_add.py.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping
from configparser import ConfigParser
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import click
import polars as pl
import pytest

from earec_core.align.train import Trainer
from earec_core.catalog import Catalog, formats, import_dataset
from earec_core.catalog.formats import Format, Source, Table
from earec_core.cli import cli, run
from earec_core.cli.inspection import KINDS
from earec_core.errors import DataError
from earec_core.search.strategies import STRATEGIES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/architecture.md").read_text()
PLACEHOLDERS = ("NAME", "FIELD")


def _rows() -> list[tuple[str, str, str, str]]:
    """What is added, its file, what registers it, and what a package of its own declares."""
    lines = PAGE.partition("<!-- where to add -->\n")[2].partition("\n\n")[0].splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [(row[0], row[1], row[2], row[3].rstrip("|").strip()) for row in rows]


ROWS = _rows()
FILE = re.compile(r"`(earec_core/[\w/.]+)`")
NAME = re.compile(r"`(earec_core(?:\.\w+)+)`")


def test_the_table_is_found() -> None:
    assert len(ROWS) > 12
    assert sum(bool(FILE.search(row[1])) for row in ROWS) > 12
    assert sum(bool(NAME.search(row[2])) for row in ROWS) > 12


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_every_file_and_every_name_is_there(row: tuple[str, str, str, str]) -> None:
    _, places, registered, _ = row
    for place in FILE.findall(places) + FILE.findall(registered):
        file = ROOT / place
        if not any(word in PLACEHOLDERS for word in re.split(r"\W+", place)):
            assert file.is_file(), place
        elif file.parent.name in PLACEHOLDERS:
            assert file.parent.parent.is_dir(), place
        else:
            siblings = [path.name for path in file.parent.iterdir()]
            assert any(name.endswith(file.name.partition(".")[2]) for name in siblings), place
    for name in NAME.findall(registered):
        target = resolve_name(name)
        if f"a row of `{name}`" in registered:
            assert isinstance(target, Mapping), name
            assert target, name


@pytest.mark.parametrize(
    "place", [row[1] for row in ROWS if "subclass of" in row[1] or "methods of" in row[1]]
)
def test_every_base_is_where_the_file_finds_it(place: str) -> None:
    file = FILE.findall(place)[0]
    module = str(Path(file).parent if "NAME" in file else Path(file).with_suffix("")).replace("/", ".")
    bases = re.findall(r"`([A-Z]\w+)`", place)
    assert bases
    for base in bases:
        assert isinstance(getattr(import_module(module), base), type), base


def test_every_entry_point_group_is_in_the_table() -> None:
    assert {group for row in ROWS for group in re.findall(r"`(earec\.\w+)`", row[3])} == {
        group for group, _ in KINDS.values()
    }


def test_a_trainer_takes_an_engine() -> None:
    assert "engine" in inspect.signature(Trainer).parameters


def test_the_command_names_every_strategy() -> None:
    command = cli.get_command(click.Context(cli), "search")
    assert command is not None
    strategy = next(parameter for parameter in command.params if parameter.name == "strategy")
    assert strategy.make_metavar(click.Context(command)) == f"[{'|'.join(STRATEGIES)}]"


SHOP = """
[red pen]
id = p1
bought by = ann, bob
[blue pen]
id = p2
bought by = bob, ann
"""


def _read_ini(source: Path, _: Mapping[str, str]) -> Source:
    """A section an item, its buyers in order; an interaction's time is its place in the file."""
    shop = ConfigParser()
    shop.read(source / "shop.ini")
    items = [{"item_id": shop[title]["id"], "title": title} for title in shop.sections()]
    bought = [
        {"user_id": user.strip(), "item_id": shop[title]["id"]}
        for title in shop.sections()
        for user in shop[title]["bought by"].split(",")
    ]
    interactions = pl.DataFrame(bought).with_row_index("timestamp").cast({"timestamp": pl.Int64})
    return Source(Table(pl.DataFrame(items)), Table(interactions), None, source)


def test_a_format_is_a_row_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source/shop.ini").write_text(SHOP)
    with pytest.raises(DataError, match="no files of a known format"):
        import_dataset(tmp_path / "source", tmp_path / "before", core=1)
    row: dict[str, Any] = {
        "name": "ini",
        "detect": lambda source: (source / "shop.ini").exists(),
        "read": _read_ini,
    }
    known = Format(**{field.name: row[field.name] for field in fields(Format)})
    monkeypatch.setitem(formats.FORMATS, "ini", known)
    catalog = import_dataset(tmp_path / "source", tmp_path / "shop", core=1)
    assert [(item.id, item.title) for item in catalog.all_items()] == [("p1", "red pen"), ("p2", "blue pen")]
    sequences = catalog.sequences()
    histories = {user: sequences.of(row).tolist() for row, user in enumerate(sequences.users)}
    assert histories == {"ann": [0, 1], "bob": [0, 1]}
    argv = ["data", "import", str(tmp_path / "source"), "--out", str(tmp_path / "named"), "--core", "1"]
    assert run([*argv, "--format", "ini", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["digest"] == catalog.digest
    assert Catalog.open(tmp_path / "named").manifest["options"]["format"] == "ini"
