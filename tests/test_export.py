"""Networks that leave Python: any batch, any size, detectors too; files that say what they take; refusals."""
import json
import sys

import onnxruntime
import pytest
import torch
from PIL import Image
from torch import nn

from lesa_nb.cli.app import main
from lesa_nb.layers.inputs import IMAGENET_MEAN, IMAGENET_STD
from lesa_nb.layers.local import DeformableConv2d
from lesa_nb.models.registry import build_classifier, build_detector
from lesa_nb.weights import export as exporting
from lesa_nb.weights.export import export_file, export_onnx, export_program, read_export_metadata
from lesa_nb.weights.files import save_weights
from lesa_nb.weights.load import load


def classifier(**options):
    torch.manual_seed(0)
    return build_classifier("small", **dict(num_classes=3, image_size=64) | options).eval()


def detector(model="mask_rcnn", *, threshold=.3, **options):
    "A small detector that finds things where there is nothing, so that there is something to compare."
    torch.manual_seed(0)
    net = build_detector(model, network="small", **dict(num_classes=3, image_size=64) | options).eval()
    for head in net.box_head if model == "htc" else [net.box_head]:
        nn.init.normal_(head.classify.weight, std=.3)
        nn.init.normal_(head.move.weight, std=.02)
    net.threshold = threshold
    return net


def saved(model, path, /, **metadata):
    save_weights(model, path, **metadata)
    return path


@pytest.fixture
def classifier_file(tmp_path):
    about = dict(arch="classifier", network="small", term="lesa", position="factored", image_size=64,
                 classes=["cat", "dog", "鳥"])
    return saved(classifier(), tmp_path / "net.safetensors", **about)


def detector_file(net, path, **options):
    settings = dict(model="mask_rcnn", network="small", term="lesa", num_classes=3, image_size=64) | options
    return saved(net, path, arch="detector", classes=["cat", "dog", "bird"], net=settings)


def runner(path):
    "A file of either format as a function of one tensor that returns a list of tensors."
    if path.suffix == ".pt2":
        program = torch.export.load(path).module()

        def run(x):
            answer = program(x)
            return list(answer.values()) if isinstance(answer, dict) else [answer]
        return run
    session = onnxruntime.InferenceSession(path)
    return lambda x: [torch.from_numpy(part) for part in session.run(None, {"image": x.numpy()})]


# ---- classifiers


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_a_classifier_says_what_it_takes(classifier_file, suffix, tmp_path):
    "Read with this library, and with the lines that the help and the module's first lines promise."
    path = tmp_path / f"net{suffix}"
    returned = export_file(load(classifier_file), path, image_size=(64, 48))
    found = read_export_metadata(path)
    if suffix == ".onnx":
        session = onnxruntime.InferenceSession(path)
        metadata = {key: json.loads(text) for key, text in session.get_modelmeta().custom_metadata_map.items()}
    else:
        files = {"metadata.json": ""}
        torch.export.load(path, extra_files=files)
        metadata = json.loads(files["metadata.json"])
    assert found == metadata == json.loads(json.dumps(returned))
    assert found["kind"] == "classifier" and found["task"] == "classification" and found["network"] == "small"
    assert found["classes"] == ["cat", "dog", "鳥"] and found["color_order"] == "RGB" and found["value_range"] == [0, 1]
    assert found["mean"] == list(IMAGENET_MEAN) and found["std"] == list(IMAGENET_STD)
    assert found["image_size"] == [64, 48] and found["max_size"] is None and found["batch"] == "any"
    run, net = runner(path), load(classifier_file).model
    for batch in (1, 2, 5):  # the size is fixed, the batch is free
        x = torch.randn(batch, 3, 64, 48)
        with torch.no_grad():
            torch.testing.assert_close(run(x)[0], net(x), atol=1e-5, rtol=1e-5)
    for part in ("session.get_modelmeta().custom_metadata_map", 'files = {"metadata.json": ""}'):
        assert part in exporting.__doc__


def test_pictures_for_a_network_that_is_no_square(tmp_path):
    "What `load` gives it is of its size, and what the file tells other programs to cut out is there to be cut."
    torch.save(classifier(image_size=(64, 96)).state_dict(), tmp_path / "a.pth")
    source = load(tmp_path / "a.pth")
    for size in [(300, 200), (90, 400)]:
        assert source.transform(Image.new("RGB", size)).shape == (3, 64, 96)
    told = exporting.export_metadata(source)
    assert told["image_size"] == [64, 96]
    assert told["resize"] == "shorter side to 110 pixels, then the middle of image_size"


