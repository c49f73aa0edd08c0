"""An encoder that transformers loads, for plugins: a local directory or a hub id, pinned, none of its code run."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any

from earec_core.errors import IntegrityError, UsageError
from earec_core.files import sha256

_DESCRIBING = ("config.json", "preprocessor_config.json", "processor_config.json")


def check_revision(modality: str, name: str, pinned: str | None, revision: str) -> None:
    """Refuse an encoder that is not the one a stored configuration means.

    Args:
        modality: whose setting `encoder` names it.
        pinned: the setting `revision`; None takes what is there.
        revision: the identity of what is there, `sha256:...` or a hub commit.

    Raises:
        IntegrityError: they differ.
    """
    if pinned not in (None, revision):
        raise IntegrityError(
            f"The {modality} encoder {name} is not the one that {modality}.revision={pinned} means "
            f"(it is {revision}).",
            f"Give the encoder that the model was aligned with: --set {modality}.encoder=...",
        )


class Pretrained:
    """A model that was saved by transformers, not loaded yet.

    Args:
        modality: whose setting `encoder` names it.
        name: a local directory or a hub id.
        revision: the hub commit, or the digest that the local directory must have; None takes what is there.
        builtin: the modality's own encoder, which a message offers instead.
    """

    def __init__(self, modality: str, name: str, revision: str | None, builtin: str) -> None:
        self.name = name
        self._modality, self._pinned, self._builtin = modality, revision, builtin
        self._local = Path(name).expanduser() if Path(name).expanduser().is_dir() else None

    @cached_property
    def revision(self) -> str:
        """The hub commit, or `sha256:...` over a local directory's weights and descriptions.

        Raises:
            IntegrityError: the directory is not the one that is meant.
        """
        if self._local is None:
            return str(self.load("AutoConfig")._commit_hash)
        digest = hashlib.sha256()
        for file in sorted(self._local.iterdir()):
            if file.suffix == ".safetensors" or file.name in _DESCRIBING:
                digest.update(file.name.encode() + bytes.fromhex(sha256(file)))
        revision = f"sha256:{digest.hexdigest()}"
        check_revision(self._modality, self.name, self._pinned, revision)
        return revision

    def load(self, auto: str, **options: Any) -> Any:
        """Load from here with the class `auto` of transformers (`AutoModel`, ...).

        Raises:
            UsageError: it is not there, or not what that class reads.
        """
        import transformers

        revision = None if self._local is not None else self._pinned
        try:
            return getattr(transformers, auto).from_pretrained(
                str(self._local or self.name), revision=revision or "main", trust_remote_code=False, **options
            )
        except (OSError, ValueError, ImportError) as error:
            raise UsageError(
                f"The {self._modality} encoder {self.name!r} cannot be loaded: "
                f"{str(error).strip().splitlines()[0]}",
                f"Give {self._builtin}, a directory saved by transformers, or a hub id: "
                f"--set {self._modality}.encoder=...",
            ) from error
