"""Every image size runs, no picture is resized in silence, and the controls are what they claim to be."""
import math

import pytest
import torch
import torchvision
from torch import nn

from lesa_nb.layers.lesa import LESA
from lesa_nb.models.resnet import STAGES, TERMS, Bottleneck, ResNet, lesa_resnet50, lesa_wrn50

SQUARE = [(n, n) for n in range(32, 257, 7)]
OTHER = [(1, 1), (1, 300), (17, 31), (33, 64), (224, 224), (256, 128), (101, 255)]


def small(**options):
    "The published strides with an eighth of the channels and few blocks."
    torch.manual_seed(0)
    return ResNet(("C", "C", "CL", "L"), base=8, num_classes=5, **options)


def expected_maps(size, channels):
    "The true sizes of the four stages' maps: each halving rounds up."
    return [(c, math.ceil(size[0]/s), math.ceil(size[1]/s)) for c, s in zip(channels, (4, 8, 16, 16), strict=True)]


@pytest.mark.parametrize(("term", "position"), [
    ("lesa", "flat"), ("lesa", "factored"), ("attention", "flat"), ("conv", "flat"),
])
def test_every_size(term, position):
    "Squares, odd, wide and tall images through all stages; the maps have their true size and finite numbers."
    net = small(term=term, position=position).eval()
    for size in SQUARE + OTHER:
        with torch.no_grad():
            maps = net.features(torch.randn(1, 3, *size))
        assert [tuple(m.shape[1:]) for m in maps] == expected_maps(size, (32, 64, 128, 256)), size
        assert all(m.isfinite().all() for m in maps), size


@pytest.mark.parametrize(("make", "size"), [
    (lesa_resnet50, (95, 37)), (lesa_resnet50, (256, 128)), (lesa_resnet50, (333, 500)), (lesa_wrn50, (32, 161)),
])
def test_full_networks(make, size):
    "The published networks on images they were not made for."
    net = make(num_classes=3).eval()
    with torch.no_grad():
        maps = net.features(torch.randn(1, 3, *size))
        logits = net.fc(net.avgpool(maps[-1]).flatten(1))
    assert [tuple(m.shape[1:]) for m in maps] == expected_maps(size, (256, 512, 1024, 2048))
    assert logits.shape == (1, 3) and logits.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("position", ["flat", "factored"])
def test_a_coco_image(position):
    "800 x 1333 pixels: 4,200 positions in stages 3 and 4."
    net = lesa_resnet50(num_classes=3, position=position).eval()
    with torch.no_grad():
        logits = net(torch.randn(1, 3, 800, 1333))
    assert logits.shape == (1, 3) and logits.isfinite().all()


@pytest.mark.parametrize("position", ["flat", "factored"])
@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("size", [(33, 63), (97, 80)])
def test_training_step(term, position, size):
    "A gradient reaches every parameter, on maps smaller and larger than the table."
    net = small(term=term, position=position, image_size=(64, 64)).train()
    net(torch.randn(2, 3, *size)).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_size_is_seen_not_resized():
    "One more column of pixels at the far right changes what the first pixel's output says: the context is global."
    net = small(position="factored").eval()
    x = torch.randn(1, 3, 64, 97)
    with torch.no_grad():
        a, b = net.features(x)[-1], net.features(x[..., :-1])[-1]
    assert a.shape[-1] == 7 and b.shape[-1] == 6
    assert not torch.equal(a[..., 0, 0], b[..., 0, 0])


@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("size", [(8, 8), (7, 6), (5, 9)])
def test_stride_of_each_term(term, stride, size):
    "All terms give the same map, rounded up, on even and odd maps; so a bottleneck fits its shortcut."
    block = Bottleneck(16, 32, 24, term=term, stride=stride, fmap=size, position="factored").eval()
    with torch.no_grad():
        y = block(torch.randn(2, 16, *size))
    assert y.shape == (2, 24, math.ceil(size[0]/stride), math.ceil(size[1]/stride))


@pytest.mark.parametrize(("make", "position", "parameters"), [
    (lesa_resnet50, "flat", 23_777_512), (lesa_wrn50, "flat", 61_145_896),
    (lesa_resnet50, "factored", 23_505_992), (lesa_wrn50, "factored", 60_602_984),
])
def test_parameters(make, position, parameters):
    "The published counts, to the last one."
    with torch.device("meta"):
        assert sum(p.numel() for p in make(position=position).parameters()) == parameters


