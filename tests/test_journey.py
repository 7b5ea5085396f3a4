"""From a folder of one's own to predictions with the README's three commands, typed as they stand there.

What is predicted is what was scored: for classes picture by picture, for objects by COCO's own reference.
"""

import json
import shlex
from pathlib import Path

import numpy as np
import processes
import pytest
import torch
from PIL import Image

from lesa_nb.data.drawn_coco import make_coco
from lesa_nb.data.folders import class_folders
from lesa_nb.weights.load import load

ROOT = Path(__file__).resolve().parent.parent
FEW = "--workers 0 --device cpu --no-tensorboard".split()


def commands(about):
    "The README's commands for one's own pictures: their words, in order."
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Your own pictures")[2]
    lines = section.partition("```sh\n")[2].partition("```")[0].splitlines()
    found = [shlex.split(line, comments=True) for line in lines if line.strip()]
    assert [words[0] for words in found] == ["lesa"] * 6
    return found[:3] if about == "classes" else found[3:]


def typed(words, *more, epochs=None, without=(), **places):
    "A command of the README with other places, fewer epochs, and what makes it small."
    words = [str(places.get(word, word)) for word in words[1:]]
    for flag, values in without:
        at = words.index(flag)
        del words[at : at + 1 + values]
    if epochs:
        words[words.index("--epochs") + 1] = str(epochs)
    return [*words, *map(str, more)]


def lesa(words, cwd):
    "A command in a process of its own that ends well; what it says."
    done = processes.lesa(*words, cwd=cwd, timeout=400)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stdout + done.stderr
    return done.stdout


def draw_classes(folder, number=16):
    "An export that nobody sorted: a folder for each class, more formats than one, and what a Mac leaves behind."
    rng = np.random.default_rng(0)
    for channel, name in enumerate(("red fox", "grüner Frosch", "青鸟")):
        (folder / name).mkdir(parents=True)
        for i in range(number):
            pixels = rng.integers(0, 120, (48, 60, 3), dtype=np.uint8)
            pixels[..., channel] += 100
            Image.fromarray(pixels).save(folder / name / f"IMG {i}.{('jpg', 'png', 'webp')[i % 3]}")
        (folder / name / "._IMG 0.jpg").write_bytes(b"\0\5\26\7")
        (folder / name / ".DS_Store").write_bytes(b"x")


GRAFT = [("--start", 1), ("--graft", 0)]


@pytest.mark.parametrize("start", ["a ResNet", "nothing"])
def test_from_folders_of_classes_to_predictions(start, tmp_path):
    draw_classes(tmp_path / "PICTURES")
    check, train, predict = commands("classes")
    assert "ready to train" in lesa(typed(check), tmp_path)
    if start == "a ResNet":
        import torchvision

        torch.manual_seed(0)
        torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "resnet50.pth")
        words = typed(train, "--image-size", 64, *FEW, epochs=1)
    else:
        words = typed(train, "--network", "small", "--image-size", 32, *FEW, epochs=4, without=GRAFT)
    said = lesa(words, tmp_path)
    assert "hash of each file's name decides" in said and ("started from resnet50.pth" in said) == (start == "a ResNet")
    weights = tmp_path / "runs" / "mine" / "best.safetensors"

    _, held = class_folders(tmp_path / "PICTURES", val_fraction=0.2)
    new = tmp_path / "NEW_PICTURES"
    new.mkdir()
    names = {}
    for i in range(len(held)):
        path = Path(held.path(i))
        names[f"{i} {path.name}"] = path.parent.name
        (new / f"{i} {path.name}").symlink_to(path)
    said = lesa(typed(predict), tmp_path)
    answers = {Path(answer["file"]).name: answer for answer in json.loads((tmp_path / "answers.json").read_text())}
    assert answers.keys() == names.keys() and all(f"NEW_PICTURES/{name}: " in said for name in names)

    words = ["eval", "imagenet", "--data", "PICTURES", "--val-fraction", "0.2", "--weights", weights, "--workers", "0"]
    lesa([*words, "--out", "scores.json"], tmp_path)
    scores = json.loads((tmp_path / "scores.json").read_text())
    right = [answers[file]["classes"][0]["name"] == name for file, name in names.items()]
    assert scores["samples"] == len(right) and scores["top1"] == pytest.approx(100 * sum(right) / len(right))
    loaded = load(weights)
    for i, file in enumerate(names):  # picture by picture, as `eval` sees it
        with Image.open(held.path(i)) as opened, torch.inference_mode():
            chances = loaded.model(loaded.transform(opened.convert("RGB"))[None])[0].softmax(0).tolist()
        told = {found["name"]: found["score"] for found in answers[file]["classes"]}
        assert told == pytest.approx(dict(zip(loaded.classes, chances)), abs=1e-4)


