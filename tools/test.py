"""Everything that `make test` proves, in one run.

    python tools/test.py                    # notebooks, tests/, files made from the notebooks
    python tools/test.py --slow             # the slow tests too
    python tools/test.py --only notebooks   # one part: notebooks, pytest or sync
    python tools/test.py nbs/1_layer tests/test_cli.py    # only these folders and files

1. pytest runs every notebook (proof.py, on a copy of the project) and tests/, side by side (pytest-xdist).
   With --slow, how they ended is written into promises.json of tools/results, and into nbs/promises.md, how long
   notebooks ran into times.json; without, it is compared with that file.
2. nbdev_export, nbdev_clean and the README change nothing (tried on a copy).

The last line is `N passed, N failed`; the exit status is 1 if anything failed, and 130 if it was interrupted.
"""

import argparse
import compileall
import os
import re
import signal
import sys
import tempfile
import time
from pathlib import Path

TOOLS = Path(__file__).resolve().parent
sys.path = [entry for entry in sys.path if Path(entry or ".").resolve() != TOOLS] + [str(TOOLS)]

import project  # noqa: E402  (tools/ comes last: this file must not hide Python's own `test`)
import promises  # noqa: E402
import pytest  # noqa: E402
import reading  # noqa: E402
import sync  # noqa: E402


def first_line(text):
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


class Board:
    "Collects what passed and failed; says it at once, and repeats the failures at the end."

    def __init__(self):
        self.passed, self.failures = 0, []

    def add(self, name, problem="", seconds=None, details=""):
        took = "       " if seconds is None else f"{seconds:5.1f} s"
        print(f"  {'FAILED' if problem else 'ok    '} {took}  {name}", flush=True)
        if problem:
            self.failures.append((name, problem))
            for line in (details or problem).strip().splitlines():
                print(f"           {line}", flush=True)
        else:
            self.passed += 1

    def close(self):
        if self.failures:
            print("\nfailed:")
            for name, problem in self.failures:
                lines = problem.strip().splitlines()
                print(f"  {name}: {lines[0]}")
                for line in lines[1:12]:
                    print(f"      {line}")
                if len(lines) > 12:
                    print(f"      ... and {len(lines) - 12} lines more above")
        print(f"\n{self.passed} passed, {len(self.failures)} failed", flush=True)
        return 1 if self.failures else 0


class Reporter:
    "A pytest plugin that puts each test on the board when it has ended."

    def __init__(self, board, timeout):
        self.board, self.timeout = board, timeout
        self.parts = {}  # test -> [seconds, has it been called, what failed]
        self.ended, self.deselected = set(), set()
        self.results = []  # of every test that was run: its name, whether it passed, what it measured

    def pytest_runtest_logreport(self, report):
        part = self.parts.setdefault(report.nodeid, [0.0, False, []])
        part[0] += getattr(report, "duration", 0.0)
        part[1] |= report.when == "call" and report.passed
        if report.when == "call":
            self.results.append((report.nodeid, report.passed, dict(report.user_properties)))
        if report.failed:
            text = re.sub(r"^\[gw\d+\] .*\n", "", report.longreprtext) or f"failed in {report.when}"
            if report.when == "???":  # pytest-xdist's word for a test that took its process with it
                text = f"its process ended, or it did not end within {self.timeout:g} s and was stopped\n{text}"
            part[2].append(text)
        if report.when in ("teardown", "???"):
            self.close(report.nodeid)

    def close(self, test):
        seconds, called, failed = self.parts.pop(test)
        if test in self.ended:
            return
        self.ended.add(test)
        text = "\n".join(failed).strip()
        error = next((line[1:].strip() for line in text.splitlines() if line.startswith("E ")), "")
        problem = (error or text) if failed else "" if called else "its body was not run"
        self.board.add(test, problem, seconds, details=text)

    def pytest_collectreport(self, report):
        if report.failed and report.nodeid not in self.ended:
            self.ended.add(report.nodeid)
            text = str(report.longrepr)
            error = next((line[1:].strip() for line in text.splitlines() if line.startswith("E ")), first_line(text))
            self.board.add(f"{report.nodeid} (collecting)", error, details=text)

    def pytest_testnodedown(self, node):
        self.deselected.update(getattr(node, "workeroutput", {}).get("deselected", ()))


