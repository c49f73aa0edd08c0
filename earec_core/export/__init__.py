"""Models in the forms that other tools read."""

from earec_core.export.stage import Form, export

__all__ = ["Form", "export"]
