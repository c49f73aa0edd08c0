"""Items as an encoder of text reads them, for recommenders that train it along."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from earec_core.aligned.words import ItemWords
from earec_core.artifacts import BaseRecord
from earec_core.catalog import Catalog
from earec_core.config import RecommenderConfig
from earec_core.llm import store
from earec_core.modality.sentences import SentenceEncoder, encoder_folder
from earec_core.workspace import Workspace

_WINDOW = 4096


@dataclass(frozen=True)
class ItemTexts:
    """The texts of a catalog's items, and the encoder that reads them.

    Attributes:
        encoder: pretrained; a model that trains it copies it first.
        tokens: token ids of each item's text, by row.
        base: what identifies the encoder.
        modalities: whose words the texts are: each plugin's configuration.
    """

    encoder: SentenceEncoder
    tokens: Sequence[Sequence[int]]
    base: BaseRecord
    modalities: Mapping[str, Mapping[str, Any]]

    @classmethod
    def open(
        cls,
        workspace: Workspace,
        catalog: Catalog,
        config: RecommenderConfig,
        names: Sequence[str],
        settings: Mapping[str, Mapping[str, Any]],
    ) -> ItemTexts:
        """The words of some modalities through the tokenizer of `recommender.encoder`.

        Args:
            names: the modalities.
            settings: each plugin's configuration by modality; others than `names` may be there.

        Raises:
            UsageError, PluginError: see `ItemWords.open`, `encoder_folder` and `SentenceEncoder.load`.
        """
        words = ItemWords.open(workspace, catalog, names, settings)
        folder = encoder_folder(config.encoder, workspace)
        encoder = SentenceEncoder.load(folder)
        coverage = Counter[str]()
        tokens = [
            ids
            for texts in words.windows(_WINDOW, coverage)
            for ids in encoder.tokens(texts, config.encoder_tokens)
        ]
        if without := coverage["none"]:
            workspace.note(
                f"{without} of {len(catalog)} items have no words; they are read as the empty text."
            )
        base = store.info(config.encoder, folder, workspace)
        return cls(encoder, tokens, base, words.resolved())

    def identity(self) -> dict[str, Any]:
        """What a result depends on, as JSON has it; how much is read of a text is the recommender's setting."""
        return {"base": self.base.model_dump(), "modalities": dict(self.modalities)}
