"""What a newcomer meets on the first day: telephone pictures, wrong kinds of things, messages that must help."""
import json
import os

import numpy as np
import pytest
import torch
from PIL import Image

from lesa_nb.cli import main
from lesa_nb.data.drawn import make_image_folder
from lesa_nb.data.drawn_coco import make_coco
from lesa_nb.data.verify_coco import verify_coco
from lesa_nb.io.atomic import atomic_json
from lesa_nb.models.registry import build_classifier
from lesa_nb.tasks.predict import find_images, predict
from lesa_nb.weights.files import load_weights, save_weights
from lesa_nb.weights.load import load
from lesa_nb.weights.published import load_published, to_published

NET = dict(network="small", term="lesa", position="factored", image_size=64)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("run") / "best.safetensors"
    save_weights(build_classifier(num_classes=2, **NET), path, arch="classifier", classes=["猫", "dog"], **NET)
    return path


@pytest.fixture
def phone(tmp_path):
    "A folder from a telephone: one JPEG, one HEIC, a film."
    folder = tmp_path / "DCIM"
    folder.mkdir()
    Image.new("RGB", (80, 60), "red").save(folder / "IMG_1.JPG")
    (folder / "IMG_2.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + b"\0" * 200)
    (folder / "IMG_3.MOV").write_bytes(b"film")
    return folder


def test_pictures_that_cannot_be_read_here_are_named_not_left_out(weights, phone, capsys):
    assert [path.name for path in find_images([phone])] == ["IMG_1.JPG", "IMG_2.HEIC"]
    assert [path.name for path in find_images([f"{phone}/*"])] == ["IMG_1.JPG", "IMG_2.HEIC"]
    assert main(["predict", str(phone), "--weights", str(weights), "--json", str(phone / "answers.json")]) == 1
    said = capsys.readouterr()
    assert "IMG_2.HEIC: not a picture" in said.err and "JPEG" in said.err and "1 of 2 pictures" in said.err
    text = (phone / "answers.json").read_text(encoding="utf-8")
    assert "猫" in text and len(json.loads(text)) == 2


def test_json_of_a_name_that_is_no_text(tmp_path):
    name = os.fsdecode(b"caf\xe9.jpg")
    assert json.loads(atomic_json(tmp_path / "a.json", {name: "猫"}).read_text(encoding="utf-8")) == {name: "猫"}


@pytest.mark.parametrize("thing, helps", [
    (np.zeros((8, 8, 3), np.uint8), "PIL.Image.fromarray"), (torch.zeros(3, 8, 8), "PIL.Image.fromarray"),
    ([np.zeros((8, 8, 3), np.uint8)], "PIL.Image.fromarray"), (7, "expected a path or a PIL picture")])
def test_what_is_no_picture_is_told_what_helps(weights, thing, helps):
    with pytest.raises(TypeError, match=helps):
        predict(weights, thing)


def test_an_open_file_and_a_network_alone_are_told_what_helps(weights, phone):
    with open(phone / "IMG_1.JPG", "rb") as file, pytest.raises(TypeError, match=r"PIL\.Image\.open"):
        predict(weights, file)
    with pytest.raises(TypeError, match="as_loaded"):
        predict(load(weights).model, phone / "IMG_1.JPG")


def test_the_folder_of_a_run_names_its_best_weights(weights):
    with pytest.raises(ValueError, match=r"name .*best\.safetensors"):
        load(weights.parent)


def test_weights_of_another_network_are_not_listed_one_by_one(tmp_path, weights):
    save_weights(torch.nn.Linear(2, 2), tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"\d\d+ missing: ") as refused:
        load_weights(build_classifier(num_classes=2, **NET), tmp_path / "other.safetensors")
    assert len(str(refused.value)) < 1500


@pytest.mark.parametrize("layer", ["net", "state_dict", "model"])
def test_published_weights_are_found_wherever_a_loop_keeps_them(tmp_path, layer):
    there, here = (build_classifier(num_classes=2, **NET) for _ in range(2))
    torch.save({layer: to_published(there), "epoch": 3}, tmp_path / "weights.pth")
    load_published(here, tmp_path / "weights.pth")
    assert all(torch.equal(a, b) for a, b in zip(there.state_dict().values(), here.state_dict().values()))


def test_eval_refuses_pictures_of_a_single_position(tmp_path, capsys):
    data = make_image_folder(tmp_path / "data", train=1, val=1, size=64)
    path = tmp_path / "w.safetensors"
    classes = sorted(entry.name for entry in (data / "train").iterdir())
    save_weights(build_classifier(num_classes=len(classes), **NET), path, arch="classifier", classes=classes, **NET)
    words = ["eval", "imagenet", "--data", str(data), "--weights", str(path), "--workers", "0"]
    assert main([*words, "--image-size", "3"]) == 2
    assert "image_size must be at least 9 for small" in capsys.readouterr().err


def test_a_set_without_stuff_maps_says_what_htc_needs(tmp_path):
    folder = make_coco(tmp_path / "coco", train=2, val=1, test=1, size=64)
    assert "no stuff maps" not in str(verify_coco(folder, progress=False))
    (folder / "stuffthingmaps").rename(tmp_path / "elsewhere")
    report = verify_coco(folder, progress=False)
    assert report.ok and "no stuff maps: HTC trains with --no-semantic" in str(report)


def test_a_broken_picture_before_the_first_step_leaves_no_run_behind(tmp_path, capsys):
    data = make_image_folder(tmp_path / "data", train=4, val=2, size=64)
    next((data / "val").rglob("*.png")).write_bytes(b"")
    words = ["train", "imagenet", "--data", str(data), "--out", str(tmp_path / "run"), "--network", "small", "--epochs",
             "1", "--image-size", "64", "--batch-size", "4", "--workers", "0", "--no-tensorboard"]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "empty file" in said and "Nothing was trained: mend it and start again; lesa verify-data names" in said
    assert not (tmp_path / "run" / "last.pt").exists()


def test_an_export_says_at_once_that_it_takes_time(tmp_path, weights, monkeypatch, capsys):
    from lesa_nb.weights import export

    def written(*args, **options):
        assert "takes minutes" in capsys.readouterr().out
        return dict(network="small", task="classification", classes=["a"])

    monkeypatch.setattr(export, "export_file", written)
    assert main(["export", "--weights", str(weights), "--out", str(tmp_path / "x.pt2")]) == 0
