"""Starting from trained weights: what is loaded to the bit, what is fitted, what starts afresh, and what is refused."""

import json
from pathlib import Path

import processes
import pytest
import torch
from torch import nn
from torchvision import models

from lesa_nb.data.drawn import make_image_folder
from lesa_nb.engine._checkpoint import read_checkpoint
from lesa_nb.engine.run import fit
from lesa_nb.io.tensors import save_tensors
from lesa_nb.layers.position import FlatTable, fit_offsets, fold_offsets
from lesa_nb.models.registry import build_classifier, build_detector
from lesa_nb.models.resnet import lesa_resnet50, lesa_wrn50
from lesa_nb.tasks.classify import classification_task, find_recipe
from lesa_nb.tasks.detect import calibrate
from lesa_nb.weights.files import save_weights
from lesa_nb.weights.graft import graft
from lesa_nb.weights.load import load
from lesa_nb.weights.published import to_published
from lesa_nb.weights.start import graft_network, start_classifier, start_detector, start_metadata

ROOT = Path(__file__).resolve().parent.parent


def trained(network):
    "A network whose norms have seen something."
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.running_mean, std=0.1)
            nn.init.uniform_(part.running_var, 0.5, 1.5)
            part.num_batches_tracked.fill_(7)
    return network


def small(num_classes=3, *, seed=0, **options):
    torch.manual_seed(seed)
    return trained(build_classifier("small", num_classes=num_classes, **dict(image_size=64) | options))


def same(a, b, *, but=()):
    "Whether two networks hold the same numbers, the named tensors left out."
    theirs = b.state_dict()
    return all(tensor.equal(theirs[key]) for key, tensor in a.state_dict().items() if not key.startswith(tuple(but)))


def unchanged_by(model, action, words):
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=words) as caught:
        action()
    assert all(tensor.equal(before[key]) for key, tensor in model.state_dict().items())
    return str(caught.value)


# ---- classifiers: sources


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    "One small classifier in every kind of file."
    folder, source = tmp_path_factory.mktemp("sources"), small()
    metadata = dict(arch="classifier", network="small", term="lesa", position="factored", image_size=64,
                    classes=["a", "b", "c"])
    save_weights(source, folder / "best.safetensors", **metadata)
    torch.save(dict(metadata=metadata, model=source.state_dict(), average=None), folder / "last.pt")
    torch.save(source.state_dict(), folder / "state.pth")
    torch.save(nn.DataParallel(source).state_dict(), folder / "wrapped.pth")
    torch.save({"net": {f"module.{k}": v for k, v in to_published(source).items()}}, folder / "authors.pth")
    return folder, source


@pytest.mark.parametrize("name", ["best.safetensors", "last.pt", "state.pth", "wrapped.pth", "authors.pth"])
def test_every_file_of_ours_and_the_authors_to_the_bit(sources, name):
    folder, source = sources
    model = small(seed=1)
    started = start_classifier(model, folder / name)
    assert same(model, source) and not started.fresh and not started.dropped and not started.fitted
    assert set(started.loaded) == set(source.state_dict())
    assert (started.stripped == ("module.",)) == (name in ("wrapped.pth", "authors.pth"))
    assert started.format().startswith(f"loaded: {len(source.state_dict())}\n")
    other = small(5, seed=1)
    built = other.fc.weight.clone()
    started = start_classifier(other, folder / name)
    assert same(other, source, but=["fc."]) and other.fc.weight.equal(built)
    assert started.fresh == started.dropped == ["fc.weight", "fc.bias"]
    assert "fresh (not in the checkpoint, as built): 2: fc.weight, fc.bias" in started.format()


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_a_wrapped_network_is_a_source(wrap):
    source, model = small(), small(seed=1)
    report = start_classifier(model, wrap(source))
    assert same(model, source) and report.stripped in (("module.",), ("_orig_mod.",)) and not report.fresh


def test_a_head_goes_by_the_names_of_its_classes(sources):
    folder, source = sources
    for classes, kept in (["a", "b", "c"], True), (["a", "c", "b"], False), (["x", "y", "z"], False):
        model = small(seed=1)
        started = start_classifier(model, folder / "best.safetensors", classes=classes)
        assert (not started.fresh) is kept and model.fc.weight.equal(source.fc.weight) is kept
        model = small(seed=1)
        assert not start_classifier(model, folder / "state.pth", classes=classes).fresh  # it names no classes


