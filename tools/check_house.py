"""What keeps the house in order: arrows between rooms, budgets of notebooks, equation numbers, names, style, types.

    python tools/check_house.py                        # everything
    python tools/check_house.py layers look            # only these rooms (packages, or the word in a path)
    python tools/check_house.py layers --rule arrows   # only this rule; again for several

Reads the files; runs nothing of the package. tests/test_arrows.py, test_budget.py, test_style.py ask the same.
"""

import argparse
import ast
import io
import json
import re
import subprocess
import sys
import tokenize
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import course
import project
import reading

ROOT = Path(__file__).resolve().parent.parent
ANY = "*"

# Room -> what it may import. A room alone means all of it; `room.module` means that module only.
ARROWS = {
    "io": [],
    "layers": ["io"],
    "models": ["layers"],
    "data": ["layers.inputs", "io"],
    "engine": ["layers.norms", "io"],
    "look": ["layers", "io"],
    "weights": ["models", "layers", "data.transforms", "io"],
    "tasks": ["models", "weights", "data", "engine", "look", "layers", "io"],
    "study": ["io", "layers", "models", "weights", "data", "engine", "look", "tasks"],
    "cli": [ANY],
    "__init__": [ANY],
}

# Whose a notebook is that exports nothing.
PARTS = {"1_layer": "layers", "2_networks": "models", "3_training": "engine", "4_seeing": "look", "6_evidence": "study"}

LONGEST_EXPORT = 60  # lines of one exported cell
MOST_WORDS = 1300  # of a notebook's prose
MOST_TABLE_WORDS = 700  # of its tables: calls, names, errors, edges; looked up, not read
MOST_CODE = 350  # lines of a notebook's code
MOST_COLUMNS = 100  # of a line of it: what JupyterLab shows on a screen 1,300 pixels wide
TEST_WITHIN = 4  # code cells after an export, the first test among them
PROSE = 8  # words that count as prose before an export

_directive = re.compile(r"^\s*#\s*\|")
_export = re.compile(r"^\s*#\s*\|\s*(exports?|exporti)\b", re.MULTILINE)
_default = re.compile(r"^\s*#\s*\|\s*default_exp\s+(\S+)", re.MULTILINE)
_fence = re.compile(r"```.*?```|\$\$.*?\$\$|<!--.*?-->|\]\([^)]*\)", re.DOTALL)
_table = re.compile(r"^ *\|.*$", re.MULTILINE)
_heading = re.compile(r"^#.*$", re.MULTILINE)
_magic = re.compile(r"^[ \t]*[%!?].*$", re.MULTILINE)
_tag = re.compile(r"\\tag\{(\d+\.\d+)\}")
_cited = re.compile(r"\(([1-9]\d?\.[1-9]\d?)(?:\s*(?:,|and|to)\s*([1-9]\d?\.[1-9]\d?))*\)")
_number = re.compile(r"[1-9]\d?\.[1-9]\d?")
_test = re.compile(r"\b(assert|test_\w+|assert_\w+|ExceptionExpected|raises)\b")


class Fault(NamedTuple):
    "One thing that is not as it should be."

    room: str
    rule: str
    where: str
    what: str

    def __str__(self):
        return f"{self.rule:<10} {self.where}: {self.what}"


class Notebook(NamedTuple):
    "A notebook as the rules see it."

    path: Path
    number: int  # of its file name; 0 where it has none
    module: str  # lesa_nb.room.module that it exports, or ""
    cells: list  # of (kind, source, whether it has a picture)

    @property
    def room(self):
        return self.module.split(".")[1] if self.module else PARTS.get(self.path.parent.name, self.path.parent.name)

    def is_export(self, i):
        return self.cells[i][0] == "code" and bool(_export.search(self.cells[i][1]))


