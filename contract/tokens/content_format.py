"""Does a chat template want a message's content as one string or as a list of parts?

vLLM looks into the template: one that loops over the content of the items of `messages` wants parts ('openai'), any other a
string. What it finds decides what the template is given, and so the tokens; hence the same walk over the same syntax tree:
`messages` may be renamed or sliced on the way ({% set turns = messages[1:] %}), filters and tests are looked through.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from jinja2 import nodes


def detect(tree: nodes.Template) -> str:
    """'openai' or 'string'."""
    return "openai" if any(_names_of_parts(tree)) else "string"


def _is_variable(node: nodes.Node, name: str) -> bool:
    return isinstance(node, nodes.Name) and node.ctx == "load" and node.name == name


def _is_attribute(node: nodes.Node, name: str, key: str) -> bool:
    if isinstance(node, nodes.Getitem):
        return _is_variable(node.node, name) and isinstance(node.arg, nodes.Const) and node.arg.value == key
    return isinstance(node, nodes.Getattr) and _is_variable(node.node, name) and node.attr == key


def _reads(node: nodes.Node | None, name: str, key: str | None = None) -> bool:
    """Is `node` the variable (or its `key`), possibly filtered, tested or sliced?"""
    while isinstance(node, (nodes.Filter, nodes.Test)) or (
        isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice)
    ):
        node = node.node
    if node is None:
        return False
    return _is_attribute(node, name, key) if key else _is_variable(node, name)


def _names_of_messages(tree: nodes.Template) -> Iterator[str]:
    """`messages` and every name that it is assigned to."""
    found = {"messages"}
    queue = deque(found)
    while queue:
        name = queue.popleft()
        yield name
        for assignment in tree.find_all(nodes.Assign):
            target = assignment.target
            if isinstance(target, nodes.Name) and target.name not in found and _reads(assignment.node, name):
                found.add(target.name)
                queue.append(target.name)


def _loop_variables(tree: nodes.Template, name: str, key: str | None = None) -> Iterator[str]:
    for loop in tree.find_all(nodes.For):
        if isinstance(loop.target, nodes.Name) and _reads(loop.iter, name, key):
            yield loop.target.name


def _names_of_parts(tree: nodes.Template) -> Iterator[str]:
    for messages in _names_of_messages(tree):
        for message in _loop_variables(tree, messages):
            yield from _loop_variables(tree, message, "content")
