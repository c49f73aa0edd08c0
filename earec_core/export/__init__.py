"""Models and datasets in the forms that other tools read."""

from earec_core.export.datasets import DATASETS, export_dataset
from earec_core.export.stage import Form, export

__all__ = ["DATASETS", "Form", "export", "export_dataset"]
