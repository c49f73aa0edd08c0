"""`earec` in a process of its own, without the seconds that its imports take: a fork of one that has them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

_SERVER = """
import atexit, gc, json, os, sys

import faiss, peft, rouge_score.rouge_scorer, transformers.models.llama.modeling_llama
import earec_core.align.stage, earec_core.encode.stage, earec_core.explain.stage, earec_core.recommend.stage
from earec_core.cli import main

gc.freeze()
for line in sys.stdin:
    asked = json.loads(line)
    child = os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for descriptor, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(asked[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
        os.environ.clear()
        os.environ.update(asked["environment"])
        os.chdir(asked["cwd"])
        sys.path[:0] = asked["environment"].get("PYTHONPATH", "").split(os.pathsep)
        sys.argv = ["earec", *asked["argv"]]
        exec(asked["before"])
        try:
            main()
        except SystemExit as end:
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(end.code)  # taking down what was imported takes longer than most commands
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(json.dumps(code), flush=True)
"""
"""A line is a command; its answer is the exit code, negative for a signal. One thread, so that a fork is whole."""


class Forks:
    """Processes that begin where `earec` has been imported, each with an environment and a folder of its own.

    They have one thread, so that the numbers of two are the same.
    """

    def __init__(self) -> None:
        self._server: subprocess.Popen[str] | None = None

    def run(
        self,
        argv: Sequence[str],
        environment: Mapping[str, str],
        *,
        cwd: Path | None = None,
        before: str = "",
    ) -> subprocess.CompletedProcess[str]:
        """`earec` with arguments, to its end.

        Args:
            environment: all of it; what is on its PYTHONPATH is found before the rest.
            before: what the process executes first.
        """
        if self._server is None:
            self._server = subprocess.Popen(
                [sys.executable, "-c", _SERVER],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"},
            )
        with tempfile.TemporaryDirectory() as folder:
            files = {name: str(Path(folder) / name) for name in ("stdout", "stderr")}
            asked = {"argv": list(argv), "environment": dict(environment), "cwd": str(cwd or Path.cwd())}
            server = self._server
            assert server.stdin is not None
            assert server.stdout is not None
            server.stdin.write(json.dumps({**asked, "before": before, **files}) + "\n")
            server.stdin.flush()
            code = json.loads(server.stdout.readline())
            out, err = (Path(file).read_text(errors="replace") for file in files.values())
        return subprocess.CompletedProcess(["earec", *argv], code, out, err)

    def close(self) -> None:
        """End the process that they are forks of."""
        if self._server is not None:
            self._server.communicate()
            self._server = None
