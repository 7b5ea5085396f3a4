"""What was wrong in one pipeline, tried in the other: folders of classes and COCO folders, training and scoring."""

import inspect
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from coco_folders import edit
from PIL import Image, features
from torch import nn

from lesa_nb.cli.app import main
from lesa_nb.data.coco import CocoFolder
from lesa_nb.data.drawn import make_image_folder
from lesa_nb.data.drawn_coco import make_coco
from lesa_nb.data.folders import ClassFolder
from lesa_nb.data.verify import verify_image_folder
from lesa_nb.data.verify_coco import verify_coco
from lesa_nb.engine._checkpoint import read_checkpoint, save_checkpoint
from lesa_nb.engine.run import fit
from lesa_nb.io.tensors import read_metadata
from lesa_nb.layers.lesa import LESA, POSITIONS
from lesa_nb.models.registry import build_classifier, build_detector
from lesa_nb.tasks.classify import CLASSIFICATION_RECIPES, classification_task
from lesa_nb.tasks.detect import DETECTION_RECIPES, detection_task
from lesa_nb.weights.files import save_weights

PIPELINES = ("imagenet", "coco")
SMALL = "--network small --epochs 1 --batch-size 2 --workers 0 --device cpu --no-tensorboard".split()
SIDE = {"imagenet": 32, "coco": 64}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    home = tmp_path_factory.mktemp("twins")
    make_image_folder(home / "imagenet", train=2, val=2, size=32)
    make_coco(home / "coco", train=6, val=4, size=64)
    net = dict(network="small", term="lesa", position="factored", image_size=32)
    classes = sorted(path.name for path in (home / "imagenet" / "train").iterdir())
    save_weights(build_classifier(num_classes=len(classes), **net), home / "imagenet.safetensors", arch="classifier",
                 classes=classes, **net)
    net = dict(model="mask_rcnn", network="small", num_classes=3, image_size=64)
    save_weights(build_detector(**net), home / "coco.safetensors", arch="detector", net=net,
                 classes=["disc", "square", "triangle"], category_ids=[2, 17, 90])
    return home


@pytest.fixture
def folder(source, tmp_path):
    return {name: Path(shutil.copytree(source / name, tmp_path / name)) for name in PIPELINES}


def pictures(folder, name, split):
    "Files of a split's pictures."
    below = folder[name] / (split if name == "imagenet" else f"{split}2017")
    return sorted(path for path in below.rglob("*") if path.suffix in (".png", ".jpg"))


def task_of(folder, name, **changes):
    "What a run of a pipeline is told."
    recipes = CLASSIFICATION_RECIPES if name == "imagenet" else DETECTION_RECIPES
    recipe = replace(recipes["small" if name == "coco" else next(iter(recipes))], epochs=1, batch_size=2, **changes)
    make = classification_task if name == "imagenet" else detection_task
    return make(folder[name], recipe, network="small", image_size=SIDE[name], say=lambda line: None)


def check(folder, name):
    verify = verify_image_folder if name == "imagenet" else verify_coco
    return verify(folder[name], progress=False)


def run(words, capsys):
    "Status, standard output and the one sentence of an error."
    status = main([str(word) for word in words])
    said = capsys.readouterr()
    assert "Traceback" not in said.err and said.err.count("\n") <= 3, said.err
    return status, said.out, said.err


# ---- loaders


@pytest.mark.fault("R1", "R2")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", PIPELINES)
def test_scoring_names_the_picture_that_is_torn(source, folder, name, workers, capsys):
    "An error on its way out of a worker is one sentence, and the command ends."
    torn = pictures(folder, name, "val")[1]
    torn.write_bytes(torn.read_bytes()[:100])
    words = ["eval", name, "--data", folder[name], "--weights", source / f"{name}.safetensors", "--device", "cpu"]
    status, _, err = run([*words, "--workers", workers], capsys)
    said = [line for line in err.split("\n") if line and "/s]" not in line]  # without the bar
    assert status in (1, 2) and torn.name in said[-1] and len(said) == 1, err


# ---- runs


@pytest.mark.fault("R3")
@pytest.mark.parametrize("name", PIPELINES)
def test_a_run_goes_on_with_its_own_data_only(folder, tmp_path, name):
    "A picture that has gone, with what was known of it: the names in front are compared, for both kinds of folder."
    list(fit(task_of(folder, name), tmp_path / "run", device="cpu"))
    before = (tmp_path / "run" / "last.pt").read_bytes()
    gone = pictures(folder, name, "train")[1]
    gone.unlink()
    if name == "coco":
        edit(folder[name], lambda content: content.update(
            images=[i for i in content["images"] if i["file_name"] != gone.name]))
    with pytest.raises(ValueError, match="a run on other data .*train: .* samples there, .* now.*accept_changed_data"):
        list(fit(task_of(folder, name), tmp_path / "run", device="cpu", resume=True))
    assert (tmp_path / "run" / "last.pt").read_bytes() == before


