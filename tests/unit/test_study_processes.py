"""Processes of a study end with the one that began them, also where it is killed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

SCRIPT = """
import os, sys, time
from pathlib import Path
from earec_core.studies.processes import running

def work(folder):
    (Path(folder) / str(os.getpid())).touch()
    time.sleep(60)

if __name__ == "__main__":
    with running(2) as submit:
        for _ in range(2):
            submit(work, sys.argv[1])
"""


def _alive(process: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(process, 0)
        state = Path(f"/proc/{process}/stat")
        return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_what_a_killed_process_began_ends(tmp_path: Path) -> None:
    (tmp_path / "begun").mkdir()
    (tmp_path / "script.py").write_text(SCRIPT)
    parent = subprocess.Popen([sys.executable, tmp_path / "script.py", tmp_path / "begun"])
    deadline = time.monotonic() + 60
    while len(begun := [int(file.name) for file in (tmp_path / "begun").iterdir()]) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    while any(map(_alive, begun)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
