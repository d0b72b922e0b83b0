"""Kinds of values on the command line, for argparse: what is none of the kind is one line and exit code 2."""

from __future__ import annotations

import argparse
from pathlib import Path


def positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def whole(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def new_file(text: str) -> Path:
    """A file to write at the end of a long run: found out now that it cannot be."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a directory")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text}: there is no directory {path.parent}")
    return path


def new_svg(text: str) -> Path:
    """The same of a picture: whoever names it .png shall not find SVG in it."""
    path = new_file(text)
    if path.suffix != ".svg":
        raise argparse.ArgumentTypeError(f"{text}: it will be an SVG: name it .svg")
    return path
