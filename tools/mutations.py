"""Small faults for exported definitions: what a slip of the finger could have made of them. Reads source, runs nothing.

`mutants(source)` gives every mutant of every definition of a cell; `sample(mutants, most)` a spread of them, the same
each time. Docstrings, annotations, messages, representations and the looks of a figure are left alone: no test should
ask for them.
"""

import ast
import copy
import hashlib
from typing import NamedTuple

_SHORT = 25  # characters below which a change is shown with what stands around it
_LONG = 90  # characters above which it is not
_TINY = 1e-3  # numbers below are tolerances

_ARITHMETIC = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
_COMPARISONS = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_PAIRS = (
    "min max, amin amax, argmin argmax, any all, sum mean, zeros ones, zeros_like ones_like, floor ceil, "
    "minimum maximum, clamp_min clamp_max, append extend, sin cos, train eval, std var"
)
_FUNCTIONS = {a: b for pair in _PAIRS.split(", ") for a, b in (pair.split(), pair.split()[::-1])}
_BUILT_IN = {"min", "max", "any", "all"}  # of these, what Python has without an object or a module
_STEPS = {
    "detach", "abs", "sqrt", "square", "exp", "log", "relu", "sigmoid", "tanh", "softmax", "log_softmax",
    "clamp", "clamp_min", "clamp_max", "clamp_", "flip", "roll", "transpose", "permute", "t", "cumsum", "round",
    "floor", "neg", "sort", "eval", "mean", "strip", "lower", "rsqrt", "diagonal", "triu", "tril", "reciprocal",
    "clone", "removeprefix", "removesuffix",
}  # fmt: skip
_TURNS = {"mT", "T", "mH", "H"}  # attributes that turn a tensor round
_SYMMETRIC = {
    "min", "max", "minimum", "maximum", "isinstance", "issubclass", "zip", "add", "equal", "allclose", "mul",
    "print", "getattr", "setattr", "hasattr", "product", "empty", "Path", "super", "logical_and", "logical_or",
    "lcm", "gcd", "hypot",
}  # fmt: skip
_AXES = {"dim", "axis", "dims", "dim0", "dim1", "dim2", "start_dim", "end_dim"}
_ALONG = {
    "sum", "mean", "amax", "amin", "max", "min", "softmax", "log_softmax", "cat", "stack", "flatten",
    "unflatten", "transpose", "chunk", "split", "unsqueeze", "squeeze", "argmax", "argmin", "argsort", "gather",
    "index_select", "index_add", "flip", "norm", "var", "std", "cumsum", "topk", "unbind", "size", "movedim",
    "logsumexp", "narrow", "any", "all", "prod",
}  # fmt: skip
_QUIET = {"print", "say", "warn", "warning", "info", "echo", "display", "_say"}
_LOOKS = {"ax", "axes", "fig", "plt", "figure", "axis", "legend", "cmap", "grid", "bar", "colors"}
_SAME_ANYWHERE = {"device", "dtype", "memory_format", "non_blocking", "encoding", "pin_memory", "desc", "unit"}
_TELLING = {"extra_repr", "__repr__", "__str__"}
_FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)


class Mutant(NamedTuple):
    "One fault in one definition."

    export: str  # the definition's name
    line: int  # of the cell, from 1
    kind: str
    change: str  # "old -> new", as in tools/equivalent_mutants.txt
    tree: ast.Module  # of the whole cell


def _named(node):
    "The last part of what is called, or of a name."
    if isinstance(node, ast.Call):
        node = node.func
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _root(node):
    "The first name of a.b[0].c()."
    while isinstance(node, (ast.Attribute, ast.Subscript, ast.Call)):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


def _draws(call):
    "Whether a call makes or changes a figure."
    return _named(call).startswith(("show_", "draw_", "new_figure", "set_", "Rectangle")) or _root(call) in _LOOKS


