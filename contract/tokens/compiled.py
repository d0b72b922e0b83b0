"""A chat template as one plain Python function: what jinja2 makes of it, without what chats do not need.

jinja2 compiles a template to Python already; what it executes is general: every `message['role']` is a call into the sandbox,
every name a call into a Context, every piece of text a step of a generator. Here its own code generator, with its rules for
scopes, loops and macros, writes shorter code for what chat templates are made of, and leaves the rest as it is:

    message['role']            a subscript; the sandbox, too, tries that first and lets whatever it yields pass
    message.tool_calls         the same in a dict, where the name is none of dict's own attributes
    'a' + x + 'b' + y          the pieces, joined at the end: either way it fails unless all are strings
    x.strip(), m.get('k')      methods named in METHODS, called on str and dict themselves; any others in the sandbox
    loop.first, loop.index0    a counter, where nothing else of `loop` is used
    what is not there          one constant Undefined: what would tell two apart is the error it raises

Why the text is exactly jinja2's: a function either returns it, or raises, and then jinja2 renders the same conversation again,
from the beginning. So the code above need not know how jinja2 fails, only that it fails wherever jinja2 does, and rendering
has no effects that a second time would double. A template with a node, filter or global that is not listed here is not
compiled at all. Tests compare both on generated conversations, over templates in the style of well-known models'.

Why nothing escapes the sandbox: an attribute is looked up directly only in a namespace, under a name without an underscore,
and a method is called directly only by a name in METHODS on an object that is exactly a str or a dict; every other attribute
and call goes through the sandbox, as before. Subscripts reach what they reach in the sandbox, which does not restrict them.
"""
# ruff: noqa: N802 (methods are named for jinja2's nodes)

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from keyword import iskeyword
from types import CodeType
from typing import Any

from jinja2 import nodes, runtime
from jinja2.compiler import CodeGenerator, Frame, find_undeclared
from jinja2.environment import Environment
from jinja2.idtracking import VAR_LOAD_PARAMETER, VAR_LOAD_RESOLVE

from contract.tokens.coverage import all_nodes, is_covered

Render = Callable[[Mapping[str, Any]], str]
"""The template's variables to its text. Whatever it raises: render with jinja2."""

STR_METHODS = frozenset(
    (
        *("strip", "lstrip", "rstrip", "split", "rsplit", "splitlines", "startswith", "endswith", "replace", "upper", "lower"),
        *("title", "capitalize", "find", "rfind", "count", "join", "partition", "rpartition", "removeprefix", "removesuffix"),
    )
)
DICT_METHODS = frozenset(("get", "items", "keys", "values"))
METHODS = STR_METHODS | DICT_METHODS
"""Called directly, on exactly these types: the sandbox allows them. Not `format`, which it wraps."""

ALWAYS_THERE = frozenset(("role", "content"))
"""Keys that every message has: where one is missing after all, jinja2 renders."""

_DICT_ATTRIBUTES = frozenset(dir(dict))
_BUFFER = "out"


def compiled(environment: Environment, tree: nodes.Template) -> Render | None:
    """The template as a function; None: it has something in it that is left to jinja2.

    environment: the one that parsed it, with autoescape off; its globals are read now.
    """
    if not is_covered(tree):
        return None
    try:
        code = _code(environment, tree)
    except Exception:  # a tree that jinja2's own code takes and this does not
        return None
    nothing = environment.undefined()
    namespace: dict[str, Any] = {name: getattr(runtime, name) for name in runtime.exported}
    namespace.update(
        environment=environment,
        context=runtime.new_context(environment, None, {}),
        undefined=environment.undefined,
        concat="".join,
        nothing=nothing,
        cond_expr_undefined=lambda _: nothing,
        partial=partial,
        known=dict(environment.globals),
        space=environment.globals["namespace"],
        made=lambda _, space, *args, **attributes: space(*args, **attributes),
    )
    exec(code, namespace)  # as jinja2 does, of the same tree
    render: Render = namespace["make"]()
    return render


