"""Reading the authors' files: everything that fits loads, everything else is refused whole, and nothing runs."""

import argparse
import os
import pickle
import subprocess
import sys

import pytest
import torch
from golden_weights import filled
from test_golden import keys_and_shapes, read

from lesa_nb.layers.lesa import LESA
from lesa_nb.models.resnet import lesa_resnet50, lesa_wrn50
from lesa_nb.weights.published import load_published, published_names, read_published, to_published


@pytest.fixture(scope="module")
def weights():
    "A whole state dict in the authors' layout, of LESA-ResNet-50."
    return filled(keys_and_shapes(read("resnet50")["keys"]))


@pytest.fixture(scope="module")
def net():
    "One network that the refusals must leave alone."
    torch.manual_seed(0)
    return lesa_resnet50()


def same(a, b):
    "Two state dicts, bit by bit."
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def copy(module):
    return {k: v.clone() for k, v in module.state_dict().items()}


@pytest.mark.parametrize(("make", "name"), [(lesa_resnet50, "resnet50"), (lesa_wrn50, "wrn50")])
def test_layout(make, name):
    "Names, shapes and types of all 568 entries are those of the authors' state dict; every name of ours is met once."
    with torch.device("meta"):
        net = make()
    expected = keys_and_shapes(read(name)["keys"])
    ours = to_published(net)
    assert len(ours) == len(expected) == 568
    assert {k: (v.shape, v.dtype) for k, v in ours.items()} == {k: (v.shape, v.dtype) for k, v in expected.items()}
    names = published_names(net)
    assert len(names) == len(set(names.values())) == len(net.state_dict()) and set(names.values()) == set(
        net.state_dict()
    )


def test_flatten_index_is_the_recorded_one():
    recorded = torch.from_numpy(read("layer_flat")["weights/flatten_index"])
    assert torch.equal(to_published(LESA(32, 32, 5, heads=4))["flatten_index"], recorded)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"position": "factored"},
        {"position": "factored", "deformable": True, "stride": 2},
        {"gate_shrink": (2, 2), "gate_kernels": (1, 3, 1)},
    ],
)
def test_layer_round_trip(options):
    "A layer's weights survive the authors' layout, for every variant of the layer."
    torch.manual_seed(0)
    source = LESA(32, 32, 4, **options)
    for parameter in source.parameters():
        torch.nn.init.normal_(parameter)
    target = LESA(32, 32, 4, **options)
    assert load_published(target, to_published(source)) is target
    assert same(source.state_dict(), target.state_dict())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda w: w,
        lambda w: {f"module.{k}": v for k, v in w.items()},
        lambda w: {
            "net": {f"module.{k}": v for k, v in w.items()},
            "optim": {"state": {}, "param_groups": []},
            "epoch": 94,
        },
        lambda w: {"state_dict": w, "meta": {"epoch": 20}},
        lambda w: {"state_dict": {f"module.{k}": v for k, v in w.items()}},
        lambda w: {k: v for k, v in w.items() if not k.endswith("flatten_index")},
    ],
    ids=["bare", "module.", "net", "state_dict", "state_dict and module.", "without flatten_index"],
)
def test_wrappings(wrap, tmp_path):
    "The layouts in which such weights are kept, from memory and from a file; the source is not changed."
    weights = filled(keys_and_shapes(read("unit")["cls.keys"]))
    wrapped = wrap(weights)
    before = {k: v.clone() for k, v in weights.items()}
    torch.save(wrapped, tmp_path / "a checkpoint; with a né.pth")
    net = LESA(64, 64, 7)
    for source in (wrapped, tmp_path / "a checkpoint; with a né.pth", str(tmp_path / "a checkpoint; with a né.pth")):
        torch.nn.init.zeros_(net.local.mix.weight)
        assert load_published(net, source) is net
        names = published_names(net)
        assert all(torch.equal(net.state_dict()[ours], weights[theirs]) for theirs, ours in names.items())
    assert same(weights, before)
    with torch.no_grad():
        net.local.mix.weight.zero_()
    assert same(weights, before), "the module shares memory with the source"


