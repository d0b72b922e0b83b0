"""`--json` of commands that show what a process answered: the message itself, for scripts."""

from __future__ import annotations

import argparse
from typing import Any

from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message


def add_json_argument(parser: argparse.ArgumentParser, default: Any = False) -> None:
    """default: argparse.SUPPRESS for an action below a parser that has the flag, too."""
    parser.add_argument("--json", action="store_true", default=default, help="as JSON, with every field")


def print_message(message: Message) -> None:
    """Field names as in `proto/`; 64-bit numbers are strings, as protobuf writes them in JSON; decision ids are decimal."""
    print(MessageToJson(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True))
