"""`earec plugins new`: a complete plugin distribution that passes the kit as it is."""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from string import Template

import earec_core
from earec_core import plugins
from earec_core.config import RunConfig
from earec_core.errors import UsageError
from earec_core.files import make_once
from earec_core.plugins.spec import API_VERSION

TEMPLATES = Path(__file__).with_name("template")
FILES: Mapping[str, str] = {
    "pyproject.toml": "pyproject.toml",
    "README.md": "README.md",
    "earec_$name/__init__.py": "__init__.py",
    "earec_$name/spec.py": "spec.py",
    "earec_$name/modality.py": "modality.py",
    "earec_$name/py.typed": "",
    "tests/test_$name.py": "test.py",
    ".github/workflows/test.yml": "test.yml",
}
"""What is written, and from which template; from none: an empty file."""


def new(name: str, into: Path) -> Path:
    """Write the distribution `earec-NAME` into a folder.

    Args:
        name: the modality's name.
        into: where the distribution's own folder goes; made if it is not there.

    Returns:
        That folder.

    Raises:
        UsageError: the name cannot be one or is taken, or the folder is there already.
    """
    _check_name(name)
    folder = into / f"earec-{name}"
    if folder.exists():
        raise UsageError(f"{folder} is there already; nothing was written.", "Choose another name or --into.")
    words = {
        "name": name,
        "Name": "".join(part.capitalize() for part in name.split("_")),
        "version": earec_core.__version__,
        "api": repr(API_VERSION),
    }

    def fill(distribution: Path) -> None:
        for target, source in FILES.items():
            file = distribution / Template(target).substitute(words)
            file.parent.mkdir(parents=True, exist_ok=True)
            text = (TEMPLATES / f"{source}.tmpl").read_text(encoding="utf-8") if source else ""
            file.write_bytes(Template(text).substitute(words).encode())

    try:
        make_once(folder, fill)
    except OSError as error:
        raise UsageError(
            f"{folder} cannot be written: {error.strerror}.", "Choose another folder: --into DIR"
        ) from error
    return folder


def _check_name(name: str) -> None:
    if not re.fullmatch("[A-Za-z][A-Za-z0-9_]*", name) or keyword.iskeyword(name):
        raise UsageError(
            f"{name!r} cannot name a modality: it becomes a part of Python names.",
            "Use letters, digits and underscores, a letter first, and no word of Python: price_history",
        )
    if name in ("item_id", "title", "recommender", *RunConfig.model_fields):
        raise UsageError(
            f"{name!r} is a column of every catalog or a section of the configuration.",
            "Choose another name.",
        )
    if name in plugins.names(plugins.MODALITY):
        raise UsageError(f"A modality {name!r} is installed already.", "Choose another name.")
    if find_spec(f"earec_{name}") is not None:
        raise UsageError(f"A package earec_{name} is installed already.", "Choose another name.")
