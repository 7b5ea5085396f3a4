"""The notebooks: sizes, prose before and test and picture after each export, equation numbers, reading order."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parent.parent / "tools"))
import check_house as house

sys.path.pop()

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = [str(notebook.path.relative_to(ROOT)) for notebook in house.notebooks()]


@pytest.mark.parametrize("rule", ["budget", "equations", "order"])
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_keeps_to_its_budget(name, rule):
    faults = [fault for fault in house.faults([rule]) if fault.where.startswith(name)]
    assert faults == [], "\n".join(map(str, faults))


def test_modules_that_say_so_are_made_from_notebooks():
    faults = [fault for fault in house.faults(["order"]) if fault.where.endswith(".py")]
    assert faults == [], "\n".join(map(str, faults))
