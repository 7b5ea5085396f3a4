"""The notebooks of the course as pages to read: where they lie, what each defines, and what stands around a cell.

Reads files; runs nothing. `lesa exercise` blanks, judges and explains what is found here.
"""
from __future__ import annotations

import ast
import difflib
import json
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Cell", "Definition", "CoursePage", "course_folder", "course_pages", "did_you_mean", "find_page"]

_PACKAGE = Path(__file__).resolve().parent.parent
_directive = re.compile(r"^\s*#\s*\|.*$\n?", re.MULTILINE)
_export = re.compile(r"^\s*#\s*\|\s*(exports?|exporti)\b", re.MULTILINE)
_default = re.compile(r"^\s*#\s*\|\s*default_exp\s+(\S+)", re.MULTILINE)
_no_eval = re.compile(r"^\s*#\s*\|\s*eval\s*:?\s*(false|no|0)\b", re.MULTILINE | re.IGNORECASE)
_magic = re.compile(r"^[ \t]*[%!].*$", re.MULTILINE)
_heading = re.compile(r"^#+\s+(.*)$", re.MULTILINE)
_number = re.compile(r"\((\d+\.\d+)\)")
_FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)


class Cell(NamedTuple):
    """A cell of a page, in its place from 1."""

    place: int
    kind: str  # "markdown" or "code"
    source: str  # without magics
    exported: bool = False
    executed: bool = True  # whether running the page runs it


class Definition(NamedTuple):
    """A function, a class or named data of an exported cell."""

    name: str
    cell: Cell
    node: ast.stmt

    @property
    def source(self) -> str:
        """The lines that define it, decorators and comments included."""
        first = min([self.node.lineno, *(node.lineno for node in getattr(self.node, "decorator_list", []))])
        return "\n".join(self.cell.source.splitlines()[first - 1 : self.node.end_lineno])


def _parsed(source: str) -> ast.Module:
    """A cell's tree; an empty one where it is no Python."""
    try:
        return ast.parse(source)
    except SyntaxError:
        return ast.Module([], [])