@pytest.mark.parametrize("split, half", [("train", "train"), ("val", "valid")])
def test_a_run_goes_on_with_its_own_annotations_only(folder, tmp_path, split, half):
    "The pictures are the same, and what is known of them is not: scores before and after would not compare."
    list(fit(task_of(folder, "coco"), tmp_path / "run", device="cpu"))
    checkpoint = read_checkpoint(tmp_path / "run" / "last.pt")
    path = folder["coco"] / "annotations" / f"instances_{split}2017.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["bbox"][2] += 1
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"a run on other data .{half}: the same samples, but what is known of them"):
        list(fit(task_of(folder, "coco"), tmp_path / "run", device="cpu", resume=True))
    list(fit(task_of(folder, "coco"), tmp_path / "run", device="cpu", resume=True, accept_changed_data=True))
    del checkpoint["data"][half]["content"]  # of a run before there was such a hash
    save_checkpoint(checkpoint, tmp_path / "run" / "last.pt")
    list(fit(task_of(folder, "coco"), tmp_path / "run", device="cpu", resume=True))


@pytest.mark.fault("R4")
@pytest.mark.parametrize("name", PIPELINES)
def test_weights_say_the_recipe_they_were_trained_by(folder, tmp_path, name):
    "One owner: the task. `fit` can be given no other recipe."
    assert "recipe" not in inspect.signature(fit).parameters
    task = task_of(folder, name, weight_decay=0.03125, **dict(label_smoothing=0.25) if name == "imagenet" else {})
    list(fit(task, tmp_path / "run", device="cpu"))
    said = read_metadata(tmp_path / "run" / "last.safetensors")["recipe"]
    assert said["weight_decay"] == 0.03125 and said["label_smoothing"] == (0.25 if name == "imagenet" else 0)
    if name == "imagenet":
        batch = task.collate([task.train[0, 0], task.train[0, 1]])
        torch.manual_seed(0)
        model = task.build().eval()
        plain = task_of(folder, name, weight_decay=0.03125, label_smoothing=0.0)
        one, two = (float(sum(t.losses(model, batch).values())) for t in (task, plain))
        assert abs(one - two) > 1e-6  # and it is trained by


@pytest.mark.fault("R5")
@pytest.mark.parametrize("name", PIPELINES)
def test_what_cannot_be_validated_is_refused_before_the_first_step(folder, tmp_path, name, capsys):
    if name == "coco":
        edit(folder[name], lambda content: content["annotations"][0].update(bbox=[1, 2, 3]), "val2017")
    else:
        for path in (folder[name] / "val").iterdir():
            shutil.rmtree(path)
    words = ["train", name, "--data", folder[name], "--out", tmp_path / "run", "--image-size", SIDE[name], *SMALL]
    status, _, err = run(words, capsys)
    assert status == 2 and err.count("\n") == 1 and not (tmp_path / "run").exists(), err
    assert not check(folder, name).ok  # as the check had said


@pytest.mark.fault("R6")
@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.parametrize("words", ["--lr nan", "--lr -1", "--lr inf", "--epochs 0", "--batch-size 0", "--accumulate 0",
                                   "--device mps", "--device xpu", "--device meta", "--workers -1", "--minutes nan",
                                   "--seed -1", "--stop-after 0", "--image-size 0", "--val-fraction nan"])
def test_numbers_and_devices_are_judged_before_anything_is_written(folder, tmp_path, name, words, capsys):
    base = ["train", name, "--data", folder[name], "--out", tmp_path / "run", "--image-size", SIDE[name], *SMALL]
    status, _, err = run([*base, *words.split()], capsys)
    assert status == 2 and not (tmp_path / "run").exists(), err


# ---- pictures


