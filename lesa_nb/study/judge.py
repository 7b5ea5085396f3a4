"""Do somebody's definitions hold on a page? Its own cells ask, statement by statement, and go on after what fails.

A page is asked in its order; in place of its exported cells stand the definitions that are judged. Where some of a
cell do not hold, the page goes on with its own after their tests, so that one fault is not counted against what comes
later. A statement that needs what could not be made is not asked. Nothing here says what the answer would have been.
"""
from __future__ import annotations

import ast
import contextlib
import io
import json
import linecache
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lesa_nb.study.blanks import blank_source, is_blank
from lesa_nb.study.pages import Cell, CoursePage

__all__ = ["Asked", "Session", "Yours", "judge_apart", "missing_definitions", "random_states"]

_YOURS = "<your cell"
_ERROR = re.compile(r"\b(test_fail|ExceptionExpected|raises|assertRaises\w*)\b")
_TEST = re.compile(r"\b(assert|test_\w+|assert_\w+|ExceptionExpected|raises)\b")
_KINDS = {"oracle": r"oracle|specification|by hand|loops?", "limit": r"limits?|both ends", "meaning": r"meaning"}
_BY_HAND = re.compile(r"\b(\w*loop\w*|spec\w*|want\w*|by_hand\w*|\w*_slow|naive\w*|specified)\b")
_EXTREME = re.compile(r"\b(zero_|zeros\w*|ones\w*|eye|full\w*|inf|constant_|allclose)\b")
_TURN = re.compile(r"your turn: (\w+)")
_MARKS = re.compile(r"[*_`]{1,2}(?=\S)|(?<=\S)[*`]{1,2}")


class Asked(NamedTuple):
    """One statement of a page, and what came of it."""

    cell: int  # its place on the page
    line: int  # in the cell
    kind: str  # oracle, limit, meaning, error; use: no test, the page works with what was defined; definition
    about: list[str]  # definitions that it asks
    where: str  # the heading above it, and the remark beside it
    result: str  # holds, fails, not done, missing, not asked, late; excused: the page's own definitions fail there, too
    said: str = ""


class Yours(NamedTuple):
    """A cell of whoever is judged."""

    name: str  # what it is called in a message; empty for what is the page's own
    source: str


class _Late(BaseException):
    "A statement that takes too long."


@contextlib.contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Raises _Late in what takes longer, where the system can ring a bell."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(*_: Any) -> None:
        raise _Late

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.01))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _loads(node: ast.AST) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}


def _bound(node: ast.AST) -> set[str]:
    """Names that a statement makes for itself: of loops, comprehensions and arguments."""
    places = [n.target for n in ast.walk(node) if isinstance(n, (ast.comprehension, ast.For))]
    names = {n.id for place in places for n in ast.walk(place) if isinstance(n, ast.Name)}
    return names | {n.arg for n in ast.walk(node) if isinstance(n, ast.arg)}


