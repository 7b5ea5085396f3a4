"""A page to write again: its definitions without their bodies, made by the marks of its exported cells alone."""
from __future__ import annotations

import ast
import inspect
import re
import secrets
from collections.abc import Iterator
from typing import Any

from lesa_nb.study.pages import CoursePage

__all__ = ["blank_notebook", "blank_source", "is_blank", "page_of_exercise"]

_TURN = "your turn: "
_SAID = re.compile(r"<!-- exercise (\S+) -->")
_KEPT = {"extra_repr", "__repr__", "__str__"}
_FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
_link = re.compile(r"\[([^\]]*)\]\([^)\s]*\.ipynb[^)\s]*\)")

_HOW = """<!-- exercise {name} -->
**Write this page's definitions yourself.** Where a cell begins with `# your turn`, names, parameters and promises
are given, and the rest is yours: what to compute is derived above it, and the page's own tests are below. Run the cell
after it to see what holds. `lesa exercise --check FILE` asks everything, `lesa exercise {number} --hint NAME` says
where a definition is derived and what it calls, `lesa exercise {number} --solution NAME` shows one definition."""


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _says_nothing(node: ast.stmt) -> bool:
    """Whether a statement is `pass`, `...`, or raises that there is nothing."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) or isinstance(node, ast.Pass):
        return True
    return isinstance(node, ast.Raise) and "NotImplementedError" in ast.unparse(node)


def _functions(body: list[ast.stmt], owner: str = "") -> Iterator[tuple[str, Any]]:
    """(name, node) of every function and every method whose body can be left out."""
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield from _functions(node.body, f"{owner}{node.name}.")
        elif isinstance(node, _FUNCTION) and node.name not in _KEPT and not all(map(_says_nothing, node.body)):
            yield f"{owner}{node.name}", node


def _first_line(node: Any) -> int:
    return min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))])


def blank_source(source: str) -> tuple[str, list[str]]:
    """An exported cell with empty bodies, and the names of its definitions that have to be written.

    Signatures, comments in them, docstrings, decorators, fields of classes, imports and data stay; so do whole private
    definitions that help a public one of the same cell. What is private and stands alone has to be written.
    """
    lines = source.splitlines()
    names: list[str] = []
    functions = [*_functions(ast.parse(source).body)]
    public = [(name, node) for name, node in functions if not name.startswith("_")]
    for name, node in reversed(public or functions):
        names.insert(0, name.partition(".")[0])
        body = node.body[1:] if _is_docstring(node.body[0]) else node.body
        raising = f'raise NotImplementedError("{_TURN}{name}")'
        first, before = _first_line(body[0]), node.body[0]
        if before.lineno == node.lineno or body is node.body and first <= _header_end(node):  # all on one line
            place = (before if body is node.body else body[0]).col_offset
            row = lines[first - 1].encode()[:place].decode()
            lines[first - 1 : node.end_lineno] = [row + raising]
            continue
        start = before.end_lineno if body is not node.body else first - 1
        while body is node.body and lines[start - 1].lstrip().startswith("#"):
            start -= 1
        indent = " " * body[0].col_offset
        lines[start : node.end_lineno] = [indent + raising]
    return "\n".join(lines), list(dict.fromkeys(names))


def _header_end(node: Any) -> int:
    """The last line of a signature, as far as its parts tell."""
    args = node.args
    parts = [node.returns, *args.args, *args.posonlyargs, *args.kwonlyargs, *args.defaults, *args.kw_defaults]
    return max([node.lineno, *(part.end_lineno for part in parts if part is not None)])


def _own_consts(function: Any) -> tuple:
    return getattr(getattr(inspect.unwrap(function), "__code__", None), "co_consts", ())


def is_blank(thing: Any) -> bool:
    """Whether a function, or a method of a class, is still to be written; also one that a decorator keeps as a part."""
    functions = [thing]
    if inspect.isclass(thing):
        functions = [getattr(part, "__func__", getattr(part, "fget", part)) for part in vars(thing).values()]
    elif not inspect.isfunction(thing):  # as torch.library.custom_op makes it
        functions += filter(inspect.isfunction, getattr(thing, "__dict__", {}).values())
    try:
        consts = [const for function in functions if function is not None for const in _own_consts(function)]
    except ValueError:  # a wrapper that wraps itself
        return False
    return any(isinstance(const, str) and const.startswith(_TURN) for const in consts)


def _cell(kind: str, source: str) -> dict[str, Any]:
    cell: dict[str, Any] = dict(cell_type=kind, id=secrets.token_hex(4), metadata={}, source=source.splitlines(True))
    return cell | (dict(execution_count=None, outputs=[]) if kind == "code" else {})


def _figures(outputs: list[dict]) -> list[dict]:
    """What the page drew stays, as the thing to reach."""
    return [output for output in outputs if "image/png" in output.get("data", {})]


def blank_notebook(page: CoursePage) -> dict[str, Any]:
    """A copy of a page whose definitions are blank, each followed by a cell that asks the page's tests about it."""
    cells = []
    for cell, old in zip(page.cells, page.notebook["cells"]):
        if cell.kind == "markdown":
            if "made by `make sync`" in cell.source:
                continue
            cells.append(_cell("markdown", _link.sub(r"\1", cell.source)))
            if len(cells) == 1:
                cells.append(_cell("markdown", _HOW.format(name=page.name, number=page.number)))
            continue
        source = page.without_directives("".join(old["source"]))
        if not source:
            continue
        names: list[str] = []
        if cell.exported:
            source, names = blank_source(source)
        new = _cell("code", f"# {_TURN}{', '.join(names)}\n{source}" if names else source)
        new["outputs"] = _figures(old.get("outputs", []))
        cells.append(new)
        if names:
            asked = ", ".join(f'"{name}"' for name in names)
            cells.append(
                _cell("code", f'from lesa_nb.study.exercise import check\n\ncheck("{page.number}", {asked})')
            )
    return {**page.notebook, "cells": cells, "nbformat": 4, "nbformat_minor": 5}


def page_of_exercise(notebook: CoursePage) -> str:
    """The name of the page that a notebook is the exercise of; empty where it is none."""
    found = (_SAID.search(cell.source) for cell in notebook.cells if cell.kind == "markdown")
    return next((name[1] for name in found if name), "")
