"""A grafted ResNet computes what it did, to the bit; it learns; and it goes through a file."""
import copy

import pytest
import torch
from torch import nn
from torchvision import models

from lesa_nb.layers.lesa import LESA
from lesa_nb.models.registry import build_classifier
from lesa_nb.weights._grafted import build_grafted, graft_metadata
from lesa_nb.weights._resnets import RESNETS, resnet_from, resnet_name
from lesa_nb.weights.files import save_weights
from lesa_nb.weights.folding import _is_norm, fold_norms
from lesa_nb.weights.graft import graft
from lesa_nb.weights.load import load

#: parameters of 1,000-class networks before and after
COUNTS = {
    "resnet18": (11_689_512, 13_337_352),
    "resnet50": (25_557_032, 29_846_120),
    "wide_resnet50_2": (68_883_240, 85_980_872),
}


def trained(name, **options):
    "A ResNet whose norms have seen pictures and whose weights are not those of the start."
    torch.manual_seed(0)
    network = RESNETS[name](num_classes=5, **options)
    with torch.no_grad():
        network.train()(torch.randn(4, 3, 64, 64))
        for norm in network.modules():
            if isinstance(norm, nn.BatchNorm2d):
                nn.init.normal_(norm.weight, 1, .2)
                nn.init.normal_(norm.bias, 0, .2)
    return network


def grafts(network):
    return [name for name, part in network.named_modules() if isinstance(part, LESA)]


@pytest.mark.parametrize("position", ["factored", "flat"])
@pytest.mark.parametrize("name", COUNTS)
def test_the_same_to_the_bit(name, position):
    "Outputs and running statistics in both modes, and the gradients of all weights that were there."
    plain = trained(name)
    state = copy.deepcopy(plain.state_dict())
    grafted = graft(plain, image_size=64, position=position)
    assert len(grafts(grafted)) == (2 if name == "resnet18" else 7)
    assert type(grafted) is type(plain) and grafted.training
    assert all(tensor.equal(state[key]) for key, tensor in plain.state_dict().items())
    x = torch.randn(2, 3, 64, 64)
    for training in (False, True):
        a, b = plain.train(training)(x), grafted.train(training)(x)
        assert (a - b).abs().max().item() == 0.
        for network, out in ((plain, a), (grafted, b)):
            network.zero_grad()
            out.square().sum().backward()
    ours = {key.replace(".local.spatial", "").replace("conv2.local.norm", "bn2"): value
            for pairs in (grafted.named_parameters(), grafted.named_buffers()) for key, value in pairs}
    for key, p in plain.named_parameters():
        assert ours[key].grad.equal(p.grad), key
    assert all(ours[key].equal(buffer) for key, buffer in plain.named_buffers())


@pytest.mark.parametrize("name", COUNTS)
def test_parameters(name):
    with torch.device("meta"):
        plain = RESNETS[name]()
        counts = tuple(sum(p.numel() for p in network.parameters()) for network in (plain, graft(plain)))
    assert counts == COUNTS[name]


@pytest.mark.parametrize("name", RESNETS)
def test_every_resnet_is_known_by_its_tensors(name):
    with torch.device("meta"):
        plain = RESNETS[name](num_classes=7)
        grafted = graft(plain)
        assert resnet_name(plain.state_dict()) == resnet_name(grafted.state_dict()) == name
    stages = {place.split(".")[0] for place in grafts(grafted)}
    assert stages == {"layer3", "layer4"} and not any(place.split(".")[1] == "0" for place in grafts(grafted))
    assert graft_metadata(grafted.state_dict())["network"] == f"graft:{name}"


def test_who_moves_first():
    "One step of the optimizer, and everything behind the last norm has a gradient."
    torch.manual_seed(0)
    grafted = graft(trained("resnet18"), image_size=64).train()
    optimizer, x = torch.optim.SGD(grafted.parameters(), lr=.1), torch.randn(4, 3, 64, 64)
    new = {name: p for name, p in grafted.named_parameters() if ".context." in name or ".gate." in name}
    new = {name: p for name, p in new.items() if "norm_scores.bias" not in name}  # a softmax forgets it
    for step in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(grafted(x), torch.tensor([0, 1, 2, 3])).backward()
        moving = {name for name, p in new.items() if p.grad.abs().max() > 0}
        assert moving == ({name for name in new if "norm_out" in name} if step == 0 else set(new))
        optimizer.step()


