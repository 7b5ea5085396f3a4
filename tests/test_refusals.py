"""Every refusal of every command: one sentence with the cure, status 2, and nothing new on the disk."""

import json
import shutil
import sys

import pytest
import torch
from PIL import Image

from lesa_nb.cli.app import main
from lesa_nb.data.drawn import make_image_folder
from lesa_nb.data.drawn_coco import make_coco
from lesa_nb.models.registry import build_classifier, build_detector
from lesa_nb.weights.files import save_weights

SMALL = "--network small --image-size 40 --epochs 1 --workers 0 --device cpu"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "Pictures, folders of both kinds, some that cannot be used, and files of weights."
    home = tmp_path_factory.mktemp("made")
    torch.manual_seed(0)
    net = dict(network="small", term="lesa", position="factored", image_size=40)
    classes = ["blue", "green", "red"]
    weights = home / "sorts.safetensors"
    save_weights(build_classifier(num_classes=3, **net), weights, arch="classifier", classes=classes, **net)
    net = dict(model="mask_rcnn", network="small", num_classes=3, image_size=40)
    detector, found = build_detector(**net), dict(arch="detector", classes=["disc", "square", "triangle"])
    save_weights(detector, home / "finds.safetensors", net=net, category_ids=[2, 17, 90], **found)
    (home / "letter.pth").write_text("dear")
    Image.new("RGB", (60, 48), "red").save(home / "photo.png")
    make_image_folder(home / "pictures", train=2, val=1, size=32)
    make_coco(home / "coco", train=3, val=2, test=2, size=64)
    shutil.copytree(home / "coco", home / "blank")
    for path in (home / "blank" / "annotations").glob("instances_*.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | dict(annotations=[])))
    shutil.copytree(home / "pictures", home / "hollow")
    for split in ("train", "val"):
        (home / "hollow" / split / "violet").mkdir()
    (home / "letters" / "a").mkdir(parents=True)
    (home / "letters" / "a" / "letter.txt").write_text("dear")
    (home / "empty").mkdir()
    return home


MISSING = {
    "train coco --data coco --out new/run": ("faster_coco_eval", "pip install 'lesa_nb[coco]'"),
    "eval coco --data coco --weights finds.safetensors --out new.json": ("faster_coco_eval", "lesa_nb[coco]"),
    "export-testdev --data coco --weights finds.safetensors --out new.json": ("faster_coco_eval", "lesa_nb[coco]"),
    "predict photo.png --weights finds.safetensors --out new --json new.json": ("faster_coco_eval", "lesa_nb[coco]"),
    "make-data imagenet new/digits --task digits": ("sklearn", "pip install 'lesa_nb[demo]'"),
    "demo --quick --out new/demo": ("sklearn", "pip install 'lesa_nb[demo]'"),
    "export --weights sorts.safetensors --out new.onnx": ("onnx", "pip install 'lesa_nb[export]'"),
}
SORTS = "holds no classifier (its metadata say arch = 'detector'); choose one of lesa train imagenet"
FINDS = "holds no detector (its metadata say arch = 'classifier'); choose one of lesa train coco"
OTHERS = {
    # layouts that nobody knows
    "train coco --data letters --out new/run": "no COCO folder: looked for",
    "train coco --data pictures --out new/run": "no COCO folder: looked for",
    "verify-data coco letters": "no COCO folder: looked for",
    "eval coco --data letters --weights finds.safetensors --out new.json": "no COCO folder: looked for",
    "export-testdev --data letters --weights finds.safetensors --out new.json": "no COCO folder: looked for",
    "train imagenet --data letters --out new/run": "expected train/ and val/",
    "train imagenet --data coco --out new/run": "expected train/ and val/",
    "train imagenet --data gone --out new/run": "gone: no such folder",
    "train imagenet --data letters --out new/run --val-fraction 0.2": "one class",
    "verify-data imagenet gone": "gone: no such folder",
    "eval imagenet --data gone --weights sorts.safetensors --out new.json": "gone: no such folder",
    "eval imagenet --data letters --weights sorts.safetensors --out new.json": "1 classes, but the network knows 3",
    # no pictures left
    "predict empty --weights sorts.safetensors --json new.json": "no pictures in empty",
    "predict letters --weights finds.safetensors --out new": "no pictures in letters",
    "predict gone.jpg --weights finds.safetensors --out new": "gone.jpg: no such file or folder",
    "train coco --data blank --out new/run": "none of 3 images is left",
    "train imagenet --data hollow --out new/run": "violet: empty class",
    "train imagenet --data empty --out new/run --val-fraction 0.2": "no classes",
    # weights of another kind
    "predict photo.png --weights letter.pth --json new.json": "letter.pth",
    "predict photo.png --weights sorts.safetensors --out new": "--out is for detectors",
    "eval imagenet --data pictures --weights finds.safetensors --out new.json": SORTS,
    "eval coco --data coco --weights sorts.safetensors --out new.json": FINDS,
    "export --weights letter.pth --out new.onnx": "letter.pth",
    "export --weights finds.safetensors --out new.onnx --image-size 5": "--image-size must lie in 17..4096",
    "export-testdev --data coco --weights sorts.safetensors --out new.json": FINDS,
    "train imagenet --data pictures --out new/run --start letter.pth": "letter.pth",
    "train imagenet --data pictures --out new/run --start finds.safetensors": "finds.safetensors",
    "train coco --data coco --out new/run --start letter.pth": "letter.pth",
    "train coco --data coco --out new/run --start gone.pth": "gone.pth: no such file",
    "explain photo.png --weights letter.pth --out new/figure.png": "letter.pth",
    "explore photo.png --weights letter.pth --out new/page.html": "letter.pth",
    # what is asked for makes no sense
    "train imagenet --data pictures --out new/run --device tpu": "tpu",
    "train coco --data coco --out new/run --device tpu": "tpu",
    "train coco --data coco --out new/run --batch-size 2 --accumulate 3": "choose a batch size that 3 divides",
    "train coco --data coco --out new/run --image-size 7": "at least 33 for a detector",
    "train imagenet --data pictures --out new/run --image-size 7": "at least 9 for small",
    "train imagenet --data pictures --out new/run --graft": "--graft makes the network",
    "make-data imagenet pictures": "exists already",
    "make-data coco new/coco --size 3": "size",
    "explain photo.png --pixel 99,3 --out new/figure.png": "outside",
}


def words_of(line):
    words = line.split()
    if words[0] == "train":
        asked = set(words)
        for flag, value in zip(SMALL.split()[::2], SMALL.split()[1::2]):
            words += [] if flag in asked else [flag, value]
    return words


def is_refused(line, reason, made, monkeypatch, capsys):
    monkeypatch.chdir(made)
    before = sorted(made.rglob("*"))
    capsys.readouterr()
    status, (out, err) = main(words_of(line)), capsys.readouterr()
    assert sorted(made.rglob("*")) == before, "something was written"
    assert status == 2, (status, out, err)
    assert reason in err and "Traceback" not in err and len(err.strip().splitlines()) <= 3, err


@pytest.mark.fault("R9")
@pytest.mark.parametrize("line", MISSING)
def test_a_missing_package_is_named_with_its_extra(line, made, monkeypatch, capsys):
    package, reason = MISSING[line]
    for name in [package, *(known for known in sys.modules if known.startswith(f"{package}."))]:
        monkeypatch.setitem(sys.modules, name, None)
    is_refused(line, reason, made, monkeypatch, capsys)


@pytest.mark.parametrize("line", OTHERS)
def test_a_refusal_is_one_sentence(line, made, monkeypatch, capsys):
    is_refused(line, OTHERS[line], made, monkeypatch, capsys)