def _number(node):
    "The whole number or float that a node is; None if it is none."
    sign = 1
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        node, sign = node.operand, -1
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return sign * node.value
    return None


def _is_text(node):
    if isinstance(node, ast.Constant):
        return isinstance(node.value, (str, bytes))
    kinds = (ast.JoinedStr, ast.List, ast.Tuple, ast.Dict, ast.ListComp, ast.DictComp, ast.Set)
    return isinstance(node, kinds) or _named(node) in ("dict", "list", "tuple") and isinstance(node, ast.Call)


def _only_raises(node):
    return isinstance(node, ast.If) and len(node.body) == 1 and isinstance(node.body[0], ast.Raise)


def _literal(value):
    node = ast.Constant(abs(value))
    return ast.UnaryOp(ast.USub(), node) if value < 0 else node


def _walk(node, parents=()):
    "(node, its parents, nearest first) for everything that a test should ask about."
    yield node, parents
    above = (node, *parents)
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list", "type_comment"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or isinstance(child, (ast.Raise, ast.JoinedStr, ast.expr_context)):
                continue
            if isinstance(child, _FUNCTION) and child.name in _TELLING:
                continue
            drawn = isinstance(node, ast.Call) and _draws(node)
            if isinstance(child, ast.keyword) and (drawn or child.arg in _SAME_ANYWHERE):
                continue
            if isinstance(child, ast.Call) and _named(child) in _QUIET:
                continue
            if isinstance(child, ast.Constant) and drawn:
                continue
            yield from _walk(child, above)


def _number_edit(node, parents, value):
    "(kind, edit) for a number, by where it stands."
    if isinstance(value, float):
        return ("constant", lambda n: _literal(value * 2 if value else 1.0)) if not 0 < abs(value) < _TINY else None
    near = parents[0]
    if isinstance(near, (ast.Tuple, ast.List)) and len(parents) > 1:
        near = parents[1]
    if isinstance(near, ast.arguments):
        return "default", lambda n: _literal(value + 1)
    along = isinstance(near, ast.keyword) and near.arg in _AXES
    if along or isinstance(near, ast.Call) and _named(near) in _ALONG and near.func is not node:
        other = {-1: -2, -2: -1, 0: 1, 1: 0}.get(value, value - 1 if value > 0 else value + 1)
        return "axis", lambda n: _literal(other)
    kind = "index" if isinstance(near, (ast.Subscript, ast.Slice)) else "constant"
    return kind, lambda n: _literal(value - 1 if value < 0 else value + 1)


def _swap_arguments(call):
    call.args[0], call.args[1] = call.args[1], call.args[0]
    return call


def _set(**fields):
    "An edit that sets fields of the node."

    def edit(node):
        for name, value in fields.items():
            setattr(node, name, value)
        return node

    return edit


def _einsum(text):
    "Another equation: the last two letters of the output change places."
    left, arrow, right = text.partition("->")
    return f"{left}{arrow}{right[:-2]}{right[-1]}{right[-2]}" if arrow and len(right) > 1 and right.isalpha() else None