def _stores(node: ast.AST) -> set[str]:
    found = {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    found |= {n.name for n in ast.walk(node) if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
    aliases = [alias for n in ast.walk(node) if isinstance(n, (ast.Import, ast.ImportFrom)) for alias in n.names]
    return found | {(alias.asname or alias.name).split(".")[0] for alias in aliases}


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _one_line(error: BaseException) -> str:
    words = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {words}"[:160].rstrip(": ")


def _plain(text: str) -> str:
    return " ".join(_MARKS.sub("", text).split())


class Session:
    """A page that is run with somebody's definitions.

    provide: gets an exported cell and this session, puts definitions into its `space`, and says what went wrong.
    seconds: that one cell may take. own: the names that the definitions themselves see, if those are others.
    """

    def __init__(
        self,
        page: CoursePage,
        provide: Callable[[Cell, Session], list[Asked]],
        *,
        seconds: float = 300,
        own: Mapping[str, Any] | None = None,
    ):
        self.page, self.provide, self.seconds, self.own = page, provide, seconds, own
        self.space = types.ModuleType("__main__")
        self.space.__dict__["display"] = lambda *objects, **options: None
        self.origin: dict[str, set[str]] = {}  # name on the page -> definitions that it was made with
        self.lost: set[str] = set()  # names that could not be made
        self._replaced: set[str] = set()  # definitions in whose stead the page's own stand by now
        self._section: list[Cell] = []  # an exported cell, and the cells since
        self._states: tuple = ()  # of the generators, where the section began
        self._is_bad = False  # whether something in the section failed
        self._failed: set[tuple[int, int]] = set()  # cell and line of every failure
        self._excused: list[Asked] = []  # those that fail with the page's own definitions, too

    def run(self, last: int | None = None) -> Iterator[list[Asked]]:
        """What came of each cell, one after the other, up to the place `last`; then what fails whoever is judged."""
        for cell in self.page.cells[:last]:
            if not cell.executed:
                continue
            if cell.exported:
                if self._is_bad:
                    self._replace()
                self._section, self._states, self._is_bad = [], random_states(), False
            self._section.append(cell)
            found = self.provide(cell, self) if cell.exported else self._ask(cell)
            self._is_bad |= any(asked.result in ("fails", "late", "missing", "not done") for asked in found)
            self._failed |= {(asked.cell, asked.line) for asked in found if asked.result == "fails"}
            yield found
        if self._is_bad:
            self._replace()
        yield self._excused

    def _replace(self) -> None:
        """Put the page's own definitions into the section that failed, and run it again, without asking."""
        exported, *others = self._section
        if not exported.exported:
            return
        random_states(self._states)
        names = {name for name, definition in self.page.definitions.items() if definition.cell.place == exported.place}
        self._replaced |= names
        self.lost -= names
        [*self.define(Yours("", exported.source))]
        for cell in others:
            for node in ast.parse(cell.source).body:
                error = self._execute(node, f"<cell {cell.place} of {self.page.name}>", self.seconds)
                if error is None:
                    self._made(node, self._about(node))
                elif (cell.place, node.lineno) in self._failed:  # perhaps whoever is judged could not help it
                    said = f"the page itself fails here: {_one_line(error)}"
                    self._excused.append(Asked(cell.place, node.lineno, "use", [], "", "excused", said))

    def _made(self, node: ast.stmt, about: set[str]) -> None:
        self.lost -= _stores(node)
        for name in _stores(node):
            self.origin[name] = about

    def define(self, yours: Yours) -> Iterator[str]:
        """Execute somebody's cell; gives what went wrong, in sentences."""
        file = f"{_YOURS}: {yours.name}>" if yours.name else "<the page's own>"
        linecache.cache[file] = len(yours.source), None, yours.source.splitlines(True), file
        try:
            body = ast.parse(yours.source, file).body
        except SyntaxError as error:
            yield f"your cell is no Python: line {error.lineno}: {error.msg}"
            return
        for node in body:
            raised = self._execute(node, file, self.seconds)
            if raised is not None:
                yield f"your line {node.lineno} raises {_one_line(raised)}"

    def _execute(self, node: ast.stmt, file: str, seconds: float) -> BaseException | None:
        """What a statement raises."""
        before = sys.modules.get("matplotlib.pyplot")
        figures = set(before.get_fignums()) if before else set()
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                with _at_most(seconds):
                    exec(compile(ast.Module([node], []), file, "exec"), self.space.__dict__)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            return error
        finally:
            if pyplot := sys.modules.get("matplotlib.pyplot"):
                for number in set(pyplot.get_fignums()) - figures:
                    pyplot.close(number)
        return None

    def _ask(self, cell: Cell) -> list[Asked]:
        """A cell of the page, statement by statement."""
        file, found = f"<cell {cell.place} of {self.page.name}>", []
        lines = cell.source.splitlines()
        linecache.cache[file] = len(cell.source), None, cell.source.splitlines(True), file
        left = self.seconds
        for node in ast.parse(cell.source, file).body:
            text = "\n".join(lines[node.lineno - 1 : node.end_lineno])
            about, kind = self._about(node), self._kind(cell, node, text)
            place: dict[str, Any] = dict(cell=cell.place, line=node.lineno, kind=kind, where=self._where(cell, text))
            needs = self.lost & (_loads(node) - _bound(node))
            if needs or left <= 0:
                self._lose(node)
                said = f"it needs {', '.join(sorted(needs))}" if needs else "there is no time left for this cell"
                found.append(Asked(**place, about=sorted(about), result="not asked", said=said))
                continue
            start = time.monotonic()
            error = self._execute(node, file, left)
            left -= time.monotonic() - start
            if error is None:
                self._made(node, about)
                found.append(Asked(**place, about=sorted(about), result="holds"))
                continue
            self._lose(node)
            result, said, more = self._judged(error, kind)
            found.append(Asked(**place, about=sorted(about | more), result=result, said=said))
            if result == "late":
                left = 0
        return found

    def _lose(self, node: ast.stmt) -> None:
        for name in _stores(node):
            self.lost.add(name)
            self.space.__dict__.pop(name, None)

    def _about(self, node: ast.stmt) -> set[str]:
        """The definitions that a statement asks, through what was made with them, too."""
        names = _loads(node) - _bound(node)
        found = names & self.page.definitions.keys()
        for name in names:
            found |= self.origin.get(name, set())
        return found - self._replaced

    def _kind(self, cell: Cell, node: ast.stmt, text: str) -> str:
        """Which kind of test a statement is, by its remark, the prose above it, or its own words."""
        if not _TEST.search(text) or isinstance(node, (ast.Import, ast.ImportFrom)):
            return "use"
        if _ERROR.search(text):
            return "error"
        prose = [other.source for other in self.page.cells[: cell.place - 1] if other.kind == "markdown"][-1:]
        for words in (" ".join(re.findall(r"#(.*)", text)), *prose):
            kinds = [kind for kind, pattern in _KINDS.items() if re.search(rf"\b({pattern})\b", words, re.IGNORECASE)]
            if len(kinds) == 1:
                return kinds[0]
            if kinds:
                break
        else:
            kinds = [*_KINDS]
        if "oracle" in kinds and _BY_HAND.search(text):
            return "oracle"
        if "limit" in kinds and _EXTREME.search(text):
            return "limit"
        return "meaning" if "meaning" in kinds else kinds[-1]

    def _where(self, cell: Cell, text: str) -> str:
        remarks = [_plain(remark) for remark in re.findall(r"(?<=\s)#\s+(.*)", text)]
        remark = next((remark for remark in remarks if re.search(r"[a-z]{3}", remark)), "")
        return _plain(self.page.heading_before(cell)) + (f" ({remark})" if remark else "")

    def _judged(self, error: BaseException, kind: str) -> tuple[str, str, set[str]]:
        """(result, what is said of it, whom it is about if that is clear) of what a statement raised."""
        for each in _chain(error):
            turn = _TURN.search(str(each)) if isinstance(each, NotImplementedError) else None
            if turn:
                return "not done", f"{turn[1]} is not written", {turn[1]}
        if isinstance(error, _Late):
            return "late", f"did not end within {self.seconds:g} s", set()
        if isinstance(error, ModuleNotFoundError):
            return "not asked", _one_line(error), set()
        if isinstance(error, NameError) and error.name in self.lost:
            return "not asked", f"it needs {error.name}", set()
        mine = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(_YOURS)]
        place = mine[-1] if mine else None
        if self.own is not None:
            place = self._last_of_own(error) or place
        if place is not None:
            line = f"line {place.lineno} ({place.name})"
            return "fails", f"{_one_line(error)}, in your {line}: {place.line}"[:240], set()
        if isinstance(error, AssertionError):
            return "fails", "is answered otherwise" if kind == "error" else "does not hold", set()
        return "fails", _one_line(error), set()

    def _last_of_own(self, error: BaseException) -> traceback.FrameSummary | None:
        """The last of the frames that see the names of whoever is judged."""
        found, trace = None, error.__traceback__
        while trace is not None:
            if trace.tb_frame.f_globals is self.own:
                found = traceback.extract_tb(trace, limit=1)[0]
            trace = trace.tb_next
        return found


def provide_cells(yours: Mapping[int, Sequence[Yours]]) -> Callable[[Cell, Session], list[Asked]]:
    """Definitions from the cells of a file: place of an exported cell -> what stands in its stead."""

    def provide(cell: Cell, session: Session) -> list[Asked]:
        found = []
        names = [name for name, definition in session.page.definitions.items() if definition.cell.place == cell.place]
        for each in yours.get(cell.place, []):
            wrong = [*session.define(each)]
            place: dict[str, Any] = dict(cell=cell.place, line=1, kind="definition", about=names, where=each.name)
            found += [Asked(**place, result="fails", said=said) for said in wrong]
        return found + missing_definitions(session, names)

    return provide


def missing_definitions(session: Session, names: Sequence[str]) -> list[Asked]:
    """Note which definitions are there, which are blank, and which are not there.

    What an exercise gives, data and private helpers, is the page's own where it is gone.
    """
    found = []
    for name in names:
        session.origin[name] = {name}
        definition = session.page.definitions[name]
        place: dict[str, Any] = dict(cell=definition.cell.place, line=1, kind="definition", about=[name], where=name)
        if name not in session.space.__dict__ and name not in blank_source(definition.cell.source)[1]:
            [*session.define(Yours("", definition.source))]
        if name not in session.space.__dict__:
            session.lost.add(name)
            found.append(Asked(**place, result="missing", said="is not there"))
        elif is_blank(session.space.__dict__[name]):
            found.append(Asked(**place, result="not done"))
    return found


def random_states(states: tuple = ()) -> tuple:
    """The states of the generators that pages draw from, as far as they are loaded; or put them back."""
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    if states:
        random.setstate(states[0])
        if numpy and states[1] is not None:
            numpy.random.set_state(states[1])
        if torch and states[2] is not None:
            torch.set_rng_state(states[2])
    return random.getstate(), numpy and numpy.random.get_state(), torch and torch.get_rng_state()


# In a process of its own


def _serve() -> None:
    """The process that judges: a request on stdin, a line of JSON for each cell on stdout, and nothing else."""
    request = json.loads(sys.stdin.readline())
    said = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    page = CoursePage(request["page"])
    yours = {int(place): [Yours(*each) for each in cells] for place, cells in request["yours"].items()}
    session = Session(page, provide_cells(yours), seconds=request["seconds"])
    sys.modules["__main__"] = session.space
    for found in session.run():
        print(json.dumps([asked._asdict() for asked in found]), file=said, flush=True)
    said.close()
    os._exit(0)


def judge_apart(
    page: CoursePage, yours: Mapping[int, Sequence[Yours]], *, seconds: float = 300
) -> Iterator[list[Asked]]:
    """What came of each cell of a page with the definitions of `yours`, in a process of its own.

    yours: place of an exported cell -> the cells in its stead. seconds: that one cell may take. What ends its process,
    or hangs, ends the judging: the last list then says in which cell.
    """
    package = Path(__file__).resolve().parents[2]
    path = os.pathsep.join(filter(None, [str(package), os.environ.get("PYTHONPATH", "")]))
    process = subprocess.Popen(
        [sys.executable, "-c", "from lesa_nb.study.judge import _serve; _serve()"],
        cwd=page.path.parent,
        env={**os.environ, "PYTHONPATH": path, "MPLBACKEND": "Agg", "TQDM_DISABLE": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        encoding="utf-8",
    )
    assert process.stdin is not None and process.stdout is not None
    request = dict(page=str(page.path.resolve()), seconds=seconds)
    request["yours"] = {str(place): [list(each) for each in cells] for place, cells in yours.items()}
    cells = [cell for cell in page.cells if cell.executed]
    done, late = 0, False

    def stop() -> None:
        nonlocal late
        late = True
        process.kill()

    try:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
        while True:
            timer = threading.Timer(1.5 * seconds + 30, stop)
            timer.daemon = True
            timer.start()
            line = process.stdout.readline()
            timer.cancel()
            if not line.endswith("\n"):
                break
            done += 1
            yield [Asked(**asked) for asked in json.loads(line)]
        if done < len(cells):
            cell = cells[done]
            names = [name for name, known in page.definitions.items() if known.cell.place <= cell.place][-1:]
            said = f"did not end within {seconds:g} s" if late else "ended the process: nothing after it could be asked"
            result = "late" if late else "fails"
            yield [Asked(cell.place, 1, "use", names, page.heading_before(cell), result, said)]
    finally:
        process.kill()
        process.stdin.close()
        process.stdout.close()
        process.wait()
