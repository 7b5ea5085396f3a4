"""Do the tests of a notebook notice a wrong answer? Small faults in its definitions, its own cells as judges.

    python tools/mutants.py 04               # notebook 04: who survived, and how many were killed
    python tools/mutants.py 04 --export fit_offsets --max 50 -v
    python tools/mutants.py 01 02 03 --json killed.json

The cells of a notebook run in order in one process. At each exported cell it forks for every mutant: the child executes
the cell with one small fault and goes on with the rest of the page, until a cell raises (killed), the page ends
(survived), or three times the time that the page itself takes, and ten seconds, are over (killed by time). Everything
runs in a copy of the project, with a temporary folder of its own, which is as it was again for each mutant.

The page's later cells use what its own cells defined, so the fault is what they see. Modules of the package that import
from the module that the page teaches keep the right definition (they have it from the package, not from the page),
unless the page registers what it defines; such imports in cells of the page itself are left out.

At most 8 mutants of a definition, 3 where a page takes half a minute of a processor; the same ones each time. What no
test can notice, because it means the same, stands in tools/equivalent_mutants.txt with the reason, and is counted
apart.
"""

import argparse
import contextlib
import json
import linecache
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import types
import warnings
from pathlib import Path
from typing import NamedTuple

import mutations
import project

ROOT = Path(__file__).resolve().parent.parent
EQUIVALENT = Path(__file__).resolve().parent / "equivalent_mutants.txt"
SLOW = 30  # seconds of the processor for a page, above which fewer mutants are taken
MOST, MOST_OF_SLOW = 8, 3  # mutants of a definition
GRACE = 10  # seconds that any mutant may take
MEMORY = 12 * 2**30  # bytes that a mutant may take

_export = re.compile(r"^\s*#\s*\|\s*(exports?|exporti)\b", re.MULTILINE)
_default = re.compile(r"^\s*#\s*\|\s*default_exp\s+(\S+)", re.MULTILINE)
_no_eval = re.compile(r"^\s*#\s*\|\s*eval\s*:?\s*(false|no|0)\b", re.MULTILINE | re.IGNORECASE)
_magic = re.compile(r"^[ \t]*[%!].*$", re.MULTILINE)


class PageError(Exception):
    "A page that does not run as it is: nothing can be said about its mutants."


class Cell(NamedTuple):
    "A code cell that is executed."

    place: int  # in the notebook, from 1
    source: str
    exported: bool


class Equivalent(NamedTuple):
    "A mutant that means the same, and why."

    notebook: str
    export: str
    change: str
    reason: str


def cells_of(path):
    "The module that a notebook teaches, and its code cells, without magics and without those that are never executed."
    module, found = "", []
    for place, cell in enumerate(json.loads(Path(path).read_text(encoding="utf-8"))["cells"], 1):
        source = "".join(cell["source"])
        if cell["cell_type"] != "code":
            continue
        if name := _default.search(source):
            module = f"lesa_nb.{name[1]}"
        if not _no_eval.search(source):
            found.append(Cell(place, _magic.sub("", source), bool(_export.search(source))))
    return module, found


def read_equivalent(path=EQUIVALENT):
    "The marked mutants. Raises ValueError where a line has not its four parts."
    found = []
    lines = Path(path).read_text(encoding="utf-8").splitlines() if Path(path).exists() else []
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.startswith("#"):
            parts = [part.strip() for part in line.split("||")]
            if len(parts) != 4 or not all(parts):
                raise ValueError(f"{path}, line {number}: expected notebook || export || old -> new || reason")
            found.append(Equivalent(*parts))
    return found


def candidates(path):
    "Exported cell -> its definitions -> all mutants of each."
    found = {}
    for cell in cells_of(path)[1]:
        if cell.exported:
            of_cell = found[cell.place] = {}
            for mutant in mutations.mutants(cell.source):
                of_cell.setdefault(mutant.export, []).append(mutant)
    return found


def stale(path, equivalent):
    "Marked mutants of a notebook that are none of its mutants any more."
    there = {(m.export, m.change) for exports in candidates(path).values() for ms in exports.values() for m in ms}
    return [e for e in equivalent if e.notebook == Path(path).stem and (e.export, e.change) not in there]


