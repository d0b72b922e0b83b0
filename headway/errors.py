"""What a command may say instead of doing its work."""

from __future__ import annotations


class UsageError(Exception):
    """One sentence for whoever typed the command; exit code 2."""


def said(error: OSError, where: object = "") -> str:
    """The system's word on a file, in a sentence. where: the file, should the error not name it."""
    why = error.strerror or str(error)
    path = error.filename or where
    return f"{path}: {why}" if path else why