def _code(environment: Environment, tree: nodes.Template) -> CodeType:
    generator = _Generator(environment, None, None, optimized=True)
    generator.visit(tree)
    return compile(generator.code(), "<chat template>", "exec")


def _is_plain(name: str) -> bool:
    """Is it the same name in Python (which normalises others: a wide underscore becomes a plain one), and harmless?"""
    return name.isascii() and not name.startswith("_") and not iskeyword(name) and name not in _DICT_ATTRIBUTES


def _is_text(node: nodes.Node) -> bool:
    return isinstance(node, nodes.Const) and type(node.value) is str


def _pieces(node: nodes.Expr) -> list[nodes.Expr] | None:
    """The operands of a sum that is a string or fails; None: it may be something else."""
    leaves = list(_leaves(node))
    return leaves if len(leaves) > 1 and any(map(_is_text, leaves)) else None


def _leaves(node: nodes.Expr) -> Iterator[nodes.Expr]:
    if isinstance(node, nodes.Add):
        yield from _leaves(node.left)
        yield from _leaves(node.right)
    else:
        yield node


class _Generator(CodeGenerator):
    """jinja2's, with shorter code for the nodes below. Writes `make`, which returns the root function."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._counted: dict[str, tuple[str, str]] = {}  # what a loop's variable is called -> its counter, its list

    def code(self) -> str:
        """What was written."""
        text: str = self.stream.getvalue()  # type: ignore[attr-defined]  # a StringIO, none was given
        return text

    def visit_Template(self, node: nodes.Template, frame: Frame | None = None) -> None:
        """`make`: filters and tests are looked up once; then the root function."""
        frame = Frame(nodes.EvalContext(self.environment, self.name))
        frame.symbols.analyze_node(node)
        frame.buffer = _BUFFER
        self.writeline("def make():")
        self.indent()
        self.pull_dependencies(node.body)
        self.writeline("def root(given):")
        self.indent()
        self.writeline("resolve = given.get")
        self.writeline(f"{_BUFFER} = []")
        self.enter_frame(frame)
        self.blockvisit(node.body, frame)
        self.writeline(f"return concat({_BUFFER})")
        self.outdent()
        self.writeline("return root")
        self.outdent()

    def enter_frame(self, frame: Frame) -> None:
        """Names come from what is given, then from the globals."""
        loads = frame.symbols.loads
        for target, (action, name) in loads.items():
            if action == VAR_LOAD_RESOLVE:
                value = f"known[{name!r}]" if name in self.environment.globals else "missing"
                self.writeline(f"{target} = resolve({name!r}, {value})")
        frame.symbols.loads = {name: load for name, load in loads.items() if load[0] != VAR_LOAD_RESOLVE}
        super().enter_frame(frame)
        frame.symbols.loads = loads

    def pop_assign_tracking(self, frame: Frame) -> None:
        """Nobody reads a template's variables from outside."""
        self._assign_stack.pop()

    def visit_Output(self, node: nodes.Output, frame: Frame) -> None:
        """Pieces of text, neighbouring constants as one, at the end of the buffer."""
        pieces: list[str | tuple[nodes.Expr, bool]] = []
        for child in node.nodes:
            self._gather(child, pieces)
        if not pieces:
            return
        self.newline(node)
        several = len(pieces) > 1
        self.write(f"{frame.buffer} += (" if several else f"{frame.buffer}.append(")
        for piece in pieces:
            if isinstance(piece, str):
                self.write(repr(piece))
            else:
                self.write("(" if piece[1] else "str(")
                self.visit(piece[0], frame)
                self.write(")")
            self.write(", " if several else "")
        self.write(")")

    def _gather(self, node: nodes.Expr, pieces: list[str | tuple[nodes.Expr, bool]], *, is_text: bool = False) -> None:
        """is_text: whatever `node` is, it must be a string, and what joins the pieces says so."""
        if isinstance(node, (nodes.TemplateData, nodes.Const)):
            value = node.data if isinstance(node, nodes.TemplateData) else node.value
            if is_text and type(value) is not str:
                pieces.append((node, True))
            elif pieces and isinstance(pieces[-1], str):
                pieces[-1] += str(value)
            else:
                pieces.append(str(value))
        elif isinstance(node, nodes.Concat):
            for child in node.nodes:
                self._gather(child, pieces)
        elif (summands := _pieces(node)) is not None:
            for child in summands:
                self._gather(child, pieces, is_text=True)
        else:
            pieces.append((node, is_text))

    def visit_Name(self, node: nodes.Name, frame: Frame) -> None:
        """One Undefined for all."""
        ref = frame.symbols.ref(node.name)
        if node.ctx == "load" and self._may_be_missing(ref, frame):
            self.write(f"(nothing if {ref} is missing else {ref})")
        else:
            self.write(ref)

    def _may_be_missing(self, ref: str, frame: Frame) -> bool:
        load = frame.symbols.find_load(ref)
        return load is None or load[0] != VAR_LOAD_PARAMETER or self.parameter_is_undeclared(ref)

    def visit_Getattr(self, node: nodes.Getattr, frame: Frame) -> None:
        """`m.key`: the key of a dict, an entry of a namespace, a property of a counted loop; else the sandbox's way."""
        if isinstance(node.node, nodes.Name) and node.node.name == "loop":
            counted = self._counted.get(frame.symbols.ref("loop"))
            if counted is not None:
                self.write(COUNTED[node.attr].format(at=counted[0], all=counted[1]))
                return
        if not _is_plain(node.attr):
            super().visit_Getattr(node, frame)
            return
        it, key = self.temporary_identifier(), repr(node.attr)
        self.write(f"(({it}[{key}] if {key} in {it} else nothing) if type({it} := ")
        self.visit(node.node, frame)
        self.write(f") is dict else {it}.{node.attr} if type({it}) is space else environment.getattr({it}, {key}))")

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:
        """A subscript. A key that need not be there is looked for first: failing costs a second rendering."""
        if isinstance(node.arg, nodes.Slice):
            super().visit_Getitem(node, frame)
            return
        key = node.arg.value if isinstance(node.arg, nodes.Const) else None
        if not isinstance(key, str) or key in ALWAYS_THERE:
            self.visit(node.node, frame)
            self.write("[")
            self.visit(node.arg, frame)
            self.write("]")
        elif key in _DICT_ATTRIBUTES:
            super().visit_Getitem(node, frame)
        else:
            it = self.temporary_identifier()
            self.write(f"(({it}[{key!r}] if {key!r} in {it} else nothing) if type({it} := ")
            self.visit(node.node, frame)
            self.write(f") is dict else environment.getitem({it}, {key!r}))")

    def visit_Call(self, node: nodes.Call, frame: Frame, forward_caller: bool = False) -> None:
        """`text.strip()`: directly on a str, `message.get(...)` on a dict; else the sandbox's way."""
        of = node.node
        named = node.kwargs or node.dyn_args is not None or node.dyn_kwargs is not None or forward_caller
        if named or not isinstance(of, nodes.Getattr) or of.attr not in METHODS:
            self._visit_call(node, frame, forward_caller)
            return
        it, kind = self.temporary_identifier(), "str" if of.attr in STR_METHODS else "dict"
        self.write(f"({it}.{of.attr} if type({it} := ")
        self.visit(of.node, frame)
        self.write(f") is {kind} else partial(environment.call, context, environment.getattr({it}, {of.attr!r})))(")
        for argument in node.args:
            self.visit(argument, frame)
            self.write(", ")
        self.write(")")

    def _visit_call(self, node: nodes.Call, frame: Frame, forward_caller: bool) -> None:
        """In the sandbox, without the variables of loops: no function here reads them. A namespace is made directly."""
        of = node.node
        if isinstance(of, nodes.Name) and of.name == "namespace":
            self.write(f"(made if {frame.symbols.ref(of.name)} is space else environment.call)(context, ")
        else:
            self.write("environment.call(context, ")
        self.visit(node.node, frame)
        self.signature(node, frame, {"caller": "caller"} if forward_caller else None)
        self.write(")")

    def visit_Test(self, node: nodes.Test, frame: Frame) -> None:
        """The commonest tests, inline."""
        form = TESTS.get(node.name)
        if form is None or node.args:
            super().visit_Test(node, frame)
            return
        self.write(form[0])
        self.visit(node.node, frame)
        self.write(form[1])

    def visit_Filter(self, node: nodes.Filter, frame: Frame) -> None:
        """`trim` of a str, inline."""
        if node.name != "trim" or node.args or node.kwargs or node.node is None:
            super().visit_Filter(node, frame)
            return
        it = self.temporary_identifier()
        self.write(f"({it}.strip() if type({it} := ")
        self.visit(node.node, frame)
        self.write(f") is str else {self.filters['trim']}({it}))")

    def visit_For(self, node: nodes.For, frame: Frame) -> None:
        """A loop with a counter in place of `loop`, or none where `loop` is not used."""
        if node.recursive or node.test is not None:
            super().visit_For(node, frame)
            return
        wants_loop = "loop" in find_undeclared(node.iter_child_nodes(only=("body",)), ("loop",))
        if wants_loop and not _is_counted(node.body):
            super().visit_For(node, frame)
            return
        inner, otherwise = frame.inner(), frame.inner()
        inner.loop_frame = True
        loop = inner.symbols.declare_parameter("loop") if wants_loop else None
        inner.symbols.analyze_node(node, for_branch="body")
        ran = self._before_else(node, otherwise)
        at, all_ = self.temporary_identifier(), self.temporary_identifier()
        if loop is not None:
            self._counted[loop] = (at, all_)
            self.writeline(f"{all_} = ", node)
            self.visit(node.iter, frame)
            self.writeline(f"if type({all_}) is not list: {all_} = list({all_})")
            self.writeline(f"for {at}, ")
            self.visit(node.target, inner)
            self.write(f" in enumerate({all_}):")
        else:
            self.writeline("for ", node)
            self.visit(node.target, inner)
            self.write(" in ")
            self.visit(node.iter, frame)
            self.write(":")
        self.indent()
        self.enter_frame(inner)
        self.blockvisit(node.body, inner)
        if ran:
            self.writeline(f"{ran} = True")
        self.outdent()
        self.leave_frame(inner)
        if loop is not None:
            del self._counted[loop]
        if ran:
            self.writeline(f"if not {ran}:")
            self.indent()
            self.enter_frame(otherwise)
            self.blockvisit(node.else_, otherwise)
            self.leave_frame(otherwise)
            self.outdent()

    def _before_else(self, node: nodes.For, otherwise: Frame) -> str:
        """The name of what says that a loop ran; "": nothing asks."""
        if not node.else_:
            return ""
        otherwise.symbols.analyze_node(node, for_branch="else")
        ran = self.temporary_identifier()
        self.writeline(f"{ran} = False")
        return ran