def test_a_whole_file(weights, net, tmp_path):
    "A checkpoint of the network as training leaves it."
    torch.save(
        {"net": {f"module.{k}": v for k, v in weights.items()}, "optim": {"state": {}}, "epoch": 94},
        tmp_path / "checkpoint.pth",
    )
    state = load_published(net, tmp_path / "checkpoint.pth").state_dict()
    assert all(torch.equal(state[ours], weights[theirs]) for theirs, ours in published_names(net).items())
    assert same(
        {k: v for k, v in to_published(net).items() if "flatten_index" not in k},
        {k: v for k, v in weights.items() if "flatten_index" not in k},
    )


NAMED = [
    "conv1.weight",
    "fc.bias",
    "layer3.1.conv2.relative",
    "layer4.2.conv2.projection.1.running_var",
    "layer1.0.bn1.num_batches_tracked",
    "layer3.4.conv2.flatten_index",
]


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("key", NAMED)
def test_refusals(net, weights, key, prefix):
    "One key missing, one extra, one of the wrong shape: refused by name, and not one number has moved."
    before = copy(net)
    shape = tuple(weights[key].shape)
    faults = {
        "1 missing: " + key: {k: v for k, v in weights.items() if k != key},
        f"1 unexpected: {key}.more": weights | {f"{key}.more": torch.zeros(1)},
        f"1 mis-shaped: {key} (expected {shape}, found {(*shape, 2)})": weights
        | {key: torch.zeros(*shape, 2, dtype=weights[key].dtype)},
    }
    for message, faulty in faults.items():
        with pytest.raises(ValueError) as caught:
            load_published(net, {prefix + k: v for k, v in faulty.items()})
        assert message in str(caught.value) and "unchanged" in str(caught.value)
        assert same(net.state_dict(), before)


def test_all_faults_in_one_message(net, weights):
    faulty = {k: v for k, v in weights.items() if k not in ("bn1.weight", "bn1.bias")} | {
        "a.b": torch.zeros(1),
        "bn1.running_var": torch.zeros(3),
    }
    with pytest.raises(ValueError) as caught:
        load_published(net, faulty)
    for words in (
        "2 missing: bn1.weight, bn1.bias",
        "1 unexpected: a.b",
        "1 mis-shaped: bn1.running_var (expected (64,), found (3,))",
        "given state dict",
    ):
        assert words in str(caught.value)


def test_wrong_type(net, weights):
    with pytest.raises(ValueError, match=r"bn1.weight \(expected torch.float32, found torch.int64\)"):
        load_published(net, weights | {"bn1.weight": torch.ones(64, dtype=torch.int64)})


def test_other_precision_is_converted(weights):
    "Weights in float64 or bfloat16 load into a float32 module; the module's type is kept."
    layer = LESA(32, 32, 4)
    source = {k: v.double() if v.is_floating_point() else v for k, v in to_published(LESA(32, 32, 4)).items()}
    load_published(layer, source)
    assert {p.dtype for p in layer.parameters()} == {torch.float32}
    assert torch.equal(layer.gate.project[0].weight, source["projection.0.weight"].float())


@pytest.mark.parametrize(
    ("module", "source", "cure"),
    [
        (lambda: lesa_resnet50(num_classes=10), lambda: lesa_resnet50(), "build the module with num_classes=1000"),
        (lambda: lesa_resnet50(position="factored"), lambda: lesa_resnet50(), "build the module with position='flat'"),
        (
            lambda: lesa_resnet50(),
            lambda: lesa_resnet50(position="factored"),
            "build the module with position='factored'",
        ),
        (
            lambda: lesa_resnet50(image_size=256),
            lambda: lesa_resnet50(),
            "made for H*W = 196 positions, the module's for 256",
        ),
        (
            lambda: lesa_resnet50(position="factored", image_size=256),
            lambda: lesa_resnet50(position="factored"),
            "rel_height was made for 14 positions, the module's for 16",
        ),
    ],
)
def test_cures(module, source, cure):
    "Mismatches that have a name are named, with what to do."
    with torch.device("meta"):
        module, source = module(), source()
    with pytest.raises(ValueError) as caught:
        load_published(module, to_published(source))
    assert cure in str(caught.value)


