"""What a command may say instead of doing its work."""

from __future__ import annotations


class UsageError(Exception):
    """One sentence for whoever typed the command; exit code 2."""
