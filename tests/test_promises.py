"""The page of promises names tests that exist, and says how they ended when all tests were last run."""

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tools"))

import promises  # noqa: E402


def test_every_row_has_tests_that_exist():
    there = set()
    for path in (ROOT / "tests").glob("test_*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                there.add(f"{path.name}::{node.name}")
    assert len(promises.PROMISES) >= 24 and all(names.split() for _, _, names in promises.PROMISES)
    assert promises.tests() - there == set()


def test_a_run_is_written_down(tmp_path):
    (tmp_path / "nbs").mkdir()
    (tmp_path / promises.project.RESULTS).mkdir(parents=True)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_faults.py").write_text('ROWS = {"C1": "right"}\n')
    marked = 'import pytest\n@pytest.mark.fault("C1")\ndef test_one(): ...\n'
    (tmp_path / "tests" / "test_some.py").write_text(marked)
    ended = [("tests/test_some.py::test_one[a]", True, {"kills": 50}), ("tests/test_some.py::test_one[b]", True, {})]
    promises.record(ended, tmp_path)
    assert not (tmp_path / "nbs" / "promises.md").exists()  # a project without such a page
    (tmp_path / promises.project.RESULTS / "promises.json").write_text("{}")
    promises.record([*ended, ("tests/test_some.py::test_other", False, {})], tmp_path)
    page = (tmp_path / "nbs" / "promises.md").read_text()
    assert "| C1 | right |  | 2 passed, 20" in page and "kills 50" in page
    promises.record([("tests/test_some.py::test_one[a]", False, {})], tmp_path)
    page = (tmp_path / "nbs" / "promises.md").read_text()
    assert "on the first version" in page
    assert "**1 failed**" in page and "| 1 | images of 32" in page and "not run yet" in page
