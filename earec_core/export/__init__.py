"""Models, item vectors and datasets in the forms that other tools read."""

from earec_core.export.datasets import DATASETS, export_dataset
from earec_core.export.stage import Form, export
from earec_core.export.vectors import ExportedVectors, check_vectors_file, export_vectors

__all__ = [
    "DATASETS",
    "ExportedVectors",
    "Form",
    "check_vectors_file",
    "export",
    "export_dataset",
    "export_vectors",
]
