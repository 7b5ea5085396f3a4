"""`import lesa_nb`: the public names, where they come from, and what their import does not bring in."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import lesa_nb

ROOT = Path(__file__).resolve().parent.parent
CONTRACT = """
    LESA attend_with fold_norms from_pretrained graft htc_lesa_wrn50 lesa_resnet50 lesa_wrn50 load load_published
    mask_rcnn_lesa_resnet50 predict push_to_hub save_pretrained
""".split()


def test_the_public_names_are_listed():
    assert sorted(lesa_nb.__all__) == sorted(CONTRACT) == sorted(lesa_nb._OWNERS)
    assert set(CONTRACT) <= set(dir(lesa_nb)) and "__version__" in dir(lesa_nb)
    assert [name for name in dir(lesa_nb) if not name.startswith("__")] == sorted(CONTRACT)


@pytest.mark.parametrize("name", CONTRACT)
def test_a_public_name_is_its_owners(name):
    value = getattr(lesa_nb, name)
    assert value.__module__ == f"lesa_nb.{lesa_nb._OWNERS[name]}" and value.__doc__
    assert getattr(lesa_nb, name) is value


def test_editors_see_what_is_loaded():
    "The imports under TYPE_CHECKING name the same modules as the table."
    tree = ast.parse(Path(lesa_nb.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert seen == {name: f"lesa_nb.{owner}" for name, owner in lesa_nb._OWNERS.items()}


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="'lesa_nb' has no attribute 'lesa'"):
        lesa_nb.lesa
    with pytest.raises(ImportError):
        exec("from lesa_nb import nothing")


def test_import_brings_in_nothing_heavy():
    code = (
        "import json, sys; before = set(sys.modules); import lesa_nb; dir(lesa_nb); lesa_nb.__version__\n"
        "new = sorted({name.partition('.')[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names))\n"
        "lesa_nb.LESA; print(json.dumps([new, 'torch' in sys.modules, 'LESA' in vars(lesa_nb)]))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [["lesa_nb"], True, True]


@pytest.mark.parametrize("first", ["torch", "lesa_nb"])
def test_one_thread_for_each_notebook_of_nbdev_test(first):
    code = f"import {first}, lesa_nb, torch; print(torch.get_num_threads())"
    env = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**env, "IN_TEST": "1"}, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("1\n", "")
