"""Style and types: ruff and mypy by the settings in pyproject.toml, one-line compounds by our own rule."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parent.parent / "tools"))
import check_house as house

sys.path.pop()


@pytest.mark.parametrize("rule", ["ruff", "one-line", "mypy"])
def test_style(rule):
    faults = house.faults([rule])
    assert faults == [], "\n".join(map(str, faults))
