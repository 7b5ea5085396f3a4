"""A page of the course to write again: an exercise made of it, judged by the page's own tests, with hints and progress.

    lesa exercise 04                                       # the page 04_position without its definitions
    lesa exercise --check 04_position_exercise.ipynb       # what holds, and what does not

In the exercise itself `check("04", "fit_offsets")` asks the tests of one cell, with the definitions that are there.
"""
from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lesa_nb.io.atomic import atomic_json
from lesa_nb.study.blanks import blank_source, page_of_exercise
from lesa_nb.study.judge import Asked, Session, Yours, judge_apart, missing_definitions, random_states
from lesa_nb.study.pages import Cell, CoursePage, find_page

__all__ = [
    "Verdict",
    "check",
    "describe_hint",
    "describe_verdicts",
    "judge_exercise",
    "keep_progress",
    "open_exercise",
    "progress_of",
    "to_write",
    "verdicts_of",
]

_TURN_LINE = re.compile(r"^# your turn: (.*)$", re.MULTILINE)
_CHECKS = re.compile(r"^(from lesa_nb\.study\.exercise import|check\()", re.MULTILINE)
_WORSE = ["fails", "late", "missing", "not done", "not asked", "holds"]


class Verdict(NamedTuple):
    """What is known of one definition."""

    name: str
    asked: list[Asked]  # what was asked about it
    through: list[str]  # what calls it, where no test names it
    state: str  # holds, written (no test asks it), fails, missing, not done, waits (for others), not asked

    @property
    def is_done(self) -> bool:
        """Whether there is nothing to be said against it."""
        return self.state in ("holds", "written")



def to_write(page: CoursePage) -> list[str]:
    """The names of a page that an exercise leaves blank."""
    found: list[str] = []
    for cell in page.cells:
        if cell.exported:
            found += blank_source(cell.source)[1]
    return found


def open_exercise(path: str | Path) -> tuple[CoursePage, CoursePage]:
    """(the page, the notebook that somebody wrote). Raises ValueError where a file is no exercise of a page."""
    theirs = CoursePage(path)
    name = page_of_exercise(theirs)
    if not name:
        raise ValueError(
            f"{path}: is no exercise of the course: expected what lesa exercise NN wrote, its second cell included"
        )
    page = find_page(name)
    if not {*to_write(page)} & {name for cell in theirs.cells if cell.kind == "code" for name in _defined(cell.source)}:
        raise ValueError(
            f"{path}: the cells '# your turn' are gone, and nothing defines {', '.join(to_write(page))}; "
            f"lesa exercise {page.number} --out FILE writes a new exercise"
        )
    return page, theirs


def _only_definitions(source: str) -> str:
    """The imports, functions, classes and constants of a cell, in their lines; nothing that works or draws."""
    try:
        body = ast.parse(source).body
    except SyntaxError:
        return ""
    lines, kept = source.splitlines(), [""] * len(source.splitlines())
    for node in body:
        constant = isinstance(node, ast.Assign) and not any(isinstance(n, ast.Call) for n in ast.walk(node))
        if constant or isinstance(node, (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)):
            first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
            kept[first - 1 : node.end_lineno] = lines[first - 1 : node.end_lineno]
    return "\n".join(kept)


def _defined(source: str) -> set[str]:
    try:
        body = ast.parse(source).body
    except SyntaxError:
        return {*re.findall(r"^(?:async def|def|class)\s+(\w+)", source, re.MULTILINE)}
    names = {node.name for node in body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))}
    targets = [target for node in body if isinstance(node, ast.Assign) for target in node.targets]
    return names | {target.id for target in targets if isinstance(target, ast.Name)}


def cells_instead(page: CoursePage, theirs: CoursePage) -> dict[int, list[Yours]]:
    """Place of an exported cell -> what somebody wrote in its stead: the cell '# your turn', and helpers around it."""
    own = {page.without_directives(cell.source).strip() for cell in page.cells if not cell.exported}
    found: dict[int, list[Yours]] = {}
    pending: list[Yours] = []
    place = 0
    exported = [cell for cell in page.cells if cell.exported]
    for cell in theirs.cells:
        if cell.kind != "code" or _CHECKS.search(cell.source) or cell.source.strip() in own:
            continue
        turn = _TURN_LINE.search(cell.source)
        names = {name.strip() for name in turn[1].split(",")} if turn else _defined(cell.source)
        here = next((each.place for each in exported if names & _names_in(page, each)), 0)
        if here:
            title = turn[1] if turn else ", ".join(sorted(names))
            found.setdefault(here, []).extend([*pending, Yours(title, cell.source)])
            pending, place = [], here
        elif helpers := _only_definitions(cell.source):
            helper = Yours("a cell of your own", helpers)
            if place:
                found[place].append(helper)
            else:
                pending.append(helper)
    for each in exported:  # imports, and data that an exercise keeps
        if not blank_source(each.source)[1]:
            found.setdefault(each.place, [Yours("", each.source)])
    return found


