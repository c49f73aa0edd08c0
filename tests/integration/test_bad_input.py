"""Bad input: one sentence with the next step, the documented exit code, nothing stored lost."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest

from earec_core.cli import run
from earec_registry import Registry

from .conftest import Pipeline


def _said(capsys: pytest.CaptureFixture[str]) -> str:
    said = capsys.readouterr()
    assert said.out == ""
    last = said.err.strip().splitlines()[-1]
    assert last.startswith("Error: ")
    assert last.endswith((".", ")", "/", "'")) or "earec " in last or "--" in last
    assert "Traceback" not in said.err
    return last


# Named, since other tests align text too.
TEXT = ("--adapter", "text=text/things")


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (["compose", "--weights", "text=0.5,behavior=0.6", *TEXT], 2, "--normalize"),
        (["compose", "--weights", "text=half,behavior=0.5"], 2, "not a number"),
        (["compose", "--weights", "text"], 2, "KEY=VALUE"),
        (["compose", "--weights", "text=1", *TEXT, "--name", "Mine!"], 2, "lower-case"),
        (["compose", "--weights", "text=0.5,text=0.5"], 2, "twice"),
        (["compose", "--weights", "text=0.5,smell=0.5", *TEXT], 2, "smell"),
        (["compose", "--weights", "text=1", "--method", "magic", *TEXT], 2, "magic"),
        (["compose", "--weights", "text=1", "--adapter", "text=behavior/things"], 2, "aligned for behavior"),
        (["registry", "show", "nothing"], 2, "nothing"),
    ],
)
def test_wrong_compositions(
    in_home: Pipeline, capsys: pytest.CaptureFixture[str], argv: list[str], code: int, said: str
) -> None:
    before = Registry.open(in_home.registry).list()
    assert in_home.run(*argv) == code
    assert said in _said(capsys)
    assert Registry.open(in_home.registry).list() == before


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (["align", "--modality", "smell"], 3, "earec plugins list"),
        (["align", "--modality", "text", "--set", "align.speed=3"], 2, "align.speed"),
        (["align", "--modality", "text", "--set", "text.colour=3"], 2, "colour"),
        (
            ["align", "--modality", "text", "--set", "text.fields=['colour']"],
            2,
            "item_id, title, description",
        ),
        (["align", "--modality", "text", "--set", "backbone.device=cuda:7"], 2, "no device 'cuda:7' here"),
        (["align", "--modality", "text", "--set", "backbone.device=tape"], 2, "no device 'tape' here"),
        (
            ["align", "--modality", "text", "--set", "text.template='{nothing}'"],
            2,
            "No item of things has both",
        ),
        (["align", "--modality", "text", "--from", "behavior/things"], 2, "no text adapter"),
        (["align", "--modality", "text", "--backbone", "no-such"], 2, "no backbone"),
        (["align", "--modality", "behavior", "--set", "behavior.embeddings=nowhere"], 2, "nowhere"),
        (["explain", "text/things", "--modalities", "behavior"], 2, "not aligned for behavior"),
        (["explain", "embeddings/things"], 2, "not an adapter"),
        (["encode", "nothing"], 2, "nothing"),
        (["recommend", "train"], 2, "--vectors"),
        (["recommend", "train", "--vectors", "text/things"], 2, "not a table of item vectors"),
        (["recommend", "train", "--ids", "--set", "recommender.dim=-1"], 2, "dim"),
        (["recommend", "train", "--ids", "--set", "dim=8"], 2, "Write recommender.dim."),
        (["align", "--modality", "text", "--set", "align.seed=3"], 2, "run.seed"),
        (["align", "--modality", "text", "--set", "algin.lr=3"], 2, "algin"),
        (["recommend", "evaluate", "text/things"], 2, "not a recommender"),
    ],
)
def test_wrong_requests_on_a_dataset(
    in_home: Pipeline, capsys: pytest.CaptureFixture[str], argv: list[str], code: int, said: str
) -> None:
    needs_llm = argv[0] in ("align", "explain", "encode") and "--backbone" not in argv
    llm = ["--backbone", str(in_home.llm)] if needs_llm else []
    assert in_home.run(*argv, "--data", str(in_home.data), *llm) == code
    assert said in _said(capsys)


def test_another_backbone_is_refused_by_name(
    in_home: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from earec_core.testing import tiny_backbone

    name = in_home.llm.name
    for folder, called in (("other", "other"), (name, "another of that name")):
        other = tiny_backbone(tmp_path / folder, seed=9)
        assert in_home.run("encode", "composite", "--data", str(in_home.data), "--backbone", str(other)) == 4
        said = _said(capsys)
        assert f"was aligned on {name} (" in said
        assert f"this backbone is {called} (" in said
        assert "Give --backbone the directory that it was aligned on." in said


@pytest.mark.parametrize(
    "argv",
    [
        ["align", "--modality", "text"],
        ["encode", "composite"],
        ["recommend", "train", "--ids"],
        ["behavior", "fit"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize(("name", "said"), [("Mine!", "lower-case"), ("text/things/latest/x", "taken")])
def test_a_name_is_refused_before_the_work(
    in_home: Pipeline,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    argv: list[str],
    name: str,
    said: str,
) -> None:
    from earec_core.llm.backbone import Backbone
    from earec_core.recommend import stage

    monkeypatch.setattr(Backbone, "load", lambda *_: pytest.fail("it loads the backbone"))
    monkeypatch.setattr(stage, "train", lambda *_, **__: pytest.fail("it trains"))
    assert in_home.run(*argv, "--data", str(in_home.data), "--name", name) == 2
    assert said in _said(capsys)


@pytest.mark.parametrize(
    "argv",
    [
        ["explain", "composite", "--out"],
        ["explain", "composite", "--report"],
        ["reproduce", "--table", "4", "--modalities", "text", "--out"],
        ["search", "grid", "--modalities", "text", *TEXT, "--report"],
        ["search", "grid", "--modalities", "text", *TEXT, "--out"],
    ],
    ids=lambda argv: argv[0],
)
@pytest.mark.parametrize(("file", "said"), [("none/page", "does not exist"), (".", "is a directory")])
def test_a_file_that_cannot_be_written_is_refused_before_the_work(
    in_home: Pipeline,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    argv: list[str],
    file: str,
    said: str,
) -> None:
    from earec_core.llm.backbone import Backbone

    monkeypatch.setattr(Backbone, "load", lambda *_: pytest.fail("it loads the backbone"))
    assert in_home.run(*argv, str(tmp_path / file), "--data", str(in_home.data)) == 2
    assert said in _said(capsys)


def test_adapters_of_different_backbones_do_not_compose(
    in_home: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from earec_core.testing import tiny_backbone

    other = tiny_backbone(tmp_path / "other", seed=9)
    argv = ["align", "--modality", "text", "--data", str(in_home.data), "--name", "text/other"]
    assert in_home.run(*argv, *in_home.settings(align__max_steps=1), "--backbone", str(other)) == 0
    capsys.readouterr()
    mixed = [
        "compose",
        "--weights",
        "text=0.5,behavior=0.5",
        "--adapter",
        "text=text/other",
        "--name",
        "mixed",
    ]
    assert in_home.run(*mixed) == 2
    assert "--allow-mismatch base" in _said(capsys)


@pytest.mark.parametrize(
    ("flag", "key", "value", "stored"),
    [
        ("anchor", "anchor", '["description"]', ["description"]),
        ("template", "relations", "With {related}.", "With {related}."),
    ],
)
def test_adapters_that_differ_compose_only_when_told(
    in_home: Pipeline, capsys: pytest.CaptureFixture[str], flag: str, key: str, value: str, stored: Any
) -> None:
    name = f"text/other-{flag}"
    argv = ["align", "--modality", "text", "--data", str(in_home.data), "--name", name]
    assert in_home.run(*argv, *in_home.settings(align__max_steps=1, **{f"prompt__{key}": value})) == 0
    capsys.readouterr()
    mixed = ["compose", "--weights", "text=0.5,behavior=0.5", "--adapter", f"text={name}"]
    mixed += ["--adapter", "behavior=behavior/things", "--name", "mixed"]
    assert in_home.run(*mixed) == 2
    said = _said(capsys)
    assert f"--allow-mismatch {flag}" in said
    assert f"prompt.{key}" in said
    assert in_home.run(*mixed, "--allow-mismatch", flag) == 0
    overridden = Registry.open(in_home.registry).manifest("mixed").data["overridden"]
    behavior = Registry.open(in_home.registry).manifest("behavior/things").data["prompt"][key]
    assert overridden == {flag: {f"prompt.{key}": {"text": stored, "behavior": behavior}}}


def test_a_damaged_adapter_is_never_handed_out(in_home: Pipeline, capsys: pytest.CaptureFixture[str]) -> None:
    adapters = ["--adapter", "text=text/things", "--adapter", "behavior=behavior/things"]
    weights = ["--weights", "text=0.83,behavior=0.17"]  # no other test's: a view of it would be whole
    assert in_home.run("compose", *weights, *adapters, "--name", "to-damage") == 0
    registry = Registry.open(in_home.registry)
    manifest = registry.manifest("to-damage")
    entry = manifest.files["adapter_model.safetensors"]
    blob = next(in_home.registry.glob(f"blobs/sha256/{entry.sha256}"))
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.chmod(0o644)
    blob.write_bytes(content)
    argv = ["encode", "to-damage", "--data", str(in_home.data), "--backbone", str(in_home.llm)]
    assert in_home.run(*argv) == 4
    assert "damaged" in capsys.readouterr().err.lower()
    assert in_home.run("registry", "verify") == 4
    content[-1] ^= 1
    blob.write_bytes(content)
    blob.chmod(0o444)
    assert in_home.run("registry", "verify") == 0


def test_a_full_disk_is_one_sentence(
    in_home: Pipeline, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from earec_core.train import checkpoint

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/somewhere")

    monkeypatch.setattr(checkpoint, "save_file", full)
    settings = in_home.settings(run__seed=77)
    assert in_home.run("align", "--modality", "text", "--data", str(in_home.data), *settings) == 1
    assert "The disk is full" in _said(capsys)


def test_items_with_damaged_pictures_lose_them_and_are_named(
    tmp_path: Path, tiny_llm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    source = tmp_path / "source"
    source.mkdir()
    with (source / "items.jsonl").open("w") as out:
        for n in range(30):
            Image.new("RGB", (40, 40), (8 * n, 0, 0)).save(source / f"{n}.png")
            out.write(json.dumps({"item_id": str(n), "title": f"t{n}", "image": f"{n}.png"}) + "\n")
    (source / "3.png").write_bytes(b"not a picture")
    assert run(["data", "import", str(source), "--out", str(tmp_path / "data")]) == 0
    argv = ["align", "--modality", "vision", "--data", str(tmp_path / "data"), "--backbone", str(tiny_llm)]
    settings = ["--set", "align.max_steps=1", "--set", "align.rouge_items=0", "--set", "lora.r=2"]
    capsys.readouterr()
    assert run([*argv, *settings, "--registry", str(tmp_path / "r"), "--json"]) == 0
    said = capsys.readouterr()
    assert "Item 3 loses its vision" in said.err
    assert json.loads(said.out)["items"]["damaged"] == 1


def _errors_of_the_system() -> dict[str, Exception]:
    from safetensors import SafetensorError

    return {
        "full": OSError(errno.ENOSPC, "No space left on device", "/somewhere"),
        "full, of safetensors": SafetensorError("I/O error: No space left on device (os error 28)"),
        "quota, of anybody": RuntimeError("Disk quota exceeded (os error 122)"),
        "read-only": OSError(errno.EROFS, "Read-only file system", "/somewhere"),
        "not allowed": PermissionError(errno.EACCES, "Permission denied", "/somewhere"),
        "read-only, of safetensors": SafetensorError("I/O error: Read-only file system (os error 30)"),
        "cut short": SafetensorError("Error while deserializing header: incomplete metadata"),
    }


@pytest.mark.parametrize("error", _errors_of_the_system())
def test_what_the_file_system_refuses_is_one_sentence(
    in_home: Pipeline, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: str
) -> None:
    from earec_core.train import checkpoint

    def refused(*_: Any, **__: Any) -> None:
        raise _errors_of_the_system()[error]

    monkeypatch.setattr(checkpoint, "save_file", refused)
    settings = in_home.settings(run__seed=78, align__max_steps=2)
    assert in_home.run("align", "--modality", "text", "--data", str(in_home.data), *settings) == 1
    said = _said(capsys)
    if error.startswith(("full", "quota")):
        assert "The disk is full" in said
    else:
        assert "could not be read or written" in said


@pytest.mark.parametrize("harm", ["flip", "remove"])
def test_aligning_again_mends_a_damaged_adapter(
    in_home: Pipeline, capsys: pytest.CaptureFixture[str], harm: str
) -> None:
    argv = ["align", "--modality", "text", "--data", str(in_home.data), "--name", f"text/mended-{harm}"]
    argv += in_home.settings(run__seed={"flip": 5, "remove": 6}[harm], align__max_steps=1)
    assert in_home.run(*argv) == 0
    registry = Registry.open(in_home.registry)
    manifest = registry.manifest(f"text/mended-{harm}")
    blob = registry.root / "blobs/sha256" / manifest.files["adapter_model.safetensors"].sha256
    whole = blob.read_bytes()
    blob.chmod(0o644)
    if harm == "flip":
        blob.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    else:
        blob.unlink()
    capsys.readouterr()
    assert in_home.run(*argv) == 0
    assert "is not whole; aligning again" in capsys.readouterr().err
    assert blob.read_bytes() == whole
    assert registry.verify().ok
    assert registry.resolve(f"text/mended-{harm}") == manifest.id
    assert in_home.run(*argv) == 0
    assert "Already aligned" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "damaged"),
    [
        (["compose", "--weights", "text=0.5,behavior=0.5"], "text/things"),
        (["compose", "--weights", "text=0.5,behavior=0.5"], "embeddings/things"),
        (["encode", "text/things"], "text/things"),
        (["encode", "behavior/things"], "embeddings/things"),
        (["recommend", "train", "--vectors", "vectors/parents"], "vectors/parents"),
        (["align", "--modality", "text", "--from", "text/things"], "text/things"),
        (["align", "--modality", "behavior", "--name", "behavior/other"], "embeddings/things"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value[:2]),
)
def test_a_parent_that_lacks_a_file_is_refused_before_the_work(
    in_home: Pipeline,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    argv: list[str],
    damaged: str,
) -> None:
    from earec_core.compose import stage as compose_stage
    from earec_core.encode import stage as encode_stage
    from earec_core.recommend import stage as recommend_stage

    registry = Registry.open(in_home.registry)
    data = [] if argv[0] == "compose" else ["--data", str(in_home.data)]
    llm = in_home.settings(run__seed=3) if argv[0] in ("align", "encode") else []
    if damaged.startswith("vectors"):
        encoded = ["encode", "text/things", "--name", damaged, *data, "--backbone", str(in_home.llm)]
        assert in_home.run(*encoded) == 0
    adapters = ["--adapter", "text=text/things", "--adapter", "behavior=behavior/things"]
    argv = [*argv, *(adapters if argv[0] == "compose" else [])]
    registry.materialize(damaged)
    entry = max(registry.manifest(damaged).files.values(), key=lambda file: file.size)
    blob = registry.root / "blobs/sha256" / entry.sha256
    aside = in_home.folder / "aside"
    blob.rename(aside)
    before = registry.list()
    for stage, work in [
        (compose_stage, "compose"),
        (encode_stage, "_write_table"),
        (recommend_stage, "train"),
    ]:
        monkeypatch.setattr(stage, work, lambda *_, **__: pytest.fail("it works"))
    monkeypatch.setattr("earec_core.align.job.Trainer", lambda *_, **__: pytest.fail("it trains"))
    try:
        capsys.readouterr()
        assert in_home.run(*argv, *data, *llm) == 4
        assert "is not whole" in _said(capsys)
        assert registry.list() == before
    finally:
        aside.rename(blob)