@pytest.mark.fault("C3", "P2")
@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.parametrize("kind", ["16 bits", "floats from 0 to 1", "floats with a NaN", "all below zero"])
def test_one_reader_of_deep_pictures(folder, name, kind):
    "16 bits and floats are scaled by what the file says; what says nothing is fatal in the check, named in training."
    path = pictures(folder, name, "train")[0]
    width, height = Image.open(path).size
    ramp = np.linspace(0, 1, height * width, dtype=np.float32).reshape(height, width)
    if kind == "16 bits":
        Image.fromarray((ramp * 65535).astype(np.uint16)).save(path, format="PNG")
    else:
        if kind == "floats with a NaN":
            ramp[3, 3] = np.nan
        Image.fromarray(ramp - 2 if kind == "all below zero" else ramp).save(path, format="TIFF")
    report = check(folder, name)
    if name == "coco":
        dataset = CocoFolder(folder[name])
        index = next(i for i, image_id in enumerate(dataset.image_ids) if dataset.file(image_id) == path)
    else:
        dataset = ClassFolder(folder[name] / "train")
        index = next(i for i in range(len(dataset)) if Path(dataset.sample_name(i)).name == path.name)
    if kind in ("16 bits", "floats from 0 to 1"):
        image = dataset[index][0] if name == "coco" else torch.from_numpy(np.array(dataset[index][0])) / 255
        assert report.ok and abs(image.float().mean() - 0.5) < 0.02 and image.max() == 1 and image.min() == 0
    else:
        assert [fault.fatal for fault in report.faults if path.name in fault.path] and not report.ok
        with pytest.raises(ValueError, match=re.escape(path.name)):
            dataset[index]


@pytest.mark.fault("P3")
@pytest.mark.parametrize("suffix", [".gif", ".jfif", ".webp", ".bmp", ".tif", ".avif"])
@pytest.mark.parametrize("name", PIPELINES)
def test_every_format_that_pillow_reads(folder, name, suffix):
    if suffix == ".avif" and not (features.check("avif") if "avif" in features.get_supported() else False):
        pytest.skip("this Pillow has no AVIF")
    path = pictures(folder, name, "train")[0]
    picture, other = Image.open(path).convert("RGB"), path.with_suffix(suffix)
    path.unlink()
    picture.save(other, format="JPEG" if suffix == ".jfif" else None)
    if name == "coco":
        edit(folder[name], lambda content: [i.update(file_name=other.name) for i in content["images"]
                                            if i["file_name"] == path.name])
        shown = CocoFolder(folder[name])
        assert other.name in {shown.file(i).name for i in shown.image_ids} and len(list(shown)) == len(shown)
    else:
        shown = ClassFolder(folder[name] / "train")
        assert other.name in {Path(shown.sample_name(i)).name for i in range(len(shown))} and len(list(shown))
    assert check(folder, name).ok


