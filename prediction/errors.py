"""What can be wrong with a model or a data set, in the words of whoever supplied it."""

from __future__ import annotations


class BundleError(ValueError):
    """Bytes or files that are not a whole model of this build."""


class DatasetError(ValueError):
    """A file or directory that holds no samples this build can read."""