def test_wrong_width():
    "The wide network's weights do not fit the narrow one: the first mis-shaped tensor is named."
    with torch.device("meta"):
        narrow, wide = lesa_resnet50(), to_published(lesa_wrn50())
    with pytest.raises(
        ValueError, match=r"layer1.0.conv1.weight \(expected \(64, 64, 1, 1\), found \(128, 64, 1, 1\)\)"
    ):
        load_published(narrow, wide)


class Runs:
    "Unpickled, this makes a folder."

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    "save",
    [
        torch.save,
        lambda thing, path: torch.save(thing, path, _use_new_zipfile_serialization=False),
        lambda thing, path: path.write_bytes(pickle.dumps(thing, protocol=2)),
    ],
    ids=["zip", "legacy", "bare pickle"],
)
def test_code_in_a_checkpoint_does_not_run(save, tmp_path, net):
    "A pickle that calls something is refused with the reason, before it calls."
    before = copy(net)
    save({"net": {"conv1.weight": Runs(tmp_path / "it ran")}}, tmp_path / "trap.pth")
    with pytest.raises(ValueError, match=r"refused .*trap.pth: unpickling it would run code, it asks for \w+\.mkdir"):
        load_published(net, tmp_path / "trap.pth")
    assert not (tmp_path / "it ran").exists()
    assert same(net.state_dict(), before)


def test_the_trap_is_real(tmp_path):
    "The check above means something: read carelessly, the same object does run."
    pickle.loads(pickle.dumps(Runs(tmp_path / "it ran")))
    assert (tmp_path / "it ran").exists()


def test_objects_that_are_no_tensors_are_refused(tmp_path):
    "A harmless object still is no file of weights, and the message says which it was."
    torch.save({"net": {}, "arguments": argparse.Namespace(lr=0.1)}, tmp_path / "odd.pth")
    with pytest.raises(ValueError, match="odd.pth: unpickling it would run code, it asks for argparse.Namespace"):
        read_published(tmp_path / "odd.pth")


def test_files_that_are_no_checkpoints(tmp_path):
    "Each is one ValueError (or FileNotFoundError) that names the file."
    good = tmp_path / "good.pth"
    torch.save({"a": torch.randn(1000)}, good)
    contents = {
        "empty.pth": b"",
        "page.pth": b"<!DOCTYPE html><html>404</html>",
        "text.pth": b"hello, no checkpoint\n" * 9,
        "zip.pth": b"PK\x03\x04" + bytes(60),
        "half.pth": good.read_bytes()[: len(good.read_bytes()) // 2],
        "noise.pth": bytes(range(256)) * 9,
        "pickle.pth": b"\x80\x02.",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"cannot read .*{name}: expected a"):
            read_published(tmp_path / name)
    with pytest.raises(ValueError, match="found a folder"):
        read_published(tmp_path)
    with pytest.raises(FileNotFoundError, match="no checkpoint at .*nowhere.pth"):
        read_published(tmp_path / "nowhere.pth")
    for thing, message in [
        ([1], "holds no weights"),
        ({}, "holds no weights"),
        ({"net": {}}, "holds no weights"),
        (torch.zeros(2), "holds no weights"),
        ({"weights": {"a": torch.zeros(1)}}, "something else: weights"),
        ({"a": torch.zeros(1), "module.a": torch.zeros(1)}, "twice"),
    ]:
        torch.save(thing, tmp_path / "odd.pth")
        with pytest.raises(ValueError, match=message) as caught:
            read_published(tmp_path / "odd.pth")
        assert "odd.pth" in str(caught.value)
    with pytest.raises(TypeError, match="path or a state dict, got int"):
        load_published(LESA(32, 32, 4), 7)


def test_conv_control_reads_torchvision():
    "A network without LESA has no name to translate, so torchvision's weights load as they are."
    import torchvision

    theirs = torchvision.models.resnet50(num_classes=4)
    control = load_published(lesa_resnet50(num_classes=4, term="conv"), theirs.state_dict())
    assert same(control.state_dict(), theirs.state_dict())


def test_import_is_light():
    "Reading weights pulls in no plotting."
    code = "import sys, lesa_nb.weights.published, lesa_nb.models.resnet; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
