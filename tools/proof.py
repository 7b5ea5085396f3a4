"""A pytest plugin: notebooks are tests, and a test that proves nothing fails.

    pytest -p proof nbs tests          # with tools/ on the path; tools/test.py does that

Of every notebook two tests are made. `runs`: its cells are executed from top to bottom by nbclient, in a copy of the
project that no run may change, and every cell was reached. `proves`: it keeps to the rules of notebook_rules.py.
"""

import compileall
import json
import os
import tempfile
import time
from pathlib import Path

import forked
import nbformat
import notebook_rules as rules
import project
import pytest
from nbdev.config import get_config
from nbdev.doclinks import nbglob
from run_notebooks import NotebookError, execute

ARCHIVE = pytest.StashKey[dict]()


class Broken(Exception):
    "Says what is wrong in its own words: no traceback."


def pytest_addoption(parser):
    parser.addoption("--notebook-timeout", type=float, default=600, help="seconds that one notebook may take")


def pytest_collect_file(file_path, parent):
    if file_path.suffix == ".ipynb" and ".ipynb_checkpoints" not in file_path.parts:
        return NotebookFile.from_parent(parent, path=file_path)


class NotebookFile(pytest.File):
    def collect(self):
        yield Runs.from_parent(self, name="runs")
        yield Proves.from_parent(self, name="proves")

    def read(self):
        "The notebook as a dictionary, sources joined."
        try:
            notebook = json.loads(self.path.read_text(encoding="utf-8"))
            for cell in notebook["cells"]:
                cell["source"] = "".join(cell["source"])
        except (ValueError, KeyError, TypeError) as error:
            raise Broken(f"is no notebook: {type(error).__name__}: {error}") from None
        return notebook


class NotebookItem(pytest.Item):
    parent: NotebookFile

    def reportinfo(self):
        return self.path, None, self.nodeid

    def repr_failure(self, excinfo):
        if isinstance(excinfo.value, (Broken, NotebookError)):
            return str(excinfo.value)
        return super().repr_failure(excinfo)


class Runs(NotebookItem):
    "Every code cell is executed, and nothing of the project changes."

    def runtest(self):
        self.parent.read()
        copy = project_copy(self.config)
        path = copy["folder"] / self.path.relative_to(self.config.rootpath)
        nb = nbformat.read(path, as_version=4)
        env = {**os.environ, "PYTHONPATH": str(copy["folder"])}
        env.pop("MPLBACKEND", None)  # a kernel has its own, which keeps the figures
        begin = time.perf_counter()
        execute(nb, path.parent, timeout=self.config.getoption("--notebook-timeout"), env=env, forked=forked)
        self.user_properties.append(("seconds", round(time.perf_counter() - begin, 1)))
        missed = [
            f"cell {i}" for i, cell in rules.code_cells(nb) if rules.holds_code(cell) and cell.execution_count is None
        ]
        if missed:
            raise Broken(f"ended without running everything: {', '.join(missed)} not executed")
        changed = changes(copy)
        if changed:
            raise Broken("\n".join(["running it changes files of the project", *changed]))


class Proves(NotebookItem):
    "What is written in the notebook proves something."

    def runtest(self):
        notebook = self.parent.read()
        root = self.config.rootpath
        os.chdir(root)  # nbdev looks for settings.ini from here
        found = {Path(path).resolve() for path in nbglob(as_path=True)}
        problems = []
        if self.path.resolve() not in found or (self.path.parent / ".notest").exists():
            problems.append("nbdev_test does not find it")
        problems += rules.skipped(notebook, get_config().tst_flags.split()) + rules.hollow(notebook)
        problems += rules.other_outputs(notebook)
        if project.has_figures(root):
            problems += rules.undrawn(notebook)
        if rules.COMPONENT.match(self.path.name):
            tests = rules.count_tests(notebook)
            if tests < rules.TESTS_PER_COMPONENT:
                problems.append(f"{tests} tests; a component notebook has at least {rules.TESTS_PER_COMPONENT}")
            if project.has_figures(root) and not rules.figures(notebook):
                problems.append("no figure is saved in it: run `make notebooks`")
        size = self.path.stat().st_size
        if size > rules.LARGEST:
            problems.append(f"{size / 1000:.0f} KB; a notebook has at most {rules.LARGEST // 1000} KB")
        if problems:
            raise Broken("\n".join(problems))


def project_copy(config):
    "One copy of the project for each process: where it is, and its files as they were."
    if ARCHIVE not in config.stash:
        scratch = tempfile.TemporaryDirectory(prefix="lesa-copy-")
        folder = Path(scratch.name) / config.rootpath.name
        project.copy(config.rootpath, folder)
        compileall.compile_dir(folder, maxlevels=3, quiet=2)  # once, not in each of the kernels
        config.stash[ARCHIVE] = {"scratch": scratch, "folder": folder, "before": project.snapshot(folder)}
    return config.stash[ARCHIVE]


def changes(copy):
    "What is different in the copy since it was made, or since this was asked."
    before, copy["before"] = copy["before"], project.snapshot(copy["folder"])
    names = before.keys() | copy["before"].keys()
    changed = sorted(name for name in names if before.get(name) != copy["before"].get(name))
    return [f"{name}: {'changed' if name in before else 'new'}" for name in changed]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    "A test that is skipped, or expected to fail, proves nothing: it fails."
    report = yield
    if report.skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else getattr(report, "wasxfail", "")
        report.outcome, report.longrepr = "failed", f"skipped, so it proves nothing: {reason}"
        if hasattr(report, "wasxfail"):
            del report.wasxfail
    return report


def pytest_deselected(items):
    "Each process notes what it leaves out; the one that reports counts."
    for item in items:
        if hasattr(item.config, "workeroutput"):
            item.config.workeroutput.setdefault("deselected", []).append(item.nodeid)


def pytest_unconfigure(config):
    if ARCHIVE in config.stash:
        config.stash[ARCHIVE]["scratch"].cleanup()
