"""The checks of tools/check_house.py themselves: each fault, planted in a small house, is found and named."""

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
spec = importlib.util.spec_from_file_location("check_house", ROOT / "tools" / "check_house.py")
house = importlib.util.module_from_spec(spec)
spec.loader.exec_module(house)

PICTURE = {"output_type": "display_data", "data": {"image/png": "iVBORw0KGgo="}}
WORDS = "You want to see twice as much of everything, so here it comes. $$y = 2x \\tag{1.1}$$"


def notebook(*cells, drawn=True):
    "Strings are code cells, lists of one string are prose; the last code cell has a picture."
    made = []
    for cell in cells:
        kind, source = ("markdown", cell[0]) if isinstance(cell, list) else ("code", cell)
        made.append({"cell_type": kind, "source": source.splitlines(True), "outputs": []})
    if drawn:
        next(c for c in reversed(made) if c["cell_type"] == "code")["outputs"] = [PICTURE]
    return json.dumps({"cells": made})


EXPORT = "#| export\ndef double(x):\n    return 2*x  # (1.1)"
GOOD = notebook("#| default_exp layers.part", [WORDS], EXPORT, "assert double(2) == 4")


def build(folder, files):
    "A house of these files; packages get their __init__.py."
    for name, text in {"lesa_nb/__init__.py": "", "nbs/1_layer/01_part.ipynb": GOOD, **files}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        if path.suffix == ".py" and name.count("/") == 2:
            (path.parent / "__init__.py").touch()
    return folder


def found(folder, rule):
    return [str(fault) for fault in house.faults([rule], folder)]


def test_a_house_in_order(tmp_path):
    folder = build(
        tmp_path,
        {
            "lesa_nb/layers/inputs.py": "MEAN = 0.5\n",
            "lesa_nb/io/atomic.py": "import os\n",
            "lesa_nb/data/photos.py": "from lesa_nb.layers.inputs import MEAN\ndef f():\n    from ..io import atomic\n",
            "lesa_nb/cli/app.py": "import lesa_nb.data.photos\n",
        },
    )
    assert found(folder, "arrows") == [] and found(folder, "budget") == [] and found(folder, "equations") == []
    assert found(folder, "private") == [] and found(folder, "order") == [] and found(folder, "twice") == []
    assert found(folder, "one-line") == []


@pytest.mark.parametrize(
    "source, says",
    [
        ("import lesa_nb.models.net", "layers imports lesa_nb.models.net; it may import io"),
        ("def f():\n    from lesa_nb.models.net import Net\n    return Net", "layers imports lesa_nb.models.net"),
        ("def f():\n    from ..models import net\n    return net", "layers imports lesa_nb.models.net"),
        ("import importlib\nnet = importlib.import_module('lesa_nb.models.net')", "layers imports lesa_nb.models.net"),
        ("from lesa_nb.io.gone import x", "imports lesa_nb.io.gone, which there is not"),
        ("from lesa_nb.io.atomic import _hidden", "imports the private name _hidden of lesa_nb.io.atomic"),
        ("from lesa_nb.io._part import x", "imports the private name x of lesa_nb.io._part"),
        ("from lesa_nb.layers import other", "lesa_nb.layers.other -> lesa_nb.layers.part -> lesa_nb.layers.other"),
    ],
    ids=["wrong way", "lazy", "relative", "by name", "gone", "private", "private module", "circle"],
)
def test_arrows(tmp_path, source, says):
    folder = build(
        tmp_path,
        {
            "lesa_nb/models/net.py": "Net = 1\n",
            "lesa_nb/layers/part.py": source + "\n",
            "lesa_nb/layers/other.py": "import lesa_nb.layers.part\n_hidden = 1\n",
            "lesa_nb/io/atomic.py": "_hidden = 1\n",
            "lesa_nb/io/_part.py": "x = 1\n",
        },
    )
    assert any(says in fault for fault in found(folder, "arrows")), found(folder, "arrows")


def test_only_some_modules_of_a_room(tmp_path):
    folder = build(
        tmp_path,
        {
            "lesa_nb/layers/norms.py": "",
            "lesa_nb/layers/gate.py": "",
            "lesa_nb/engine/loop.py": "import lesa_nb.layers.norms\nimport lesa_nb.layers.gate\n",
        },
    )
    assert [fault.split(": ")[1] for fault in found(folder, "arrows")] == [
        "engine imports lesa_nb.layers.gate; it may import layers.norms, io"
    ]


def test_a_private_name_through_its_module(tmp_path):
    files = {"lesa_nb/io/a.py": "_x = 1\n", "lesa_nb/layers/b.py": "from lesa_nb.io import a\nprint(a._x)\n"}
    assert "uses a._x" in found(build(tmp_path, files), "private")[0]


def test_a_private_name_serves_its_room(tmp_path):
    files = {
        "lesa_nb/layers/a.py": "_x = 1\n",
        "lesa_nb/layers/b.py": "from lesa_nb.layers import a\nfrom lesa_nb.layers.a import _x\nprint(a._x, _x)\n",
    }
    folder = build(tmp_path, files)
    assert found(folder, "private") == found(folder, "arrows") == []


def test_a_room_that_is_not_in_the_table(tmp_path):
    assert "is no room" in found(build(tmp_path, {"lesa_nb/attic/a.py": ""}), "arrows")[0]


LONG = "#| export\ndef f():\n" + "    print(1)\n" * 60
MANY = "You see " * 700
TABLE = "| call | what it is |\n|---|---|\n" + "| `double(x)` | twice x |\n" * 250


