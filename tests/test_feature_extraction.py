"""Maps of the stages by torchvision's ways: create_feature_extractor without a word more, IntermediateLayerGetter."""

import copy

import pytest
import torch
from torch.testing import assert_close
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

import lesa_nb
from lesa_nb.models.pyramid import Backbone
from lesa_nb.models.registry import build_classifier
from lesa_nb.models.resnet import TERMS

STAGES = {f"layer{i}": f"stage {i}" for i in (1, 2, 3, 4)}
SIZES = [(64, 64), (96, 130)]


def network(**options):
    "LESA-ResNet-50 with an eighth of its channels, whose maps are attended in blocks where they are not small."
    torch.manual_seed(0)
    return lesa_nb.lesa_resnet50(num_classes=5, image_size=64, base=8, **options).eval()


def images(size, batch=2):
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("position", ["flat", "factored"])
@pytest.mark.parametrize("term", TERMS)
def test_create_feature_extractor(term, position):
    net = network(term=term, position=position)
    extract = create_feature_extractor(net, {**STAGES, "relu": "stem", "avgpool": "pooled", "fc": "logits"}).eval()
    for size in SIZES:
        x = images(size)
        with torch.no_grad():
            found, maps = extract(x), net.features(x)
            assert list(found) == ["stem", *STAGES.values(), "pooled", "logits"]
            for i, expected in enumerate(maps, 1):
                assert found[f"stage {i}"].equal(expected)
            assert found["logits"].equal(net(x)) and found["stem"].shape == (2, 8, -(-size[0] // 2), -(-size[1] // 2))
            assert found["stem"].min() == 0  # behind the ReLU


def test_the_published_network():
    net = lesa_nb.lesa_resnet50().eval()
    extract = create_feature_extractor(net, ["layer3", "layer4"])
    with torch.no_grad():
        for size in ((64, 64), (224, 160)):
            found = extract(images(size, 1))
            assert [m.equal(e) for m, e in zip(found.values(), net.features(images(size, 1))[2:])] == [True, True]


def test_terms_can_be_asked_for_by_name():
    net = network()
    nodes = [f"layer4.2.conv2.{part}" for part in ("local", "context", "gate")]
    assert set(nodes[1:2]) <= set(get_graph_node_names(net)[1])
    found = create_feature_extractor(net, nodes)(images((64, 64)))
    seen = {}
    handle = net.layer4[2].conv2.register_forward_pre_hook(lambda layer, inputs: seen.update(x=inputs[0]))
    net(images((64, 64)))
    handle.remove()
    terms = net.layer4[2].conv2.terms(seen["x"])
    for name in ("local", "context", "gate"):
        assert_close(found[f"layer4.2.conv2.{name}"], getattr(terms, name))


def test_it_trains_and_says_what_is_wrong_as_before():
    net = network()
    extract = create_feature_extractor(net, ["fc"]).train()
    before = net.layer4[2].conv2.context.norm_out.running_mean.clone()
    extract(images((64, 64)))["fc"].sum().backward()
    assert net.layer4[2].conv2.context.qkv.weight.grad is not None
    assert not net.layer4[2].conv2.context.norm_out.running_mean.equal(before)
    with pytest.raises(ValueError, match="add the batch axis"):
        extract(torch.randn(3, 64, 64))
    with pytest.raises(ValueError, match="floating-point"):
        extract(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))


def test_a_traced_network_can_be_copied():
    net = network()
    again = copy.deepcopy(create_feature_extractor(net, ["layer4"])).eval()
    assert again(images((64, 64)))["layer4"].equal(net.features(images((64, 64)))[-1])


def test_symbolic_trace_of_a_layer_and_of_a_small_network():
    layer = lesa_nb.LESA(16, 16, 6).eval()
    traced, x = torch.fx.symbolic_trace(layer), torch.randn(1, 16, 9, 5)
    assert traced(x).equal(layer(x))
    net = build_classifier("small", num_classes=3).eval()
    assert torch.fx.symbolic_trace(net)(images((48, 80))).equal(net(images((48, 80))))


@pytest.mark.parametrize("small", [False, True])
def test_intermediate_layer_getter(small):
    net = build_classifier("small", num_classes=3).eval() if small else network()
    getter = IntermediateLayerGetter(net, STAGES)
    for size in SIZES:
        with torch.no_grad():
            found = getter(images(size))
            assert list(found) == list(STAGES.values())
            assert all(m.equal(expected) for m, expected in zip(found.values(), net.features(images(size))))


def test_a_detectors_backbone():
    "Deformable convolutions are one step as well."
    torch.manual_seed(0)
    backbone = Backbone(stages=("C", "C", "L", "L"), base=8, heads=4, image_size=64, deformable=(2, 3, 4)).eval()
    extract = create_feature_extractor(backbone, ["layer2", "layer4"]).eval()
    for size in SIZES:
        with torch.no_grad():
            maps = backbone(images(size))
            assert [m.equal(e) for m, e in zip(extract(images(size)).values(), maps[1::2])] == [True, True]


def test_state_dicts_are_as_they_were():
    "The stem's ReLU is a module, so that whoever runs the children one after the other does not lose it."
    with torch.device("meta"):
        keys = list(lesa_nb.lesa_resnet50().state_dict())
    assert not any("relu" in key for key in keys) and keys[:2] == ["conv1.weight", "bn1.weight"]
    assert [name for name, _ in network().named_children()][:4] == ["conv1", "bn1", "relu", "maxpool"]
