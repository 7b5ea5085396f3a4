"""The inference form gives the same numbers without a single batch norm; exported graphs give them again."""
import copy

import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm
from torchvision.ops.misc import FrozenBatchNorm2d

from lesa_nb.layers.blockwise import auto, streaming
from lesa_nb.layers.context import Context, explicit
from lesa_nb.layers.lesa import LESA, POSITIONS, attend_with
from lesa_nb.layers.local import DeformableConv2d
from lesa_nb.layers.position import FactoredTable
from lesa_nb.models.resnet import TERMS, PlainAttention, ResNet, lesa_resnet50, lesa_wrn50
from lesa_nb.weights import export as exporting
from lesa_nb.weights.export import export_onnx, export_program
from lesa_nb.weights.folding import _fold, _is_norm, _Scale, _scale_and_shift, fold_norms


def lived_in(part, seed=0):
    "Norms as training leaves them, some channels turned and some dead; offsets that move taps."
    torch.manual_seed(seed)
    for norm in part.modules():
        if _is_norm(norm):
            for t, mean in (norm.weight, 1), (norm.bias, 0), (norm.running_mean, 0):
                nn.init.normal_(t, mean, 0.3)
            nn.init.uniform_(norm.running_var, 0.5, 2)
            with torch.no_grad():
                norm.weight[1] = 0
                norm.weight[2] *= -1
        if isinstance(norm, DeformableConv2d):
            nn.init.normal_(norm.conv_offset.weight, std=0.05)
            nn.init.normal_(norm.conv_offset.bias, std=0.5)
    return part.eval()


def small(**options):
    return lived_in(ResNet(("C", "C", "CL", "L"), base=8, num_classes=5, **{"image_size": 64} | options))


def norms_in(network):
    return [name for name, part in network.named_modules() if _is_norm(part)]


@torch.no_grad()
def difference(a, b, x):
    "Largest difference, relative to the largest value."
    a, b = a(x), b(x)
    assert a.shape == b.shape and a.dtype == b.dtype
    return ((a - b).abs().max()/a.abs().max()).item()


KINDS = [nn.BatchNorm2d(6), nn.BatchNorm2d(6, eps=0.1), nn.SyncBatchNorm(6), FrozenBatchNorm2d(6)]
CONVS = [
    nn.Conv2d(4, 6, 3),
    nn.Conv2d(4, 6, 1, bias=False),
    nn.Conv2d(4, 6, 3, stride=2, groups=2),
    DeformableConv2d(4, 6, padding=1, groups=2),
]


@pytest.mark.parametrize("norm", KINDS)
@pytest.mark.parametrize("conv", CONVS)
def test_fold(conv, norm):
    "Every kind of norm into every kind of convolution."
    pair, x = lived_in(nn.Sequential(copy.deepcopy(conv), copy.deepcopy(norm))), torch.randn(2, 4, 7, 5)
    folded = copy.deepcopy(pair)
    folded[1] = _fold(folded[0], folded[1])
    assert difference(pair, folded, x) < 1e-6
    assert _fold(folded[0], folded[1]) is folded[1]


def _with_activation(part):
    class WithActivation(nn.BatchNorm2d):  # such as timm's BatchNormAct2d
        def forward(self, x):
            return super().forward(x).relu()

    part[1] = WithActivation(6)


def _pruned(part):
    prune.l1_unstructured(part[0], "weight", .5)
    with torch.no_grad():
        part[0](torch.zeros(1, 4, 3, 3))  # from then on it can be copied


def _parametrized(part):
    weight_norm(part[0])


def _standardised(part):
    class Standardised(nn.Conv2d):  # such as timm's StdConv2d
        def forward(self, x):
            weight = (self.weight - self.weight.mean((1, 2, 3), keepdim=True))/self.weight.std((1, 2, 3), keepdim=True)
            return self._conv_forward(x, weight, self.bias)

    part[0] = Standardised(4, 6, 3)


def _no_convolution(part):
    part[0] = nn.Sequential(part[0], nn.ReLU())


@pytest.mark.parametrize("change", [_with_activation, _pruned, _parametrized, _standardised, _no_convolution])
def test_what_cannot_be_folded_stays(change):
    "A norm that does more, and convolutions that compute their weight anew in each call."
    pair, x = nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)), torch.randn(2, 4, 7, 5)
    change(pair)
    assert difference(lived_in(pair), fold_norms(pair), x) < 1e-6


