"""The page for people who know other libraries: every call in its right-hand columns is made, row by row."""

import contextlib
import io
import json
import re
import shlex
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
import torchvision
from PIL import Image

import lesa_nb
from lesa_nb.cli import main
from lesa_nb.data.drawn_coco import make_coco
from lesa_nb.models.registry import build_classifier, build_detector
from lesa_nb.weights import _hub_mixin as hub_mixin
from lesa_nb.weights.files import save_weights
from lesa_nb.weights.published import to_published

PAGE = Path(__file__).resolve().parent.parent / "nbs" / "coming_from.ipynb"
CELLS = json.loads(PAGE.read_text(encoding="utf-8"))["cells"]
SAME = re.compile(r"the same \w+$")


def tables():
    "(origin, old call, new call) of every row."
    for cell in CELLS:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown" and (heading := re.match(r"## From (.+)", text)):
            for line in text.splitlines():
                if line.startswith("| ") and line != "| there | here |":
                    old, new = line.strip("| ").split(" | ")
                    yield heading[1], old, new


ROWS = list(tables())
CALLS = [(old, call) for _, old, new in ROWS for call in re.findall(r"`(.+?)`", new)]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    "The files that the page names."
    folder = tmp_path_factory.mktemp("page")
    for number in range(12):
        half, name = "train" if number % 3 else "val", ("even", "odd")[number % 2]
        (folder / "pictures" / half / name).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (20 * number, 90, 90)).save(folder / "pictures" / half / name / f"{number}.png")
    Image.effect_noise((100, 80), 80).convert("RGB").save(folder / "photo.jpg")
    make_coco(folder / "objects", train=4, val=2, test=1, size=64)
    torch.manual_seed(0)
    names = ["even", "odd"]
    told = dict(arch="classifier", network="small", term="lesa", position="factored", image_size=64, classes=names)
    save_weights(build_classifier("small", num_classes=2), folder / "best.safetensors", **told)
    coco = json.loads((folder / "objects/annotations/instances_val2017.json").read_text())["categories"]
    net = dict(model="mask_rcnn", network="small", num_classes=len(coco), semantic=False)
    save_weights(
        build_detector(**net), folder / "objects.safetensors", arch="detector", net=net,
        classes=[c["name"] for c in coco], category_ids=[c["id"] for c in coco],
    )  # fmt: skip
    published = lesa_nb.lesa_resnet50()
    save_weights(published, folder / "lesa_resnet50.safetensors")
    torch.save({"net": to_published(published)}, folder / "theirs.pth")
    return folder


def write(name):
    "An empty JSON file."
    Path(name).write_text("{}")
    return name


def test_every_origin_has_a_page_of_its_own():
    assert {origin for origin, *_ in ROWS} == {"torchvision", "timm", "mmdetection", "the authors' repositories"}
    for origin in {origin for origin, *_ in ROWS}:
        assert 4 <= sum(row[0] == origin for row in ROWS) <= 12  # one screen
    assert len(CALLS) == sum(not SAME.match(new) for *_, new in ROWS)


@pytest.mark.parametrize(("old", "call"), CALLS, ids=[call for _, call in CALLS])
def test_the_new_call(old, call, workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    if call.startswith("lesa "):
        said, wrong = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(wrong):
            status = main(shlex.split(call)[1:])
        assert not status, said.getvalue() + wrong.getvalue()
        return
    resnet50, create_model = torchvision.models.resnet50, timm.create_model
    # what would be downloaded is left as it was built; what would be sent or fetched is not
    monkeypatch.setattr(torchvision.models, "resnet50", lambda weights=None: resnet50())
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained=False, **more: create_model(name, **more))
    monkeypatch.setattr(huggingface_hub.ModelHubMixin, "push_to_hub", lambda self, repo_id, **more: f"at {repo_id}")
    monkeypatch.setattr(hub_mixin, "hf_hub_download", lambda repo_id, *names, **more: "best.safetensors")
    monkeypatch.setattr(huggingface_hub.hub_mixin, "hf_hub_download", lambda **more: write("config.json"))
    names = dict(lesa_nb=lesa_nb, torchvision=torchvision, timm=timm, torch=torch)
    if call.startswith("lesa_nb.predict"):
        names["model"] = lesa_nb.load("objects.safetensors")
    exec(call if re.match(r"\w+ = ", call) else f"value = {call}", names)  # the page's own text
    assert names.get("value", names.get("model", names.get("transform"))) is not None