def _expression_edits(node, parents):
    "(kind, edit) for every small fault of an expression; `edit` gets a copy of the node."
    value = _number(node)
    inside = _number(parents[0]) is not None if parents else False
    if value is not None and not inside:
        edit = _number_edit(node, parents, value)
        if edit:
            yield edit
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield "flag", lambda n: ast.Constant(not n.value)
    elif isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        if not (_is_text(node.left) or _is_text(node.right)):
            yield "arithmetic", _set(op=_ARITHMETIC[type(node.op)]())
    elif isinstance(node, ast.UnaryOp) and value is None:
        if isinstance(node.op, (ast.USub, ast.Not, ast.Invert)):
            yield "sign" if isinstance(node.op, ast.USub) else "not", lambda n: n.operand
    elif isinstance(node, ast.Compare) and len(node.ops) >= 1:
        for i, op in enumerate(node.ops):
            others = [_COMPARISONS[type(op)]() if i == j else each for j, each in enumerate(node.ops)]
            yield "comparison", _set(ops=others)
    elif isinstance(node, ast.BoolOp):
        yield "logic", _set(op=ast.Or() if isinstance(node.op, ast.And) else ast.And())
    elif isinstance(node, ast.IfExp):
        yield "branch", lambda n: ast.IfExp(n.test, n.orelse, n.body)
    elif isinstance(node, ast.Slice):
        for field, op in (("lower", ast.Add()), ("upper", ast.Sub())):
            bound = getattr(node, field)
            if bound is not None and _number(bound) is None:
                yield "index", _set(**{field: ast.BinOp(bound, op, ast.Constant(1))})
    elif isinstance(node, ast.comprehension) and node.ifs:
        yield "filter", _set(ifs=node.ifs[1:])
    elif isinstance(node, ast.Attribute) and node.attr in _TURNS:
        yield "step", lambda n: n.value
    elif isinstance(node, ast.Call):
        yield from _call_edits(node)


def _call_edits(node):
    name = _named(node)
    if name in _STEPS and isinstance(node.func, ast.Attribute) and _root(node) not in ("torch", "F", "nn", "math"):
        yield "step", lambda n: n.func.value
    if name in ("detach", "no_grad") or _draws(node):
        return
    if name in _FUNCTIONS and (isinstance(node.func, ast.Attribute) or name in _BUILT_IN):
        field = "attr" if isinstance(node.func, ast.Attribute) else "id"

        def rename(n):
            setattr(n.func, field, _FUNCTIONS[name])
            return n

        yield "function", rename
    if len(node.args) >= 2 and name not in _SYMMETRIC and not any(isinstance(a, ast.Starred) for a in node.args[:2]):
        first, second = node.args[:2]
        alike = (_number(first) is None) == (_number(second) is None)  # else no slip: nothing would run
        if alike and not _is_text(first) and ast.dump(first) != ast.dump(second):
            yield "order", _swap_arguments
    if name == "einsum" and node.args and isinstance(node.args[0], ast.Constant):
        other = _einsum(node.args[0].value)
        if other:
            yield "einsum", lambda n: ast.Call(n.func, [ast.Constant(other), *n.args[1:]], n.keywords)


def _statement_edits(node, parents):
    "(kind, edit) for statements: left out, or the other way round."
    if isinstance(node, ast.If):
        if _only_raises(node):
            yield "error", lambda n: n.orelse or ast.Pass()
        else:
            yield "branch", lambda n: ast.If(ast.UnaryOp(ast.Not(), n.test), n.body, n.orelse)
    elif isinstance(node, ast.With) and _named(node.items[0].context_expr) in ("no_grad", "inference_mode"):
        yield "no_grad", lambda n: n.body
    elif isinstance(node, (ast.AugAssign, ast.Continue, ast.Break)):
        yield "statement", lambda n: ast.Pass()
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        call = node.value
        if _named(call) not in (*_QUIET, "__init__", "close") and not _draws(call):
            yield "statement", lambda n: ast.Pass()
    elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Subscript):
        yield "statement", lambda n: ast.Pass()


class _Replace(ast.NodeTransformer):
    def __init__(self, old, new):
        self.old, self.new = old, new

    def visit(self, node):
        return self.new if node is self.old else super().generic_visit(node)


def _line(node):
    "A node's source on one line."
    return " ".join(ast.unparse(node).split())


def _head(node):
    "What is shown of a statement."
    text = ast.unparse(node)
    if isinstance(node, ast.If):
        return f"if {_line(node.test)}"
    return " ".join(text.split()) if len(text) <= _LONG else text.splitlines()[0].rstrip(":")


def _default_of(arguments, node):
    "The name of the parameter whose default a node is."
    places = [*arguments.posonlyargs, *arguments.args]
    pairs = [*zip(places[len(places) - len(arguments.defaults) :], arguments.defaults)]
    pairs += zip(arguments.kwonlyargs, arguments.kw_defaults)
    return next((arg.arg for arg, default in pairs if default is node), "")


