"""What is stored, one module a kind: the manifest as a frozen model, how to open it, how to save it."""

from earec_core.artifacts.adapter import AdapterManifest, TrainingRecord
from earec_core.artifacts.base import (
    BaseRecord,
    DataRecord,
    Manifest,
    ModalityRecord,
    PluginRecord,
    Shapes,
    Stored,
    kind_of,
    open_as,
    read,
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
    "CompositeManifest",
    "DataRecord",
    "EmbeddingsManifest",
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
    "kind_of",
    "open_as",
    "read",
    "save",
    "save_table",
]
