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
import atexit, contextlib, gc, json, os, sys

import faiss, peft, rouge_score.rouge_scorer, transformers.models.llama.modeling_llama
import earec_core.align.stage, earec_core.encode.stage, earec_core.explain.stage, earec_core.recommend.stage
from earec_core.cli import main

with contextlib.redirect_stdout(sys.stderr):
    for module in sys.argv[1:]:
        __import__(module)
gc.freeze()
for line in sys.stdin:
    children = []
    for asked in json.loads(line):
        child = os.fork()
        if child:
            children.append(child)
            continue
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
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    print(json.dumps(codes), flush=True)
"""
"""A line is commands that run at once; its answer is their exit codes, negative for a signal. One thread, so that a
fork is whole."""


class Forks:
    """Processes that begin where `earec` has been imported, each with an environment and a folder of its own.

    They have one thread, so that the numbers of two are the same.

    Args:
        python: the interpreter, and with it what is installed.
        modules: what is imported beside `earec`.
    """

    def __init__(self, python: str = sys.executable, modules: Sequence[str] = ()) -> None:
        self._start = [python, "-c", _SERVER, *modules]
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
        return self.together(argv, [environment], cwd=cwd, before=before)[0]

    def together(
        self,
        argv: Sequence[str],
        environments: Sequence[Mapping[str, str]],
        *,
        cwd: Path | None = None,
        before: str = "",
    ) -> list[subprocess.CompletedProcess[str]]:
        """The same command in several processes at once, each with an environment of its own; see `run`."""
        if self._server is None:
            self._server = subprocess.Popen(
                self._start,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"},
            )
        server, asked = self._server, {"argv": list(argv), "cwd": str(cwd or Path.cwd()), "before": before}
        assert server.stdin is not None
        assert server.stdout is not None
        with tempfile.TemporaryDirectory() as folder:
            files = [
                {name: str(Path(folder) / f"{name}-{n}") for name in ("stdout", "stderr")}
                for n in range(len(environments))
            ]
            lines = [
                {**asked, "environment": dict(environment), **said}
                for environment, said in zip(environments, files, strict=True)
            ]
            server.stdin.write(json.dumps(lines) + "\n")
            server.stdin.flush()
            codes = json.loads(server.stdout.readline())
            texts = [[Path(file).read_text(errors="replace") for file in said.values()] for said in files]
        return [
            subprocess.CompletedProcess(["earec", *argv], code, *said)
            for code, said in zip(codes, texts, strict=True)
        ]

    def close(self) -> None:
        """End the process that they are forks of."""
        if self._server is not None:
            self._server.communicate()
            self._server = None