def _shown(node, parents):
    "The node by which a change in `node` is shown, with what stands around it while that is short; words before it."
    shown = node
    for i, parent in enumerate(parents):
        if isinstance(parent, ast.arguments):
            return shown, f"{_default_of(parent, shown)}="
        if isinstance(parent, (ast.stmt, ast.Lambda)):
            break
        called = isinstance(parent, ast.Call) and parent.func is shown
        if isinstance(shown, ast.expr) and not called:
            if len(_line(shown)) >= _SHORT and not isinstance(shown, ast.Starred):
                break
            above = next((p for p in parents[i:] if isinstance(p, ast.expr)), None)
            if above is not None and len(_line(above)) > _LONG:
                return shown, f"{parent.arg}=" if isinstance(parent, ast.keyword) else ""
        shown = parent
    return shown, ""


def _mutate(tree, node, parents, edit):
    "A copy of the cell with one node edited, and the change in words."
    memo = {}
    new_tree = copy.deepcopy(tree, memo)
    mine = memo[id(node)]
    new = edit(copy.deepcopy(mine))
    if isinstance(node, ast.stmt):
        before, after = _head(node), "left out"
        if isinstance(node, ast.If) and isinstance(new, ast.If) and not _only_raises(node):
            before, after = f"if {_line(node.test)}", f"if {_line(new.test)}"
        elif isinstance(node, ast.With):
            after = "only what stands in it"
        new_tree = _Replace(mine, new).visit(new_tree)
    else:
        shown, words = _shown(node, parents)
        before = words + _line(shown)
        new_tree = _Replace(mine, new).visit(new_tree)
        after = words + _line(new if shown is node else memo[id(shown)])
    return ast.fix_missing_locations(new_tree), f"{before} -> {after}"


def _name_of(node):
    "The name under which a cell's statement is known; '' for imports and the like."
    if isinstance(node, (*_FUNCTION, ast.ClassDef)):
        return node.name
    if isinstance(node, ast.Assign):
        target = node.targets[0]
        return _line(target) if not isinstance(target, ast.Attribute) else ""
    if isinstance(node, ast.AnnAssign) and node.value is not None:
        return _line(node.target)
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        return _named(node.value)
    return ""


def mutants(source):
    "Every mutant of every definition of an exported cell, in the order of its lines."
    tree, found = ast.parse(source), []
    for definition in tree.body:
        export, seen = _name_of(definition), {}
        if not export:
            continue
        for node, parents in _walk(definition):
            edits = _statement_edits(node, parents) if isinstance(node, ast.stmt) else _expression_edits(node, parents)
            for kind, edit in edits:
                new, change = _mutate(tree, node, parents, edit)
                if ast.dump(new) == ast.dump(tree):
                    continue
                line = next((n.lineno for n in (node, *parents) if hasattr(n, "lineno")), definition.lineno)
                seen[change] = seen.get(change, 0) + 1
                if seen[change] > 1:
                    change = f"{change} ({seen[change]})"
                found.append(Mutant(export, line, kind, change, new))
    return found


def sample(mutants, most):
    "At most so many of one definition's mutants: all kinds and all lines in turn, and the same ones each time."
    left, taken = list(mutants), []
    kinds, lines = {}, {}

    def rank(mutant):
        number = hashlib.sha1(f"{mutant.export}: {mutant.change}".encode()).hexdigest()
        return kinds.get(mutant.kind, 0), lines.get(mutant.line, 0), number

    while left and len(taken) < most:
        best = min(left, key=rank)
        left.remove(best)
        taken.append(best)
        kinds[best.kind] = kinds.get(best.kind, 0) + 1
        lines[best.line] = lines.get(best.line, 0) + 1
    return sorted(taken, key=lambda mutant: mutant.line)
