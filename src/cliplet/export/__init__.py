"""A model as graphs that run without PyTorch: exported, made small, and held against the model at every step."""

from cliplet.export.run import Data, ExportOptions, export

__all__ = ["Data", "ExportOptions", "export"]
