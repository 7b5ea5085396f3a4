"""Every row of the list of faults that public bug reports of other libraries taught has a test that names it.

A test says which rows it holds the right value of: `@pytest.mark.fault("C1", "C7")`. This file keeps the list.
"""

import ast

import pytest

#: row -> the right value
ROWS = {
    "C1": "what is wrong with a mask costs the mask, never the box; scores equal pycocotools'",
    "C2": "the same category ids under other names are refused, the same names under other ids are mapped",
    "C3": "one reader of pictures for folders of classes and COCO folders: 16 bits are scaled",
    "C4": "fields of another type are named when the file is read; harmless ones are filled in",
    "C5": "a set of which everything is left out is not ready",
    "C6": "one function finds a picture's file",
    "C7": "annotation ids need not be unique",
    "C8": "HTC without stuff maps is refused before the folder is made, with the way out",
    "C9": "targets are checked once, in torchvision's words",
    "C10": "categories of one name are kept apart",
    "C11": "messages say the true cause",
    "C12": "sides are checked as they will be used",
    "C13": "bounded memory and launches for any number of objects",
    "R1": "a loader that is left, or breaks, ends within seconds",
    "R2": "an error in a loader is told as it is, with the picture's name",
    "R3": "a run does not go on with other data",
    "R4": "weights say the recipe they were trained by",
    "R5": "validation is tried before the first step, and an epoch is saved before it",
    "R6": "every number of a recipe and every device is judged before anything is written",
    "R7": "one writer of files: flushed, then renamed",
    "R8": "names from wrappers, bare state dicts and checkpoints are read",
    "R9": "a missing extra is one sentence before the run",
    "R10": "a warm-up that is longer than the run is cut, and said",
    "R11": "ties of the best weights go to the smaller loss",
    "P1": "litter of operating systems is skipped and counted, cycles of links are noticed",
    "P2": "floats and 12 bits are scaled by what the file says, or fatal in the check",
    "P3": "every format that Pillow reads",
    "P4": "memory bounded by the size asked for",
    "P5": "turned pictures: one documented rule for each command",
    "L1": "torch.compile: any size, few graphs",
    "L2": "torch.func: right or refused, never another answer than on a small map",
    "L3": "other norms of scores",
    "L4": "full backward hooks",
    "L5": "meta tensors, and other types in one sentence",
}
#: rows about a thing that only one pipeline has: annotations, stuff maps, anchors; compilers, torch.func
ONE_PIPELINE = {"C1", "C4", "C7", "C8", "C9", "C12", "C13", "L1", "L2", "L3"}


def marked(path):
    "Rows -> tests of a file that name them."
    found = {}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            for mark in node.decorator_list:
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.fault":
                    for row in mark.args:
                        found.setdefault(ast.literal_eval(row), []).append(f"{path.name}::{node.name}")
    return found


@pytest.fixture(scope="module")
def tests(root):
    found = {row: [] for row in ROWS}
    for path in sorted((root / "tests").glob("test_*.py")):
        for row, names in marked(path).items():
            assert row in ROWS, f"{names[0]}: no such row: {row}"
            found[row] += names
    return found


@pytest.mark.parametrize("row", ROWS)
def test_a_row_has_its_test(tests, row):
    assert tests[row], f"no test is marked with {row}: {ROWS[row]}"


@pytest.mark.parametrize("row", sorted(ROWS.keys() - ONE_PIPELINE))
def test_a_row_is_tried_in_more_than_one_place(tests, row):
    "What is wrong in one pipeline is tried in the other; tests/test_fault_twins.py runs each test in both."
    enough = len(tests[row]) > 1 or tests[row][0].startswith("test_fault_twins.py::")
    assert enough, f"{row} has one test only: {tests[row]}"