@lru_cache
def notebooks(root=ROOT):
    "Every notebook in nbs/, in reading order."
    found = []
    for path in sorted((root / "nbs").rglob("*.ipynb")):
        if ".ipynb_checkpoints" in path.parts:
            continue
        cells = []
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            drawn = any("image/png" in output.get("data", {}) for output in cell.get("outputs", []))
            cells.append((cell["cell_type"], "".join(cell["source"]), drawn))
        name = next((m[1] for kind, source, _ in cells if kind == "code" and (m := _default.search(source))), "")
        number = re.match(r"\d+", path.name)
        found.append(Notebook(path, int(number[0]) if number else 0, f"lesa_nb.{name}" if name else "", cells))
    return found


@lru_cache
def modules(root=ROOT):
    "Module name -> (path, syntax tree) of everything in lesa_nb/."
    found = {}
    for path in sorted((root / "lesa_nb").rglob("*.py")):
        if path.name == "_modidx.py":
            continue
        parts = path.relative_to(root).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = path, ast.parse(path.read_text(encoding="utf-8"), str(path))
    return found


def room_of(module):
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imports(tree, module, is_package, known):
    """(line, module of ours, name or '') for every import anywhere in a tree: lazy ones and relative ones too.

    The name is None where a registry loads a module by its name when it is first asked (`import_module`).
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "lesa_nb":
                    yield node.lineno, alias.name, ""
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                base = module.split(".")
                base = base[: len(base) - node.level + is_package]
                source = ".".join([*base, *([node.module] if node.module else [])])
            if source.split(".")[0] != "lesa_nb":
                continue
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                if inner in known:
                    yield node.lineno, inner, ""
                else:
                    yield node.lineno, source, alias.name
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) == "import_module":
            for argument in node.args[:1]:
                if isinstance(argument, ast.Constant) and str(argument.value).startswith("lesa_nb"):
                    yield node.lineno, argument.value, None


def may_import(room, target):
    "Whether a module of `room` may import the module `target`."
    to = room_of(target)
    if to == room:
        return True
    allowed = ARROWS.get(room, [])
    return ANY in allowed or to in allowed or ".".join(target.split(".")[1:3]) in allowed


def arrows(root=ROOT):
    "Imports from a room that may not be imported there, private names, and circles of modules."
    known, graph = modules(root), {}
    for name, (path, tree) in known.items():
        room, where = room_of(name), path.relative_to(root)
        if room not in ARROWS:
            yield Fault(room, "arrows", str(where), f"lesa_nb.{room} is no room of ARROWS in tools/check_house.py")
        for line, target, imported in imports(tree, name, path.name == "__init__.py", known):
            if target not in known and f"{target}.__init__" not in known:
                yield Fault(room, "arrows", f"{where}:{line}", f"imports {target}, which there is not")
            if not may_import(room, target):
                allowed = ", ".join(ARROWS.get(room, [])) or "nothing of ours"
                yield Fault(room, "arrows", f"{where}:{line}", f"{room} imports {target}; it may import {allowed}")
            private = (imported or "").startswith("_") and not (imported or "").startswith("__")
            private = private or any(part.startswith("_") for part in target.split("."))
            if private and room_of(target) != room:  # what is private serves its own room
                yield Fault(
                    room, "private", f"{where}:{line}", f"imports the private name {imported or target} of {target}"
                )
            if target != name and imported is not None:
                graph.setdefault(name, set()).add(target)
    for circle in _circles(graph):
        yield Fault(room_of(circle[0]), "circle", circle[0], " -> ".join([*circle, circle[0]]))


def _circles(graph):
    "Modules that import each other in a circle, once each."
    seen, found = set(), set()

    def walk(name, path):
        if name in path:
            circle = path[path.index(name) :]
            start = circle.index(min(circle))
            found.add(tuple(circle[start:] + circle[:start]))
            return
        if name in seen:
            return
        for target in sorted(graph.get(name, ())):
            walk(target, [*path, name])
        seen.add(name)

    for name in sorted(graph):
        walk(name, [])
    return sorted(found)


def private_attributes(root=ROOT):
    "`module._name` of a module of another room, which is an import of a private name by another way."
    known = modules(root)
    for name, (path, tree) in known.items():
        ours = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "lesa_nb":
                others = {a for a in node.names if room_of(f"{node.module}.{a.name}") != room_of(name)}
                ours.update({a.asname or a.name for a in others if f"{node.module}.{a.name}" in known})
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ours:
                if node.attr.startswith("_") and not node.attr.startswith("__"):
                    where = f"{path.relative_to(root)}:{node.lineno}"
                    yield Fault(room_of(name), "private", where, f"uses {node.value.id}.{node.attr}")


def _private_parts(node):
    "Private names of PyTorch that a node uses: in an import, or by their dots."
    if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
        dotted = [*node.module.split("."), *(alias.name for alias in node.names)]
    elif isinstance(node, ast.Import):
        dotted = [part for alias in node.names if alias.name.startswith("torch.") for part in alias.name.split(".")]
    elif isinstance(node, ast.Attribute) and ast.unparse(node).startswith("torch."):
        dotted = [node.attr]
    else:
        return []
    return [part for part in dotted if part.startswith("_") and not part.startswith("__")]


def pinned(root=ROOT):
    "Private functions of PyTorch may change with any release: a test must name each, and fail when it does."
    tests = "\n".join(path.read_text(encoding="utf-8") for path in (root / "tests").rglob("*.py"))
    for name, (path, tree) in modules(root).items():
        for node in ast.walk(tree):
            for part in _private_parts(node):
                if not re.search(rf"\b{part}\b", tests):
                    where = f"{path.relative_to(root)}:{node.lineno}"
                    yield Fault(room_of(name), "pinned", where, f"uses PyTorch's private {part}; no test names it")


def public_names(tree):
    "(name, line) of every public definition at the top of a module."
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            if not node.name.startswith("_"):
                yield node.name, node.lineno
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if isinstance(target, ast.Name) and not target.id.startswith("_"):
                    yield target.id, node.lineno


def defined_twice(root=ROOT):
    "A public name that two modules define, or that a notebook defines again outside its exports."
    owners = {}
    for name, (path, tree) in modules(root).items():
        for public, line in public_names(tree):
            owners.setdefault(public, {}).setdefault(name, line)
    for public, places in sorted(owners.items()):
        if len(places) > 1:
            for name in places:
                where = f"{modules(root)[name][0].relative_to(root)}:{places[name]}"
                yield Fault(room_of(name), "twice", where, f"{public} is defined in {', '.join(sorted(places))}")
    for nb in notebooks(root):
        for i, (kind, source, _) in enumerate(nb.cells):
            if kind != "code" or nb.is_export(i):
                continue
            for node in getattr(parsed(source), "body", ()):
                if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name in owners:
                    where = f"{nb.path.relative_to(root)}, cell {i + 1}"
                    yield Fault(
                        nb.room, "twice", where, f"{node.name} is defined in {', '.join(owners[node.name])} too"
                    )


def parsed(source):
    "The syntax tree of a cell without its magics, or None."
    try:
        return ast.parse(_magic.sub("", source))
    except SyntaxError:
        return None


def code_lines(source):
    return sum(1 for line in source.splitlines() if line.strip() and not _directive.match(line))


def words(source):
    """Words of prose: without tables, code, formulas of their own line and addresses of links.

    The links to the pages before and after, which tools/course.py writes, are no prose.
    """
    if source.startswith(course.MADE):
        return 0
    return sum(1 for word in _table.sub(" ", _fence.sub(" ", source)).split() if re.search(r"\w", word))


def table_words(source):
    "Words in the rows of tables."
    source = reading.OPENING.sub(r"\1", source)  # without the times, which nobody wrote
    return sum(1 for row in _table.findall(source) for word in row.split() if re.search(r"\w", word))


def defines(source):
    "Whether an exported cell holds a function or class: not only imports, constants and types."
    tree = parsed(source)
    return tree is None or any(isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) for n in tree.body)


def budget(root=ROOT):
    "Sizes of notebooks and cells; prose before, test and picture after every export."
    for nb in notebooks(root):
        where = str(nb.path.relative_to(root))
        prose = sum(words(source) for kind, source, _ in nb.cells if kind == "markdown")
        code = sum(code_lines(source) for kind, source, _ in nb.cells if kind == "code")
        exports = [i for i in range(len(nb.cells)) if nb.is_export(i)]
        exported = sum(code_lines(nb.cells[i][1]) for i in exports)
        if prose > MOST_WORDS and nb.number:  # the index is a page, not a notebook of the course
            yield Fault(nb.room, "budget", where, f"{prose} words of prose, at most {MOST_WORDS}")
        if code > MOST_CODE:
            yield Fault(nb.room, "budget", where, f"{code} lines of code, at most {MOST_CODE}")
        tables = sum(table_words(source) for kind, source, _ in nb.cells if kind == "markdown")
        if tables > MOST_TABLE_WORDS and nb.number:
            yield Fault(nb.room, "budget", where, f"{tables} words in tables, at most {MOST_TABLE_WORDS}")
        if prose + tables < exported:
            yield Fault(
                nb.room, "budget", where, f"{prose + tables} words for {exported} exported lines: at least as many"
            )
        for i, (kind, source, _) in enumerate(nb.cells, 1):
            for number, line in enumerate(source.splitlines() if kind == "code" else (), 1):
                if len(line) > MOST_COLUMNS:
                    text = f"line {number} has {len(line)} columns, at most {MOST_COLUMNS}"
                    yield Fault(nb.room, "budget", f"{where}, cell {i}", text)
        for i in exports:
            source = nb.cells[i][1]
            cell = f"{where}, cell {i + 1}"
            if len(source.splitlines()) > LONGEST_EXPORT:
                yield Fault(
                    nb.room, "budget", cell, f"{len(source.splitlines())} lines exported, at most {LONGEST_EXPORT}"
                )
            if not defines(source):
                continue
            before = next((j for j in range(i - 1, -1, -1) if nb.cells[j][0] == "markdown" or nb.is_export(j)), None)
            text = "" if before is None or nb.is_export(before) else _heading.sub("", nb.cells[before][1])
            if words(text) + table_words(text) < PROSE:
                yield Fault(nb.room, "budget", cell, "no prose before this export")
            after = [c for j, c in enumerate(nb.cells[i + 1 :], i + 1) if c[0] == "code" and not nb.is_export(j)]
            if not any(_test.search(source) for _, source, _ in after[:TEST_WITHIN]):
                yield Fault(nb.room, "budget", cell, f"no test in the next {TEST_WITHIN} code cells")
            if project.has_figures() and not any(drawn for _, _, drawn in after):
                yield Fault(nb.room, "budget", cell, "no picture after this export")


def _citations(source):
    "Equation numbers in the comments and docstrings of a cell."
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(_magic.sub("", source)).readline))
    except (tokenize.TokenError, SyntaxError):
        tokens = []
    found = set()
    for token in tokens:
        text = token.string
        if token.type == tokenize.COMMENT or (token.type == tokenize.STRING and "eq" in text):
            for match in _cited.finditer(text):
                found.update(_number.findall(match[0]))
    return found


def equations(root=ROOT):
    "Every numbered formula is cited by a line of code, every cited number has its formula, and is this notebook's."
    tags = {
        tag
        for nb in notebooks(root)
        for kind, source, _ in nb.cells
        if kind == "markdown"
        for tag in _tag.findall(source)
    }
    for nb in notebooks(root):
        where = str(nb.path.relative_to(root))
        own = [tag for kind, source, _ in nb.cells if kind == "markdown" for tag in _tag.findall(source)]
        cited = set().union(*(_citations(source) for kind, source, _ in nb.cells if kind == "code"))
        for tag in sorted(set(own)):
            if own.count(tag) > 1:
                yield Fault(nb.room, "equations", where, f"\\tag{{{tag}}} twice")
            if tag.split(".")[0] != str(nb.number):
                yield Fault(nb.room, "equations", where, f"\\tag{{{tag}}} in notebook {nb.number}")
            if tag not in cited:
                yield Fault(nb.room, "equations", where, f"no line of code cites \\tag{{{tag}}}")
        for number in sorted(cited - tags):
            yield Fault(nb.room, "equations", where, f"code cites ({number}), which no formula has")


def order(root=ROOT):
    "A notebook's exports import only modules of earlier notebooks and modules written by hand; numbers count up."
    number_of = {nb.module: nb for nb in notebooks(root) if nb.module}
    for nb in notebooks(root):
        where = str(nb.path.relative_to(root))
        for i, (_, source, _) in enumerate(nb.cells):
            tree = parsed(source) if nb.is_export(i) else None
            for _, target, _ in imports(tree, nb.module, False, modules(root)) if tree else ():
                made = number_of.get(target)
                if made and made is not nb and made.number >= nb.number:
                    yield Fault(
                        nb.room, "order", f"{where}, cell {i + 1}", f"imports {target} of notebook {made.number}"
                    )
    numbered = [nb for nb in notebooks(root) if nb.number]
    for one, next_one in zip(numbered, numbered[1:]):
        if next_one.number != one.number + 1:
            where = str(next_one.path.relative_to(root))
            yield Fault(next_one.room, "order", where, f"number {next_one.number} comes after {one.number}")
    for name, (path, _) in modules(root).items():
        made = "\n# AUTOGENERATED!" in "\n" + path.read_text(encoding="utf-8")
        if made and name not in number_of:
            yield Fault(
                room_of(name),
                "order",
                str(path.relative_to(root)),
                "says it is made from a notebook, and none makes it",
            )


def python_sources(root=ROOT):
    "(room, where, source) of every Python file and every code cell."
    for folder in ("lesa_nb", "tests", "tools", "benchmarks", "."):
        for path in sorted((root / folder).glob("*.py") if folder == "." else (root / folder).rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            if path.name != "_modidx.py" and "\n# AUTOGENERATED!" not in "\n" + text:
                inside = folder == "lesa_nb" and len(path.relative_to(root).parts) > 2
                yield path.relative_to(root).parts[1] if inside else folder, str(path.relative_to(root)), text
    for nb in notebooks(root):
        for i, (kind, source, _) in enumerate(nb.cells, 1):
            if kind == "code":
                yield nb.room, f"{nb.path.relative_to(root)}, cell {i}", source


def compounds(root=ROOT):
    "One-line compound statements whose body is not raise, return or continue."
    for room, where, source in python_sources(root):
        tree = parsed(source)
        lines = source.splitlines()
        for node in ast.walk(tree) if tree else ():
            for body in _blocks(node):
                first = body[0]
                line = min([first.lineno, *(d.lineno for d in getattr(first, "decorator_list", []))])
                on_its_own = not lines[line - 1].encode()[: first.col_offset].strip()
                if not on_its_own and not (len(body) == 1 and isinstance(first, (ast.Raise, ast.Return, ast.Continue))):
                    yield Fault(room, "one-line", f"{where}:{line}", lines[line - 1].strip()[:90])


def _blocks(node):
    "The suites of a statement; an `elif` is a statement of its own."
    if not isinstance(node, (ast.stmt, ast.ExceptHandler, ast.match_case)):
        return
    for field in ("body", "orelse", "finalbody"):
        body = getattr(node, field, None)
        if not isinstance(body, list) or not body:
            continue
        is_elif = field == "orelse" and isinstance(node, ast.If) and len(body) == 1 and isinstance(body[0], ast.If)
        if not (is_elif and body[0].col_offset == node.col_offset):
            yield body


def _tool(*words, root=ROOT):
    program = str(Path(sys.executable).with_name(words[0]))
    return subprocess.run([program, *words[1:]], cwd=root, capture_output=True, text=True)


def _room_of_path(name):
    parts = Path(name).parts
    if parts[0] == "lesa_nb":
        return parts[1] if len(parts) > 2 else "__init__"
    if parts[0] == "nbs":
        return next((nb.room for nb in notebooks() if nb.path.name == parts[-1]), parts[1])
    return parts[0]


def _exporters_own(path, found):
    "Whether nbdev's exporter wrote what ruff finds: the list `__all__`, and one blank line where isort wants two."
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    if path.endswith(".ipynb") or not any(line.startswith("# AUTOGENERATED!") for line in lines[:8]):
        return False
    row = found["location"]["row"]
    listed = found["code"] == "E501" and lines[row - 1].startswith("__all__")
    return listed or (found["code"] == "I001" and lines[row - 2].startswith("# %%"))


def ruff(root=ROOT):
    "What ruff finds, by the rules in pyproject.toml; what nbdev's exporter writes is not ours to change."
    done = _tool("ruff", "check", "--no-cache", "--output-format", "json", ".", root=root)
    if not done.stdout:
        yield Fault("tools", "ruff", "ruff", done.stderr.strip())
        return
    for found in json.loads(done.stdout):
        if _exporters_own(found["filename"], found):
            continue
        name = str(Path(found["filename"]).relative_to(root))
        cell = f", cell {found['cell']}" if found.get("cell") else ""
        where = f"{name}{cell}:{found['location']['row']}"
        yield Fault(_room_of_path(name), "ruff", where, f"{found['code']} {found['message']}")


def mypy(root=ROOT):
    "What mypy finds in the package, by the settings in pyproject.toml."
    done = _tool("mypy", "-p", "lesa_nb", "--no-error-summary", "--hide-error-context", root=root)
    if done.returncode not in (0, 1):
        yield Fault("tools", "mypy", "mypy", (done.stdout + done.stderr).strip())
    for line in done.stdout.splitlines():
        match = re.match(r"(\S+?):(\d+): error: (.*)", line)
        if match:
            yield Fault(_room_of_path(match[1]), "mypy", f"{match[1]}:{match[2]}", match[3])


RULES = {
    "arrows": arrows,
    "pinned": pinned,
    "private": private_attributes,
    "twice": defined_twice,
    "budget": budget,
    "equations": equations,
    "order": order,
    "one-line": compounds,
    "ruff": ruff,
    "mypy": mypy,
}


def faults(rules=tuple(RULES), root=ROOT):
    "Everything that these rules find, each thing once."
    return list(dict.fromkeys(fault for rule in rules for fault in RULES[rule](root)))


def _belongs(fault, rooms):
    return fault.room in rooms or any(room in fault.where for room in rooms)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rooms", nargs="*", help="rooms, or parts of a path; default: all")
    parser.add_argument("--rule", action="append", choices=sorted(RULES), help="default: all")
    parser.add_argument("--count", action="store_true", help="only how many, by room and rule")
    args = parser.parse_args()
    found = [f for f in faults(args.rule or tuple(RULES)) if not args.rooms or _belongs(f, args.rooms)]
    if args.count:
        for room in sorted({f.room for f in found}):
            kinds = [f.rule for f in found if f.room == room]
            print(f"{room:<14} " + ", ".join(f"{kinds.count(kind)} {kind}" for kind in sorted(set(kinds))))
    else:
        for fault in found:
            print(f"[{fault.room}] {fault}")
    print(f"{len(found)} fault(s)")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