@pytest.mark.parametrize(
    "cells, says",
    [
        (([WORDS], LONG, "assert f() is None"), "62 lines exported, at most 60"),
        (([MANY], EXPORT, "assert double(1)"), "1400 words of prose, at most 1300"),
        (([WORDS], EXPORT, "assert double(1)", "x = 1\n" * 350), "353 lines of code, at most 350"),
        (([WORDS + "\n\n" + TABLE], EXPORT, "assert double(1)"), "754 words in tables, at most 700"),
        (([WORDS], EXPORT, f"assert double({'1' * 90})"), "cell 3: line 1 has 105 columns, at most 100"),
        ((["Few words."], EXPORT + "\n    print(x)" * 9, "assert 1"), "2 words for 11 exported lines"),
        ((EXPORT, "assert double(1)"), "no prose before this export"),
        ((["# A heading of many words, which is no prose at all"], EXPORT, "assert double(1)"), "no prose before"),
        (([WORDS], EXPORT, EXPORT.replace("double", "twice"), "assert double(1)"), "cell 3: no prose before"),
        (
            ([WORDS], EXPORT, "print(1)", "print(2)", "print(3)", "print(4)", "assert double(1)"),
            "no test in the next 4",
        ),
    ],
)
def test_budget(tmp_path, cells, says):
    folder = build(tmp_path, {"nbs/1_layer/01_part.ipynb": notebook(*cells)})
    assert any(says in fault for fault in found(folder, "budget")), found(folder, "budget")


def test_an_export_without_a_picture(tmp_path):
    folder = build(tmp_path, {"nbs/1_layer/01_part.ipynb": notebook([WORDS], EXPORT, "assert double(1)", drawn=False)})
    assert "no picture after" in found(folder, "budget")[0]


@pytest.mark.parametrize(
    "cells, says",
    [
        ((["$$y \\tag{1.1}$$"], "y = 1"), "no line of code cites \\tag{1.1}"),
        ((["$$y \\tag{2.1}$$"], "y = 1 # (2.1)"), "\\tag{2.1} in notebook 1"),
        ((["$$y \\tag{1.1}$$"], "y = 1 # (1.1) and (1.2)"), "code cites (1.2), which no formula has"),
        ((["$$y \\tag{1.1}$$ $$z \\tag{1.1}$$"], "y = 1 # (1.1)"), "\\tag{1.1} twice"),
    ],
)
def test_equations(tmp_path, cells, says):
    folder = build(tmp_path, {"nbs/1_layer/01_part.ipynb": notebook(*cells)})
    assert [fault for fault in found(folder, "equations") if says in fault], found(folder, "equations")


def test_numbers_are_the_order(tmp_path):
    folder = build(
        tmp_path,
        {
            "nbs/1_layer/01_part.ipynb": notebook(
                "#| default_exp layers.part", "#| export\nfrom lesa_nb.layers.later import x"
            ),
            "nbs/1_layer/02_later.ipynb": notebook("#| default_exp layers.later"),
            "nbs/2_networks/04_gap.ipynb": notebook("x = 1"),
            "lesa_nb/layers/old.py": '"""Old."""\n\n# AUTOGENERATED! DO NOT EDIT!\n',
            "lesa_nb/layers/later.py": "x = 1\n",
        },
    )
    said = "\n".join(found(folder, "order"))
    assert "imports lesa_nb.layers.later of notebook 2" in said and "number 4 comes after 2" in said
    assert "lesa_nb/layers/old.py: says it is made from a notebook" in said


def test_a_name_means_one_thing(tmp_path):
    folder = build(
        tmp_path,
        {
            "lesa_nb/layers/a.py": "def one():\n    pass\n\n\ndef _two():\n    pass\n",
            "lesa_nb/layers/b.py": "one = 1\n\n\ndef _two():\n    pass\n",
            "nbs/1_layer/01_part.ipynb": notebook("def one():\n    return 1"),
        },
    )
    said = found(folder, "twice")
    assert len(said) == 3 and all("one is defined in" in fault for fault in said)


@pytest.mark.parametrize(
    "source, is_fault",
    [
        ("if x: y = 1", True),
        ("for x in y: f(x)", True),
        ("while x: f()", True),
        ("with x: f()", True),
        ("class A: pass", True),
        ("def f(): pass", True),
        ("def f(\n    x,\n): f(x)", True),
        ("try: f()\nexcept ValueError:\n    raise", True),
        ("if x:\n    f()\nelse: f()", True),
        ("try:\n    f()\nexcept ValueError: f()", True),
        ("if x: f(); raise ValueError", True),
        ("if x:\n    f()\nelif y: f()", True),
        ("if x: raise ValueError", False),
        ("def f(): return 1", False),
        ("for x in y:\n    if x: continue", False),
        ("if x:\n    f()\nelif y:\n    f()", False),
        ("def f():\n    if x: return 1\n    else: return 2", False),
        ("%timeit f()\nif x:\n    f()", False),
        ("class A:\n    @property\n    def b(self): return 1", False),
        ("s = 'é'\nif s:\n    t = 'ü'", False),
    ],
)
def test_one_line_compounds(tmp_path, source, is_fault):
    folder = build(tmp_path, {"nbs/1_layer/01_part.ipynb": notebook(source, drawn=False)})
    assert bool(found(folder, "one-line")) == is_fault


def test_private_functions_of_pytorch_are_pinned(tmp_path):
    folder = build(
        tmp_path,
        {
            "lesa_nb/layers/a.py": "import torch\nfrom torch._C import c\ntorch._softmax\ntorch.ops.aten._b\nx._y\n",
            "tests/test_a.py": "# torch._softmax is as it was\n",
        },
    )
    said = "\n".join(found(folder, "pinned"))
    assert "private _C" in said and "private _b" in said and "_softmax" not in said and "_y" not in said