def test_a_grafted_network_of_torchvision(tmp_path):
    "Its forward calls its input by another name."
    from torchvision.models import resnet18

    from lesa_nb.weights.graft import graft

    torch.manual_seed(0)
    net = graft(resnet18(num_classes=4), image_size=64).eval()
    run = export_program(net, image_size=64, max_size=None).module()
    x = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(run(x), net(x), atol=1e-4, rtol=1e-4)


def test_deformable_convolutions_as_onnx(tmp_path):
    "With taps that move."
    torch.manual_seed(0)
    net = nn.Sequential(DeformableConv2d(3, 6, padding=1, stride=2)).eval()
    nn.init.normal_(net[0].conv_offset.weight, std=.2)
    export_onnx(net, tmp_path / "net.onnx", image_size=32)
    x = torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(runner(tmp_path / "net.onnx")(x)[0], net(x), atol=1e-5, rtol=1e-5)


# ---- detectors


def same_objects(run, net, images):
    "Boxes, labels, scores and masks are the eager detector's; returns how many there were."
    counts = []
    for image in images:
        with torch.no_grad():
            (want,) = net([image])
            found = run(image)
        assert len(found) == len(want)
        for key, part in zip(want, found, strict=True):
            assert part.shape == want[key].shape and part.dtype == want[key].dtype, key
            torch.testing.assert_close(part, want[key], atol=1e-4, rtol=1e-4)
        counts.append(len(want["boxes"]))
    return counts


def drawn(*sizes):
    "Pictures with something on them: a disc on a ramp."
    torch.manual_seed(1)
    for height, width in sizes:
        y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
        disc = ((y - .2)**2 + (x + .1)**2 < .3).float()
        yield (torch.stack([disc, y.abs(), x*disc + .5]) + .1*torch.rand(3, height, width)).clamp(0, 1)


@pytest.mark.parametrize(("model", "suffix", "options"), [
    ("mask_rcnn", ".pt2", {}), ("mask_rcnn", ".onnx", {}),
    pytest.param("mask_rcnn", ".onnx", dict(masks=False), marks=pytest.mark.slow),
    pytest.param("htc", ".pt2", {}, marks=pytest.mark.slow), pytest.param("htc", ".onnx", {}, marks=pytest.mark.slow),
    pytest.param("htc", ".pt2", dict(semantic=False, masks=False), marks=pytest.mark.slow),
])
def test_one_graph_for_pictures_of_any_size_with_and_without_objects(model, suffix, options, tmp_path):
    "And nothing of the graph is left in the eager network."
    net, images = detector(model, **options), list(drawn((64, 64), (50, 90), (200, 33)))
    with torch.no_grad():
        before = net(images)
    net.threshold = sorted(found["scores"].max().item() for found in before)[0] + 1e-4  # one is left without objects
    path = tmp_path / f"net{suffix}"
    if suffix == ".pt2":
        torch.export.save(export_program(net, min_size=32, max_size=512), path)
    else:
        export_onnx(net, path, min_size=32, max_size=512)
        outputs = onnxruntime.InferenceSession(path).get_outputs()
        assert [part.name for part in outputs] == ["boxes", "labels", "scores"] + ["masks"]*net.masks
        assert all(part.shape[0] == "objects" for part in outputs)
    counts = same_objects(runner(path), net, images)
    assert min(counts) == 0 < max(counts), counts
    net.threshold = .3
    with torch.no_grad():
        for found, same in zip(before, net(images), strict=True):
            assert all(type(part) is torch.Tensor and torch.equal(part, found[key]) for key, part in same.items())


def test_a_detector_that_keeps_the_ratio_takes_one_size(tmp_path):
    net = detector(keep_ratio=True)
    with pytest.raises(ValueError, match=r"keeps the ratio of sides .* image_size=\(height, width\) and max_size=None"):
        export_program(net)
    run = export_program(net, image_size=(45, 90), max_size=None).module()
    same_objects(lambda x: list(run(x).values()), net, drawn((45, 90), (45, 90)))


@pytest.mark.parametrize(("masks", "task"), [(True, "instance segmentation"), (False, "object detection")])
def test_a_detector_says_what_it_takes(masks, task, tmp_path):
    path = detector_file(detector(masks=masks), tmp_path / "net.safetensors", masks=masks)
    export_file(load(path), tmp_path / "net.pt2", min_size=32, max_size=256)
    found = read_export_metadata(tmp_path / "net.pt2")
    assert found["kind"] == "detector" and found["task"] == task and found["first_label"] == 1
    assert found["mean"] == [0, 0, 0] and found["std"] == [1, 1, 1] and found["batch"] == 1  # it standardises itself
    assert found["outputs"] == ["boxes", "labels", "scores", "masks"][:3 + masks] and found["network"] == "mask_rcnn"
    same_objects(runner(tmp_path / "net.pt2"), load(path).model, drawn((64, 64), (50, 90)))


