"""What counts as a skipped cell, an early exit, a test that cannot fail, a figure: rule by rule."""

import sys
from pathlib import Path

import pytest

sys.path.append(
    str(Path(__file__).resolve().parent.parent / "tools")
)  # at the end: tools/test.py must not hide Python's own `test`
import notebook_rules as rules

sys.path.pop()


def notebook(*sources, **code):
    cells = [{"cell_type": "code", "source": source, "outputs": [], **code} for source in sources]
    return {"cells": cells, "metadata": {}}


@pytest.mark.parametrize(
    "source",
    [
        "#| eval: false\nf()",
        "#|eval:False\nf()",
        "# | export\n# | eval: false\nf()",
        "import sys\nsys.exit()",
        "exit()",
        "quit()",
        "raise SystemExit",
        "raise SystemExit(0)",
        "raise KeyboardInterrupt",
        "import os\nos._exit(0)",
        "if x:\n    exit(0)",
        "if __name__ == '__main__':\n    exit(0)",
        "if False:\n    f()",
        "if 0: f()",
        "if None: f()",
        "if not True: f()",
        "if False and x: f()",
        "y = f() if False else 1",
        "while False: f()",
        "for x in []: f(x)",
        "def g():\n    if 0:\n        f()",
        "%%script false\nf()",
        "%%bash\nls",
        "#| hide\n%%html\n<b>",
        "# f()\n# g()",
        "#| export\n# def f(): pass",
        "'''\nf()\n'''",
        "import nbdev; nbdev.nbdev_export()",
    ],
)
def test_skipped_is_found(source):
    assert rules.skipped(notebook(source)), source


@pytest.mark.parametrize(
    "source",
    [
        "",
        "#| default_exp part",
        "#| hide\nf()",
        "#| export\n# why\nf()",
        "def main():\n    raise SystemExit(2)",
        "import sys\ndef main(): sys.exit(0)",
        "with ExceptionExpected(SystemExit): main()",
        "raise_later = SystemExit",
        "#| export\nif __name__ == '__main__' and '__file__' in globals():\n    sys.exit(main())",
        "if x: f()",
        "while True: break",
        "for x in [1]: f(x)",
        "%%time\nf()",
        "%matplotlib inline\nf()",
        "'''Docs'''\nf()",
        "a = {}\nif a: f()",
    ],
)
def test_what_runs_is_not_called_skipped(source):
    assert rules.skipped(notebook(source)) == [], source


def test_front_matter_and_raw_cells():
    nb = {
        "metadata": {},
        "cells": [{"cell_type": "raw", "source": "---\nskip_exec: true\n---"}, {"cell_type": "raw", "source": "f()"}],
    }
    assert rules.skipped(nb) == ["cell 1: skip_exec", "cell 2: a raw cell is never run"]
    nb["cells"] = [{"cell_type": "markdown", "source": "# T\n- skip_exec: true"}]
    assert rules.skipped(nb) == ["cell 1: skip_exec"]


def test_tests_are_counted_outside_exported_code():
    nb = notebook(
        "assert x == 1\ntest_eq(a, b)",
        "torch.testing.assert_close(a, b)\nwith ExceptionExpected(ValueError): f()",
        "#| export\ndef f():\n    assert x",
        "# assert x\n'assert y'\nattest(1)\ndef test_it(): pass",
    )
    assert rules.count_tests(nb) == 4


@pytest.mark.parametrize(
    "source, is_hollow",
    [
        ("assert True", True),
        ("assert 1", True),
        ("assert (x == 1, 'a tuple is always true')", True),
        ("test_eq(x, x)", True),
        ("test_close(a.b, a.b)", True),
        ("test_eq(x[0], x[0])", True),
        ("test_eq(f(x).y, f(x).y)", False),
        ("try:\n    assert x\nexcept Exception:\n    pass", True),
        ("try:\n    assert x\nexcept:\n    print('oh')", True),
        ("assert x", False),
        ("test_eq(f(x), f(x))", False),  # the same twice: a test of determinism
        ("try:\n    assert x\nexcept AssertionError:\n    raise ValueError", False),
        ("try:\n    assert x\nexcept ValueError:\n    pass", False),
    ],
)
def test_hollow_tests_are_found(source, is_hollow):
    assert bool(rules.hollow(notebook(source))) == is_hollow


PNG = {"output_type": "display_data", "data": {"image/png": "iVBORw0KGgo="}}


def test_figures_and_other_outputs():
    assert rules.figures(notebook("f()", outputs=[PNG, PNG])) == 2
    assert rules.other_outputs(notebook("f()", outputs=[PNG])) == []
    for output in (
        {"output_type": "stream", "name": "stdout", "text": ["x"]},
        {"output_type": "display_data", "data": {"text/html": "<b>"}},
        {"output_type": "display_data", "data": {"image/png": "iVBORw0KGgo=", "text/plain": "<Figure>"}},
        {"output_type": "display_data", "data": {"image/png": "R0lGODlh"}},
        {"output_type": "error", "ename": "E", "evalue": "", "traceback": []},
    ):
        assert len(rules.other_outputs(notebook("f()", outputs=[output]))) == 1
    assert rules.other_outputs(notebook("f()", attachments={"a.png": {}}))


@pytest.mark.parametrize("source", ["show_maps(x, title='t')", "figures.draw_map(lit='local')", "x = 1\nshow_bars({})"])
def test_a_cell_that_draws_needs_its_picture(source):
    assert len(rules.undrawn(notebook(source))) == 1
    assert rules.undrawn(notebook(source, outputs=[PNG])) == []


@pytest.mark.parametrize(
    "source", ["#| export\ndef show_maps(x):\n    draw_map()", "from lesa_nb.look.figures import show_maps", "x = 1"]
)
def test_a_cell_that_only_names_a_drawing_needs_none(source):
    assert rules.undrawn(notebook(source)) == []