def set_environment(root, scratch, jobs):
    "The same for everybody: no settings from the home folder, nothing written there, no display."
    drop = {"IN_TEST", "DISPLAY", "WAYLAND_DISPLAY", "PYTHONHOME", "PYTHONSTARTUP", "PYTHONWARNINGS"}
    for name in [name for name in os.environ if name in drop or name.startswith(("GIT_", "PYTEST_"))]:
        del os.environ[name]
    homes = ("MPLCONFIGDIR", "IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "XDG_CONFIG_HOME")
    for variable in (*homes, "XDG_CACHE_HOME"):
        (scratch / variable).mkdir()
        os.environ[variable] = str(scratch / variable)
    os.environ["PYTHONPATH"] = str(root)  # the tree in front of us, wherever an editable install may point
    sys.path.insert(0, str(root))
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    os.environ["PYTHONIOENCODING"] = "utf-8"
    os.environ["MPLBACKEND"] = "Agg"
    sys.dont_write_bytecode = True
    # Processes side by side, one thread each: more threads than cores wait for each other most of the time.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))


def check_times(board, root, results, note):
    "What pages say of how long they run, against this run; with `note`, write down what it measured."
    measured = {
        test.removesuffix("::runs"): figures["seconds"]
        for test, passed, figures in results
        if passed and test.endswith("::runs") and "seconds" in figures
    }
    noted = reading.times(root)
    if note:
        reading.record(measured, root)
    elif len(noted.keys() & measured.keys()) >= reading.FEWEST:
        problems = reading.far_off(measured, noted)
        board.add("pages say how long they run", "\n".join(problems))


def run_pytest(board, root, folders, timeout, jobs, slow, note_times=False):
    "Returns whether it went to its end."
    folders = [str(root / folder) for folder in folders]
    kinds = "all tests" if slow else "all but the slow ones"
    for package in {path.parent for path in root.glob("*/__init__.py")}:
        compileall.compile_dir(package, quiet=2)  # once, not in each of the processes that the tests start
    print(f"\nnotebooks and tests ({kinds}, {jobs} at a time, {timeout:g} s each at most)", flush=True)
    options = ["-p", "no:cacheprovider", "-p", "no:terminal", "-p", "proof", "--rootdir", str(root)]
    options += ["-n", str(jobs), "--dist", "worksteal", "--max-worker-restart", "100"]
    options += ["-m", "" if slow else "not slow", "--continue-on-collection-errors"]
    options += ["--notebook-timeout", str(timeout), "-o", f"faulthandler_timeout={timeout + min(timeout, 20)}"]
    options += ["-o", "faulthandler_exit_on_timeout=true"]  # a test that hangs ends its process; the others go on
    reporter = Reporter(board, timeout)
    status = pytest.main([*options, *folders], plugins=[reporter])
    if not reporter.ended:
        board.add("pytest finds tests", "no test was found: nothing was tested")
    elif status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.INTERRUPTED):
        board.add("pytest", f"stopped with status {status!r}")
    check_times(board, root, reporter.results, note_times or slow)
    if slow:
        promises.record(reporter.results, root)
    left_out = reporter.deselected - reporter.ended
    if left_out:
        print(f"  not run here: {len(left_out)} tests (`make test-all` adds the slow ones; some need a GPU)")
    return status != pytest.ExitCode.INTERRUPTED


def test_sync(board, root):
    print("\nfiles made from the notebooks", flush=True)
    for step, different in sync.changes(root):
        problem = "\n".join(["not up to date: run `make sync` and commit what it changes"] + different)
        board.add(f"{step} changes nothing", problem if different else "")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="*", help="folders and files with notebooks or tests (default: everything)")
    parser.add_argument("--root", type=Path, default=project.ROOT, help="the project to test (default: this one)")
    parser.add_argument("--timeout", type=float, default=600, help="seconds that one notebook or one test may take")
    parser.add_argument("--jobs", type=int, default=min(8, os.cpu_count() or 1), help="how many at a time")
    parser.add_argument("--slow", action="store_true", help="run the slow tests too; one may take half an hour")
    parser.add_argument("--note-times", action="store_true", help="write down how long notebooks ran (times.json)")
    parser.add_argument("--only", choices=["notebooks", "pytest", "sync"], help="one part")
    args = parser.parse_args()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")
    root = args.root.resolve()
    if not (root / "settings.ini").exists():
        parser.error(f"{root} has no settings.ini: it is no nbdev project")
    os.chdir(root)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ended from outside: say what was done

    board, begin = Board(), time.monotonic()
    folders = args.paths or {None: ["nbs", "tests"], "notebooks": ["nbs"], "pytest": ["tests"], "sync": []}[args.only]
    ended = True
    try:
        with tempfile.TemporaryDirectory(prefix="lesa-test-") as folder:
            set_environment(root, Path(folder), args.jobs)
            if folders:
                timeout = 1800 if args.slow else args.timeout
                ended = run_pytest(board, root, folders, timeout, args.jobs, args.slow, args.note_times)
            if ended and args.only in (None, "sync") and not args.paths:
                test_sync(board, root)
    except KeyboardInterrupt:
        ended = False
    if not ended:
        print("\ninterrupted: not everything was tested", flush=True)
        board.failures.append(("the run", "interrupted"))
        board.close()
        return 130
    print(f"\ntook {time.monotonic() - begin:.0f} s")
    return board.close()


if __name__ == "__main__":
    sys.exit(main())
