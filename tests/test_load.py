"""One loader: whatever this library, torch.save or the authors write comes back as it was, or not at all."""
import random
import warnings

import pytest
import torch
from PIL import Image
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torchvision.models import resnet18

from lesa_nb.data.transforms import eval_transform
from lesa_nb.engine.run import fit
from lesa_nb.models.registry import build_classifier, build_detector
from lesa_nb.models.resnet import lesa_resnet50
from lesa_nb.tasks.classify import classification_task, find_recipe
from lesa_nb.weights._names import in_our_names, is_published
from lesa_nb.weights.files import _read_weights, load_weights, save_weights
from lesa_nb.weights.graft import graft
from lesa_nb.weights.load import Kind, as_loaded, load, register_kind
from lesa_nb.weights.published import to_published
from lesa_nb.weights.start import Started, start_backbone

CLASSIFIERS = [
    dict(network="small"),
    dict(network="small", position="flat", image_size=48),
    dict(network="small", image_size=(64, 96)),
    dict(network="small", term="attention"),
    dict(network="resnet50", image_size=64),
]
DETECTORS = [
    dict(model="mask_rcnn", network="small"),
    dict(model="htc", network="small", image_size=96, semantic=False),
    dict(model="htc", network="small"),
    dict(model="mask_rcnn", network="small", term="conv"),
]


def metadata_of(options):
    full = dict(dict(term="lesa", position="factored", image_size=64), **options)
    return dict(arch="classifier", classes=["ant", "bee", "Käfer"], **full)


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(tensor.equal(b[key]) for key, tensor in a.items())


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return build_classifier("small", num_classes=3)


@pytest.mark.fault("R8")
@pytest.mark.parametrize("options", CLASSIFIERS, ids=str)
def test_a_bare_state_dict_of_a_classifier(options, tmp_path):
    torch.manual_seed(0)
    net = build_classifier(num_classes=3, **options)
    torch.save(net.state_dict(), tmp_path / "bare.pth")
    loaded = load(tmp_path / "bare.pth")
    assert same(loaded.model, net) and not loaded.model.training
    assert loaded.kind == "classifier" and loaded.classes == ["0", "1", "2"]
    wanted = metadata_of(options) | dict(classes=loaded.classes)
    if isinstance(wanted["image_size"], tuple):
        wanted["image_size"] = list(wanted["image_size"])
    if options["network"] == "resnet50":
        wanted["position"] = "flat"
    assert loaded.metadata == wanted | dict(classes_guessed=True)


