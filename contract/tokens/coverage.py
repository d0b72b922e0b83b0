"""Which chat templates are compiled: those made of what `compiled` knows. Any others are rendered by jinja2."""

from __future__ import annotations

from collections.abc import Iterator

from jinja2 import nodes

FILTERS = frozenset(
    (
        *("trim", "tojson", "length", "count", "list", "string", "upper", "lower", "title", "capitalize", "replace", "join"),
        *("first", "last", "default", "d", "items", "selectattr", "rejectattr", "select", "reject", "map", "int", "float"),
        *("abs", "round", "min", "max", "sum", "sort", "unique", "reverse", "dictsort", "indent"),
    )
)
"""Filters that make no Markup of what is none: a string that escapes what is added to it is not just joined."""

NODES = (
    *(nodes.Template, nodes.Output, nodes.TemplateData, nodes.For, nodes.If, nodes.Assign, nodes.AssignBlock, nodes.Macro),
    *(
        nodes.Call,
        nodes.CallBlock,
        nodes.With,
        nodes.Name,
        nodes.NSRef,
        nodes.Const,
        nodes.Tuple,
        nodes.List,
        nodes.Dict,
        nodes.Pair,
    ),
    *(nodes.Keyword, nodes.CondExpr, nodes.Filter, nodes.Test, nodes.Getattr, nodes.Getitem, nodes.Slice, nodes.Concat),
    *(nodes.Compare, nodes.Operand, nodes.Add, nodes.Sub, nodes.Mul, nodes.Div, nodes.FloorDiv, nodes.Mod, nodes.Pow),
    *(nodes.And, nodes.Or, nodes.Not, nodes.Neg, nodes.Pos, nodes.Break, nodes.Continue),
)
"""What is compiled; blocks, includes and imports, for example, are not."""

NOT_COMPILED_NAMES = frozenset(("lipsum", "self"))
"""`lipsum` makes Markup, `self` needs jinja2's Context."""


def is_covered(tree: nodes.Template) -> bool:
    """Can `compiled` be trusted with this template?"""
    for node in all_nodes(tree):
        if type(node) not in NODES:
            return False
        if isinstance(node, nodes.Filter) and not _makes_no_markup(node):
            return False
        if isinstance(node, nodes.Name) and node.name in NOT_COMPILED_NAMES:
            return False
    return True


def all_nodes(node: nodes.Node) -> Iterator[nodes.Node]:
    """`node` and all below it."""
    yield node
    for child in node.iter_child_nodes():
        yield from all_nodes(child)


def _makes_no_markup(node: nodes.Filter) -> bool:
    if node.name not in FILTERS or node.node is None or node.dyn_args is not None or node.dyn_kwargs is not None:
        return False
    if node.name != "map" or not node.args:
        return True
    named = node.args[0]
    return isinstance(named, nodes.Const) and named.value in FILTERS
