"""README's "Your own data", typed as it stands: on two catalogs in turn, then again with a kill in every stage."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from earec_registry import Registry
from tests.forks import Forks

ROOT = Path(__file__).parents[2]
USER = "A1B2C3"
READS = "topk"
"""Stores nothing, so it may have ended before there was anything to kill it at."""

KILLED = """
import itertools, os, signal
from earec_core.workspace import Workspace

calls = itertools.count(1)

def counted(call):
    def wrapper(*args, **options):
        if next(calls) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **options)
    return wrapper

Workspace.progress = counted(Workspace.progress)
os.replace, os.rename, os.link = map(counted, (os.replace, os.rename, os.link))
"""
"""What has a command killed before the third thing is stored or told to be done."""


def commands(catalog: str) -> list[list[str]]:
    """README's block of commands, of a catalog of this name in place of README's."""
    section = (ROOT / "README.md").read_text().partition("## Your own data\n")[2]
    lines = re.findall(r"^    (earec .*)$", section.partition("`earec search`")[0], re.MULTILINE)
    return [shlex.split(line.replace("office", catalog))[1:] for line in lines]


def write_source(folder: Path, seed: int) -> None:
    """Things with a description and a picture, and users who go around them."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    (folder / "pictures").mkdir(parents=True)
    rows = []
    for n in range(20):
        colour = rng.integers(0, 256, 3, dtype=np.uint8)
        Image.fromarray(np.broadcast_to(colour, (32, 32, 3)).copy()).save(folder / f"pictures/{n}.png")
        title = f"{['lamp', 'desk', 'pen', 'box'][n % 4]} {seed}{n}"
        rows.append(
            {"item_id": f"i{n}", "title": title, "description": f"a {title}", "image": f"pictures/{n}.png"}
        )
    (folder / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    users = [USER, *(f"u{n}" for n in range(15))]
    seen = [f"{user},i{i},{t}\n" for user in users for t, i in enumerate(rng.permutation(20)[:9])]
    (folder / "interactions.csv").write_text("user_id,item_id,timestamp\n" + "".join(seen))


@pytest.fixture(scope="module")
def eyes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a tiny vision tower."""
    import transformers as tf

    folder = tmp_path_factory.mktemp("eyes")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    tf.Dinov2Model(tf.Dinov2Config(**sizes, image_size=28, patch_size=7)).save_pretrained(folder)
    processor = tf.BitImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def place(
    tmp_path: Path, tiny_llm: Path, eyes: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[str, str]]:
    """A folder to type in, with two sources; what is set in place of the LLM, the tower and their hours."""
    for seed, name in enumerate(("amazon-office", "amazon-garden")):
        write_source(tmp_path / name, seed)
    monkeypatch.chdir(tmp_path)
    settings = {
        "EAREC_BACKBONE__MODEL": str(tiny_llm),
        "EAREC_MODALITIES__VISION__ENCODER": str(eyes),
        "EAREC_ALIGN__MAX_STEPS": "4",
        "EAREC_ALIGN__EVAL_EVERY": "2",
        "EAREC_ALIGN__BATCH_SIZE": "4",
        "EAREC_EXPLAIN__MAX_NEW_TOKENS": "3",
        "EAREC_ENCODE__SHARD_ITEMS": "4",
        "EAREC_RECOMMENDER__EPOCHS": "3",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("EAREC_HOME", str(tmp_path / "home"))
    return settings


def stored(home: Path) -> dict[str, str]:
    """Every model's id by its name."""
    return {entry.name: entry.id for entry in Registry.open(home / "registry").list().entries}


def test_the_commands_go_through_on_two_catalogs_and_a_kill_in_each_changes_nothing(
    place: dict[str, str], tmp_path: Path, forks: Forks
) -> None:
    def earec(argv: Sequence[str], home: str, before: str = "") -> subprocess.CompletedProcess[str]:
        return forks.run(argv, {**os.environ, "EAREC_HOME": str(tmp_path / home)}, before=before)

    said = []
    for catalog in ("office", "garden"):
        for argv in commands(catalog):
            done = earec(argv, "home")
            assert done.returncode == 0, (argv, done.stderr)
            said += done.stderr.splitlines()
    models = stored(tmp_path / "home")
    kinds = ("text", "vision", "behavior", "composite", "embeddings", "vectors", "recommender")
    assert set(models) == {f"{kind}/{catalog}" for kind in kinds for catalog in ("office", "garden")}

    following = dict.fromkeys(line.partition("Next: ")[2] for line in said if line.startswith("Next: "))
    assert len(following) == 16
    for line in following:
        done = earec(shlex.split(line)[1:], "home")
        assert done.returncode == 0, (line, done.stderr)

    (tmp_path / "office").rename(tmp_path / "first")
    for argv in commands("office"):
        killed = earec(argv, "other", before=KILLED)
        kind = argv[1] if argv[0] == "recommend" else argv[0]
        assert killed.returncode == -9 or (killed.returncode, kind) == (0, READS), (argv, killed.stderr)
        if killed.returncode:
            done = earec(argv, "other")
            assert done.returncode == 0, (argv, done.stderr)
    again = stored(tmp_path / "other")
    assert again == {name: id_ for name, id_ in models.items() if name.endswith("/office")}