def test_a_network_without_numbers_is_only_checked(sources):
    with torch.device("meta"):
        ghost = build_classifier("small", num_classes=5, image_size=96)
    started = start_classifier(ghost, sources[0] / "best.safetensors")
    assert started.fresh == ["fc.weight", "fc.bias"] and len(started.fitted) == 4
    assert all(tensor.is_meta for tensor in ghost.state_dict().values())


def test_the_published_network_in_the_authors_names(tmp_path):
    torch.manual_seed(0)
    source = trained(lesa_resnet50(num_classes=7, image_size=64))
    torch.save({"net": {f"module.{k}": v for k, v in to_published(source).items()}}, tmp_path / "authors.pth")
    model = lesa_resnet50(num_classes=2, image_size=64)
    started = start_classifier(model, tmp_path / "authors.pth")
    assert same(model, source, but=["fc."]) and started.fresh == ["fc.weight", "fc.bias"]


# ---- classifiers: other image sizes


@pytest.mark.parametrize("size", [40, 96])
def test_factored_tables_are_fitted_as_they_serve_other_maps(sources, size):
    folder, source = sources
    model = small(image_size=size, seed=1)
    started = start_classifier(model, folder / "state.pth")
    tables = [f"layer{i}.0.conv2.context.position.{side}" for i in (3, 4) for side in ("height", "width")]
    assert started.fitted == tables and not started.fresh and not started.dropped
    assert "fitted (position tables for another size of the map): 4: layer3.0.conv2" in started.format()
    for key in tables:
        assert model.state_dict()[key].equal(fit_offsets(source.state_dict()[key].T, size // 8).T)
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        assert model.eval()(x).equal(source.eval()(x))  # to the bit what the source says at that size


@pytest.mark.parametrize("size", [40, 96])
def test_flat_tables_are_unfolded_fitted_and_folded(size):
    source, model = small(position="flat"), small(position="flat", image_size=size, seed=1)
    started = start_classifier(model, source)
    assert len(started.fitted) == 2 and not started.fresh
    for stage in "layer3", "layer4":
        old, new = (net.get_submodule(f"{stage}.0.conv2.context.position") for net in (source, model))
        assert isinstance(new, FlatTable) and new.table.equal(fold_offsets(old.unfolded((size // 8, size // 8))))
    oblong = small(position="flat", image_size=(24, 40), seed=1)
    unchanged_by(model, lambda: start_classifier(model, oblong), "made for 15 positions, which are no square")


# ---- classifiers: plain ResNets and grafts


def test_a_plain_resnet_keeps_its_convolutions_and_lesa_starts_afresh(tmp_path):
    torch.manual_seed(0)
    plain, model = trained(models.resnet50(num_classes=4)), lesa_resnet50(num_classes=4, image_size=64)
    old = {key: tensor for key, tensor in plain.state_dict().items() if "num_batches" not in key}  # as in 2016
    torch.save(plain.state_dict(), tmp_path / "resnet50.pth")
    torch.save({"state_dict": old}, tmp_path / "old.pth")
    save_tensors(plain.state_dict(), tmp_path / "timm.safetensors", {})
    for name in "resnet50.pth", "timm.safetensors", "old.pth":
        started = start_classifier(model, tmp_path / name)
        state = plain.state_dict()
        assert all(model.state_dict()[key].equal(state[key]) for key in started.loaded)
        lesa = {key for key in started.fresh if "num_batches" not in key or ".conv2." in key}
        assert {".".join(key.split(".")[:3]) for key in lesa} == {
            f"layer{i}.{j}.conv2" for i, blocks in ((3, range(1, 6)), (4, range(3))) for j in blocks}
        assert {key.split(".")[2] for key in started.dropped} == {"conv2", "bn2"}
        assert "layer3.1.conv2.* (" in started.format() and "fc.weight" in started.loaded
    assert "*.num_batches_tracked (" in started.format()
    control = lesa_resnet50(num_classes=4, image_size=64, term="conv")
    assert not start_classifier(control, plain).fresh and same(control, plain)


def test_another_term_starts_its_middles_afresh():
    source, model = small(), small(term="conv", seed=1)
    started = start_classifier(model, source)
    assert {key.split(".")[2] for key in started.fresh} == {"conv2", "bn2"}
    assert model.layer3[0].conv1.weight.equal(source.layer3[0].conv1.weight)


@pytest.mark.parametrize("classes", [4, 6])
def test_a_graft_computes_what_the_resnet_did(classes):
    torch.manual_seed(0)
    plain = trained(models.resnet18(num_classes=4)).eval()
    name = graft_network(plain.state_dict())
    assert name == "graft:resnet18" == graft_network(graft(plain, image_size=64))
    model = build_classifier(name, num_classes=classes, image_size=64, position="factored").eval()
    started = start_classifier(model, plain.state_dict())
    assert len(started.renamed) == 12
    assert "renamed (loaded as the local term of a grafted layer): 12" in started.format()
    x = torch.randn(2, 3, 64, 64)
    plain.fc = plain.fc if classes == 4 else model.fc
    with torch.no_grad():
        assert model(x).equal(plain(x))
    again = build_classifier(name, num_classes=classes, image_size=96, position="factored")
    started = start_classifier(again, model)
    assert len(started.fitted) == 4 and same(again, model, but=started.fitted)


# ---- classifiers: refusals


def test_what_does_not_fit_names_the_cure(sources, tmp_path):
    folder, source = sources
    large, flat = lesa_resnet50(num_classes=2, image_size=64), small(position="flat", seed=1)

    def refused(model, found, words):
        message = unchanged_by(model, lambda: start_classifier(model, found), words)
        assert "\n" not in message

    refused(large, folder / "best.safetensors", "best.safetensors: .*it fits the network small: .*--network small")
    refused(flat, folder / "authors.pth", "are factored, the network's flat.*--network small --position factored")
    with torch.device("meta"):
        wide = lesa_wrn50(num_classes=2, image_size=64).state_dict()
    refused(large, wide, "it fits the network wrn50: train with --network wrn50")
    plain = models.resnet18(num_classes=2)
    refused(large, plain.state_dict(), "may be a resnet18 of torchvision or timm: --graft makes a LESA network of it")
    refused(large, graft(plain, image_size=64), "it is a grafted resnet18: --graft goes on with it")
    refused(large, models.alexnet(num_classes=2), "expected a classifier of this library or of the authors, or a")
    refused(source, build_detector(network="small", num_classes=2), "holds a detector, and a classifier starts from")
    with pytest.raises(ValueError, match="a network of this library already.*leave --graft out"):
        graft_network(folder / "best.safetensors")
    with pytest.raises(ValueError, match="alex.pth: expected a ResNet of torchvision, .*so there is nothing to graft"):
        torch.save(models.alexnet(num_classes=2).state_dict(), tmp_path / "alex.pth")
        graft_network(tmp_path / "alex.pth")
    with pytest.raises(FileNotFoundError, match="none.pth: no such file"):
        start_classifier(source, tmp_path / "none.pth")


def test_metadata_name_the_file_by_its_content(sources, tmp_path):
    assert not start_metadata(None)
    told = start_metadata(sources[0] / "state.pth")["start"]
    assert told["file"] == "state.pth" and len(told["sha256"]) == 32
    (tmp_path / "state.pth").write_bytes((sources[0] / "state.pth").read_bytes())
    assert start_metadata(tmp_path / "state.pth")["start"] == told
    (tmp_path / "state.pth").write_bytes(b"another")
    assert start_metadata(tmp_path / "state.pth")["start"] != told


# ---- detectors


def detector(num_classes=3, *, seed=0, model="mask_rcnn", **options):
    torch.manual_seed(seed)
    return build_detector(model, network="small", num_classes=num_classes, **options)


def test_a_small_detector_from_a_small_classifier(sources):
    folder, source = sources
    model = detector()
    started = start_detector(model, folder / "best.safetensors")
    ours, theirs = (net.layer4[0].conv2.gate.reason[1].weight for net in (model.pyramid.backbone, source))
    assert ours.equal(theirs)
    assert {"fc.weight", "fc.bias"} < set(started.dropped)
    assert all("position" in key or "conv_offset" in key for key in started.fresh)


@pytest.mark.parametrize("published", [False, True])
def test_a_detector_from_a_detector_with_other_classes(published):
    source, model, twin = trained(detector()), detector(5, seed=1), detector(seed=1)
    found = to_published(source) if published else source.state_dict()
    heads = [f"{part}.{kind}" for part in ("box_head.classify", "box_head.move", "mask_head.draw")
             for kind in ("weight", "bias")]
    started = start_detector(model, found)
    assert started.fresh == started.dropped == heads and same(model, source, but=heads)
    started = start_detector(twin, found)
    assert not started.fresh and same(twin, source)
    large = detector(image_size=192, seed=1)
    started = start_detector(large, found)
    assert len(started.fitted) == 4 and same(large, source, but=started.fitted)


def test_htc_from_mask_rcnn_takes_what_has_its_name():
    source, model = trained(detector()), detector(model="htc", seed=1)
    started = start_detector(model, source)
    assert model.rpn.head.bbox_pred.weight.equal(source.rpn.head.bbox_pred.weight)
    assert "box_head.0.classify.weight" in started.fresh and "box_head.classify.weight" in started.dropped
    assert "semantic_head.* (" in started.format()


@pytest.mark.parametrize("old", [False, True])
def test_torchvisions_mask_rcnn_gives_backbone_and_pyramid(old):
    torch.manual_seed(0)
    found = models.detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3).state_dict()
    if old:  # as released: layers of the pyramid without the 0 of a Sequential
        found = {key.replace(".0.weight", ".weight").replace(".0.bias", ".bias") if "fpn" in key else key: tensor
                 for key, tensor in found.items()}
    with torch.device("meta"):
        model = build_detector(num_classes=2)
    started = start_detector(model, found)
    assert "pyramid.fpn.inner_blocks.0.0.weight" in started.loaded
    assert "pyramid.backbone.layer2.0.conv2.weight" in started.loaded
    assert "pyramid.backbone.layer3.1.conv2.gate.project.0.weight" in started.fresh
    assert {key.partition(".")[0] for key in started.dropped} >= {"rpn", "roi_heads"}
    assert "pyramid.backbone.layer3.1.conv2.* (" in started.format()


def test_norms_without_statistics_are_calibrated_alone():
    torch.manual_seed(0)
    model = detector()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    calibrate(model, [torch.rand(3, 100, 90)], only={"layer4.0.bn3"})
    changed = {key for key, tensor in model.state_dict().items() if not tensor.equal(before[key])}
    assert {key.rpartition(".")[0] for key in changed} == {"pyramid.backbone.layer4.0.bn3"}
    report = start_detector(model, detector(term="conv", seed=1))
    assert "layer3.0.conv2.local.norm" in report.blank_norms and "layer3.0.bn1" not in report.blank_norms


def test_another_backbone_is_refused(sources):
    model = detector()
    with torch.device("meta"):
        large = build_detector(num_classes=3).state_dict()
    message = unchanged_by(model, lambda: start_detector(model, large), "another backbone; .*--network")
    assert "the detector is unchanged" in message
    conv = start_detector(model, detector(term="conv", seed=1))
    assert "pyramid.backbone.layer3.0.conv2.* (" in conv.format()  # another term: its middles start afresh


# ---- runs


def test_a_graft_needs_a_file(tmp_path):
    with pytest.raises(ValueError, match="say which with start="):
        classification_task(tmp_path, find_recipe("published"), graft=True)


def test_a_started_run_resumes_to_the_bit(sources, tmp_path):
    data = make_image_folder(tmp_path / "data", task="corner", train=8, val=4, size=32, seed=0)
    recipe = find_recipe("published", epochs=2, batch_size=8, augment="gentle", warmup_epochs=0)
    heard = []

    def run(out, **options):
        task = classification_task(data, recipe, network="small", position="factored", image_size=32,
                                   start=sources[0] / "best.safetensors", say=heard.append)
        return [*fit(task, tmp_path / out, device="cpu", **options)]

    run("whole")
    run("parts", until=1)
    run("parts", resume=True)
    whole, parts = (read_checkpoint(tmp_path / out / "last.pt") for out in ("whole", "parts"))
    assert all(tensor.equal(parts["model"][key]) for key, tensor in whole["model"].items())
    assert len(heard) == 3 and heard[0].startswith("started from ") and "fc.weight" in heard[0]


# ---- the command


def lesa(*words):
    return processes.lesa(*words)


def train(data, out, *more):
    return lesa("train", "imagenet", "--data", data, "--out", out, "--image-size", 64, "--batch-size", 8, "--epochs", 1,
                "--augment", "gentle", "--device", "cpu", "--workers", 0, "--no-tensorboard", "--no-compile", *more)


SMALL = "--network", "small", "--position", "factored"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    "Two folders of drawn pictures with other classes, and a small network trained on the first."
    home = tmp_path_factory.mktemp("home")
    for task in "corner", "digits":
        done = lesa("make-data", "imagenet", home / task, "--task", task, "--train", 8, "--val", 4, "--size", 64)
        assert done.returncode == 0, done.stderr
    done = train(home / "corner", home / "first", *SMALL)
    assert done.returncode == 0, done.stderr
    return home


@pytest.mark.slow
def test_the_command_starts_from_a_run(home):
    start = home / "first" / "best.safetensors"
    again = *SMALL, "--start", start, "--image-size", 96
    done = train(home / "digits", home / "second", *again)
    assert done.returncode == 0, done.stderr
    assert f"started from {start}\nloaded: " in done.stdout and "fitted (position tables" in done.stdout
    assert "fresh (not in the checkpoint, as built): 2: fc.weight, fc.bias" in done.stdout
    weights = home / "second" / "best.safetensors"
    loaded = load(weights)
    assert loaded.metadata["start"] == start_metadata(start)["start"] and loaded.metadata["image_size"] == 96
    picture = next((home / "digits" / "val").rglob("*.png"))
    done = lesa("predict", picture, "--weights", weights, "--json", home / "said.json")
    assert done.returncode == 0, done.stderr
    said = json.loads((home / "said.json").read_text())[0]["classes"]
    assert {answer["name"] for answer in said} <= set(loaded.classes)
    resumed = train(home / "digits", home / "second", *again, "--resume", "auto")
    assert resumed.returncode == 0, resumed.stderr  # the same file: the same run
    other = *SMALL, "--start", home / "first" / "last.pt", "--image-size", 96
    refused = train(home / "digits", home / "second", *other, "--resume", "auto")
    assert refused.returncode == 2 and "a checkpoint of another run (start: " in refused.stderr
    refused = train(home / "digits", home / "third", "--start", start)
    assert refused.returncode == 2 and "--network small" in refused.stderr and not (home / "third").exists()


def train_detector(data, out, *more):
    return lesa("train", "coco", "--data", data, "--out", out, "--image-size", 96, "--batch-size", 4, "--epochs", 1,
                "--device", "cpu", "--workers", 0, "--no-tensorboard", *more)


def without_a_class(folder):
    "The first category is gone from both splits, and its objects with it."
    for path in (folder / "annotations").glob("instances_*.json"):
        content = json.loads(path.read_text())
        gone = content["categories"].pop(0)["id"]
        content["annotations"] = [each for each in content["annotations"] if each["category_id"] != gone]
        path.write_text(json.dumps(content))


@pytest.mark.slow
def test_the_command_starts_detectors(home):
    data, small = home / "coco", ("--network", "small")
    done = lesa("make-data", "coco", data, "--train", 8, "--val", 4, "--test", 1, "--size", 96)
    assert done.returncode == 0, done.stderr
    first = home / "first" / "best.safetensors"
    done = train_detector(data, home / "detector", *small, "--start", first)
    assert done.returncode == 0, done.stderr
    assert f"started from {first}\nloaded: " in done.stdout
    without_a_class(data)
    start = home / "detector" / "last.safetensors"
    done = train_detector(data, home / "fewer", *small, "--start", start)
    assert done.returncode == 0, done.stderr
    said = "box_head.* (4), mask_head.draw.weight, mask_head.draw.bias"
    assert f"fresh (not in the checkpoint, as built): 6: {said}" in done.stdout
    weights = home / "fewer" / "last.safetensors"
    assert load(weights).metadata["start"]["file"] == "last.safetensors"
    done = lesa("predict", next((data / "val2017").iterdir()), "--weights", weights, "--out", home / "seen")
    assert done.returncode == 0, done.stderr
    refused = train_detector(data, home / "none", "--start", start)
    assert refused.returncode == 2 and "a detector with another backbone" in refused.stderr
    assert not (home / "none").exists()


@pytest.mark.slow
def test_the_command_grafts(home):
    first = home / "corner"
    torch.manual_seed(0)
    torch.save(models.resnet18(num_classes=1000).state_dict(), home / "resnet18.pth")
    done = train(first, home / "grafted", "--start", home / "resnet18.pth", "--graft")
    assert done.returncode == 0, done.stderr
    assert "graft:resnet18, term lesa, factored tables for 64 px" in done.stdout
    assert "renamed (loaded as the local term of a grafted layer): 12" in done.stdout
    weights = home / "grafted" / "best.safetensors"
    assert load(weights).metadata["network"] == "graft:resnet18"
    picture = next((first / "val").rglob("*.png"))
    for words in (("eval", "imagenet", "--data", first, "--weights", weights, "--device", "cpu", "--workers", 0),
                  ("predict", picture, "--weights", weights),
                  ("explain", picture, "--weights", weights, "--out", home / "explained.png")):
        done = lesa(*words)
        assert done.returncode == 0, done.stderr
    for words, said in ((("--graft",), "give one, no --network"),
                        (("--graft", "--start", weights, "--network", "small"), "no --network")):
        done = train(first, home / "refused", *words)
        assert done.returncode == 2 and said in done.stderr and not (home / "refused").exists()
