"""Everything that `make test` proves, in one run.

    python tools/test.py                    # notebooks, tests/, files made from the notebooks
    python tools/test.py --slow             # the slow tests too
    python tools/test.py --only notebooks   # one part: notebooks, pytest or sync

1. Every notebook runs from top to bottom, with nbdev's own test function, two at a time, each in its own process, on a
   copy of the project: what a notebook writes does not reach the working tree, what git ignores does not help it.
2. The notebooks prove something: every code cell was executed, nothing is skipped, there are tests and figures.
3. pytest runs tests/.
4. nbdev_export, nbdev_clean and the README change nothing (tried on a copy).

The last line is `N passed, N failed`; the exit status is 1 if anything failed, and 130 if it was interrupted.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import notebook_rules as rules
import project
import sync

TOOLS = Path(__file__).resolve().parent
LIVE = set()  # processes that still run


def first_line(text):
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


class Board:
    "Collects what passed and failed; says it at once, and repeats the failures at the end."

    def __init__(self):
        self.passed, self.failures, self.lock = 0, [], threading.Lock()

    def add(self, name, problem="", seconds=None, note="", details=""):
        with self.lock:
            took = "       " if seconds is None else f"{seconds:5.1f} s"
            print(f"  {'FAILED' if problem else 'ok    '} {took}  {name}{'  ' + note if note else ''}", flush=True)
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


def kill(process):
    "The process and everything that it started."
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def start(command, root, env, log):
    process = subprocess.Popen(
        command, cwd=root, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
    )
    LIVE.add(process)
    return process


def finish(process):
    kill(process)  # what it left running goes too
    LIVE.discard(process)


def child_environment(root, scratch, jobs):
    "The same for everybody: no settings from the home folder, nothing written there, no display."
    drop = {
        "IN_TEST",
        "MPLBACKEND",
        "DISPLAY",
        "WAYLAND_DISPLAY",
        "PYTHONHOME",
        "PYTHONSTARTUP",
        "PYTHONWARNINGS",
        "PYTEST_ADDOPTS",
    }
    env = {key: value for key, value in os.environ.items() if key not in drop and not key.startswith("GIT_")}
    for variable in (
        "MPLCONFIGDIR",
        "IPYTHONDIR",
        "JUPYTER_CONFIG_DIR",
        "JUPYTER_RUNTIME_DIR",
        "XDG_CONFIG_HOME",
        "XDG_CACHE_HOME",
    ):
        (scratch / variable).mkdir()
        env[variable] = str(scratch / variable)
    env["PYTHONPATH"] = str(root)  # the tree in front of us, wherever an editable install may point
    env["PYTHONDONTWRITEBYTECODE"] = "1"
    env["PYTHONIOENCODING"] = "utf-8"
    env.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    return env


# Notebooks


def found_and_matched(root, copy):
    "Every notebook, those that nbdev's own search would test, and the flags that it takes as a sign to skip."
    from nbdev.config import get_config
    from nbdev.doclinks import nbglob

    os.chdir(copy)  # nbdev looks for settings.ini from here
    found = [copy / name for name in project.files(root) if name.suffix == ".ipynb"]
    matched = {Path(path).resolve() for path in nbglob(as_path=True)}
    matched = {path for path in matched if not (path.parent / ".notest").exists()}  # nbdev's sign to leave a folder out
    return found, [path for path in found if path.resolve() in matched], get_config().tst_flags.split()


def read_notebook(path):
    "The notebook as a dictionary, sources joined."
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        cell["source"] = "".join(cell["source"])
    return notebook


def run_notebook(path, notebook, root, scratch, env, timeout):
    "Returns (problem or '', details, seconds, numbers of the code cells that were executed)."
    report_file, log_file = scratch / f"{path.stem}.json", scratch / f"{path.stem}.log"
    begin = time.monotonic()
    with open(log_file, "wb") as log:
        process = start([sys.executable, str(TOOLS / "run_cells.py"), str(path), str(report_file)], root, env, log)
        try:
            status = process.wait(timeout)
        except subprocess.TimeoutExpired:
            status = None
        finish(process)
    seconds = time.monotonic() - begin
    text = log_file.read_text(encoding="utf-8", errors="replace").strip().replace(f"{root}{os.sep}", "")
    tail = "\n".join(text.splitlines()[-40:])
    if status is None:
        return f"did not end within {timeout:g} s and was stopped", "", seconds, []
    if not report_file.exists():
        return f"its process ended early (status {status}), so not every cell was run", tail, seconds, []
    report = json.loads(report_file.read_text(encoding="utf-8"))
    cells = rules.code_cells(notebook)
    executed = [i for i in sorted(set(report["executed"])) if rules.holds_code(cells[i][1])]
    if report["error"]:
        position = cells[report["error"]["cell"]][0]
        error = f"{report['error']['type']}: {first_line(report['error']['message'])}".rstrip(": ")
        return f"cell {position}: {error}\nat: {report['error']['line']}", tail, seconds, executed
    if not report["passed"]:
        return "nbdev's test function says it failed", tail, seconds, executed
    missed = [
        f"cell {position}" for i, (position, cell) in enumerate(cells) if i not in executed and rules.holds_code(cell)
    ]
    if missed:
        return f"passed without running everything: {', '.join(missed)} not executed", tail, seconds, executed
    return "", "", seconds, executed


def test_notebooks(board, project_root, scratch, env, timeout, jobs):
    root = scratch / "copy" / project_root.name
    project.copy(project_root, root)
    before = {name: (root / name).read_bytes() for name in project.files(root)}
    env = {**env, "PYTHONPATH": str(root)}
    found, matched, flags = found_and_matched(project_root, root)
    print(f"\nnotebooks ({len(found)} found, {jobs} at a time, {timeout:g} s each at most)", flush=True)
    notebooks, executed = {}, {}
    for path in found:
        try:
            notebooks[path] = read_notebook(path)
        except (ValueError, KeyError, TypeError) as error:
            executed[path] = []
            board.add(str(path.relative_to(root)), f"is no notebook: {type(error).__name__}: {error}")

    def one(path):
        problem, details, seconds, executed[path] = run_notebook(path, notebooks[path], root, scratch, env, timeout)
        board.add(
            str(path.relative_to(root)),
            problem,
            seconds,
            f"{len(executed[path])} cells",
            f"{problem}\n{details}".strip(),
        )

    pool = ThreadPoolExecutor(jobs)
    try:
        list(pool.map(one, [path for path in matched if path in notebooks]))
    finally:  # interrupted: the waiting ones do not start, the running ones stop
        pool.shutdown(wait=False, cancel_futures=True)

    print("\nwhat the notebooks prove", flush=True)

    def check(name, problems, note=""):
        board.add(name, "\n".join(problems if len(problems) < 2 else [f"{len(problems)} times"] + problems), note=note)

    def per_notebook(rule, only=lambda path: True):
        return [
            f"{path.relative_to(root)}: {problem}"
            for path, nb in notebooks.items()
            if only(path)
            for problem in rule(path, nb)
        ]

    def is_component(path):
        return rules.COMPONENT.match(path.name)

    left_out = [f"{path.relative_to(root)}: nbdev_test does not find it" for path in found if path not in executed]
    check(
        "every notebook was run",
        left_out if found else ["no notebook was found: nothing was tested"],
        f"{len(executed)} of {len(found)}",
    )
    ran = total = 0
    missed = []
    for path, nb in notebooks.items():
        wanted = {i for i, (_, cell) in enumerate(rules.code_cells(nb)) if rules.holds_code(cell)}
        done = set(executed.get(path, []))
        ran, total = ran + len(done), total + len(wanted)
        if done != wanted:
            missed.append(f"{path.relative_to(root)}: {len(done)} of {len(wanted)} code cells were executed")
    check("every code cell was executed", missed if total else ["there is no code cell"], f"{ran} of {total}")
    check("nothing is skipped", per_notebook(lambda path, nb: rules.skipped(nb, flags)))
    tests = {path: rules.count_tests(nb) for path, nb in notebooks.items()}
    check(
        f"at least {rules.TESTS_PER_COMPONENT} tests in every component notebook",
        per_notebook(
            lambda path, nb: [f"{tests[path]} tests"] if tests[path] < rules.TESTS_PER_COMPONENT else [], is_component
        ),
        f"{sum(tests.values())} asserts and test calls",
    )
    check("no test that cannot fail", per_notebook(lambda path, nb: rules.hollow(nb)))
    figures = sum(rules.figures(nb) for nb in notebooks.values())
    check(
        "figures in every component notebook",
        per_notebook(
            lambda path, nb: [] if rules.figures(nb) else ["no figure is saved in it: run `make notebooks`"],
            is_component,
        ),
        f"{figures} figures",
    )
    check("every cell that draws has its picture", per_notebook(lambda path, nb: rules.undrawn(nb)))
    check("saved outputs are pictures only", per_notebook(lambda path, nb: rules.other_outputs(nb)))
    after = {name: (root / name).read_bytes() for name in project.files(root)}
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    redrawn = {name for name in changed if name.parts[0] == "Images" and name in before}  # other fonts, other bytes
    check(
        "running them changes no file of the project",
        [f"{name}: {'changed' if name in before else 'new'}" for name in sorted(changed - redrawn)],
        ", ".join(f"{name} drawn anew" for name in sorted(redrawn)),
    )
    sizes = {path: path.stat().st_size for path in found}
    check(
        f"no notebook over {rules.LARGEST // 1000} KB",
        [f"{path.relative_to(root)}: {size / 1000:.0f} KB" for path, size in sizes.items() if size > rules.LARGEST],
        f"largest {max(sizes.values(), default=0) / 1000:.0f} KB",
    )


# tests/


def test_pytest(board, root, scratch, env, timeout, slow):
    events, done, log_file = scratch / "events.jsonl", scratch / "done.txt", scratch / "pytest.log"
    print(f"\ntests ({'all of them' if slow else 'but for the slow ones'}, {timeout:g} s each at most)", flush=True)
    env = {**env, "MPLBACKEND": "Agg"}
    arguments = [
        "-q",
        "-p",
        "no:cacheprovider",
        "--continue-on-collection-errors",
        "--rootdir",
        str(root),
        "-m",
        "" if slow else "not slow",
    ]
    ended, deselected, read = set(), set(), 0
    while True:
        done.write_text("\n".join(ended), encoding="utf-8")
        events.touch()
        with open(log_file, "wb") as log:
            command = [
                sys.executable,
                str(TOOLS / "run_pytest.py"),
                str(events),
                str(done),
                *arguments,
                str(root / "tests"),
            ]
            process = start(command, root, env, log)
            running, since, hung, finished = None, time.monotonic(), False, False
            while not finished:
                finished = process.poll() is not None
                with open(events, encoding="utf-8") as file:
                    file.seek(read)
                    for line in iter(file.readline, ""):
                        if not line.endswith("\n"):
                            break
                        read = file.tell()
                        event = json.loads(line)
                        since = time.monotonic()
                        if event["event"] == "start":
                            running = event["test"]
                        elif event["event"] == "deselected":
                            deselected.update(event["tests"])
                        elif event["test"] not in ended:
                            running = None
                            ended.add(event["test"])
                            text = event["text"].strip()
                            last = next(
                                (line[1:].strip() for line in text.splitlines() if line.startswith("E ")),
                                first_line(text),
                            )
                            board.add(
                                event["test"],
                                "" if event["passed"] else last or "failed",
                                event["seconds"],
                                details=text,
                            )
                if not finished and time.monotonic() - since > timeout:
                    hung, finished = True, True
                if not finished:
                    time.sleep(0.1)
            finish(process)
        output = log_file.read_text(encoding="utf-8", errors="replace")
        tail = "\n".join(output.strip().splitlines()[-30:])
        if hung and running is None:
            board.add("pytest", f"did nothing for {timeout:g} s and was stopped", details=tail)
            break
        if running is not None:  # it hung, or it took the whole process with it: the rest still gets its turn
            problem = (
                f"did not end within {timeout:g} s and was stopped"
                if hung
                else f"ended pytest itself (status {process.returncode})"
            )
            ended.add(running)
            board.add(running, problem, details=f"{problem}\n{tail}")
            continue
        if process.returncode not in (0, 1, 5):
            board.add("pytest", f"stopped with status {process.returncode}", details=tail)
        break
    if not ended:
        board.add("pytest finds tests", "no test was found: nothing was tested", details=f"no test was found\n{tail}")
    if deselected - ended:
        print(
            f"  not run here: {len(deselected - ended)} tests (`make test-all` adds the slow ones; some need a GPU)",
            flush=True,
        )


def test_sync(board, root):
    print("\nfiles made from the notebooks", flush=True)
    for step, different in sync.changes(root):
        problem = (
            "\n".join(["not up to date: run `make sync` and commit what it changes"] + different) if different else ""
        )
        board.add(f"{step} changes nothing", problem)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=project.ROOT, help="the project to test (default: this one)")
    parser.add_argument("--timeout", type=float, default=600, help="seconds that one notebook or one test may take")
    parser.add_argument("--jobs", type=int, default=2, help="notebooks at a time")
    parser.add_argument("--slow", action="store_true", help="run the slow tests too; one may take half an hour")
    parser.add_argument("--only", choices=["notebooks", "pytest", "sync"], help="one part")
    args = parser.parse_args()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")
    root = args.root.resolve()
    if not (root / "settings.ini").exists():
        parser.error(f"{root} has no settings.ini: it is no nbdev project")
    os.chdir(root)
    os.environ.pop("IN_TEST", None)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ended from outside: stop what runs, say what was done

    board, begin = Board(), time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="lesa-test-") as folder:
            scratch = Path(folder)
            env = child_environment(root, scratch, args.jobs)
            if args.only in (None, "notebooks"):
                test_notebooks(board, root, scratch, env, args.timeout, args.jobs)
            if args.only in (None, "pytest"):
                test_pytest(board, root, scratch, env, 1800 if args.slow else args.timeout, args.slow)
            if args.only in (None, "sync"):
                test_sync(board, root)
    except KeyboardInterrupt:
        print("\ninterrupted: not everything was tested", flush=True)
        board.failures.append(("the run", "interrupted"))
        board.close()
        return 130
    finally:
        for process in list(LIVE):
            kill(process)
    print(f"\ntook {time.monotonic() - begin:.0f} s")
    return board.close()


if __name__ == "__main__":
    sys.exit(main())
