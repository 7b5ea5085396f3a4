"""Folders as people really have them, in both pipelines: each works from end to end, or is refused in one sentence.

What the check calls ready is trained on; what training refuses was not called ready, for the same reason.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image

from lesa_nb.cli.app import main

COMMON = "--network small --epochs 1 --workers 0 --device cpu --no-tensorboard".split()
CLASSES, OBJECTS = [*COMMON, "--image-size", "16"], [*COMMON, "--image-size", "40"]
HALF = ["--val-fraction", "0.5"]


class Case(NamedTuple):
    "A folder: what draws it, further words for every command, and why it is refused; None: it works."

    draw: Callable[[Path], None]
    words: list[str] = []
    reason: str | None = None
    said: str = ""  # by the check and by training, although it works


class Answer(NamedTuple):
    "What a command left on the screen."

    status: int
    out: str
    err: str


@pytest.fixture
def lesa(capsys):
    "Run a command in this process."

    def run(*words):
        capsys.readouterr()
        status = main([str(word) for word in words])
        return Answer(status, *capsys.readouterr())

    return run


def files(folder):
    return sorted(folder.rglob("*"))


def refused(answer, reason):
    "One sentence with the reason, before anything was done."
    assert answer.status == 2 and answer.err.count("\n") == 1 and "Traceback" not in answer.err, answer
    assert reason in answer.err, answer.err


def ends(answer):
    "Whatever it was asked, it answered: no traceback, no more than one sentence."
    said = [line for line in answer.err.splitlines() if line.startswith("lesa")]
    assert answer.status in (0, 1, 2) and len(said) == (answer.status > 0) and "Traceback" not in answer.err, answer


def picture(path, size=(24, 20), colour="red"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, compress_level=1)


def classes(*names, each=3, val=None, size=(24, 20)):
    "Draws a folder for each class; with `val` pictures of each in a folder of their own."

    def draw(folder):
        for place, number in ((folder, each),) if val is None else ((folder / "train", each), (folder / "val", val)):
            for i, name in enumerate(names):
                for j in range(number):
                    picture(place / name / f"{j}.png", size, (i * 37 % 256, i * 91 % 256, 40 * j))

    return draw


def also(draw, more):
    def both(folder):
        draw(folder)
        more(folder)

    return both


def check_and_train(lesa, kind, case, data, run, options):
    "Draw a folder, check it, train on it: both work, or both refuse for the case's reason and leave nothing behind."
    data.mkdir()
    case.draw(data)
    before = files(data.parent)
    checked = lesa("verify-data", kind, data, *case.words)
    trained = lesa("train", kind, "--data", data, "--out", run, *options, *case.words)
    if case.reason:
        assert checked.status in (1, 2) and "ready to train" not in checked.out
        assert case.reason in checked.out + checked.err, checked
        refused(trained, case.reason)
        assert files(data.parent) == before
    else:
        assert (checked.status, trained.status) == (0, 0) and "ready to train" in checked.out, (checked, trained)
    return checked, trained


# ---- classes

FOLDERS = {
    "no pictures": Case(lambda folder: None, HALF, "no classes"),
    "no folder for validation": Case(classes("cat", "dog"), reason="--val-fraction 0.2"),
    "pictures without classes": Case(lambda folder: picture(folder / "a.png"), HALF, "sort them into folders"),
    "one picture": Case(classes("cat", each=1), HALF, "found one; add a folder of pictures for another class"),
    "one picture of each class": Case(classes("cat", "dog", each=1), HALF, "the only picture of its class"),
    "one picture in each folder": Case(classes("cat", "dog", each=1, val=1), said="2 pictures"),
    "one class": Case(classes("cat"), HALF, "found one; add a folder of pictures for another class"),
    "one class in two folders": Case(classes("cat", val=2), reason="found one; add a folder of pictures for another"),
    "300 classes": Case(classes(*(f"class {i}" for i in range(300)), each=2), HALF, said="300 classes"),
    "Chinese names": Case(classes("猫", "狗", "鸟"), HALF),
    "two names but for case": Case(classes("Cat", "cat"), HALF, said="differ in case only"),
    "one pixel": Case(also(classes("cat", "dog"), lambda folder: picture(folder / "cat" / "one.png", (1, 1))), HALF),
    "100 megapixels": Case(
        also(classes("cat", "dog"), lambda folder: picture(folder / "cat" / "large.png", (10_000, 10_000))), HALF
    ),
    "an empty class": Case(also(classes("cat", "dog"), lambda folder: (folder / "eel").mkdir()), HALF, "empty class"),
    "an empty class in two folders": Case(
        also(classes("cat", "dog", val=2), lambda folder: (folder / "val" / "eel").mkdir()), reason="only in val: eel"
    ),
    "classes differ": Case(
        also(classes("cat", "dog", val=2), lambda folder: picture(folder / "train" / "eel" / "a.png")),
        reason="only in train: eel",
    ),
    "no such part": Case(classes("cat", "dog"), ["--val-fraction", "1.5"], "must lie between 0 and 1"),
}


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    "Weights of a small run on two classes."
    home = tmp_path_factory.mktemp("classifier")
    classes("cat", "dog")(home / "data")
    assert main(["train", "imagenet", "--data", f"{home}/data", "--out", f"{home}/run", *CLASSES, *HALF]) == 0
    return home / "run" / "last.safetensors"


@pytest.mark.parametrize("name", FOLDERS)
def test_folders_of_classes(name, lesa, tmp_path, classifier):
    case, data, run = FOLDERS[name], tmp_path / "data", tmp_path / "run"
    checked, trained = check_and_train(lesa, "imagenet", case, data, run, CLASSES)
    if not case.reason:
        assert case.said in checked.out and case.said in trained.out
    weights = classifier if case.reason else run / "last.safetensors"
    scored = lesa("eval", "imagenet", "--data", data, "--weights", weights, "--workers", "0", *case.words)
    told = lesa("predict", data, "--weights", weights, "--json", tmp_path / "told.json")
    ends(scored), ends(told)
    pictures = [path for path in files(data) if path.suffix == ".png"]
    assert told.status == (0 if pictures else 2)
    if pictures:
        answers = json.loads((tmp_path / "told.json").read_text())
        assert [answer["file"] for answer in answers] == [str(path) for path in pictures]
        assert all(0 <= answer["classes"][0]["score"] <= 1 for answer in answers)
    if not case.reason:
        assert scored.status == 0 and "top-1" in scored.out, scored


# ---- objects


def objects(*, names=("cat", "dog"), train=4, val=2, size=(60, 48), splits=("train", "valid"), encoding="utf-8"):
    "Draws an export of Roboflow's: pictures with one object each, and a change of its content where that is wanted."

    def draw(folder, change=lambda split, content: None):
        for split, number in zip(splits, (train, val)):
            content = dict(
                categories=[dict(id=i, name=name) for i, name in enumerate(names, 1)],
                images=[
                    dict(id=i, file_name=f"{split} {i}.png", width=size[0], height=size[1])
                    for i in range(1, number + 1)
                ],
                annotations=[
                    dict(
                        id=i,
                        image_id=i,
                        category_id=1 + i % len(names),
                        bbox=[10, 10, 30, 20],
                        area=600,
                        iscrowd=0,
                        segmentation=[[10, 10, 40, 10, 40, 30, 10, 30]],
                    )
                    for i in range(1, number + 1)
                ],
            )
            change(split, content)
            (folder / split).mkdir()
            for image in content["images"]:
                picture(folder / split / image["file_name"], (image["width"], image["height"]))
            text = json.dumps(content, ensure_ascii=False)
            (folder / split / "_annotations.coco.json").write_text(text, encoding=encoding)

    return draw


def changed(change, **options):
    return lambda folder: objects(**options)(folder, change)


def resize(split, width, height):
    def change(where, content):
        if where == split:
            content["images"][0].update(width=width, height=height)

    return change


def lose_masks(split, content):
    for annotation in content["annotations"][::2]:
        annotation["segmentation"] = []


def point_elsewhere(split, content):
    content["annotations"].append(content["annotations"][0] | dict(id=99, image_id=4711))


def lose_picture(folder):
    next((folder / "train").glob("*.png")).unlink()


SETS = {
    "no pictures": Case(objects(train=0), reason="no"),
    "no annotations": Case(
        changed(lambda split, content: content.update(annotations=[])), reason="image without annotations"
    ),
    "nothing at all": Case(lambda folder: None, reason="no COCO folder"),
    "one picture": Case(objects(train=1, splits=("train",)), HALF, "a split needs at least two"),
    "one picture in each split": Case(objects(train=1, val=1)),
    "no split for validation": Case(objects(splits=("train",)), reason="--val-fraction 0.2"),
    "one set": Case(objects(train=6, splits=("train",)), HALF),
    "one class": Case(objects(names=("cat",))),
    "300 classes": Case(objects(names=[f"class {i}" for i in range(300)]), said="300"),
    "Chinese names": Case(objects(names=("猫", "狗"))),
    "two names but for case": Case(objects(names=("Cat", "cat"))),
    "one pixel": Case(changed(resize("valid", 1, 1))),
    "one pixel to train on": Case(changed(resize("train", 1, 1)), said="1 x side under 32 pixels"),
    "a byte-order mark": Case(objects(encoding="utf-8-sig")),
    "annotations of no picture": Case(changed(point_elsewhere), said="unknown image"),
    "a picture is missing": Case(also(objects(), lose_picture), reason="missing image"),
    "masks of some": Case(changed(lose_masks), said="empty segmentation"),
    "an unused class": Case(objects(names=("cat", "dog", "eel"), train=2, val=1)),
    "classes differ": Case(
        changed(lambda split, content: split == "train" and content["categories"][0].update(name="eel")),
        reason="expected the same classes",
    ),
    "no such part": Case(objects(splits=("train",)), ["--val-fraction", "1.5"], "must lie between 0 and 1"),
}


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    "Weights of a small run on two classes."
    home = tmp_path_factory.mktemp("detector")
    (home / "data").mkdir()
    objects()(home / "data")
    assert main(["train", "coco", "--data", f"{home}/data", "--out", f"{home}/run", *OBJECTS]) == 0
    return home / "run" / "last.safetensors"


@pytest.mark.parametrize("name", SETS)
def test_sets_of_objects(name, lesa, tmp_path, detector):
    case, data, run = SETS[name], tmp_path / "data", tmp_path / "run"
    checked, trained = check_and_train(lesa, "coco", case, data, run, OBJECTS)
    if not case.reason:
        assert case.said in trained.out and (case.said in checked.out or case.said == "300")
    weights = detector if case.reason else run / "last.safetensors"
    scored = lesa("eval", "coco", "--data", data, "--weights", weights, "--workers", "0", *case.words)
    told = lesa("predict", data, "--weights", weights, "--out", tmp_path / "drawn", "--threshold", "0")
    ends(scored), ends(told)
    pictures = [path for path in files(data) if path.suffix == ".png"]
    assert told.status == (0 if pictures else 2)
    assert len(files(tmp_path / "drawn")) == len(pictures)
    if not case.reason:
        assert scored.status == 0 and re.search(r"AP\b", scored.out), scored


def test_without_the_extra_a_sound_set_is_not_ready(lesa, tmp_path, monkeypatch):
    import sys

    (tmp_path / "data").mkdir()
    objects()(tmp_path / "data")
    for name in ["faster_coco_eval", *(known for known in sys.modules if known.startswith("faster_coco_eval."))]:
        monkeypatch.setitem(sys.modules, name, None)
    checked = lesa("verify-data", "coco", tmp_path / "data")
    assert checked.status == 1 and "missing package" in checked.out and "pip install 'lesa_nb[coco]'" in checked.out
    refused(lesa("train", "coco", "--data", tmp_path / "data", *OBJECTS), "pip install 'lesa_nb[coco]'")