# ---- refusals


def refused(capsys, *words):
    status = main([str(word) for word in words])
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "Traceback" not in said, said
    return status, said


def test_refusals_before_anything_is_written(classifier_file, tmp_path, capsys, monkeypatch):
    here = sorted(tmp_path.iterdir())
    asked = ["export", "--weights", classifier_file, "--out"]
    for words, status, sentence in [
        ([tmp_path / "net.bin"], 2, "--out must end in .onnx or .pt2"),
        ([tmp_path / "gone" / "net.onnx"], 2, "its folder does not exist"),
        ([tmp_path / "net.pt2", "--min-size", 8], 2, "--min-size must lie in 17..4096, got 8"),
        ([tmp_path / "net.pt2", "--min-size", 600], 2, "--min-size must be less than --max-size, got 600 and 512"),
        ([tmp_path / "net.pt2", "--image-size", 64, "--min-size", 64], 2, "--image-size fixes the size"),
        ([tmp_path / "net.pt2", "--image-size", 64, 64, 64], 2, "got 3 numbers"),
    ]:
        found, said = refused(capsys, *asked, *words)
        assert found == status and sentence in said, said
    (tmp_path / "folder.pt2").mkdir()
    assert "is a folder" in refused(capsys, *asked, tmp_path / "folder.pt2")[1]
    (tmp_path / "folder.pt2").rmdir()
    monkeypatch.setattr(exporting, "find_spec", lambda name: None)
    assert "pip install 'lesa_nb[export]'" in refused(capsys, *asked, tmp_path / "net.onnx")[1]
    assert sorted(tmp_path.iterdir()) == here


def test_networks_that_have_no_export(tmp_path, capsys):
    strange = saved(classifier(), tmp_path / "strange.safetensors", arch="hopfield")
    asked = ["--out", tmp_path / "net.pt2"]
    assert "of a known kind (its metadata say arch = 'hopfield')" in refused(
        capsys, "export", "--weights", strange, *asked)[1]
    from lesa_nb.study.small import SmallNet

    net = dict(term="lesa", size=8, channels=1, classes=10)
    demo = saved(SmallNet(**net), tmp_path / "demo.safetensors", arch="small", net=net, mean=.5, std=.5)
    assert "arch = 'small'" in refused(capsys, "export", "--weights", demo, *asked)[1]
    ratio = detector_file(detector(keep_ratio=True), tmp_path / "ratio.safetensors", keep_ratio=True)
    status, said = refused(capsys, "export", "--weights", ratio, *asked)
    assert status == 2 and "name it with --image-size HEIGHT WIDTH" in said
    assert not (tmp_path / "net.pt2").exists()


def test_an_operator_without_an_onnx_form_is_named(tmp_path, monkeypatch):
    "As with an onnxscript that does not know torchvision's operators."
    def export(*args, **kwargs):
        try:
            raise RuntimeError("No ONNX function found for <OpOverload(op='torchvision.nms', overload='default')>")
        except RuntimeError as error:
            raise torch.onnx.OnnxExporterError("failed to convert") from error

    monkeypatch.setattr(torch.onnx, "export", export)
    with pytest.raises(ValueError, match=r"no ONNX form of torchvision.nms, .* write a program instead"):
        export_onnx(detector(), tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


def test_files_that_say_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such exported file"):
        read_export_metadata(tmp_path / "net.onnx")
    for name in ("net.onnx", "net.pt2"):
        (tmp_path / name).write_bytes(b"nothing")
        with pytest.raises(ValueError, match=f"{name}: no "):
            read_export_metadata(tmp_path / name)
    plain = nn.Conv2d(3, 2, 3).eval()
    export_onnx(plain, tmp_path / "net.onnx", image_size=64)
    with pytest.raises(ValueError, match="does not say what it takes"):
        read_export_metadata(tmp_path / "net.onnx")
    torch.export.save(export_program(plain, image_size=64, max_size=None), tmp_path / "net.pt2")
    with pytest.raises(ValueError, match=r"no metadata.json beside its graph"):
        read_export_metadata(tmp_path / "net.pt2")


def test_help_says_it_all(capsys):
    assert main(["export", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for part in (".onnx", ".pt2", "lesa_nb[export]", "--image-size", "read_export_metadata", "one picture", "classes",
                 "DeformConv", "lesa_nb.layers"):
        assert part in said.replace("│ ", ""), part
    assert "torch" in sys.modules
