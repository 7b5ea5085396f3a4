"""One capture of what an attention layer did: it is what the network did, and the network stays as it was."""
import pytest
import torch
from torch import nn

from lesa_nb.layers.lesa import LESA, build_context
from lesa_nb.layers.terms import local_share
from lesa_nb.look.capture import attention_layers, capture, capture_layer
from lesa_nb.look.maps import strength
from lesa_nb.models.registry import build_classifier, build_detector
from lesa_nb.models.resnet import PlainAttention, lesa_resnet50
from lesa_nb.study.small import SmallNet


@pytest.fixture(scope="module")
def body():
    torch.manual_seed(0)
    layer = LESA(8, 8, (4, 6), heads=2, position="factored")
    return nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), layer, nn.Flatten(), nn.Linear(8*24, 5))


@pytest.fixture
def x():
    return torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(1))


def test_layers_are_found_by_what_they_hold():
    with torch.device("meta"):
        net = lesa_resnet50(num_classes=10, image_size=128, position="factored")
    assert len(attention_layers(net)) == 8  # five in stage 3, three in stage 4
    assert attention_layers(nn.Conv2d(3, 3, 1)) == {}
    for term, kinds in dict(lesa=[LESA]*2, attention=[PlainAttention]*2, conv=[]).items():
        assert [type(part) for part in attention_layers(SmallNet(term)).values()] == kinds


def test_a_layer_of_ones_own_is_found_too(x):
    class Mine(nn.Module):
        def __init__(self):
            super().__init__()
            self.context = build_context(3, 8, (4, 6), heads=2)

        def forward(self, x):
            return 2*self.context(x)

    seen = capture_layer(Mine().eval(), x)
    assert seen.layer == "" and seen.kind == "plain attention" and seen.weights.shape == (2, 2, 24, 24)


def test_parts_are_those_of_the_layer_on_the_input_it_saw(body, x):
    seen = capture_layer(body.eval(), x)
    by_hand = body[:2](x)
    terms = body[2].terms(by_hand)
    torch.testing.assert_close(seen.x, by_hand)
    for part in ("local", "context", "gate"):
        torch.testing.assert_close(getattr(seen, part), getattr(terms, part))
    torch.testing.assert_close(seen.let_through, terms.gate*terms.context)
    torch.testing.assert_close(seen.weights, body[2].context.weights(by_hand))
    torch.testing.assert_close(seen.weights.sum(-1), torch.ones(2, 2, 24))
    assert seen.kind == "LESA" and seen.size == (4, 6)
    torch.testing.assert_close(seen.attention(1, 4).flatten(2), seen.weights[:, :, 10])


def test_plain_attention_has_a_context_only(x):
    net = SmallNet("attention", size=20).eval()
    seen = capture(net, torch.rand(1, 3, 20, 20))
    assert list(seen) == list(attention_layers(net))
    for part in seen.values():
        assert part.kind == "plain attention" and part.local is None and part.gate is None
        assert part.let_through is part.context and part.context.shape[-2:] == part.size == (4, 4)


def test_several_layers_in_one_run_are_those_of_one_at_a_time():
    net, images = SmallNet("lesa", size=20).eval(), torch.rand(2, 3, 20, 20)
    both, first = capture(net, images), capture(net, images, ["blocks.0.conv2"])
    assert list(both) == ["blocks.0.conv2", "blocks.1.conv2"] and list(first) == ["blocks.0.conv2"]
    assert both["blocks.0.conv2"].context.equal(first["blocks.0.conv2"].context)
    assert capture_layer(net, images).layer == "blocks.1.conv2"


@pytest.mark.parametrize("model", ["mask_rcnn", "htc"])
def test_a_detector_is_opened_like_any_network(model):
    "As a whole with its list of images, and its backbone alone with a batch."
    torch.manual_seed(0)
    detector = build_detector(model, network="small", num_classes=3, image_size=128).eval()
    whole = capture(detector, [torch.rand(3, 128, 128)])
    assert whole and all(name.startswith("pyramid.backbone.") and part.kind == "LESA" for name, part in whole.items())
    last = capture_layer(detector.pyramid.backbone, torch.rand(1, 3, 128, 128))
    assert list(whole)[-1] == f"pyramid.backbone.{last.layer}"
    assert last.size == list(whole.values())[-1].size
    torch.testing.assert_close(last.weights.sum(-1), torch.ones(last.weights.shape[:3]))


def test_the_network_is_left_as_it_was(body, x):
    body.train()
    body[2].context.norm_scores.eval()  # a part that somebody froze stays frozen
    before = {name: tensor.clone() for name, tensor in body.state_dict().items()}
    seen = capture_layer(body, x)
    seen.weights
    assert body.training and body[2].training and not body[2].context.norm_scores.training
    assert all(before[name].equal(tensor) for name, tensor in body.state_dict().items())
    with pytest.raises(RuntimeError):
        capture_layer(body, torch.rand(1, 5, 4, 6))  # the network itself refuses
    assert body.training and not any(m._forward_hooks or m._forward_pre_hooks for m in body.modules())
    body[2].context.norm_scores.train()
    assert not seen.weights.requires_grad


def test_what_cannot_be_captured_is_named(body, x):
    assert capture_layer(body, x, "2").layer == "2"
    with pytest.raises(ValueError, match="no attention layer '7' in the network; there are 2"):
        capture_layer(body, x, "7")
    with pytest.raises(ValueError, match="has no attention layer"):
        capture_layer(nn.Conv2d(3, 3, 1), x)
    with pytest.raises(ValueError, match=r"position \(4, 0\) lies outside the map of 4 rows and 6 columns"):
        capture_layer(body, x).attention(4, 0)
    idle = nn.Sequential(nn.Identity())
    idle[0].spare = LESA(8, 8, (4, 6), heads=2)
    with pytest.raises(ValueError, match="layer 0.spare did not run"):
        capture(idle, x)


def test_what_small_classifiers_look_at_and_how_much_stays_local():
    "In every layer: maps of attention sum to 1, the gate and the local share lie in 0 to 1, one diagonal a layer."
    torch.manual_seed(0)
    images = torch.randn(6, 3, 64, 64)
    lesa, attention = (capture(build_classifier("small", num_classes=4, term=term), images)
                       for term in ("lesa", "attention"))
    for seen in (*lesa.values(), *attention.values()):
        maps = seen.attention(*(side//2 for side in seen.size))
        torch.testing.assert_close(maps.sum((2, 3)), torch.ones(maps.shape[:2]))
    for seen in lesa.values():
        local, rest = (strength(term).mean().item() for term in (seen.local, seen.let_through))
        assert 0 < seen.gate.mean().item() < 1 and 0 < local/(local + rest) < 1
    diagonals = [local_share(seen.weights).mean().item() for seen in attention.values()]
    assert len(diagonals) == len(lesa) and all(0 < share < 1 for share in diagonals)