@pytest.mark.parametrize("name", ["norm_qkv", "norm_scores", "norm_out"])
def test_a_context_term_with_another_norm_stays(name):
    layer = lived_in(LESA(16, 16, 5, heads=2, position="factored"))
    setattr(layer.context, name, nn.GroupNorm(2, getattr(layer.context, name).num_features).eval())
    assert difference(layer, fold_norms(layer), torch.randn(2, 16, 5, 5)) < 1e-5


@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_a_table_of_your_own_keeps_the_scales_of_its_scores(number):
    "A bias for each pair of positions is no product with a query: scaled queries would leave it as it was."
    class Bias(nn.Module):
        n_scores, n_values = number, 1

        def __init__(self):
            super().__init__()
            self.bias, self.place = nn.Parameter(torch.randn(number, 4, 30, 30)), nn.Parameter(torch.randn(4, 8, 30))

        def scores(self, q, k, size):
            return [bias.expand(len(q), -1, -1, -1) for bias in self.bias]

        def values(self, w, size):
            return [torch.einsum("bgij,gvj->bgvi", w, self.place)]

    context = lived_in(Context(16, 32, Bias(), heads=4))
    assert difference(context, fold_norms(context), torch.randn(2, 16, 5, 6)) < 1e-5


class Doubled(FactoredTable):
    def scores(self, q, k, size):
        return [super().scores(q, k, size)[0].square()]


def test_a_subclass_with_scores_of_its_own():
    context = lived_in(Context(16, 32, Doubled((5, 6), 4), heads=4))
    assert difference(context, fold_norms(context), torch.randn(2, 16, 5, 6)) < 1e-5