def test_state_dicts_other_sizes_modes_and_types():
    plain = trained("resnet18").eval()
    grafted = graft(plain.state_dict(), image_size=(96, 64), heads=4).eval()
    assert grafted.layer4[1].conv2.context.position.size == (3, 2) and grafted.layer4[1].conv2.context.heads == 4
    with torch.no_grad():
        x = torch.randn(1, 3, 90, 130)
        assert grafted(x).equal(plain(x))
        half = graft(copy.deepcopy(plain).double()).eval()
        assert half(x.double()).equal(plain.double()(x.double()))
    assert not graft(plain).training and not graft(plain).layer3[1].conv2.context.norm_out.training
    frozen = trained("resnet18").requires_grad_(False)
    assert not graft(frozen).layer3[1].conv2.local.spatial.weight.requires_grad


def test_folded():
    plain = trained("resnet50").eval()
    grafted = graft(plain, image_size=64)
    folded, x = fold_norms(grafted), torch.randn(1, 3, 64, 64)
    assert not any(map(_is_norm, folded.modules()))
    with torch.no_grad():
        assert (folded(x) - plain(x)).abs().max() < 1e-4*plain(x).abs().max()


def test_through_files(tmp_path):
    grafted = graft(trained("resnet18"), image_size=64, heads=4).eval()
    nn.init.normal_(grafted.layer3[1].conv2.context.norm_out.weight)
    metadata = graft_metadata(grafted) | dict(classes=list("abcde"))
    assert metadata == dict(arch="classifier", network="graft:resnet18", term="lesa", position="factored", heads=4,
                            image_size=64, classes=list("abcde"))
    save_weights(grafted, tmp_path / "net.safetensors", **metadata)
    torch.save(grafted.state_dict(), tmp_path / "net.pth")
    x = torch.randn(2, 3, 64, 64)
    for name, classes in (("net.safetensors", list("abcde")), ("net.pth", list("01234"))):
        loaded = load(tmp_path / name)
        assert loaded.classes == classes and loaded.metadata["heads"] == 4
        with torch.no_grad():
            assert loaded.model(x).equal(grafted(x))


def test_built_by_name_for_training():
    torch.manual_seed(0)
    network = build_classifier("graft:resnet18", num_classes=3, image_size=64, position="factored")
    assert len(grafts(network)) == 2 and network.fc.out_features == 3
    assert not grafts(build_classifier("graft:resnet18", num_classes=3, term="conv"))
    with pytest.raises(ValueError, match="architecture of a grafted network must be one of resnet18, .*got 'vgg'"):
        build_grafted("vgg")
    with pytest.raises(ValueError, match="term of a grafted network must be one of lesa, conv, got 'attention'"):
        build_grafted("resnet18", term="attention")


def test_refusals():
    with pytest.raises(ValueError, match="expected a ResNet of torchvision or timm.*found AlexNet"):
        graft(models.alexnet())
    with pytest.raises(ValueError, match="no block to graft in this ResNet"):
        graft(models.resnext50_32x4d())
    with pytest.raises(ValueError, match="one of resnet18, .*found stages of"):
        graft({"conv1.weight": torch.zeros(1)})
    state = RESNETS["resnet18"]().state_dict()
    with pytest.raises(ValueError, match="not quite a resnet18 of torchvision: .*layer4.1.conv2.weight"):
        resnet_from({key: tensor for key, tensor in state.items() if key != "layer4.1.conv2.weight"})
    with pytest.raises(ValueError, match="heads = 5"):
        graft(models.resnet18(), heads=5)
    with pytest.raises(ValueError, match="not quite torchvision's resnet18"):
        network = graft(models.resnet18(norm_layer=lambda channels: nn.BatchNorm2d(channels, eps=1e-3)))
        graft_metadata(network)
    blurred = graft(models.resnet18(num_classes=3), image_size=64)
    blurred.maxpool = nn.AvgPool2d(3, stride=2, padding=1)  # no name tells this
    with pytest.raises(ValueError, match="not quite torchvision's resnet18"):
        graft_metadata(blurred)
    with pytest.raises(ValueError, match="expected a grafted classifier"):
        graft_metadata(models.resnet18())