def _names_in(page: CoursePage, cell: Cell) -> set[str]:
    return {name for name, definition in page.definitions.items() if definition.cell.place == cell.place}


def judge_exercise(
    page: CoursePage,
    theirs: CoursePage,
    *,
    seconds: float = 300,
    watch: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> list[Verdict]:
    """Ask the tests of a page about what somebody wrote, in a process of its own.

    seconds: that one cell may take. watch: gets the cells as they are judged; a progress bar, for instance. Raises
    ModuleNotFoundError where the page needs a package that is not there.
    """
    _require_packages(page)
    asked = [each for found in watch(judge_apart(page, cells_instead(page, theirs), seconds=seconds)) for each in found]
    return verdicts_of(page, _confirm_excuses(page, asked, seconds))


def _confirm_excuses(page: CoursePage, asked: list[Asked], seconds: float) -> list[Asked]:
    """The answers, of those that are excused only what fails where all definitions are the page's own."""
    doubtful = {(each.cell, each.line) for each in asked if each.result == "excused"}
    own = {cell.place: [Yours("", cell.source)] for cell in page.cells if cell.exported}
    failing: set[tuple[int, int]] = set()
    last = max((place for place, _ in doubtful), default=0)
    if doubtful:
        for cell, found in zip((cell for cell in page.cells if cell.executed), judge_apart(page, own, seconds=seconds)):
            failing |= {(each.cell, each.line) for each in found if each.result in ("fails", "late")}
            if cell.place >= last:
                break
    return [each for each in asked if each.result != "excused" or (each.cell, each.line) in failing]


def _require_packages(page: CoursePage) -> None:
    for cell in page.cells:
        for node in ast.walk(ast.parse(cell.source)) if cell.executed else ():
            if isinstance(node, (ast.Import, ast.ImportFrom)) and node.col_offset == 0:
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
                for name in {name.split(".")[0] for name in names} - {""}:
                    if importlib.util.find_spec(name) is None:
                        raise ModuleNotFoundError(
                            f"the tests of {page.name} need {name}, which is not installed: pip install 'lesa_nb[dev]'"
                        )


def verdicts_of(page: CoursePage, asked: Sequence[Asked]) -> list[Verdict]:
    """What the answers say of each definition that an exercise leaves blank, in the page's order."""
    found = []
    excused = {(each.cell, each.line) for each in asked if each.result == "excused"}
    asked = [each for each in asked if (each.cell, each.line) not in excused]
    for name in to_write(page):
        mine = [each for each in asked if name in each.about]
        states = {each.result for each in mine if each.kind == "definition"}
        tests, through = [each for each in mine if each.kind != "definition"], []
        if not tests:
            through = _callers(page, name, asked)
            tests = [each for each in asked if each.kind != "definition" and {*through} & {*each.about}]
        if "missing" in states:
            state = "fails" if any(each.result == "fails" for each in mine if each.kind == "definition") else "missing"
        elif "not done" in states:
            state = "not done"
        elif any(each.result in ("fails", "late") for each in [*mine, *tests]):
            state = "fails"
        elif any(each.result == "not done" for each in tests):
            state = "waits"
        elif not tests:
            state = "written"
        elif all(each.result == "not asked" for each in tests):
            state = "not asked"
        else:
            state = "holds"
        found.append(Verdict(name, mine, through, state))
    return found


def _callers(page: CoursePage, name: str, asked: Sequence[Asked]) -> list[str]:
    """The definitions that call one that no test names, as near as there are any with tests."""
    tested = {each for answer in asked if answer.kind != "definition" for each in answer.about}
    seen, front = {name}, [name]
    while front:
        front = [
            other
            for other, definition in page.definitions.items()
            if other not in seen and {*front} & {n.id for n in ast.walk(definition.node) if isinstance(n, ast.Name)}
        ]
        seen.update(front)
        if found := [other for other in front if other in tested]:
            place = page.definitions[name].cell.place
            return [other for other in found if page.definitions[other].cell.place == place] or found
    return []


def _tests(asked: Sequence[Asked]) -> dict[tuple[int, str], list[Asked]]:
    """The answers by cell and kind."""
    found: dict[tuple[int, str], list[Asked]] = {}
    for each in asked:
        if each.kind != "definition" and (each.kind != "use" or each.result in ("fails", "late")):
            found.setdefault((each.cell, each.kind), []).append(each)
    return found


def describe_verdicts(verdicts: Sequence[Verdict]) -> str:
    """What holds, definition by definition and test by test; never what the answer would be."""
    wide, lines = max([len(verdict.name) for verdict in verdicts], default=0), []
    for verdict in verdicts:
        tests = _tests(verdict.asked)
        count = sum(all(each.result == "holds" for each in some) for some in tests.values())
        used = any(each.kind == "use" for each in verdict.asked)
        words = "the page works with it" if used else "no test names it"
        words = f"{count} of {len(tests)} tests" if tests else words
        words += f": asked through {', '.join(verdict.through)}" if verdict.through else ""
        said = {"waits": "waits for others", "holds": "holds"}.get(verdict.state, verdict.state)
        if verdict.state in ("not done", "missing"):
            lines.append(f"{verdict.name:{wide}}  {said}")
            continue
        lines.append(f"{verdict.name:{wide}}  {said:<16}  {words}")
        lines += [f"    your cell: {each.said}" for each in verdict.asked if each.kind == "definition" and each.said]
        for (cell, kind), some in tests.items():
            worst = min(some, key=lambda each: _WORSE.index(each.result))
            where = f"{kind:<8} cell {cell}, {worst.where}" if worst.result != "holds" else f"{kind:<8} cell {cell}"
            lines.append(f"    {worst.result:<9} {where}" + (f": {worst.said}" if worst.said else ""))
    return "\n".join(lines)


def describe_hint(page: CoursePage, name: str) -> str:
    """Where a definition is derived, by which formulas, and what it calls. Raises ValueError for an unknown name."""
    definition = page.definition(name)
    lines = [f"{name}, of {page.name}: {page.heading_before(definition.cell)}"]
    lines += [f"({number})  {formula}" for number, formula in page.formulas(definition).items()]
    prose = page.prose_before(definition.cell).strip()
    called = page.names_called(definition)
    return "\n\n".join(["\n".join(lines), prose, f"It calls: {', '.join(called)}" if called else "It calls nothing."])


# Progress, beside the file


def _beside(path: Path) -> Path:
    return path.with_suffix(".progress.json")


def progress_of(path: str | Path) -> dict[str, Any]:
    """What is kept of an exercise: page, state of each definition, hints and solutions taken; {} for nothing yet."""
    try:
        found = json.loads(_beside(Path(path)).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and isinstance(found.get("states"), dict) else {}


def keep_progress(path: str | Path, page: CoursePage, **changes: Any) -> None:
    """Note what is new of an exercise: `states` of definitions, a `hint` or a `solution` that was taken."""
    found = progress_of(path) or dict(page=page.name, states={}, hints=[], solutions=[])
    found["states"] = {**found["states"], **changes.get("states", {})}
    for kind in ("hint", "solution"):
        taken = found.setdefault(f"{kind}s", [])
        if kind in changes and changes[kind] not in taken:
            taken.append(changes[kind])
    atomic_json(_beside(Path(path)), found, what="the progress")


# In the exercise itself


def _inject(names: Mapping[str, Any]) -> Callable[[Cell, Session], list[Asked]]:
    """Definitions that are there already, in the notebook that asks."""

    def provide(cell: Cell, session: Session) -> list[Asked]:
        if not blank_source(cell.source)[1]:
            return [asked for asked in _run_as_it_is(cell, session)]
        wanted = [name for name in session.page.definitions if name in _names_in(session.page, cell)]
        session.space.__dict__.update({name: names[name] for name in wanted if name in names})
        return missing_definitions(session, wanted)

    return provide


def _run_as_it_is(cell: Cell, session: Session) -> list[Asked]:
    wrong = [*session.define(Yours("", cell.source))]
    return [Asked(cell.place, 1, "definition", [], "imports", "fails", said) for said in wrong]


def check(page: str, *names: str, seconds: float = 300) -> None:
    """Ask the tests of a page about definitions of the notebook that calls this, and print what holds.

    page: its number, "04". names: definitions of one of its cells; none: all. The tests run on the page's own objects,
    up to the next cell that has to be written; random states stay as they were. seconds: that one cell may take.
    """
    of = find_page(page)
    own = sys._getframe(1).f_globals
    for name in names:
        of.definition(name)
    wanted = list(names) or to_write(of)
    last = None
    if names:
        place = max(of.definitions[name].cell.place for name in names)
        later = (cell for cell in of.cells if cell.exported and cell.place > place and blank_source(cell.source)[1])
        last = next((cell.place - 1 for cell in later), None)
    session = Session(of, _inject(own), seconds=seconds, own=own)
    folder, state, main = os.getcwd(), random_states(), sys.modules.get("__main__")
    try:
        os.chdir(of.path.parent)
        asked = [each for found in session.run(last) for each in found]
    finally:
        os.chdir(folder)
        random_states(state)
        if main is not None:
            sys.modules["__main__"] = main
    verdicts = verdicts_of(of, _confirm_excuses(of, asked, seconds))
    print(describe_verdicts([verdict for verdict in verdicts if verdict.name in wanted]))
