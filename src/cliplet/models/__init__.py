"""The workshop's models. Importing this package imports torch."""

from cliplet.models.dual_encoder import DualEncoder

__all__ = ["DualEncoder"]
