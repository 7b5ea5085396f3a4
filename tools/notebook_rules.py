"""What a notebook must keep to so that running it proves something. Reads the files only; runs nothing."""

import ast
import base64
import re

from IPython.core.inputtransformer2 import TransformerManager

# Notebooks that derive, test and draw one part of the layer or of its networks.
COMPONENT = re.compile(r"(0[1-9]|1[01])_")
TESTS_PER_COMPONENT = 5
LARGEST = 300_000  # bytes

_directive = re.compile(r"^\s*#\s*\|.*$", re.MULTILINE)
_eval = re.compile(r"^\s*#\s*\|\s*eval\s*:?\s*(false|no|0)\b", re.MULTILINE | re.IGNORECASE)
_skip_exec = re.compile(r"^\s*-?\s*skip_exec\s*:\s*['\"]?(true|yes|on|1)\b", re.MULTILINE | re.IGNORECASE)
_export = re.compile(r"^\s*#\s*\|\s*(exports?|exporti)\b", re.MULTILINE)
_magic = re.compile(r"^\s*%%(\w+)", re.MULTILINE)
_harmless_magics = {"time", "capture"}
_exits = {"exit", "quit", "sys.exit", "os._exit", "os.abort", "os.kill", "pytest.exit", "pytest.skip"}
_exit_errors = {"SystemExit", "KeyboardInterrupt"}
_test = re.compile(r"(test_\w+|assert_\w+|ExceptionExpected|raises)$")
_draws = re.compile(r"(draw_map|show_\w+)$")


def body(cell):
    "A cell's source without its directives."
    return _directive.sub("", cell["source"])


def tree(cell):
    "The syntax tree of a cell, or None where it is no Python (running it tells why)."
    try:
        return ast.parse(TransformerManager().transform_cell(body(cell)))
    except SyntaxError:
        return None


def holds_code(cell):
    "Whether there is anything in the cell that running could execute."
    parsed = tree(cell)
    return parsed is None or bool(parsed.body)


def code_cells(notebook):
    "(position in the notebook from 1, cell) for every code cell."
    return [(i, cell) for i, cell in enumerate(notebook["cells"], 1) if cell["cell_type"] == "code"]


def _name(node):
    "`a.b.c` of a call's function, as far as it is a plain name."
    if isinstance(node, ast.Call):
        node = node.func
    if isinstance(node, ast.Attribute):
        return f"{_name(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def _is_script_end(node):
    "`if __name__ == ...`: for the exported module, when it is run as a script."
    return isinstance(node, ast.If) and any(isinstance(n, ast.Name) and n.id == "__name__" for n in ast.walk(node.test))


def _at_top(node, exported):
    "Every node that runs when the cell runs: not the bodies of functions and classes."
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)) or (
            exported and _is_script_end(child)
        ):
            continue
        yield child
        yield from _at_top(child, exported)


def _never(node):
    "A condition that is written so that it is never true."
    if isinstance(node, ast.Constant):
        return not node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return isinstance(node.operand, ast.Constant) and bool(node.operand.value)
    if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.And):
        return any(map(_never, node.values))
    return isinstance(node, (ast.List, ast.Tuple, ast.Dict)) and not (
        getattr(node, "elts", None) or getattr(node, "keys", None)
    )