@pytest.mark.fault("P1")
@pytest.mark.parametrize("name", PIPELINES)
def test_litter_is_no_picture_no_class_and_no_annotation(folder, name):
    root = folder[name]
    before = (len(pictures(folder, name, "train")), str(check(folder, name).splits))
    places = [path for path in (root, *root.rglob("*")) if path.is_dir()]
    for place in places:
        (place / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
        for path in list(place.iterdir())[:2]:
            if path.is_file() and not path.name.startswith("."):
                (place / f"._{path.name}").write_bytes(b"\0\5\26\7")
    for place in (root, root / ("train" if name == "imagenet" else "train2017")):
        for hidden in ("__MACOSX", ".ipynb_checkpoints"):
            (place / hidden).mkdir()
            Image.new("RGB", (8, 8)).save(place / hidden / "copy.png")
    report = check(folder, name)
    assert report.ok and str(report.splits) == before[1]
    dataset = CocoFolder(root) if name == "coco" else ClassFolder(root / "train")
    assert len(dataset) == before[0] and len(list(dataset)) == before[0]


@pytest.mark.fault("C5")
@pytest.mark.parametrize("name", PIPELINES)
def test_nothing_left_is_not_ready(folder, name, capsys):
    "Everything that would be trained on is left out: the check says so, with status 1."
    if name == "coco":
        edit(folder[name], lambda content: [a.update(iscrowd=1) for a in content["annotations"]])
    else:
        for path in pictures(folder, name, "train"):
            path.rename(path.with_name(f"._{path.name}"))
    status, out, err = run(["verify-data", name, folder[name]], capsys)
    assert status == 1 and "not ready" in out and "ready to train" not in out.replace("not ready", ""), out + err


@pytest.mark.fault("C2")
@pytest.mark.parametrize("name", PIPELINES)
def test_classes_under_other_names_are_not_scored(source, folder, name, capsys):
    "The weights know other names than the folder scored: refused, and both are named."
    if name == "coco":
        edit(folder[name], lambda content: content["categories"][0].update(name="ball"), "val2017")
        old, new = "disc", "ball"
    else:
        first = sorted((folder[name] / "val").iterdir())[0]
        old, new = first.name, "zebra"
        first.rename(first.with_name(new))
    words = ["eval", name, "--data", folder[name], "--weights", source / f"{name}.safetensors", "--workers", 0]
    status, _, err = run(words, capsys)
    assert status in (1, 2) and old in err and new in err, err


@pytest.mark.fault("C11", "P5")
@pytest.mark.parametrize("name", PIPELINES)
def test_a_turned_picture_is_turned_or_explained(folder, name):
    "Classes are of turned pictures; boxes count pixels as they are stored, and the reader says that the note is why."
    path = pictures(folder, name, "train")[0]
    note = Image.Exif()
    note[0x0112] = 6
    width, height = Image.open(path).size
    wide = np.zeros((height, width + 8, 3), np.uint8)
    wide[:, : width // 2] = 255
    Image.fromarray(wide).save(path, exif=note)
    if name == "imagenet":
        shown = ClassFolder(folder[name] / "train")
        index = next(i for i in range(len(shown)) if Path(shown.sample_name(i)).name == path.name)
        assert shown[index][0].size == (height, width + 8) and check(folder, name).ok
    else:
        edit(folder[name], lambda content: [i.update(width=height, height=width + 8) for i in content["images"]
                                            if i["file_name"] == path.name])
        report = check(folder, name)
        assert not report.ok and "EXIF" in str(report) and path.name in str(report)


# ---- whole networks in other people's hands


@pytest.mark.fault("L4")
@pytest.mark.parametrize("network", ["classifier", "detector"])
def test_full_backward_hooks_on_every_norm_of_every_layer(network):
    "In whole networks too. Norms outside of the layers have an in-place ReLU behind them, as torchvision's have."
    torch.manual_seed(0)
    if network == "classifier":
        model = build_classifier("small", num_classes=3, image_size=32, term="lesa", position="factored").train()
        arguments = (torch.randn(2, 3, 32, 32),)
    else:
        model = build_detector("mask_rcnn", network="small", num_classes=2, image_size=64).train()
        target = dict(boxes=torch.tensor([[4.0, 4, 40, 40]]), labels=torch.tensor([1]),
                      masks=torch.ones(1, 64, 64, dtype=torch.uint8))
        arguments = ([torch.rand(3, 64, 64)], [target])
    norms, seen = [], set()
    for layer in model.modules():
        if isinstance(layer, LESA):
            norms += [part for part in layer.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.register_full_backward_hook(lambda norm, gradient, result: seen.add(norm))
    found = model(*arguments)
    (sum(found.values()) if isinstance(found, dict) else found.square().mean()).backward()
    assert len(norms) >= 9 and len(seen) >= len(norms) * 2 // 3  # the norm of scores may be folded into its moments


@pytest.mark.fault("L5")
@pytest.mark.parametrize("position", POSITIONS)
def test_networks_on_meta_tensors_and_of_another_type(position):
    with torch.device("meta"):
        model = build_classifier("small", num_classes=3, image_size=32, term="lesa", position=position).eval()
        assert model(torch.empty(2, 3, 32, 32)).shape == (2, 3)
    model = build_classifier("small", num_classes=3, image_size=32, term="lesa", position=position).eval()
    with pytest.raises((TypeError, ValueError), match="float64.*float32|float32.*float64"):
        model(torch.zeros(1, 3, 32, 32, dtype=torch.float64))


@pytest.mark.fault("R8")
@pytest.mark.parametrize("name", PIPELINES)
def test_wrapped_names_are_read_by_both_kinds_of_scores(source, folder, name, tmp_path, capsys):
    "What `torch.compile` and `DataParallel` put into names is taken out of a file before it is scored."
    from lesa_nb.io.tensors import read_tensors

    plain = source / f"{name}.safetensors"
    wrapped = {f"module._orig_mod.{key}": tensor for key, tensor in read_tensors(plain).items()}
    torch.save(dict(metadata=read_metadata(plain), model=wrapped, average=None), tmp_path / "last.pt")
    told = []
    for path in (plain, tmp_path / "last.pt"):
        words = ["eval", name, "--data", folder[name], "--weights", path, "--workers", 0, "--device", "cpu"]
        status, _, err = run([*words, "--out", tmp_path / f"{path.stem}.json"], capsys)
        assert status == 0, err
        told.append(json.loads((tmp_path / f"{path.stem}.json").read_text()))
    one, two = ({k: v for k, v in some.items() if k not in ("weights", "seconds")} for some in told)
    assert one == two