class Page:
    "The cells of a notebook, and the namespace that they run in."

    def __init__(self, path):
        self.path = Path(path)
        self.module, self.cells = cells_of(path)
        self.space = types.ModuleType("__main__")  # as in a kernel: classes of the page can be pickled
        self.space.display = lambda *objects, **options: None
        self.space.get_ipython = lambda: None

    def run(self, cell, tree=None):
        "Execute one cell, or another tree in its place. Raises what it raises."
        name = f"<cell {cell.place} of {self.path.name}>"
        lines = cell.source if tree is None else mutations.ast.unparse(tree)
        linecache.cache[name] = len(lines), None, lines.splitlines(keepends=True), name
        tree = mutations.ast.parse(cell.source) if tree is None else tree
        if self.module and not cell.exported:
            tree = _Own(self.module).visit(tree)
        exec(compile(tree, name, "exec"), self.space.__dict__)
        if pyplot := sys.modules.get("matplotlib.pyplot"):
            pyplot.close("all")
        if torch := sys.modules.get("torch"):
            torch.set_num_threads(1)


class _Own(mutations.ast.NodeTransformer):
    "Leaves out imports from the module that the page teaches: the page has its own."

    def __init__(self, module):
        self.module = module

    def visit_ImportFrom(self, node):
        return mutations.ast.copy_location(mutations.ast.Pass(), node) if node.module == self.module else node


# Processes


def _in_child(work, seconds):
    "(status, value, seconds) of what `work(tell)` says in a process of its own: ended, raised, late or crashed."
    start = time.monotonic()
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        _child(work, writer)
    os.close(writer)
    said, status = b"", "ended"
    with contextlib.closing(os.fdopen(reader, "rb", buffering=0)) as pipe:
        while True:
            left = None if seconds is None else seconds - (time.monotonic() - start)
            if left is not None and left <= 0 or not select.select([pipe], [], [], left)[0]:
                status = "late"
                break
            block = pipe.read(65536)
            if not block or (said := said + block).endswith(b"\n"):
                break
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)  # where it had no group of its own yet
    os.waitpid(child, 0)
    took = time.monotonic() - start
    if status == "late":
        return status, None, took
    if not said.endswith(b"\n"):
        return "crashed", None, took
    return (*json.loads(said), took)


def _child(work, writer):
    "What a forked process does: it never returns."
    code = 1
    try:
        os.setsid()
        with contextlib.suppress(ImportError, ValueError, OSError):
            import resource

            resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        try:
            answer = "ended", work()
        except BaseException as error:
            answer = "raised", f"{type(error).__name__}: {error}"[:300]
        text = (json.dumps(answer) + "\n").encode()
        while text:
            text = text[os.write(writer, text) :]
        code = 0
    finally:
        os._exit(code)


class _Folder:
    "A folder that can be put back as it was."

    def __init__(self, path):
        self.path, self.backup = Path(path), Path(f"{path}.before")

    def _state(self):
        found = {}
        for folder, folders, names in os.walk(self.path):
            found[folder] = None
            links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
            for name in (*names, *links):
                status = os.lstat(os.path.join(folder, name))
                found[os.path.join(folder, name)] = status.st_size, status.st_mtime_ns
        return found

    def keep(self):
        shutil.rmtree(self.backup, ignore_errors=True)
        shutil.copytree(self.path, self.backup, symlinks=True)
        self.state = self._state()

    def restore(self):
        "Entry by entry: the folder that we work in must not be another one of the same name."
        now = self._state()
        for path in sorted(now.keys() - self.state.keys(), reverse=True):  # what lies in a folder before the folder
            os.rmdir(path) if now[path] is None else os.unlink(path)
        for path in sorted(self.state.keys()):
            if path in now and now[path] == self.state[path]:
                continue
            before = self.backup / os.path.relpath(path, self.path)
            if self.state[path] is None:
                os.makedirs(path, exist_ok=True)
            else:
                Path(path).unlink(missing_ok=True)
                shutil.copy2(before, path, follow_symlinks=False)


# One notebook, in a process of its own


def _run_rest(page, rest, first=None):
    "Run cells: the one that raised and what it raised, or None, the seconds of each, and those of the processor."
    seconds, begin = [], time.process_time()
    for i, cell in enumerate(rest):
        start = time.monotonic()
        try:
            page.run(cell, first if i == 0 else None)
        except BaseException as error:
            words = (str(error).strip().splitlines() or [""])[0]
            return [cell.place, f"{type(error).__name__}: {words}"[:200].encode("ascii", "replace").decode()]
        seconds.append(time.monotonic() - start)
    return [None, seconds, time.process_time() - begin]