def draw_roboflow(source, folder):
    "Annotations beside the pictures, as Roboflow exports them, with the category that only groups the others."
    for split, name in ("train2017", "train"), ("val2017", "valid"):
        (folder / name).mkdir(parents=True)
        content = json.loads((source / "annotations" / f"instances_{split}.json").read_text())
        for image in content["images"]:
            (source / split / image["file_name"]).rename(folder / name / image["file_name"])
        ids = {category["id"]: i for i, category in enumerate(content["categories"], 1)}
        own = [dict(id=ids[c["id"]], name=c["name"], supercategory="things") for c in content["categories"]]
        content["categories"] = [dict(id=0, name="things", supercategory="none"), *own]
        for annotation in content["annotations"]:
            annotation["category_id"] = ids[annotation["category_id"]]
        (folder / name / "_annotations.coco.json").write_text(json.dumps(content))
        (folder / name / "._x.jpg").write_bytes(b"\0\5\26\7")


def as_results(answers, truth):
    "What `lesa predict --json` holds, as COCO wants it."
    images = {image["file_name"]: image["id"] for image in truth["images"]}
    ids = {category["name"]: category["id"] for category in truth["categories"]}
    for answer in answers:
        for thing in answer["objects"]:
            x1, y1, x2, y2 = thing["box"]
            yield dict(
                image_id=images[Path(answer["file"]).name],
                category_id=ids[thing["name"]],
                bbox=[x1, y1, x2 - x1, y2 - y1],
                score=thing["score"],
                segmentation=thing["mask"],
            )


def test_from_an_export_of_objects_to_predictions(tmp_path):
    pytest.importorskip("pycocotools", reason="the reference for scores; installed with [dev]")
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    draw_roboflow(make_coco(tmp_path / "drawn", train=16, val=6, test=0, size=64), tmp_path / "EXPORT")
    check, train, predict = commands("objects")
    said = lesa(typed(check), tmp_path)
    assert "layout: Roboflow's layout" in said and "ready to train" in said
    small = ["--network", "small", "--image-size", "64", "--lr", "0.006"]
    said = lesa(typed(train, *small, *FEW, epochs=6, without=[("--start", 1)]), tmp_path)
    assert "unused supercategory" in said and "best mask AP" in said
    weights = tmp_path / "runs" / "objects" / "best.safetensors"

    (tmp_path / "NEW_PICTURES").symlink_to(tmp_path / "EXPORT" / "valid")
    lesa(typed(predict, "--threshold", 0, "--json", "found.json"), tmp_path)
    answers = json.loads((tmp_path / "found.json").read_text())
    assert len(answers) == len(list((tmp_path / "drawn").glob("*_lesa.png"))) == 6

    lesa(["eval", "coco", "--data", "EXPORT", "--weights", weights, "--workers", 0, "--out", "scores.json"], tmp_path)
    scores = json.loads((tmp_path / "scores.json").read_text())
    truth = COCO(str(tmp_path / "EXPORT" / "valid" / "_annotations.coco.json"))
    found = truth.loadRes(list(as_results(answers, truth.dataset)))
    for kind, ours in (("bbox", scores["box"]), ("segm", scores["mask"])):
        reference = COCOeval(truth, found, kind)
        reference.params.catIds = [1, 2, 3]
        reference.evaluate(), reference.accumulate(), reference.summarize()
        for i, name in enumerate(("AP", "AP50", "AP75")):
            assert (ours[name] or 0) == pytest.approx(max(0, reference.stats[i]), abs=1e-6), (kind, name)
    assert scores["box"]["AP50"] > 0  # something was found
