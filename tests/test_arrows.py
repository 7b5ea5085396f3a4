"""The rooms of the package: imports one way, no private name of another room, no circle, each name defined once."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parent.parent / "tools"))  # at the end: nothing there hides Python's own
import check_house as house

sys.path.pop()


def told(faults):
    return "\n".join(map(str, faults))


@pytest.mark.parametrize("room", sorted(house.ARROWS))
def test_imports_go_one_way(room):
    "Lazy imports count too. What a room may import stands in tools/check_house.py."
    faults = [fault for fault in house.faults(["arrows", "private"]) if fault.room == room]
    assert faults == [], told(faults)


def test_every_room_is_in_the_table():
    rooms = {house.room_of(module) for module in house.modules()}
    assert rooms == set(house.ARROWS)


def test_a_public_name_is_defined_once():
    faults = house.faults(["twice"])
    assert faults == [], told(faults)


def test_private_functions_of_pytorch_are_pinned_by_a_test():
    faults = house.faults(["pinned"])
    assert faults == [], told(faults)