def _judge(page, cell, rest, mutant, limit):
    "killed, survived, timed out or crashed; and the cell that noticed, with what it said."
    status, answer, took = _in_child(lambda: _run_rest(page, [cell, *rest], mutant.tree), limit)
    if status == "ended":
        place, said = answer[:2]
        result = "survived" if place is None else "killed"
        return dict(result=result, by=place, said=said if place else "", seconds=round(took, 2))
    result = {"late": "timed out", "crashed": "crashed", "raised": "crashed"}[status]
    return dict(result=result, by=None, said=answer or "", seconds=round(took, 2))


def examine(path, options, report):
    "Every chosen mutant of one notebook; `report` gets each as a dictionary, as soon as it is known."
    page = Page(path)
    sys.modules["__main__"] = page.space
    scratch = _Folder(options["scratch"])
    marked = {(e.export, e.change): e.reason for e in options["equivalent"] if e.notebook == path.stem}
    scratch.keep()
    status, answer, took = _in_child(lambda: _run_rest(page, page.cells), None)
    scratch.restore()
    if status != "ended" or answer[0] is not None:
        where = f"cell {answer[0]}: {answer[1]}" if status == "ended" else answer or status
        raise PageError(f"{path.name} does not run as it is ({where}), so nothing can be said about its mutants")
    seconds, worked = answer[1:]
    most = options["max"] or (MOST if worked <= SLOW or options["all"] else MOST_OF_SLOW)
    found = candidates(path)
    report(dict(page=path.stem, seconds=round(sum(seconds), 1), most=most))
    for i, cell in enumerate(page.cells):
        exports = found.get(cell.place, {})
        chosen = [
            mutant
            for export, mine in exports.items()
            if not options["exports"] or export in options["exports"]
            for mutant in mutations.sample(mine, most)
        ]
        if chosen:
            scratch.keep()
        for mutant in chosen:
            row = dict(notebook=path.stem, export=mutant.export, cell=cell.place, line=mutant.line)
            row |= dict(kind=mutant.kind, change=mutant.change)
            if (mutant.export, mutant.change) in marked:
                report(row | dict(result="equivalent", said=marked[mutant.export, mutant.change], by=None, seconds=0))
                continue
            limit = 3 * sum(seconds[i:]) + options["grace"]
            report(row | _judge(page, cell, page.cells[i + 1 :], mutant, limit))
            scratch.restore()
        page.run(cell)


def _worker():
    "The process of one notebook: what it finds goes to the pipe that it was given, one JSON a line."
    options = json.loads(sys.argv[2])
    options["equivalent"] = [Equivalent(*each) for each in options["equivalent"]]
    warnings.simplefilter("ignore")
    with os.fdopen(options["pipe"], "w", encoding="utf-8", buffering=1) as pipe:
        os.set_inheritable(options["pipe"], False)
        try:
            examine(Path(options["path"]), options, lambda row: print(json.dumps(row), file=pipe, flush=True))
            print(json.dumps(dict(done=True)), file=pipe, flush=True)
        except PageError as error:
            print(json.dumps(dict(error=str(error))), file=pipe, flush=True)
        except BaseException:
            print(json.dumps(dict(error=traceback.format_exc())), file=pipe, flush=True)
        pipe.flush()
        os._exit(0)


# All notebooks


