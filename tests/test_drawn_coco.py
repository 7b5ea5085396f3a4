"""The COCO folder that this library draws: complete, the same for the same seed, with everything the real one has."""

import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from lesa_nb.data.drawn_coco import _SHAPES, make_coco


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_coco(tmp_path_factory.mktemp("drawn") / "coco", train=16, val=8)


def test_everything_is_there(folder):
    assert sorted(p.name for p in folder.iterdir()) == [
        "annotations",
        "stuffthingmaps",
        "test2017",
        "train2017",
        "val2017",
    ]
    content = json.loads((folder / "annotations/instances_train2017.json").read_text())
    kinds = Counter(type(a["segmentation"]).__name__ for a in content["annotations"])
    assert kinds["dict"] == sum(a["iscrowd"] for a in content["annotations"]) == 2  # run lengths are for crowds
    assert {c["name"]: c["id"] for c in content["categories"]} == _SHAPES
    assert (
        len({i["id"] for i in content["images"]} - {a["image_id"] for a in content["annotations"]}) == 2
    )  # empty ones
    test = json.loads((folder / "annotations/image_info_test-dev2017.json").read_text())
    assert len(test["images"]) == 4 and "annotations" not in test
    maps = [np.array(Image.open(path)) for path in sorted((folder / "stuffthingmaps/train2017").iterdir())]
    assert len(maps) == 16 and set(np.unique(np.concatenate([m.ravel() for m in maps])).tolist()) == {
        1,
        16,
        89,
        123,
        156,
        255,
    }


def test_the_same_seed_draws_the_same_folder(folder, tmp_path):
    twice = make_coco(tmp_path / "again", train=16, val=8)
    for path in folder.rglob("*.*"):
        assert path.read_bytes() == (twice / path.relative_to(folder)).read_bytes()


def test_seeds_draw_folders(tmp_path):
    read = [
        (
            make_coco(tmp_path / name, train=2, val=1, test=0, size=64, seed=seed)
            / "annotations/instances_train2017.json"
        ).read_bytes()
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert read[0] == read[1] != read[2]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "c"]
    with pytest.raises(ValueError, match="at least 64"):
        make_coco(tmp_path / "d", size=32)


def test_a_folder_with_something_in_it_is_left_alone(folder):
    with pytest.raises(FileExistsError, match="exists already"):
        make_coco(folder)


def test_pictures_that_fill_the_memory_are_refused(tmp_path):
    with pytest.raises(ValueError, match="at most 4096 pixels, got 10000001"):
        make_coco(tmp_path / "coco", train=1, val=1, test=1, size=10_000_001)
    assert not list(tmp_path.iterdir())
