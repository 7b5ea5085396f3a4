"""Folders to practise on: balanced, sound, repeatable, all or nothing."""

import numpy as np
import pytest
from PIL import Image

from lesa_nb.data import drawn
from lesa_nb.data.drawn import FOLDER_TASKS, make_digits, make_image_folder
from lesa_nb.data.pictures import TWIN_CLASSES
from lesa_nb.data.verify import verify_image_folder


def look(folder):
    return verify_image_folder(folder, progress=False)


@pytest.mark.parametrize("task", FOLDER_TASKS)
def test_generated_folders_are_balanced_sound_and_repeatable(tmp_path, task):
    first, second = (
        make_image_folder(tmp_path / name, task=task, train=3, val=2, size=224, seed=3, aligned=False, clutter=8)
        for name in "ab"
    )
    other = make_image_folder(tmp_path / "c", task=task, train=3, val=2, size=224, seed=4)
    report = look(first)
    assert report.ok and not report.counts
    assert report.splits == {
        "train": dict.fromkeys(sorted(FOLDER_TASKS[task][0]), 3),
        "val": dict.fromkeys(sorted(FOLDER_TASKS[task][0]), 2),
    }
    files = sorted(path.relative_to(first) for path in first.rglob("*.png"))
    contents = [[(where / path).read_bytes() for path in files] for where in (first, second, other)]
    assert (
        contents[0] == contents[1] and not set(contents[0]) & set(contents[2]) and len(set(contents[0])) == len(files)
    )
    sizes = {Image.open(first / path).size for path in files}
    assert len(sizes) == 3 and {min(size) for size in sizes} == {224}


def solve(path):
    "Answer `both` from the file alone: find the marks by their colour, and compare their shapes."
    lit = np.array(Image.open(path)).transpose(2, 0, 1) > 127
    masks = {"white": lit.all(0)} | {name: lit[i] & (lit.sum(0) == 1) for i, name in enumerate(TWIN_CLASSES)}

    def cells(mask):
        "Which of its 3 x 3 cells are lit; an L touches all four sides of its square."
        edges = [np.flatnonzero(mask.any(axis))[[0, -1]] for axis in (1, 0)]
        rows, columns = ([low + (high - low) * at for at in (0.17, 0.5, 0.83)] for low, high in edges)
        return [bool(mask[round(y), round(x)]) for y in rows for x in columns]

    found = {name: cells(mask) for name, mask in masks.items()}
    (twin,) = [name for name in TWIN_CLASSES if found[name] == found["white"]]  # exactly one
    return f"{twin}-{'low' if sum(found['white'][6:]) == 3 else 'high'}"


def test_the_answer_is_in_the_picture(tmp_path):
    folder = make_image_folder(tmp_path / "both", task="both", train=6, val=3, size=96, noise=0.02)
    files = sorted(folder.rglob("*.png"))
    assert len(files) == 54 and [solve(path) for path in files] == [path.parent.name for path in files]


def test_a_knob_that_does_not_exist_leaves_nothing(tmp_path):
    with pytest.raises(TypeError, match="colours"):
        make_image_folder(tmp_path / "new", colours=9)  # fails while drawing
    assert not list(tmp_path.iterdir())


def test_writing_is_all_or_nothing(tmp_path, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").touch()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("full", "file", "link"):
        with pytest.raises(FileExistsError, match=f"{name}: exists already"):
            make_image_folder(tmp_path / name)
    (tmp_path / "new.part").mkdir()
    (tmp_path / "new.part/left-over").touch()
    save, calls = drawn._save, []

    def full_disk(*arguments):
        calls.append(arguments)
        if len(calls) == 5:
            raise OSError(28, "No space left on device")
        save(*arguments)

    monkeypatch.setattr(drawn, "_save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        make_image_folder(tmp_path / "new", train=3, val=1, size=32)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "full", "link"]
    monkeypatch.undo()
    (tmp_path / "new").mkdir()
    make_image_folder(tmp_path / "new", train=1, val=1, size=32)  # an empty folder will do
    assert not list(tmp_path.rglob("left-over")) and not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize(
    "options, says",
    [
        (dict(task="cats"), "no task 'cats'; there are twin, corner, both"),
        (dict(val=0), "at least one picture"),
        (dict(size=31), "at least 32 pixels"),
        (dict(size=4097), "at most 4096 pixels, got 4097"),
        (dict(seed=-1), "seed"),
    ],
)
def test_wrong_wishes_are_refused(tmp_path, options, says):
    with pytest.raises(ValueError, match=says):
        make_image_folder(tmp_path / "new", **options)
    assert not list(tmp_path.iterdir())


def test_digits_are_real_pictures(tmp_path):
    report = look(make_digits(tmp_path / "digits", size=16))
    assert report.ok and len(report.splits["train"]) == 10
    assert (report.splits["train"].total(), report.splits["val"].total()) == (1438, 359)
