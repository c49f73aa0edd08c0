"""Write the recorded numbers anew: `python -m tests.golden.record tiny smollm2`, from the repository's root.

Only do so when a number is meant to change, and say in the commit which and why.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path

# One thread each, before anything is imported that starts them: the order of a sum follows from their number.
os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")

from tests.golden import recipe

HERE = Path(__file__).parent


def main() -> None:
    """Run the recipes that are named and write a JSON file for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="+", choices=list(recipe.RECIPES))
    parser.add_argument("--out", type=Path, default=HERE, help="The folder of the JSON files.")
    home = os.environ.get("EAREC_HOME") or Path.home() / ".earec"
    parser.add_argument("--llm", type=Path, default=home, help="A home that keeps the LLM that is pulled.")
    given = parser.parse_args()
    for name in given.names:
        with tempfile.TemporaryDirectory() as folder:
            llm = Path(folder) / "llm" if name == "tiny" else given.llm.absolute()
            found = recipe.make(name, Path(folder) / "work", llm)
        write(given.out / f"{name}.json", found)


def write(file: Path, found: recipe.Numbers) -> None:
    """Write numbers as JSON with a line for each section, so that a diff says which one changed."""
    lines = [f"{json.dumps(key)}: {json.dumps(value, separators=(',', ':'))}" for key, value in found.items()]
    file.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