def test_fold_without_affine():
    "A norm without weight and bias has a scale and a shift all the same."
    norm = nn.BatchNorm2d(3, affine=False).eval()
    norm.running_mean.copy_(torch.tensor([1., 2, 3]))
    norm.running_var.copy_(torch.tensor([4., 9, 16]))
    scale, shift = _scale_and_shift(norm)
    torch.testing.assert_close(scale, torch.tensor([1/2, 1/3, 1/4]).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(shift, -torch.tensor([1/2, 2/3, 3/4]).double(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("deformable", [False, True])
@pytest.mark.parametrize("position", POSITIONS)
def test_layer(position, deformable, stride):
    "LESA with either table, on maps of other sizes, along every way to attend; no norm is left."
    layer = lived_in(LESA(16, 16, (6, 5), heads=2, position=position, deformable=deformable, stride=stride))
    folded = fold_norms(layer)
    assert norms_in(layer) and not norms_in(folded)
    for way in (explicit, streaming, auto):
        attend_with(layer, way), attend_with(folded, way)
        for size in [(1, 1), (6, 5), (4, 7), (9, 11)]:
            assert difference(layer, folded, torch.randn(2, 16, *size)) < 1e-5, (way.__name__, size)


SCALES = [(0., 0., 0.), (1., 0., 0.), (0., 1., 1.), (0., 1., 0.), (-2., -1., -3.), (1., 1e-30, 1e-30),
          (1e-30, 2., -1e-5), (50., 1e-3, 2e-3)]


@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("position", POSITIONS)
def test_odd_scales_of_scores(position, scales):
    "Dead, turned, tiny and huge scales of content and place, all heads alike: exact where a quotient would not be."
    layer = lived_in(LESA(16, 16, 4, heads=2, position=position))
    norm = layer.context.norm_scores
    with torch.no_grad():
        norm.weight.copy_(torch.tensor(scales[:len(norm.weight)//2]).repeat_interleave(2))
    folded = fold_norms(layer)
    assert all(t.isfinite().all() for t in folded.state_dict().values())
    for way in (explicit, streaming):
        assert difference(attend_with(layer, way), attend_with(folded, way), torch.randn(2, 16, 4, 5)) < 1e-5


def test_where_the_scales_go():
    "Nothing is left to do with the factored table; with the flat one the content's factor and the places' sum's."
    contexts = {p: fold_norms(lived_in(LESA(16, 16, 4, heads=2, position=p), seed=3)).context for p in POSITIONS}
    assert isinstance(contexts["factored"].norm_out, _Scale) and contexts["factored"].norm_out.ones
    assert contexts["flat"].norm_out.weight[0::2].eq(1).all() and not contexts["flat"].norm_out.ones


@pytest.mark.parametrize("deformable", [(), (2, 3, 4)])
@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("term", TERMS)
def test_network(term, position, deformable):
    "All three terms, plain and deformable, at the tables' size and at others."
    net = small(term=term, position=position, deformable=deformable)
    folded = fold_norms(net)
    assert not norms_in(folded)
    for size in [(64, 64), (33, 95), (97, 80)]:
        assert difference(net, folded, torch.randn(2, 3, *size)) < 1e-4
        for a, b in zip(net.features(x := torch.randn(1, 3, *size)), folded.features(x), strict=True):
            assert (a - b).abs().max() < 1e-4*a.abs().max()


PARTS = [
    (8, LESA(8, 8, 4, heads=1)),
    (16, LESA(16, 16, 4, heads=2, local_groups=1)),
    (16, LESA(16, 16, 4, heads=2, gate_shrink=(2, 2), gate_kernels=(1, 3, 1))),
    (16, PlainAttention(16, 16, 4, heads=2, stride=2)),
    (8, nn.Sequential(nn.Conv2d(8, 16, 3), nn.BatchNorm2d(16), LESA(16, 8, 4, heads=2))),
]


@pytest.mark.parametrize("channels, part", PARTS)
def test_other_parts(channels, part):
    "No mix, a deep gate, attention alone, layers inside something else."
    part, x = lived_in(part), torch.randn(2, channels, 7, 6)
    folded = fold_norms(part)
    assert not norms_in(folded) and difference(part, folded, x) < 1e-5


@pytest.mark.parametrize("make", [lesa_resnet50, lesa_wrn50])
def test_published_networks(make):
    "Fresh ones, in float64, because their scores are so large that rounding alone changes the winner of a softmax."
    torch.manual_seed(0)
    net = make(num_classes=3, image_size=64).eval().double()
    state = copy.deepcopy(net.state_dict())
    folded = fold_norms(net)
    assert not norms_in(folded) and len(norms_in(net)) == 93
    assert difference(net, folded, torch.randn(1, 3, 64, 48, dtype=torch.float64)) < 1e-8
    assert all(torch.equal(t, state[name]) for name, t in net.state_dict().items())
    ours, theirs = ({p.data_ptr() for p in n.parameters()} for n in (folded, net))
    assert not ours & theirs


def test_calibrated_network():
    "The published network after a few batches, in float32: as near to its float64 numbers as with its norms."
    torch.manual_seed(0)
    net = lesa_resnet50(num_classes=3, image_size=64)
    for part in net.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.momentum = None  # the mean of all batches
    with torch.no_grad():
        for _ in range(3):
            net(torch.randn(4, 3, 64, 64))
        exact, x = copy.deepcopy(net.eval()).double(), torch.randn(2, 3, 64, 64)
        want = exact(x.double())
        with_norms, folded = ((n(x).double() - want).abs().max()/want.abs().max() for n in (net, fold_norms(net)))
    assert folded <= max(1e-4, 4*with_norms)


def test_twice():
    "Folding a folded network gives the same one, bit by bit."
    net = small()
    once = fold_norms(net)
    twice = fold_norms(once)
    assert once.state_dict().keys() == twice.state_dict().keys()
    assert all(torch.equal(t, twice.state_dict()[name]) for name, t in once.state_dict().items())


def test_folded_network_is_an_ordinary_module():
    "It can be saved, cast, run under autocast, and put into training mode by mistake without taking statistics."
    net = small(position="factored")
    folded, x = fold_norms(net), torch.randn(2, 3, 64, 64)
    other = fold_norms(lived_in(small(position="factored"), seed=1))
    other.load_state_dict(folded.state_dict())
    with torch.no_grad():
        assert torch.equal(other(x), folded(x))
        assert torch.equal(folded.train()(x), other(x))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert (folded(x).float() - net(x).float()).abs().max() < 0.1*net(x).abs().max()
    assert difference(copy.deepcopy(net).double(), fold_norms(net.double()), x.double()) < 1e-10
    folded(x).sum().backward()
    assert folded.conv1.weight.grad.isfinite().all()


def test_refusals():
    "Training mode, all of it or one part, and norms without statistics: named."
    net = small()
    with pytest.raises(ValueError, match=r"call .eval\(\)"):
        fold_norms(copy.deepcopy(net).train())
    one = copy.deepcopy(net)
    one.layer3[1].conv2.context.norm_scores.train()
    with pytest.raises(ValueError, match="1 parts in training mode, first 'layer3.1.conv2.context.norm_scores'"):
        fold_norms(one)
    one = copy.deepcopy(net)
    one.layer4[0].conv2.context.norm_scores = nn.BatchNorm2d(24, track_running_stats=False).eval()
    with pytest.raises(ValueError, match="no running statistics"):
        fold_norms(one)
    for export in (export_program, lambda net: export_onnx(net, "never.onnx")):
        with pytest.raises(ValueError, match="eval mode"):
            export(copy.deepcopy(net).train())
    for bounds in [(8, 64), (64, 64), (64, 32)]:
        with pytest.raises(ValueError, match="17 <= min_size < max_size"):
            export_program(net, min_size=bounds[0], max_size=bounds[1])


def test_onnx_packages_are_asked_for(monkeypatch, tmp_path):
    "Without the packages one line says what to install, and no file is written."
    monkeypatch.setattr(exporting, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"needs onnx and onnxscript: pip install 'lesa_nb\[export\]'"):
        export_onnx(small(), tmp_path/"net.onnx")
    assert not list(tmp_path.iterdir())


def same_everywhere(run, net, sizes, limit):
    for i, size in enumerate(sizes):
        x = torch.randn((1, 2, 5)[i % 3], 3, *size, dtype=next(net.parameters()).dtype)
        with torch.no_grad():
            want = net(x)
        torch.testing.assert_close(run(x), want, atol=limit, rtol=limit, msg=lambda text: f"{size}: {text}")  # noqa: B023


@pytest.mark.parametrize("position", ["factored", pytest.param("flat", marks=pytest.mark.slow)])
def test_program_of_the_published_network(position):
    "One graph for every height and width up to the tables' size; in float64, see `test_published_networks`."
    net = lived_in(lesa_resnet50(num_classes=4, image_size=128, position=position)).double()
    run = export_program(net, image_size=(96, 80), min_size=32, max_size=128).module()
    same_everywhere(run, net, [(32, 32), (32, 128), (65, 97), (128, 128)], 1e-7)


def test_program_on_disk(tmp_path):
    "Saved and loaded, it gives the same numbers, and refuses a picture out of its range."
    net = small(position="factored", image_size=128)
    torch.export.save(export_program(net, image_size=(96, 80), min_size=32, max_size=128), tmp_path/"net.pt2")
    run = torch.export.load(tmp_path/"net.pt2").module()
    same_everywhere(run, net, [(32, 128), (65, 97)], 1e-4)
    with pytest.raises(AssertionError):
        run(torch.randn(1, 3, 129, 64))


def onnx_run(path):
    session = onnxruntime.InferenceSession(path)
    return lambda x: torch.from_numpy(session.run(["logits"], {"image": x.numpy()})[0])


@pytest.mark.parametrize(("position", "options", "sizes"), [
    ("flat", dict(image_size=(64, 48)), [(64, 48)]),
    ("factored", dict(image_size=(80, 96), min_size=32, max_size=128), [(32, 32), (97, 65), (128, 128)]),
])
def test_onnx(position, options, sizes, tmp_path):
    "ONNX Runtime gives our logits: one size, and a range; the network itself still attends as before."
    net = small(position=position, image_size=128)
    export_onnx(net, tmp_path/"net.onnx", **options)
    same_everywhere(onnx_run(tmp_path/"net.onnx"), net, sizes, 1e-4)
    assert norms_in(net) and all(part.attend is auto for part in net.modules() if isinstance(part, Context))
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]


class Spread(nn.Module):
    "A term that has a weight and is no convolution."
    def __init__(self, channels):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels, 1, 1))

    def forward(self, x):
        return x*self.weight.square()


def test_a_term_of_your_own_keeps_its_norm(monkeypatch):
    monkeypatch.setitem(TERMS, "spread", lambda channels, **options: (Spread(channels), nn.BatchNorm2d(channels)))
    network = small(term="spread")
    assert difference(network, fold_norms(network), torch.randn(2, 3, 64, 64)) < 1e-5