class CoursePage:
    """A notebook of the course. Raises ValueError where the file is no notebook."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        try:
            self.notebook: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))
            cells = [(cell["cell_type"], "".join(cell["source"])) for cell in self.notebook["cells"]]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.path}: is no notebook: {type(error).__name__}: {error}") from None
        self.cells = [
            Cell(
                place,
                kind,
                _magic.sub("", source) if kind == "code" else source,
                exported=kind == "code" and bool(_export.search(source)),
                executed=kind == "code" and not _no_eval.search(source),
            )
            for place, (kind, source) in enumerate(cells, 1)
        ]

    @property
    def name(self) -> str:
        """The file's name without its ending, as in 04_position."""
        return self.path.stem

    @property
    def number(self) -> str:
        """Its place in the course, as in 04; empty where it has none."""
        return self.name.partition("_")[0] if self.name[:1].isdigit() else ""

    @cached_property
    def title(self) -> str:
        """What stands after the first #."""
        found = next((m for cell in self.cells if cell.kind == "markdown" if (m := _heading.search(cell.source))), None)
        return found[1].strip() if found else self.name

    @cached_property
    def module(self) -> str:
        """The module that it makes, as in lesa_nb.layers.position; empty where it makes none."""
        names = (_default.search(cell.source) for cell in self.cells if cell.kind == "code")
        return next((f"lesa_nb.{name[1]}" for name in names if name), "")

    @cached_property
    def definitions(self) -> dict[str, Definition]:
        """Everything that its exported cells define, by name."""
        found = {}
        for cell in self.cells:
            for node in _parsed(cell.source).body if cell.exported else []:
                if isinstance(node, (*_FUNCTION, ast.ClassDef)):
                    found[node.name] = Definition(node.name, cell, node)
                elif isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
                    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                    for part in (part for target in targets for part in ast.walk(target)):
                        if isinstance(part, ast.Name):
                            found[part.id] = Definition(part.id, cell, node)
        return found

    def definition(self, name: str) -> Definition:
        """One of them. Raises ValueError, which says what may have been meant."""
        if name not in self.definitions:
            known = [*self.definitions]
            there = did_you_mean(name, known) or f"; it has {', '.join(known)}"
            raise ValueError(f"{self.name} defines no {name}{there}")
        return self.definitions[name]

    def prose_before(self, cell: Cell) -> str:
        """The paragraphs that lead to a cell: since the cell before it of its own kind, within its section."""
        found: list[str] = []
        for other in reversed(self.cells[: cell.place - 1]):
            if other.kind == "code" and (other.exported or found):
                break
            if other.kind == "markdown":
                found.insert(0, other.source)
                if _heading.search(other.source):
                    break
        return "\n\n".join(found)

    def heading_before(self, cell: Cell) -> str:
        """The last heading above a cell, without its marks."""
        for other in reversed(self.cells[: cell.place - 1]):
            if other.kind == "markdown" and (titles := _heading.findall(other.source)):
                return titles[-1].strip()
        return self.title

    def formulas(self, definition: Definition) -> dict[str, str]:
        """The numbered formulas that a definition cites, by number, as they stand on the page."""
        text = "\n".join(cell.source for cell in self.cells if cell.kind == "markdown")
        found = {}
        for number in dict.fromkeys(_number.findall(definition.source)):
            tag = re.escape(rf"\tag{{{number}}}")
            formula = re.search(rf"\$\$((?:(?!\$\$).)*?){tag}((?:(?!\$\$).)*?)\$\$", text, re.DOTALL)
            if formula:
                found[number] = " ".join((formula[1] + formula[2]).split())
        return found

    def names_called(self, definition: Definition) -> list[str]:
        """What a definition calls: other definitions of the page, and functions of libraries by their dotted names."""
        found: dict[str, None] = {}
        for node in ast.walk(definition.node):
            if not isinstance(node, ast.Call):
                continue
            parts: list[str] = []
            part = node.func
            while isinstance(part, ast.Attribute):
                parts.insert(0, part.attr)
                part = part.value
            root = part.id if isinstance(part, ast.Name) else ""
            if root in self._imported or root in self.definitions and root != definition.name:
                found[".".join([root, *parts])] = None
            elif parts and root not in ("self", "super", ""):
                found[f".{parts[-1]}()"] = None
        return [*found]

    @cached_property
    def _imported(self) -> set[str]:
        """Names that exported cells import."""
        trees = [_parsed(cell.source) for cell in self.cells if cell.exported]
        nodes = [node for tree in trees for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
        return {(alias.asname or alias.name).split(".")[0] for node in nodes for alias in node.names}

    @staticmethod
    def without_directives(source: str) -> str:
        """A cell's source without the lines that speak to nbdev."""
        return _directive.sub("", source).strip("\n")


def course_folder() -> Path:
    """The folder of the notebooks: nbs/ of a clone, or what an installed package brings. Raises FileNotFoundError."""
    for folder in (_PACKAGE.parent / "nbs", _PACKAGE / "_course"):
        if (folder / "index.ipynb").is_file():
            return folder
    raise FileNotFoundError(
        "the notebooks of the course are neither in nbs/ beside the package nor in lesa_nb/_course: "
        "install the package again, or use it from a clone"
    )


def course_pages() -> list[CoursePage]:
    """The pages that define something to write again, in reading order."""
    paths = [path for path in sorted(course_folder().glob("*/*.ipynb")) if re.match(r"\d+_", path.name)]
    return [page for page in map(CoursePage, paths) if page.definitions]


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """The end of a sentence that says what a word may have meant; empty where nothing comes near."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""


def find_page(word: str) -> CoursePage:
    """A page by its number (4, 04) or its name (04_position, position). Raises ValueError: what there is instead."""
    pages = course_pages()
    for page in pages:
        if word in (page.name, page.number, page.number.lstrip("0"), page.name.partition("_")[2]):
            return page
    if any(path.name.partition("_")[0] == word.zfill(2) for path in course_folder().glob("*/*.ipynb")):
        raise ValueError(f"notebook {word} defines nothing that could be written again")
    known = [name for page in pages for name in (page.name, page.name.partition("_")[2])]
    there = did_you_mean(word, known) or f"; there are {pages[0].number} to {pages[-1].number}, and their names"
    raise ValueError(f"no notebook {word!r}{there}")
