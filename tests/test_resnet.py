"""Networks with a term of your choice: wrong calls, one outside, torchvision's blocks, options."""

import functools
import weakref

import pytest
import timm
import torch
from torch import nn
from torchvision.models.resnet import Bottleneck as TorchvisionBottleneck

from lesa_nb.layers.lesa import LESA
from lesa_nb.models.resnet import TERMS, Bottleneck, PlainAttention, ResNet, lesa_resnet50, lesa_wrn50, strided


def tiny(**options):
    return ResNet(("C", "L"), strides=(1, 2), base=8, heads=4, num_classes=3, image_size=32, **options).eval()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tiny()(torch.randn(3, 32, 32)), "add the batch axis"),
        (lambda: tiny()(torch.randn(1, 32, 32, 3)), "move the channels to the front"),
        (lambda: tiny()(torch.randn(1, 3, 0, 32)), "at least one pixel"),
        (lambda: tiny()(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)), "floating-point"),
        (lambda: ResNet(("CC", "CX"), strides=(1, 2)), "letters C and L"),
        (lambda: ResNet(("CC", "CL")), "one stride per stage"),
        (lambda: ResNet(image_size=(0, 3)), "image_size must be a positive int"),
        (lambda: Bottleneck(16, 8, 16, term="convolution"), "'conv', 'attention', 'lesa', got 'convolution'"),
        (lambda: PlainAttention(16, 16, 4, stride=0), "stride of at least 1, found 0"),
    ],
)
def test_wrong_calls_name_their_cure(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_an_option_that_there_is_not_is_refused():
    with pytest.raises(TypeError, match="gate_shape"):
        TERMS["lesa"](32, fmap=9, gate_shape=(2,))


def test_options_of_lesa_are_left_alone_by_the_controls():
    options = dict(fmap=9, heads=4, local_groups=1, gate_shrink=(4,), attend="explicit", deformable=True)
    for term in TERMS:
        conv2, bn2 = TERMS[term](32, **options)
        assert bn2.eval()(conv2.eval()(torch.randn(1, 32, 9, 9))).shape == (1, 32, 9, 9)
    net = tiny(local_groups=1, attend="explicit")
    layer = next(part for part in net.modules() if isinstance(part, LESA))
    assert layer(torch.randn(1, 16, 4, 4)).shape == (1, 16, 2, 2)


@pytest.mark.parametrize("position", ["flat", "factored"])
@pytest.mark.parametrize("term", TERMS)
def test_every_term_gives_the_same_maps(term, position):
    x = torch.randn(1, 3, 64, 96)
    net = lesa_resnet50(num_classes=7, image_size=(64, 96), position=position, term=term).eval()
    with torch.no_grad():
        assert [tuple(m.shape[1:]) for m in net.features(x)] == [
            (256, 16, 24),
            (512, 8, 12),
            (1024, 4, 6),
            (2048, 4, 6),
        ]
        assert net(x).shape == (1, 7)


@pytest.mark.parametrize("size", [(1, 1), (32, 32), (37, 95), (333, 100), (256, 128)])
def test_one_pixel_odd_wide_and_tall(size):
    net = ResNet(base=8, num_classes=10).eval()
    with torch.no_grad():
        maps = net.features(torch.randn(1, 3, *size))
    assert maps[-1].shape[2:] == strided(size, 16) and all(m.isfinite().all() for m in maps)


@pytest.mark.parametrize("make", [lesa_resnet50, functools.partial(timm.create_model, "lesa_resnet50")])
def test_answering_holds_one_stage_at_a_time(make):
    "What a stage gives is let go of when the next has made its own: at 800 pixels each is hundreds of megabytes."
    net, given, alive = make(base=8, num_classes=3).eval(), {}, []
    for i in range(1, 5):
        stage = net.get_submodule(f"layer{i}")
        stage.register_forward_hook(lambda _, args, out, i=i: given.setdefault(i, weakref.ref(out)) and None)
        stage.register_forward_pre_hook(lambda _, args, i=i: alive.append([j for j in given if given[j]() is not None]))
    with torch.no_grad():
        net(torch.randn(1, 3, 64, 64))
    assert alive == [[], [1], [2], [3]]


def test_torchvisions_own_block_takes_our_weights():
    shortcut = nn.Sequential(nn.Conv2d(16, 16, 1, 2, bias=False), nn.BatchNorm2d(16))
    theirs, ours = TorchvisionBottleneck(16, 4, stride=2, downsample=shortcut), Bottleneck(16, 4, 16, stride=2)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 16, 7, 6)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


def test_plain_attention_is_smaller_than_lesa_and_lesa_than_convolution():
    with torch.device("meta"):
        counts = [
            sum(p.numel() for p in lesa_resnet50(term=term).parameters()) for term in ("attention", "lesa", "conv")
        ]
        assert counts == sorted(counts)
        assert sum(p.numel() for p in lesa_wrn50(position="factored").parameters()) == 60_602_984
        shrunk = sum(p.numel() for p in lesa_resnet50(gate_shrink=(4,)).parameters())
    assert shrunk < counts[1]
