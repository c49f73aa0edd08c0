"""What items say in words, for an encoder of text that is no LLM."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from earec_core import plugins
from earec_core.aligned.blame import guarded
from earec_core.aligned.build import context
from earec_core.catalog import Catalog
from earec_core.errors import UsageError
from earec_core.modality import Modality, create
from earec_core.workspace import Workspace


@dataclass(frozen=True)
class ItemWords:
    """A catalog's items as the words that some modalities have of them (`Modality.words`).

    Attributes:
        catalog: whose items.
        modalities: by name, in the order of their slots.
    """

    catalog: Catalog
    modalities: Mapping[str, Modality[Any]]

    @classmethod
    def open(
        cls,
        workspace: Workspace,
        catalog: Catalog,
        names: Sequence[str],
        settings: Mapping[str, Mapping[str, Any]],
    ) -> ItemWords:
        """Those of installed modalities.

        Args:
            settings: each plugin's configuration by modality; others than `names` may be there.

        Raises:
            UsageError: no modality is named.
            PluginError, UsageError: see `create`.
        """
        if not names:
            raise UsageError("Whose words are to be read is not known.", "Name modalities: --modalities NAME")
        specs = sorted(
            (spec for name in names if (spec := plugins.get(name).spec)), key=lambda s: (s.order, s.name)
        )
        where = context(workspace, catalog)
        made = {s.name: create(s.name, settings.get(s.name, {}), where) for s in specs}
        return cls(catalog, {name: guarded(name, modality) for name, modality in made.items()})

    def windows(self, size: int, coverage: Counter[str]) -> Iterator[list[str]]:
        """The words of all items, so many items at a time; of several modalities one behind the other.

        Args:
            coverage: how many items have words in each modality, and in `none`, is added to it.

        Raises:
            UsageError: at the end, where no item has any.
        """
        total = len(self.catalog)
        coverage.update(dict.fromkeys((*self.modalities, "none"), 0))
        for start in range(0, total, size):
            texts = []
            for item in self.catalog.items_at(range(start, min(start + size, total))):
                said = {name: modality.words(item) for name, modality in self.modalities.items()}
                having = [name for name, words in said.items() if words]
                coverage.update(having or ["none"])
                texts.append(" ".join(said[name] for name in having))
            yield texts
        if coverage["none"] == total:
            raise UsageError(
                f"No item of {self.catalog.name} has words in {', '.join(self.modalities)}.",
                "Name a modality of text, and fields that the catalog has.",
            )

    def resolved(self) -> dict[str, dict[str, Any]]:
        """Each plugin's configuration with every name made exact, as JSON has it."""
        return {
            name: modality.resolved_config().model_dump(mode="json")
            for name, modality in self.modalities.items()
        }

    def code(self) -> dict[str, str]:
        """Digest of each plugin's source files."""
        return {name: plugins.code_digest(type(modality)) for name, modality in self.modalities.items()}