def examine_apart(path, *, root=ROOT, equivalent=(), exports=(), most=None, everything=False, grace=GRACE):
    """Yield a dictionary for each mutant of the notebook `path` of the project `root`, first one about the page.

    Runs on a copy of the project, in a process of its own. Raises PageError.
    """
    with tempfile.TemporaryDirectory(prefix="lesa-mutants-") as home:
        work = Path(home, "work")
        copy = work / "project"
        project.copy(root, copy)
        (work / "tmp").mkdir()
        path = copy / Path(path).resolve().relative_to(Path(root).resolve())
        reader, writer = os.pipe()
        options = dict(path=str(path), scratch=str(work), exports=list(exports), max=most, all=everything, pipe=writer)
        options |= dict(grace=grace)
        options["equivalent"] = [list(each) for each in equivalent]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(copy), str(Path(__file__).parent)])}
        env |= dict(
            MPLBACKEND="Agg",
            OMP_NUM_THREADS="1",
            TMPDIR=str(work / "tmp"),
            PYTHONDONTWRITEBYTECODE="1",
            TQDM_DISABLE="1",
        )
        process = subprocess.Popen(
            [sys.executable, __file__, "--worker", json.dumps(options)],
            cwd=path.parent,
            env=env,
            pass_fds=[writer],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(writer)
        try:
            with os.fdopen(reader, encoding="utf-8") as pipe:
                row = {}
                for line in pipe:
                    row = json.loads(line)
                    if "error" in row:
                        raise PageError(row["error"])
                    if "done" not in row:
                        yield row
                if "done" not in row:
                    raise PageError(f"{path.name}: its process ended before all mutants were judged")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def numbers(rows):
    "How many mutants were killed (`late` of them by time), of how many; `same` are equivalent and count for neither."
    results = [row["result"] for row in rows]
    same = results.count("equivalent")
    count = len(results) - same
    return dict(killed=count - results.count("survived"), count=count, late=results.count("timed out"), same=same)


def share(rows):
    "(killed, of how many, percent) of rows; equivalent ones count for neither."
    found = numbers(rows)
    return found["killed"], found["count"], _percent(found["killed"], found["count"])


def _percent(killed, count):
    return 100 * killed / count if count else 100.0


def _words(killed, count, late, same):
    words = f"killed {killed} of {count} ({_percent(killed, count):.0f} %)"
    return words + (f", {late} of them by time" if late else "") + (f"; {same} equivalent" if same else "")


def describe(rows):
    "The total of some rows, in words."
    return _words(**numbers(rows))


def summary(shares):
    "Lines about the pages of `shares`, test[page] -> numbers of its mutants, and about all of them together."
    lines = [f"{test.rpartition('[')[2].rstrip(']')}: {_words(**found)}" for test, found in sorted(shares.items())]
    total = {name: sum(found[name] for found in shares.values()) for name in ("killed", "count", "late", "same")}
    return [*lines, f"{len(shares)} notebooks: {_words(**total)}"] if len(shares) > 1 else lines


def find_notebook(word, root=ROOT):
    "The notebook of a number or a path. Raises ValueError."
    if Path(word).is_file():
        return Path(word).resolve()
    number = word.zfill(2)
    found = [path for path in project.notebooks(root) if number.isdigit() and path.name.split("_")[0] == number]
    if not found:
        raise ValueError(f"there is no notebook {word}: expected a number such as 04, or a path")
    return found[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", help="numbers (04) or paths; default: all that export something")
    parser.add_argument("--export", action="append", default=[], metavar="NAME", help="only this definition")
    parser.add_argument("--max", type=int, metavar="N", help=f"mutants of a definition; default: {MOST}")
    parser.add_argument("--all", action="store_true", help=f"{MOST} of a definition also where the page is slow")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every mutant and what became of it")
    parser.add_argument("--least", type=float, default=0, metavar="PERCENT", help="status 1 if fewer are killed")
    parser.add_argument("-v", action="store_true", dest="talks", help="say of the killed, too, which cell noticed")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started ends, too
    try:
        equivalent = read_equivalent()
        paths = [find_notebook(word) for word in args.notebooks]
        paths = paths or [path for path in project.notebooks(ROOT) if candidates(path)]
    except ValueError as error:
        parser.error(str(error))
    rows, status = [], 0
    for path in paths:
        for mark in stale(path, equivalent):
            print(f"no such mutant any more: {mark.notebook} || {mark.export} || {mark.change}", flush=True)
        mine = []
        try:
            chosen = dict(exports=args.export, most=args.max, everything=args.all)
            for row in examine_apart(path, equivalent=equivalent, **chosen):
                if "page" in row:
                    print(f"{row['page']}: takes {row['seconds']} s; at most {row['most']} of a definition", flush=True)
                    continue
                mine.append(row)
                where = f"{row['notebook']} {row['export']}, cell {row['cell']} line {row['line']}: {row['change']}"
                if row["result"] in ("survived", "equivalent") or args.talks:
                    by = f"  [cell {row['by']}: {row['said']}]" if row["by"] else ""
                    why = f"  [{row['said']}]" if row["result"] == "equivalent" else ""
                    print(f"  {row['result']:10} {where}{by}{why}", flush=True)
        except PageError as error:
            print(error, file=sys.stderr, flush=True)
            status = 2
            continue
        print(f"{path.stem}: {describe(mine)}", flush=True)
        rows += mine
    if len(paths) > 1:
        print(f"all {len(paths)} notebooks: {describe(rows)}")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return status or int(share(rows)[2] < args.least)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        _worker()
    sys.exit(main())
