"""Stored artifacts, one module a kind: the manifest as a frozen model, how to open it, how to save it."""

from earec_core.artifacts.adapter import AdapterManifest, EngineRecord, TrainingRecord
from earec_core.artifacts.base import (
    BaseRecord,
    ChatRecord,
    DataRecord,
    Manifest,
    ModalityRecord,
    PluginRecord,
    Shapes,
    Stored,
    open_as,
    save,
)
from earec_core.artifacts.composite import CompositeManifest, MethodRecord
from earec_core.artifacts.embeddings import EmbeddingsManifest
from earec_core.artifacts.recommender import FitRecord, RecommenderManifest
from earec_core.artifacts.tables import save_table
from earec_core.artifacts.vectors import ItemVectors, VectorsManifest

__all__ = [
    "AdapterManifest",
    "BaseRecord",
    "ChatRecord",
    "CompositeManifest",
    "DataRecord",
    "EmbeddingsManifest",
    "EngineRecord",
    "FitRecord",
    "ItemVectors",
    "Manifest",
    "MethodRecord",
    "ModalityRecord",
    "PluginRecord",
    "RecommenderManifest",
    "Shapes",
    "Stored",
    "TrainingRecord",
    "VectorsManifest",
    "open_as",
    "save",
    "save_table",
]
