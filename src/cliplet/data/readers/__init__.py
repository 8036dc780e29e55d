"""Any data set to ImageText records. The format is found by looking at the data, not by its name."""

from cliplet.data.readers.detect import read_source

__all__ = ["read_source"]