def skipped(notebook, test_flags=()):
    "Everything that keeps code from running, or ends the run before the end."
    found = []
    if notebook["metadata"].get("kernelspec", {}).get("language", "python") != "python":
        found.append("the kernel's language is not python: nbdev_test passes it without running it")
    for i, cell in enumerate(notebook["cells"], 1):
        source = cell["source"]
        if cell["cell_type"] != "code":
            if _skip_exec.search(source):
                found.append(f"cell {i}: skip_exec")
            if cell["cell_type"] == "raw" and i > 1:
                found.append(f"cell {i}: a raw cell is never run")
            continue
        if _eval.search(source):
            found.append(f"cell {i}: eval: false")
        for flag in test_flags:
            if re.search(rf"^\s*#\s*\|\s*{re.escape(flag)}\b", source, re.MULTILINE):
                found.append(f"cell {i}: `#| {flag}` is in tst_flags of settings.ini, so it is not run")
        if "nbdev_export(" in source:
            found.append(f"cell {i}: nbdev_test leaves out a cell that calls nbdev_export()")
        for magic in _magic.findall(source):
            if magic not in _harmless_magics:
                found.append(f"cell {i}: %%{magic} runs elsewhere, or not at all")
        parsed = tree(cell)
        if parsed is None:
            continue
        code = body(cell).strip()
        if not parsed.body and code:
            found.append(f"cell {i}: nothing but comments")
        if parsed.body and all(
            isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant) and isinstance(n.value.value, str)
            for n in parsed.body
        ):
            found.append(f"cell {i}: nothing but a string")
        for node in _at_top(parsed, exported=bool(_export.search(source))):
            if isinstance(node, ast.Call) and _name(node) in _exits:
                found.append(f"cell {i}: ends early with {_name(node)}()")
            if isinstance(node, ast.Raise) and node.exc is not None and _name(node.exc) in _exit_errors:
                found.append(f"cell {i}: ends early with {_name(node.exc)}")
        for node in ast.walk(parsed):
            if isinstance(node, (ast.If, ast.While, ast.IfExp)) and _never(node.test):
                found.append(f"cell {i}: `if {ast.unparse(node.test)}` is never true")
            if isinstance(node, ast.For) and _never(node.iter):
                found.append(f"cell {i}: a loop over nothing")
    return found


def _tests(cell):
    parsed = tree(cell)
    for node in ast.walk(parsed) if parsed else ():
        if isinstance(node, ast.Assert) or (isinstance(node, ast.Call) and _test.search(_name(node))):
            yield node


def count_tests(notebook):
    "Asserts and test calls outside the exported cells."
    return sum(1 for _, cell in code_cells(notebook) if not _export.search(cell["source"]) for _ in _tests(cell))


def hollow(notebook):
    "Tests that cannot fail."
    found = []
    for i, cell in code_cells(notebook):
        for node in _tests(cell):
            if isinstance(node, ast.Assert):
                if (isinstance(node.test, ast.Constant) and node.test.value) or (
                    isinstance(node.test, ast.Tuple) and node.test.elts
                ):
                    found.append(f"cell {i}: `{ast.unparse(node)}` is always true")
            elif len(node.args) > 1 and ast.dump(node.args[0]) == ast.dump(node.args[1]):
                if not any(
                    isinstance(n, ast.Call) for n in ast.walk(node.args[0])
                ):  # calling twice is a test of its own
                    found.append(f"cell {i}: `{ast.unparse(node)}` compares a thing with itself")
        parsed = tree(cell)
        for node in ast.walk(parsed) if parsed else ():
            if not isinstance(node, ast.Try) or not any(
                isinstance(n, ast.Assert) for part in node.body for n in ast.walk(part)
            ):
                continue
            for handler in node.handlers:
                names = {n.id for n in ast.walk(handler.type) if isinstance(n, ast.Name)} if handler.type else {""}
                reacts = any(isinstance(n, (ast.Raise, ast.Assert)) for part in handler.body for n in ast.walk(part))
                if names & {"", "Exception", "BaseException", "AssertionError"} and not reacts:
                    found.append(f"cell {i}: a failing assert is caught and dropped")
    return found


def figures(notebook):
    return sum(
        "image/png" in output.get("data", {}) for _, cell in code_cells(notebook) for output in cell.get("outputs", [])
    )


def undrawn(notebook):
    "Cells that call a drawing function of `look` but show no picture in the file."
    found = []
    for i, cell in code_cells(notebook):
        parsed = tree(cell)
        calls = [n for n in parsed.body if isinstance(n, ast.Expr) and isinstance(n.value, ast.Call)] if parsed else []
        drawn = any("image/png" in output.get("data", {}) for output in cell.get("outputs", []))
        if not drawn and any(_draws.match(_name(n.value).split(".")[-1]) for n in calls):
            found.append(f"cell {i}: draws, but no picture is saved: run `make notebooks`")
    return found


def other_outputs(notebook):
    "Saved outputs that are not a PNG, and pictures that were pasted in."
    found = []
    for i, cell in enumerate(notebook["cells"], 1):
        if cell.get("attachments"):
            found.append(f"cell {i}: a pasted picture")
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if set(data) != {"image/png"}:
                kinds = ", ".join(sorted(data)) or output["output_type"]
                found.append(f"cell {i}: saved output is {kinds}, not a PNG: run `make notebooks`")
            elif not base64.b64decode("".join(data["image/png"])).startswith(b"\x89PNG"):
                found.append(f"cell {i}: saved output says PNG and is none")
    return found
