"""`earec encode --engine ray` on a local cluster: the vectors of one process, also where a worker is killed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from earec_core.artifacts import ItemVectors
from earec_core.catalog import import_dataset
from earec_core.config import resolve
from earec_core.encode import encode, engines
from earec_core.encode.on_ray import Order, Worker, _window
from earec_core.encode.stage import opened
from earec_core.errors import MissingDependencyError, UsageError
from earec_core.workspace import Workspace

from .conftest import Pipeline

KILLED = """
import os, signal, sys
from pathlib import Path
from earec_core.cli import main
from earec_core.encode import on_ray

once = Path(sys.argv.pop(1))

class Killed(on_ray.Worker):
    def __call__(self, row):
        from earec_core.encode.store import VectorStore
        write = VectorStore.write
        def die(*arguments):
            write(*arguments)
            if row["start"] == 40 and not once.exists():
                once.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        VectorStore.write = die
        try:
            return super().__call__(row)
        finally:
            VectorStore.write = write

on_ray.Worker, on_ray._LEAST, on_ray._EACH = Killed, 40, 8
main()
"""


def test_a_killed_worker_costs_no_vector_and_no_place(in_home: Pipeline, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    source = tmp_path / "source"
    source.mkdir()
    rows = [f"i{n},Item {n},{'word ' * (n % 7)}{n * 37 % 100}" for n in range(300)]
    (source / "items.csv").write_text("\n".join(["item_id,title,description", *rows]))
    catalog = import_dataset(source, tmp_path / "data")
    program, once = tmp_path / "killed.py", tmp_path / "once"
    program.write_text(KILLED)
    encoding = ["encode", "text/things", "--data", str(catalog.path), "--registry", str(in_home.registry)]
    settings = in_home.settings(encode__shard_items=10, encode__batch_tokens=512)
    on_ray = ["--name", "vectors/ray", "--engine", "ray", "--workers", "2"]
    done = subprocess.run(
        [sys.executable, str(program), str(once), *encoding, *settings, *on_ray],
        capture_output=True,
        text=True,
        env={**os.environ, "EAREC_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert once.exists()
    own = Workspace.open(tmp_path / "own", in_home.registry)
    found = ItemVectors.open(own.registry, "vectors/ray", catalog)
    assert done.stdout == f"{found.id}\n"
    flags = {"backbone.model": str(in_home.llm), "backbone.dtype": "float32", "text.max_tokens": 20}
    config = resolve(flags={**flags, "prompt.request": "Say it."})
    alone = encode(own, catalog, "text/things", config, name="vectors/alone")
    np.testing.assert_allclose(found.vectors, alone.vectors, atol=1e-4)
    assert found.manifest == alone.manifest


def test_a_worker_that_would_make_other_vectors_says_so(in_home: Pipeline, tmp_path: Path) -> None:
    flags = {"backbone.model": str(in_home.llm), "backbone.dtype": "float32"}
    workspace, config = Workspace.open(tmp_path, in_home.registry), resolve(flags=flags)
    order = Order.of(opened(workspace, in_home.catalog, "text/things", config, names=None))
    rows = {"start": 0, "stop": 3}
    assert len(_window(Worker(order)(rows)).keys) == 3
    other = resolve(flags={**flags, "backbone.dtype": "bfloat16"})
    worker = Worker(Order(order.home, order.registry, order.data, order.model, None, other, order.key))
    with pytest.raises(UsageError, match="would make other vectors: it computes in bfloat16"):
        _window(worker(rows))


def test_an_engine_that_is_not_there_is_refused_before_any_work(
    in_home: Pipeline, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*options: str) -> tuple[int, str]:
        code = in_home.run("encode", "text/things", "--data", str(in_home.folder / "not there"), *options)
        return code, capsys.readouterr().err

    assert refused("--engine", "spark")[0] == 2
    code, said = refused("--workers", "3")
    assert code == 2
    assert "works in one process" in said
    monkeypatch.setattr(engines, "find_spec", lambda _: None)
    code, said = refused("--engine", "ray")
    assert code == MissingDependencyError.exit_code
    assert "pip install 'earec[ray]'" in said
