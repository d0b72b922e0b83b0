"""Which models a form names, for callers who may not use them all. Pure.

Routing takes the first name that it finds; an engine reads the whole form, and of two fields of a name the last. So where a
key's models are at stake every line that could name a field is read, wherever it stands, in all the spellings that engines
know: a form that names its model in another way than once is not read as it may be by others.
"""

from __future__ import annotations

import re
from email.message import Message

FIELDS_MAX = 256
"""Forms of engines have ten."""

_DISPOSITION = re.compile(rb"^content-disposition[ \t]*:([^\r\n]*)", re.IGNORECASE | re.MULTILINE)
_FIELD = "model"


def names_once(body: bytes, model: str) -> bool:
    """Whether this is the model, and no other, that any reader of the form finds in it. model: as routing found it, "": not."""
    count = 0
    for number, found in enumerate(_DISPOSITION.finditer(body)):
        if number >= FIELDS_MAX:
            return False
        count += _name(found[1].decode("utf-8", "replace")).strip().lower() == _FIELD
    return count == bool(model)


def _name(disposition: str) -> str:
    """As the parser of engines (python-multipart) reads it, with the same library."""
    message = Message()
    message["content-disposition"] = disposition
    name = message.get_param("name", header="content-disposition")
    return name[-1] if isinstance(name, tuple) else str(name)
