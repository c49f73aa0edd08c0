"""The documentation against the code: settings, presets, hooks, commands, layers, names, links, examples."""

from __future__ import annotations

import ast
import inspect
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import click
import pytest
from click.testing import CliRunner
from pydantic import BaseModel

from earec_core import artifacts, plugins
from earec_core.catalog import import_dataset
from earec_core.cli import cli, guide
from earec_core.cli.options import run_config
from earec_core.config import PRESETS, RecommenderConfig, RunConfig, resolve
from earec_core.errors import UsageError
from earec_core.llm.prompts import PromptBuilder
from earec_core.modality import Context, PluginConfig, create
from earec_core.plugins import State, observers
from earec_core.plugins.hooks import Hooks, Observers
from earec_core.plugins.spec import ModalitySpec
from earec_core.types import Item, Slot

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("plugins/*/README.md")])
TEXTS = [*PAGES, ROOT / "CHANGELOG.md", ROOT / "benchmarks/README.md", *ROOT.glob("examples/*/README.md")]
SECTIONS: dict[str, type[BaseModel]] = {
    name: type(field.default)
    for name, field in RunConfig.model_fields.items()
    if isinstance(field.default, BaseModel)
} | {"recommender": RecommenderConfig}


def _page(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


def _table(text: str) -> list[list[str]]:
    """Cells of the first table in a text, its head left out."""
    rows: list[list[str]] = []
    for line in text.splitlines():
        if line.startswith("|"):
            rows.append([cell.strip() for cell in line.strip("|").split("|")])
        elif rows:
            break
    return rows[2:]


def _value(cell: str) -> Any:
    text = cell.strip("`")
    value = None if text == "none" else tomllib.loads(f"v = {text}")["v"]
    return tuple(value) if isinstance(value, list) else value


@pytest.mark.parametrize("section", SECTIONS)
def test_every_setting_is_documented_with_its_default(section: str) -> None:
    after = _page("method.md").partition(f"### [{section}]\n")[2]
    documented = {row[0].strip("`"): _value(row[1]) for row in _table(after.partition("\n###")[0])}
    assert documented == {k: f.default for k, f in SECTIONS[section].model_fields.items()}


def test_presets_are_documented_where_they_differ() -> None:
    resolved = {preset: resolve(preset) for preset in PRESETS}
    table = _table(_page("method.md").partition("<!-- presets -->")[2])
    documented = {row[0].strip("`"): [_value(cell) for cell in row[1:]] for row in table}
    for key, values in documented.items():
        section, _, name = key.partition(".")
        assert values == [getattr(getattr(c, section), name) for c in resolved.values()], key
    set_by_a_preset = {f"{s}.{k}" for preset in PRESETS.values() for s, part in preset.items() for k in part}
    assert set_by_a_preset - {"prompt.system", "prompt.item"} <= set(documented)


def test_the_prompt_shown_is_the_prompt_built(tiny_llm: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_llm)
    builder = PromptBuilder(resolve("paper").prompt, tokenizer, "Office Products")
    prompt = builder.prompt(Item(0, "i", "T", relations=(3, 9)), lambda _: ["vision"], lambda _: 4)
    pieces = [
        f"<{p.modality} {p.item}>" if isinstance(p, Slot) else tokenizer.decode(list(p))
        for p in prompt.pieces
    ]
    shown = re.search(r"<!-- prompt: paper vision -->\n```text\n(.*?)\n```", _page("method.md"), re.DOTALL)
    assert shown is not None
    assert shown[1].splitlines() == pieces


def test_every_hook_and_argument_is_documented() -> None:
    table = _table("| hook |" + _page("plugins.md").partition("| hook |")[2])
    documented = {row[0].strip("`"): " ".join(row[1:]) for row in table}
    hooks = {name: hook for name, hook in vars(Hooks).items() if name.startswith("earec_")}
    assert set(documented) == set(hooks)
    for name, hook in hooks.items():
        for argument in list(inspect.signature(hook).parameters)[1:]:
            assert f"`{argument}`" in documented[name], f"{name}: {argument}"


def _implements(one: object) -> set[str]:
    """Hooks that a class implements: what pluggy's marker left on its methods."""
    return {name for name, method in vars(one).items() if hasattr(method, "earec_impl")}


def _stages() -> dict[str, click.Command]:
    """The commands that make something, each with its `--registry`, `--jsonl` and `--tensorboard`."""
    found: dict[str, click.Command] = {}
    names = ["align", "search", "compose", "explain", "encode", "reproduce", "recommend train"]
    for name in [*names, "behavior fit"]:
        command: click.Command = cli
        for word in name.split():
            assert isinstance(command, click.Group)
            below = command.get_command(click.Context(command), word)
            assert below is not None
            command = below
        found[name] = command
    return found


def _options(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """Each option of every command below one, with the command's words."""
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from _options(below, (*path, name))
        return
    for parameter in command.params:
        if not getattr(parameter, "hidden", False):
            yield from ((option, " ".join(path)) for option in parameter.opts)


def test_shared_options_are_documented_with_their_commands() -> None:
    table = _table(_page("cli.md").partition("<!-- shared options -->")[2])
    having: dict[str, set[str]] = {}
    for option, command in _options(cli):
        having.setdefault(option, set()).add(command)
    group = cli.get_command(click.Context(cli), "registry")
    assert isinstance(group, click.Group)
    for options, commands, _ in table:
        named = set(re.findall(r"`([^`]+)`", commands))
        if "registry" in named:
            # All of the group's but those that are named.
            named = (named - {"registry"}) ^ {f"registry {name}" for name in group.commands}
        for option in re.findall(r"`(--[^`]+)`", options):
            assert having[option] == named, option


def test_every_stage_that_tells_is_documented() -> None:
    table = _table(_page("plugins.md").partition("<!-- stages -->")[2])
    files = [*ROOT.glob("earec_core/**/*.py"), *ROOT.glob("plugins/*/earec_*/**/*.py")]
    # `workspace.run("encode", ...)`, or a function of the same sense that takes the workspace first.
    call = re.compile(r"(?:workspace\.run|\w+_run)\(\s*(?:(?:self\.)?workspace,\s*)?\"(\w+)\"")
    told = {word for file in files for word in call.findall(file.read_text())}
    assert {row[0].strip("`") for row in table} == told


def _is_kind(value: object) -> bool:
    return (
        isinstance(value, type) and issubclass(value, artifacts.Manifest) and value is not artifacts.Manifest
    )


def test_every_kind_is_documented_with_what_its_manifest_says() -> None:
    table = _table(_page("registry.md").partition("<!-- kinds -->")[2])
    documented = {row[0].strip("`"): set(re.findall(r"`(\w+)`", row[2])) for row in table}
    common = set(artifacts.Manifest.model_fields)
    kinds = [kind for kind in vars(artifacts).values() if _is_kind(kind)]
    said = {kind.model_fields["kind"].default: set(kind.model_fields) - common for kind in kinds}
    assert documented == said
    assert {artifacts.Manifest.model_fields["schema_version"].default} == {1}


def test_every_observer_is_documented_with_an_example(tmp_path: Path) -> None:
    page = _page("plugins.md")
    core = {name for name, one in vars(observers).items() if isinstance(one, type) and _implements(one)}
    assert {"TensorBoard", "JsonLines"} <= core
    documented = {
        row[0].strip("`"): row for row in _table("| observer |" + page.partition("| observer |")[2])
    }
    assert set(documented) == core
    for name, row in documented.items():
        option = re.search(r"--[a-z]+", row[1])
        assert option is not None
        for stage, command in _stages().items():
            known = {name for parameter in command.params for name in parameter.opts}
            assert option[0] in known, f"{stage}: {name}"
    shown = re.search(r"<!-- jsonl -->\n```json\n(.*)\n```", page)
    assert shown is not None
    example = json.loads(shown[1])
    # The line shown is the line written: the same keys in the same order, from the same arguments.
    told = observers.manager(jsonl=tmp_path / "events.jsonl")
    told.fire("earec_run_step", **{key: example[key] for key in ("stage", "run", "step", "metrics")})
    written = json.loads((tmp_path / "events.jsonl").read_text())
    assert list(written) == list(example)
    assert {**written, "time": example["time"]} == example


@pytest.mark.parametrize("name", plugins.names(plugins.MODALITY))
def test_every_setting_of_an_installed_plugin_is_documented(name: str) -> None:
    """`earec plugins show` prints the description; the plugin's README has a table row for each setting."""
    plugin = plugins.get(name)
    assert plugin.state is State.OK, plugin.cause
    fields = plugins.part(plugin, "config", PluginConfig).model_fields
    missing = [name for name, field in fields.items() if not field.description]
    assert not missing, f"without a description: {missing}"
    readme = ROOT / "plugins" / plugin.name / "README.md"
    if readme.parent.is_dir():
        table = {
            row[0].strip("`"): row for row in _table("|" + readme.read_text().partition(".KEY=VALUE`")[2])
        }
        assert set(table) == set(fields)
        assert all(row[-1] for row in table.values())


def test_every_state_field_and_variable_is_documented() -> None:
    text = _page("plugins.md")
    for name in [*State, *ModalitySpec.__dataclass_fields__]:
        assert f"| `{name}` |" in text
    read = {
        v
        for f in (ROOT / "earec_core").rglob("*.py")
        for v in re.findall(r"\bEAREC_[A-Z_]+\b", f.read_text())
    }
    for variable in read - {"EAREC_"}:
        assert f"`{variable}`" in _page("cli.md"), variable


def test_the_layers_are_those_of_the_contract() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    block = _page("architecture.md").partition("<!-- layers -->\n")[2].partition("\n\n")[0]
    assert [line.strip() for line in block.splitlines()] == contracts[0]["layers"]


def test_the_layout_is_that_of_the_tree() -> None:
    block = _page("architecture.md").partition("\n## Layout\n\n")[2].partition("\n\n")[0]
    core = block.partition("    earec_core/\n")[2].partition("\n    registry/")[0]
    entries = [re.split(r" {2,}", line.strip())[0] for line in core.splitlines()]
    named = {word.partition("/")[0].removesuffix("/") for entry in entries for word in entry.split()}
    parts = {path.name for path in (ROOT / "earec_core").iterdir()}
    assert named == {part for part in parts if not part.startswith(("_", "py.typed"))}
    outside = [line.split()[0] for line in block.splitlines() if re.match(r"    \S", line)]
    for entry in outside:
        folder, _, names = entry.rstrip("/").rpartition("/")
        assert all((ROOT / folder / name).exists() for name in names.split("|")), entry
    assert len(outside) > 8


def _module_names(text: str) -> set[str]:
    """Dotted names of this project's own packages, as prose and code name them."""
    own = "earec_core|earec_registry|" + "|".join(f"earec_{path.name}" for path in ROOT.glob("plugins/*"))
    return {name.rstrip(".") for name in re.findall(rf"(?<![\w/.])(?:{own})(?:\.[A-Za-z_]\w*)+", text)}


def _paths(text: str) -> set[str]:
    """Paths of source files from the top of the repository or of the core; those that a reader writes left out."""
    tops = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")}
    tops |= {path.name for path in (ROOT / "earec_core").iterdir() if path.is_dir()}
    found = re.findall(r"(?<![\w/.-])([\w-]+(?:/[\w.-]+)+\.(?:py|toml|sh|md|j2))\b", text)
    names = [path for path in found if path.partition("/")[0] in tops]
    return {path for path in names if not re.search(r"\bNAME\b|\bFIELD\b|price", path)}


@pytest.mark.parametrize("page", TEXTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_module_and_path_named_is_there(page: Path) -> None:
    text = page.read_text()
    for name in _module_names(text):
        try:
            resolve_name(name)
        except (ImportError, AttributeError) as error:
            pytest.fail(f"{name}: {error}")
    missing = [
        p for p in _paths(text) if not any((base / p).exists() for base in (ROOT, ROOT / "earec_core"))
    ]
    assert not missing


def test_names_and_paths_are_found() -> None:
    texts = [page.read_text() for page in TEXTS]
    assert len({name for text in texts for name in _module_names(text)}) > 50
    assert len({path for text in texts for path in _paths(text)}) > 20
    gone = "`earec_core.llm.mixture` in `llm/mixture.py`, or `earec_core.compose.Recipes`"
    assert _module_names(gone) == {"earec_core.llm.mixture", "earec_core.compose.Recipes"}
    assert _paths(gone) == {"llm/mixture.py"}


def _heading(line: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", line.lstrip("#").strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", TEXTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        if "://" in target:
            continue
        linked = (page.parent / path) if path else page
        assert linked.exists(), target
        if anchor:
            lines = linked.read_text().splitlines()
            assert anchor in {_heading(line) for line in lines if line.startswith("#")}, target


def _lines() -> Iterator[tuple[str, str, bool]]:
    """Every `earec` command of the pages: where, the line, and whether it is whole (a line of a code block)."""
    for page in PAGES:
        # A command may go on behind a backslash.
        for line in re.sub(r"\\\n\s*", "", page.read_text()).splitlines():
            code = re.match(r"(?:    |\$ )+(?:path=\$\()?(earec [^#)]+)", line)
            for one in [code[1].strip()] if code else re.findall(r"`(earec [^`]+)`", line):
                yield f"{page.relative_to(ROOT)}: {one}", one, code is not None


def _check_settings(settings: dict[str, str]) -> None:
    for name, values in run_config(None, settings).modalities.items():
        create(name, values, Context("c"))


def _parse(line: str, whole: bool) -> None:
    """Parse a command line as click does; what prose leaves out (required options, arguments) may be missing."""
    command: click.Command = cli
    words = shlex.split(line)[1:]
    context = click.Context(cli, info_name="earec")
    while isinstance(command, click.Group):
        if not words or words[0] in ("COMMAND", "NAME", "--help"):
            return
        found = command.get_command(context, words[0])
        assert found is not None, f"no command {words[0]!r}"
        command, words = found, words[1:]
    if whole:
        settings = command.make_context(command.name, list(words)).params.get("settings", {})
        _check_settings(settings)
    shown = [parameter for parameter in command.params if not getattr(parameter, "hidden", False)]
    known = {name for parameter in shown for name in parameter.opts + parameter.secondary_opts}
    for word in words:
        if re.match(r"--?[a-z]", word):
            assert word in known, f"no option {word}"


LINES = list(_lines())
WRONG_KEY = "earec align --modality text --data d --set align.speed=1"


def test_command_lines_are_found() -> None:
    used = {line.split()[1] for _, line, whole in LINES if whole}
    assert set(cli.list_commands(click.Context(cli))) <= used
    assert len(LINES) > 50


@pytest.mark.parametrize(("line", "whole"), [one[1:] for one in LINES], ids=[one[0] for one in LINES])
def test_every_command_line_parses(line: str, whole: bool) -> None:
    _parse(line, whole)


def _words(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    """Every command below one by its words."""
    if not isinstance(command, click.Group):
        yield " ".join(path), command
        return
    for name in command.list_commands(click.Context(command)):
        below = command.get_command(click.Context(command), name)
        assert below is not None
        yield from _words(below, (*path, name))


def test_every_help_ends_with_two_examples_and_fits_a_screen() -> None:
    for words, command in _words(cli):
        context = click.Context(command, info_name=f"earec {words}", terminal_width=80)
        *_, head, first, second = command.get_help(context).splitlines()
        assert head.strip() == "Examples:", words
        for line in (first, second):
            assert line.strip().startswith(f"earec {words}"), words
            _parse(line, whole=True)
        assert len(command.get_help(context).splitlines()) <= 40, words


def test_every_command_has_json() -> None:
    assert {words for words, _ in _words(cli)} == {
        words for option, words in _options(cli) if option == "--json"
    }


def test_every_option_is_in_help_all_and_those_that_are_not_rare_in_help() -> None:
    seen = 0
    for words, command in _words(cli):
        options = {
            option for parameter in command.params for option in parameter.opts if option.startswith("--")
        }
        options -= {option for one in command.params if getattr(one, "hidden", False) for option in one.opts}
        shown = {}
        for ask in ("--help", "--help-all"):
            if ask == "--help" or ask in options:
                said = CliRunner().invoke(cli, [*words.split(), ask])
                assert said.exit_code == 0, words
                shown[ask] = {
                    name
                    for name in options
                    if re.search(rf"{name}\b(?!-)", said.output.partition("Examples:")[0])
                }
        rare = guide.RARE.get(words, frozenset()) | (guide.OBSERVERS & options)
        assert rare <= options, words
        if "--help-all" in shown:
            seen += 1
            assert shown["--help-all"] == options, words
        assert options - rare <= shown["--help"], words
    assert seen >= len(guide.RARE)


@pytest.mark.parametrize(
    "wrong",
    [
        "earec alignn --data d",
        "earec align --datum d",
        "earec data imprt x",
        "earec align --data d",
        "earec compose --weights text=1 --into-base merged",
        WRONG_KEY,
    ],
)
def test_a_wrong_command_line_is_noticed(wrong: str) -> None:
    with pytest.raises((AssertionError, click.UsageError, UsageError)):
        _parse(wrong, whole=True)


@pytest.mark.parametrize("page", TEXTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_python_blocks_compile_and_import_what_is_there(page: Path) -> None:
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        for node in ast.walk(ast.parse(block, str(page))):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("earec_"):
                for alias in node.names:
                    resolve_name(f"{node.module}.{alias.name}")


def test_the_observer_example_is_a_hook(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", _page("plugins.md"), re.DOTALL)
    scope: dict[str, Any] = {}
    for block in (b for b in blocks if "hookimpl" in b or "watching" in b):
        exec(block, scope)  # noqa: S102 - our own page
    assert type(scope["watching"]) is Observers
    scope["workspace"].run("align", {}).start().step(7, {"valid_loss": 0.5})
    assert capsys.readouterr().out == "7 0.5\n"
    group = re.search(r'```toml\n\[project.entry-points."(earec.observers)"\]\n', _page("plugins.md"))
    assert group is not None
    assert group[1] == observers.OBSERVER.group


def test_the_command_example_is_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    section = _page("plugins.md").partition("\n## Entry points\n")[2].partition("\n## ")[0]
    block = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert block is not None
    scope: dict[str, Any] = {}
    exec(block[1], scope)  # noqa: S102 - our own page
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop/items.csv").write_text("item_id,title,price\na,pen,1.5\nb,desk,80\nc,gift,\n")
    import_dataset(tmp_path / "shop", tmp_path / "data")
    monkeypatch.setenv("EAREC_HOME", str(tmp_path / "home"))
    argv = ["--data", str(tmp_path / "data"), "--jsonl", str(tmp_path / "events.jsonl")]
    scope["command"].main([*argv, "--registry", str(tmp_path / "registry")], standalone_mode=False)
    assert capsys.readouterr().out == "81.50\n"
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [(event["event"], event["stage"]) for event in events] == [("start", "price"), ("end", "price")]
    assert events[1]["step"] == 3


def test_the_kind_example_finds_a_plugin_of_its_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = _page("plugins.md").partition("\n## Kinds\n")[2].partition("\n## ")[0]
    block = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert block is not None
    (tmp_path / "kit_scale_example.py").write_text(block[1] + '\nLOG = Scale("log", 0.5)\n')
    info = tmp_path / "kit_scale-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kit-scale\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[earec_price.scales]\nlog = kit_scale_example:LOG\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    owner = import_module("kit_scale_example")
    calls = re.findall(r"^\| `(.*?)` \|", section, re.MULTILINE)
    given = {call.partition("(")[0]: eval(call, vars(owner)) for call in calls}  # noqa: S307 - our own page
    assert set(given) == {"names", "load", "installed"}
    assert given["names"] == ["log"]
    assert given["load"] is owner.LOG
    assert [(plugin.kind, plugin.state) for plugin in given["installed"]] == [("scale", State.OK)]


def test_tests_that_the_reports_refer_to_are_there() -> None:
    rows = _table(_page("compatibility.md").partition("<!-- reports -->")[2])
    assert len(rows) > 30
    for *_, shown in rows:
        file, _, name = shown.strip("`").partition("::")
        assert f"def {name}(" in (ROOT / "tests" / file.removeprefix("tests/")).read_text(), shown