@pytest.mark.parametrize("options", [o for o in CLASSIFIERS if o.get("term") != "attention"] + DETECTORS[:3], ids=str)
def test_a_file_of_the_authors(options, tmp_path):
    torch.manual_seed(0)
    net = build_detector(num_classes=3, **options) if "model" in options else build_classifier(num_classes=3, **options)
    theirs = to_published(net)
    assert is_published(theirs) and not is_published(net.state_dict())
    ours = in_our_names(theirs)
    assert ours.keys() == net.state_dict().keys() and all(t.equal(ours[key]) for key, t in net.state_dict().items())
    wrapped = {f"module.{key}": tensor for key, tensor in theirs.items()}
    torch.save({"net": wrapped, "epoch": 94}, tmp_path / "theirs.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # `module.` is part of their format
        loaded = load(tmp_path / "theirs.pth")
    assert same(loaded.model, net) and loaded.metadata["stripped"] == ["module."]


@pytest.mark.fault("R8")
@pytest.mark.parametrize("options", DETECTORS, ids=str)
def test_a_bare_state_dict_of_a_detector(options, tmp_path):
    torch.manual_seed(0)
    net = build_detector(num_classes=3, **options)
    torch.save(net.state_dict(), tmp_path / "bare.pth")
    loaded = load(tmp_path / "bare.pth", kind="detector")
    assert same(loaded.model, net) and loaded.kind == "detector" and loaded.classes == ["1", "2", "3"]
    told = loaded.metadata["net"]
    assert all(told[key] == value for key, value in options.items())
    assert loaded.metadata["net"]["semantic"] == (options["model"] == "htc" and options.get("semantic", True))


def test_what_fit_writes(small, tmp_path):
    told = metadata_of(dict(network="small")) | dict(scores=dict(top1=50.), seed=3)
    save_weights(small, tmp_path / "best.safetensors", **told)
    loaded = load(tmp_path / "best.safetensors")
    assert same(loaded.model, small) and loaded.classes == ["ant", "bee", "Käfer"] and loaded.metadata == told
    net = dict(model="mask_rcnn", network="small", num_classes=2, image_size=64, keep_ratio=True, semantic=False)
    detector = build_detector(**net)
    save_weights(detector, tmp_path / "last.safetensors", arch="detector", net=net, classes=["cat", "dog"])
    loaded = load(tmp_path / "last.safetensors")
    assert same(loaded.model, detector) and loaded.classes == ["cat", "dog"] and loaded.model.keep_ratio


def test_transforms(small, tmp_path):
    torch.save(small.state_dict(), tmp_path / "a.pth")
    torch.save(build_detector(network="small", num_classes=2).state_dict(), tmp_path / "b.pth")
    picture = Image.effect_noise((100, 90), 80).convert("RGB")
    classify, detect = load(tmp_path / "a.pth").transform, load(tmp_path / "b.pth").transform
    assert classify(picture).equal(eval_transform(64)(picture)) and classify(picture).shape == (3, 64, 64)
    assert detect(picture).shape == (3, 90, 100) and detect(picture).dtype == torch.float32
    assert 0 <= detect(picture).min() and .5 < detect(picture).max() <= 1
    for mode in ("L", "RGBA", "P", "1", "CMYK", "LA"):
        other = picture.convert("L").convert(mode) if mode == "LA" else picture.convert(mode)
        assert classify(other).shape == (3, 64, 64) and detect(other).shape == (3, 90, 100)


@pytest.mark.fault("R8")
@pytest.mark.parametrize("wrap", [
    nn.DataParallel, torch.compile, lambda net: nn.DataParallel(torch.compile(net)),
], ids=["module", "compile", "both"])
def test_what_wrappers_put_in_is_taken_out_and_said(wrap, small, tmp_path):
    keys = wrap(small).state_dict()
    torch.save(keys, tmp_path / "wrapped.pth")
    with pytest.warns(UserWarning, match=r"wrapped.pth: (module|_orig_mod)\..* taken out of the names"):
        loaded = load(tmp_path / "wrapped.pth")
    assert same(loaded.model, small)
    assert set(loaded.metadata["stripped"]) == {word for word in ("module.", "_orig_mod.") if word in next(iter(keys))}
    save_weights(wrap(small), tmp_path / "wrapped.safetensors", **metadata_of(dict(network="small")))
    with pytest.warns(UserWarning, match="taken out of the names"):
        assert same(load(tmp_path / "wrapped.safetensors").model, small)


def test_another_default_device_changes_nothing(small, tmp_path):
    "`torch.set_default_device`: what is loaded is on the CPU, and what is on the CPU computes there."
    torch.save(small.state_dict(), tmp_path / "a.pth")
    grafted, detector = graft(resnet18(num_classes=3)), build_detector(network="small", num_classes=2, image_size=64)
    image, target = torch.rand(3, 64, 64), dict(boxes=torch.tensor([[3., 4, 40, 50]]), labels=torch.tensor([1]))
    with torch.device("meta"):
        assert same(load(tmp_path / "a.pth").model, small)
        assert as_loaded(small).model is small and as_loaded(grafted).kind == "classifier"
        sum(detector.train()([image], [target]).values()).backward()
        assert len(detector.eval()([image])) == 1


def test_parts_that_were_compiled_and_averages(small, tmp_path):
    parts = build_classifier("small", num_classes=3)
    parts.load_state_dict(small.state_dict())
    parts.layer3 = torch.compile(parts.layer3)
    torch.save(parts.state_dict(), tmp_path / "parts.pth")
    torch.save(AveragedModel(small).state_dict(), tmp_path / "average.pth")
    torch.save({"model": small.state_dict(), "epoch": 3}, tmp_path / "model.pth")
    torch.save({"model_state_dict": small.state_dict(), "epoch": 3}, tmp_path / "tutorial.pth")  # PyTorch's own
    lightning = {f"model.{key}": tensor for key, tensor in small.state_dict().items()}
    torch.save({"state_dict": lightning, "pytorch-lightning_version": "2.5.0"}, tmp_path / "lightning.ckpt")
    with pytest.warns(UserWarning, match=r"lightning.ckpt: model\. taken out"):
        assert same(load(tmp_path / "lightning.ckpt").model, small)
    assert same(load(tmp_path / "tutorial.pth").model, small)
    with pytest.warns(UserWarning, match="_orig_mod"):
        assert same(load(tmp_path / "parts.pth").model, small)
    assert same(load(tmp_path / "average.pth").model, small) and same(load(tmp_path / "model.pth").model, small)


@pytest.mark.fault("R8")
def test_a_checkpoint_of_a_run(small, tmp_path):
    average = AveragedModel(small)
    trained = build_classifier("small", num_classes=3)
    content = dict(metadata=metadata_of(dict(network="small")), recipe=dict(name="small"), seed=5, epoch=2, step=0,
                   scores={}, best=None, model=trained.state_dict(), average=average.state_dict(), optimizer={})
    torch.save(content, tmp_path / "last.pt")
    loaded = load(tmp_path / "last.pt")
    assert same(loaded.model, small) and loaded.classes == ["ant", "bee", "Käfer"]
    assert loaded.metadata["averaged"] and loaded.metadata["seed"] == 5 and "stripped" not in loaded.metadata
    torch.save(content | dict(average=None), tmp_path / "last.pt")
    loaded = load(tmp_path / "last.pt")
    assert same(loaded.model, trained) and not loaded.metadata["averaged"]


@pytest.mark.parametrize("network", ["small", "graft:resnet18"])
def test_a_run_leaves_two_files_with_one_network(network, tmp_path):
    "What was trained comes back from the checkpoint as from the weights: the averages, with their metadata."
    for number in range(12):
        picture = tmp_path / "data" / ("train" if number % 3 else "val") / ("even", "odd")[number % 2] / f"{number}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (20*number, 90, 90)).save(picture)
    recipe = find_recipe("published", epochs=1, batch_size=4, warmup_epochs=0, ema=.9)
    task = classification_task(tmp_path / "data", recipe, network=network, position="factored", image_size=64)
    assert [event["kind"] for event in fit(task, tmp_path / "run", device="cpu")][-1] == "end"
    checkpoint, weights = (load(tmp_path / "run" / name) for name in ("last.pt", "last.safetensors"))
    assert same(checkpoint.model, weights.model) and checkpoint.classes == weights.classes == ["even", "odd"]
    assert checkpoint.metadata["averaged"] and checkpoint.metadata["network"] == network
    assert all(weights.metadata[key] == value for key, value in checkpoint.metadata.items())


def test_published_names_of_classes(tmp_path):
    torch.save(build_classifier("small", num_classes=1000).state_dict(), tmp_path / "a.pth")
    torch.save(build_detector(network="small", num_classes=80).state_dict(), tmp_path / "b.pth")
    classes, objects = load(tmp_path / "a.pth").classes, load(tmp_path / "b.pth").classes
    assert (classes[0], classes[-1], len(classes)) == ("tench", "toilet tissue", 1000)
    assert (objects[0], objects[-1], len(objects)) == ("person", "toothbrush", 80)


# ---- refusals


class Trap:
    "Unpickled, this makes a file."

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return type(self.path).touch, (self.path,)


def test_refusals_name_the_file_and_the_cure(small, tmp_path):
    def refused(name, content, words, error=ValueError, **options):
        path = tmp_path / name
        if content is not None:
            content(path)
        with pytest.raises(error, match=words) as caught:
            load(path, **options)
        assert name in str(caught.value)

    told = metadata_of(dict(network="small"))

    def written(**changes):
        return lambda path: save_weights(small, path, **told | changes)

    refused("gone.pth", None, "no such file of weights", FileNotFoundError)
    refused("folder", lambda path: path.mkdir(), "a folder without model.safetensors, .*name the file inside it")
    refused("page.pth", lambda path: path.write_text("<html>"), "found something else or a damaged one")
    refused("page.safetensors", lambda path: path.write_text("<html>"), "not a safetensors file")
    refused("trap.pth", lambda path: torch.save({"net": Trap(tmp_path / "it ran")}, path), "it would run code")
    assert not (tmp_path / "it ran").exists()
    refused("other.pth", lambda path: torch.save({"fc.weight": torch.zeros(3, 4)}, path), "no layer1.0.conv1.weight")
    refused("list.pth", lambda path: torch.save([1], path), "holds no weights")
    plain = lesa_resnet50(term="conv", num_classes=2).state_dict()
    refused("plain.pth", lambda path: torch.save(plain, path), "no position table.*with graft")
    lacking = {key: tensor for key, tensor in small.state_dict().items() if "layer4.0.bn1" not in key}
    refused("lacking.pth", lambda path: torch.save(lacking, path), "5 missing: layer4.0.bn1.weight")
    refused("a.safetensors", written(arch="legs"), "holds no network of a known kind .its metadata say arch = 'legs'")
    refused("b.safetensors", written(arch=7), "arch = 7")
    refused("c.safetensors", written(network="huge"), "do not describe a network that can be built .*must be one of")
    refused("d.safetensors", written(classes=None), "do not describe a network that can be built")
    refused("e.safetensors", written(classes=["a"]), r"fc.weight \(expected \(1, 512\), found \(3, 512\)\)")
    refused("f.safetensors", written(image_size=10**9), "expected|can be built")
    odd = dict(metadata=dict(arch=torch.zeros(1)), model=small.state_dict(), average=None)
    refused("odd.pt", lambda path: torch.save(odd, path), "its metadata are nothing that JSON can hold")
    refused("g.safetensors", written(), "holds no detector", kind="detector")
    net = dict(model="mask_rcnn", network="small", num_classes=2)
    refused("h.safetensors", lambda path: save_weights(
        build_detector(**net), path, arch="detector", net=net, classes=["cat"]), "2 classes, but 1 names")


def test_a_kind_can_be_registered(tmp_path):
    register_kind("toy", Kind("classifier", lambda metadata: nn.Linear(2, metadata["n"]), lambda metadata: torch.tensor,
                              lambda metadata: range(metadata["n"])))
    net = nn.Linear(2, 3)
    save_weights(net, tmp_path / "toy.safetensors", arch="toy", n=3)
    loaded = load(tmp_path / "toy.safetensors", kind="classifier")
    assert same(loaded.model, net) and loaded.classes == ["0", "1", "2"]
    with pytest.raises(ValueError, match="weights of another network; 1 names or shapes differ: weight"):
        load_weights(nn.Linear(3, 3), tmp_path / "toy.safetensors")


@pytest.mark.parametrize("suffix", ["pth", "pt", "safetensors"])
def test_random_damage_is_a_sentence_or_nothing(suffix, small, tmp_path):
    "Bytes changed, cut off or doubled: either the file loads, or a ValueError names it; never another error."
    path = tmp_path / f"net.{suffix}"
    if suffix == "safetensors":
        save_weights(small, path, **metadata_of(dict(network="small")))
    elif suffix == "pt":
        torch.save(dict(metadata=metadata_of(dict(network="small")), model=small.state_dict(), average=None), path)
    else:
        torch.save(small.state_dict(), path)
    whole, chance, refused = path.read_bytes(), random.Random(0), 0
    head = len(whole) if suffix != "safetensors" else 8 + int.from_bytes(whole[:8], "little")
    for turn in range(25):
        content = bytearray(whole)
        for _ in range(chance.choice([1, 3, 20])):
            content[chance.randrange(head)] = chance.randrange(256)
        if turn % 5 == 0:
            del content[chance.randrange(len(content)):]
        path.write_bytes(bytes(content))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                load(path)
        except ValueError as error:
            refused += 1
            assert path.name in str(error)
    assert refused >= 5


# ---- starts


def test_a_detector_starts_from_a_detector_and_says_everything(small, tmp_path):
    torch.manual_seed(1)
    source = build_detector(network="small", num_classes=2)
    torch.save(source.state_dict(), tmp_path / "detector.pth")
    target = build_detector("htc", network="small", num_classes=5)
    started = start_backbone(target, tmp_path / "detector.pth")
    assert "rpn.head.cls_logits.weight" in started.dropped and not started.converted
    assert same(source.pyramid.backbone.layer1, target.pyramid.backbone.layer1)
    wanted = target.pyramid.backbone.state_dict()
    assert set(started.loaded) | set(started.fresh) == set(wanted) and not set(started.loaded) & set(started.fresh)
    assert {key.rpartition(".")[2] for key in started.fresh} == {"height", "width"}
    other = build_detector(network="small", num_classes=5)
    started = start_backbone(other, nn.DataParallel(small).state_dict())
    assert started.stripped == ("module.",) and started.format().endswith("taken out of the names: module.")
    assert f"loaded: {len(started.loaded)}" in started.format() and "dropped (not used): " in started.format()
    assert Started(["a"], [], [], []).format().count("\n") == 3


def test_read_weights_takes_what_a_file_holds(small):
    stored = _read_weights({"net": {f"module.{key}": tensor for key, tensor in to_published(small).items()}})
    assert stored.published and stored.stripped == ("module.",) and not stored.metadata
    assert stored.tensors.keys() == small.state_dict().keys()
    with pytest.raises(ValueError, match="the given dictionary holds some names twice"):
        _read_weights({"a": torch.zeros(1), "module.a": torch.zeros(1)})