@pytest.mark.parametrize(("make", "theirs"), [
    (lesa_resnet50, torchvision.models.resnet50), (lesa_wrn50, torchvision.models.wide_resnet50_2),
])
def test_conv_control_speaks_torchvision(make, theirs):
    "The convolution control takes torchvision's weights strictly; with its strides it gives torchvision's numbers."
    theirs = theirs(num_classes=11).eval()
    control = make(num_classes=11, term="conv").eval()
    control.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        assert control.features(x)[-1].shape == (2, 2048, 4, 6)  # ours keeps stage 4 at a sixteenth
        wide = 2 if make is lesa_wrn50 else 1
        same = ResNet(term="conv", strides=(1, 2, 2, 2), widen=wide, num_classes=11).eval()
        same.load_state_dict(theirs.state_dict())
        torch.testing.assert_close(same(x), theirs(x), atol=1e-5, rtol=1e-5)


def test_controls_differ_in_the_term_only():
    "Outside conv2 and bn2 of the eight LESA blocks, names and shapes are the same for all terms."
    with torch.device("meta"):
        nets = {term: lesa_resnet50(term=term) for term in TERMS}
    where = [name for name, part in nets["lesa"].named_modules() if isinstance(part, LESA)]
    assert where == [f"layer3.{i}.conv2" for i in range(1, 6)] + [f"layer4.{i}.conv2" for i in range(3)]
    inside = tuple(f"{name}." for name in where) + tuple(name.replace("conv2", "bn2.") for name in where)
    outside = {term: {k: v.shape for k, v in net.state_dict().items() if not k.startswith(inside)}
               for term, net in nets.items()}
    assert outside["lesa"] == outside["attention"] == outside["conv"]
    assert not any(".bn2." in name for name in nets["lesa"].state_dict() if name.startswith("layer4"))


def test_start():
    "Kaiming fan-out for 2-d convolutions, N(0, 1/C) for the 1-d projection, zeros for offsets, ones for norms."
    torch.manual_seed(0)
    net = ResNet(position="factored", deformable=(3, 4))
    for name, part in net.named_modules():
        if name.endswith("conv_offset"):
            assert not part.weight.any() and not part.bias.any(), name
        elif isinstance(part, nn.Conv2d):
            want = (2/(part.out_channels*part.kernel_size[0]**2))**0.5
            assert part.weight.std().item() == pytest.approx(want, rel=0.1), name
        elif isinstance(part, nn.Conv1d):
            assert part.weight.std().item() == pytest.approx(part.in_channels**-0.5, rel=0.1), name
        elif isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d)):
            assert (part.weight == 1).all() and (part.bias == 0).all(), name
    assert sum(name.endswith("conv_offset") for name, _ in net.named_modules()) == 9


@pytest.mark.parametrize("image_size", [(64, 96), [64, 96]])
def test_rectangular_tables(image_size):
    "Tables are made for the true map, height and width apart."
    net = lesa_resnet50(image_size=image_size, position="factored")
    assert {tuple(part.context.position.size) for part in net.modules() if isinstance(part, LESA)} == {(4, 6)}
    odd = lesa_resnet50(image_size=225)
    assert {tuple(part.context.position.size) for part in odd.modules() if isinstance(part, LESA)} == {(15, 15)}


@pytest.mark.parametrize(("shape", "message"), [
    ((3, 64, 64), "add the batch axis"), ((1, 64, 64, 3), "move the channels to the front"),
    ((1, 1, 64, 64), r"got \(1, 1, 64, 64\)"),
    ((1, 3, 0, 64), "at least one pixel"), ((64, 64), "need images of shape"),
])
def test_wrong_input(shape, message):
    "A wrong input is named, with its cure."
    with pytest.raises(ValueError, match=message):
        small()(torch.zeros(shape))


def test_wrong_calls():
    "Wrong options are named."
    with pytest.raises(ValueError, match="floating-point"):
        small()(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    with pytest.raises(ValueError, match="'conv', 'attention', 'lesa', got 'lesaa'"):
        lesa_resnet50(term="lesaa")
    for image_size in (0, (224, 0), (224, 224, 3)):
        with pytest.raises(ValueError, match="image_size must be"):
            lesa_resnet50(image_size=image_size)
    with pytest.raises(ValueError, match="one stride per stage"):
        ResNet(STAGES[:3])
    with pytest.raises(ValueError, match=r"letters C and L, got \['X'\]"):
        ResNet(("CC", "XL"), strides=(1, 2))
    with pytest.raises(ValueError, match="position"):
        lesa_resnet50(position="flatt")
    with pytest.raises(ValueError, match="position"):
        lesa_resnet50(position="flatt", term="attention")