COUNTED = {
    "index0": "{at}",
    "index": "({at} + 1)",
    "first": "({at} == 0)",
    "last": "({at} + 1 == len({all}))",
    "length": "len({all})",
    "revindex": "(len({all}) - {at})",
    "revindex0": "(len({all}) - {at} - 1)",
    "previtem": "({all}[{at} - 1] if {at} else nothing)",
    "nextitem": "({all}[{at} + 1] if {at} + 1 < len({all}) else nothing)",
}
"""Properties of `loop` in terms of a counter and the list of all items."""

TESTS = {
    "none": ("(", " is None)"),
    "string": ("isinstance(", ", str)"),
    "defined": ("(not isinstance(", ", Undefined))"),
    "undefined": ("isinstance(", ", Undefined)"),
}
"""Tests and the expressions that they are, around what is tested."""


def _is_counted(body: Sequence[nodes.Node]) -> bool:
    """Is every `loop` in there read for a property in COUNTED?"""
    names = properties = 0
    for part in body:
        for node in all_nodes(part):
            if isinstance(node, (nodes.Macro, nodes.CallBlock)):
                return False
            names += isinstance(node, nodes.Name) and node.name == "loop"
            properties += (
                isinstance(node, nodes.Getattr)
                and isinstance(node.node, nodes.Name)
                and node.node.name == "loop"
                and node.attr in COUNTED
            )
    return names == properties
