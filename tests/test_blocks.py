"""What attention in blocks stands on: cuts, windows of a table, kernels against written-out forms, ways by name."""
import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from lesa_nb.layers._blocks import Scratch, _even, blocks, can_be_deep, half_of_a_gpu, side_by_side
from lesa_nb.layers._unknown_sizes import row_and_column_parts
from lesa_nb.layers.blockwise import auto, channel_attention, choose, explicit_rows, row_attention, streaming
from lesa_nb.layers.context import Context, explicit, head_widths
from lesa_nb.layers.flat_blocks import Slant, explicit_flat, flat_attention
from lesa_nb.layers.lesa import LESA, POSITIONS, attend_with
from lesa_nb.layers.position import FactoredTable
from lesa_nb.layers.ways import find_way

H, W = 5, 7
N = H*W


def row_inputs(dtype=torch.float64, K=4, V=8, P=6):
    torch.manual_seed(0)
    shapes = [(P, K, N), (P, K, N), (P, V, N), (P, N, H), (P, N, W)]
    return [torch.randn(*s, dtype=dtype, requires_grad=True) for s in shapes]


def flat_inputs(pitch):
    torch.manual_seed(0)
    R = 2*((H - 1)*pitch + W - 1) + 1
    shapes = [(6, 4, N), (6, 4, N), (6, 8, N), (N, 6, 4), (N, 6, 4), (4, R), (4, R), (8, R)]
    return [torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in shapes]


def assert_same_gradients(got, want, inputs, **limits):
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    g = torch.randn_like(want)
    for a, b in zip(torch.autograd.grad(got, inputs, g), torch.autograd.grad(want, inputs, g), strict=True):
        torch.testing.assert_close(a, b, **limits)


def test_even_parts():
    assert [_even(10, most) for most in (0, 1, 3, 5, 7, 10, 99)] == [1, 1, 3, 5, 5, 10, 10]


@pytest.mark.parametrize(("pairs", "positions", "unit"), [(1, 12, 1), (6, 35, 7), (3, 36, 6), (16, 49, 1)])
def test_blocks_cover_everything_once(pairs, positions, unit):
    for budget in (1, 60, 5*positions, 10**9):
        seen = torch.zeros(pairs, positions)
        for p, i in blocks(pairs, positions, unit, budget, 2):
            seen[p, i] += 1
            size = (p.stop - p.start)*(i.stop - i.start)*positions
            assert size <= max(budget, unit*positions) and i.start % unit == 0
        assert (seen == 1).all()


def test_scratch_takes_its_memory_again():
    scratch = Scratch(torch.zeros(1, dtype=torch.float64))
    a = scratch("a", 3, 4)
    assert a.dtype == torch.float64 and scratch("a", 2, 5).data_ptr() == a.data_ptr() != scratch("b", 2, 5).data_ptr()
    assert scratch("a", 5, 5).shape == (5, 5)


def test_slanted_windows():
    "A window is a view of the table where the pitch is the map's width; elsewhere it has gaps."
    slant, every = Slant(3, 4, 4), slice(0, 3)
    table = torch.arange(23.)[None]
    window = slant.windows(table, (0, 0, 3, 4), every)
    y, x = torch.arange(12)//4, torch.arange(12) % 4
    assert torch.equal(window[:, 0], ((y[:, None] + y)*4 + x[:, None] + x).float())
    assert window.data_ptr() == table.data_ptr()
    wide = Slant(3, 4, 7)
    table = torch.arange(35.)[None]
    want = ((1 + y)*7 + torch.arange(1, 3)[:, None] + x).float()
    assert torch.equal(wide.windows(table, (1, 1, 1, 2), every)[:, 0], want)
    assert slant.columns((0, 0, 3, 4), every) == slice(0, 23)         # all positions need all columns
    assert slant.columns((1, 2, 1, 1), slice(1, 2)) == slice(10, 14)  # one position and one row, W columns
    assert slant.runs(every, 9) == [(0, 0, 2, 4), (2, 0, 1, 4)]       # two whole rows, then the rest
    assert slant.runs(slice(1, 2), 3) == [(1, 0, 1, 3), (1, 3, 1, 1)] # less than a row


@pytest.mark.parametrize("pitch", [W, 2*W - 1])
def test_flat_attention(pitch):
    "Whole and ragged blocks, both pitches, all eight gradients; loud logits; no opinion."
    inputs = flat_inputs(pitch)
    for budget in (10**9, 4*N*N, 6*W*N, 1):
        want = explicit_flat(*inputs, H, W, pitch)
        assert_same_gradients(flat_attention(*inputs, H, W, pitch, budget), want, inputs, rtol=1e-9, atol=1e-11)
    loud = [40*inputs[0], *inputs[1:]]
    got, want = flat_attention(*loud, H, W, pitch, 6*W*N), explicit_flat(*loud, H, W, pitch)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
    quiet = [keep*t for t, keep in zip(inputs, (0, 1, 1, 0, 0, 1, 1, 1), strict=True)]
    mean = inputs[2].mean(-1)[..., None].expand(6, 8, N)
    torch.testing.assert_close(flat_attention(*quiet, H, W, pitch, 10**9)[:, :, 0], mean)


def test_row_attention_with_loud_logits_and_with_one_loud_row():
    "Logits of several hundred: only these are raised; a row part that is all that counts."
    inputs = row_inputs()
    loud = [40*inputs[0], *inputs[1:]]
    torch.testing.assert_close(row_attention(*loud, 99), explicit_rows(*loud), rtol=1e-10, atol=1e-12)
    assert [can_be_deep(*x[:2], *x[3:]) for x in (inputs, loud)] == [False, True]
    zeros = [torch.zeros_like(t) for t in inputs]
    row = zeros[3].detach().clone()
    row[..., 2] = 1e3
    only = row_attention(zeros[0], *inputs[1:3], row, zeros[4], 99)
    torch.testing.assert_close(only, inputs[2].unflatten(-1, (H, W))[:, :, 2].mean(-1)[:, None].expand(6, N, 8))
    for budget in (10**9, 2*11*N, 4*N, 1):
        got, want = row_attention(*inputs, budget), explicit_rows(*inputs)
        assert_same_gradients(got, want, inputs, rtol=1e-10, atol=1e-12)


def test_row_and_column_parts_equal_the_table():
    table, q = FactoredTable((H, W), 4), torch.randn(2, 3, 4, N)
    h, w = row_and_column_parts(q, table.axes((H, W)), (H, W))
    torch.testing.assert_close((h[..., :, None] + w[..., None, :]).flatten(-2), table.scores(q, q, (H, W))[0])


@pytest.mark.parametrize("kernel", [lambda *t: row_attention(*t, 99), channel_attention], ids=["rows", "channels"])
def test_kernels_of_the_factored_table(kernel):
    "Numbers, gradients, second derivatives, and a second backward through the same graph."
    inputs = row_inputs()
    assert_same_gradients(kernel(*inputs), explicit_rows(*inputs), inputs, rtol=1e-10, atol=1e-12)
    out = kernel(*inputs)
    first = torch.autograd.grad(out.sum(), inputs, retain_graph=True)
    for a, b in zip(first, torch.autograd.grad(out.sum(), inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    few = [t[:1, ..., :6] for t in inputs[:3]] + [t[:1, :6, :n] for t, n in zip(inputs[3:], (2, 3), strict=True)]
    few = [t.detach().requires_grad_() for t in few]
    assert torch.autograd.gradcheck(kernel, few) and torch.autograd.gradgradcheck(kernel, few)
    some = [few[0], few[1].detach(), *few[2:]]  # one input that wants no gradient
    assert len(torch.autograd.grad(kernel(*some).sum(), [t for t in some if t.requires_grad])) == 4


def test_fused_kernels_get_operands_they_take(monkeypatch):
    "For every size: last stride 1 and widths in multiples of 8, for q, k and v; zeros change nothing."
    seen, real = [], F.scaled_dot_product_attention

    def spy(query, key, value, **options):
        seen.append([(t.stride(-1), t.shape[-1] % 8, t.is_contiguous()) for t in (query, key, value)])
        return real(query, key, value, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    sizes = [(n, n) for n in range(7, 161)] + [(n, 7 + (67*n) % 154) for n in range(7, 161)]
    for height, width in sizes:
        for K, V, half in ((5, 10, None), (16, 32, torch.bfloat16)):
            n = height*width
            shapes = [(1, K, n), (1, K, n), (1, V, n), (1, n, height), (1, n, width)]
            with torch.device("meta"):
                inputs = [torch.empty(*s).requires_grad_() for s in shapes]
            out = channel_attention(*inputs, half)
            assert out.shape == (1, n, V) and out.dtype == torch.float32
    assert len(seen) == 2*len(sizes) and all(operand == (1, 0, True) for operands in seen for operand in operands)
    inputs = row_inputs(K=5, V=10)
    torch.testing.assert_close(channel_attention(*inputs), explicit_rows(*inputs), rtol=1e-12, atol=1e-12)
    joined = side_by_side(torch.ones(2, 3, 5), torch.ones(2, 3, 4))
    assert joined.shape == (2, 3, 16) and joined.sum() == 2*3*9


SIZES_OF_MAPS = [(7, 9), (16, 16), (21, 34), (40, 25), (64, 43), (80, 80)]


@pytest.mark.parametrize(("height", "width"), SIZES_OF_MAPS)
def test_channels_rows_and_explicit_agree(height, width):
    "Outputs and every gradient, to 1e-5 in float32 and 1e-10 in float64."
    n = height*width
    torch.manual_seed(0)
    shapes = [(1, 2, n), (1, 2, n), (1, 4, n), (1, n, height), (1, n, width)]
    for dtype, limit in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        inputs = [torch.randn(*shape, dtype=dtype, requires_grad=True) for shape in shapes]
        g = torch.randn(1, n, 4, dtype=dtype)
        found = []
        for kernel in (explicit_rows, channel_attention, lambda *t: row_attention(*t, 1 << 21)):
            out = kernel(*inputs)
            found.append([out.detach(), *torch.autograd.grad(out, inputs, g)])
        for other in found[1:]:
            for got, want in zip(other, found[0], strict=True):
                assert (got - want).abs().max() <= limit*want.abs().max().clamp_min(1)


@pytest.mark.parametrize("loud", [1, 3, 10])
def test_two_halves_of_a_query(loud):
    "Products in bfloat16 stay within 2e-2 of float32, gradients too, for logits of any size; rounded once they do not."
    torch.manual_seed(0)
    shapes = [(2, 16, N), (2, 16, N), (2, 32, N), (2, N, H), (2, N, W)]
    q, k, v, h, w = (torch.randn(*shape) for shape in shapes)
    k, v = k.bfloat16().float(), v.bfloat16().float()  # as a network under autocast gives them
    inputs = [t.requires_grad_() for t in (loud/4*q, k, v, loud*h, loud*w)]
    want, got = explicit_rows(*inputs), channel_attention(*inputs, torch.bfloat16)
    g = torch.randn_like(want)

    def off(a, b):
        return ((a - b).abs().max()/b.abs().max()).item()

    assert got.dtype == torch.float32 and off(got, want) < 5e-3
    for a, b in zip(torch.autograd.grad(got, inputs, g), torch.autograd.grad(want, inputs, g), strict=True):
        assert off(a, b) < 2e-2
    if loud == 10:
        assert off(explicit_rows(*(t.detach().bfloat16().float() for t in inputs)), want) > 1e-2


def test_only_a_gpu_gets_halves():
    q = torch.zeros(1, 1, 4, 4)
    assert [half_of_a_gpu(t) for t in (q, q.bfloat16(), q.half())] == [None]*3


def gpu_parameters(dtype, half, side, K, V):
    "What PyTorch's own checks of its fused kernels are asked with."
    from torch.backends.cuda import SDPAParams

    n, seen, real = side*side, [], F.scaled_dot_product_attention

    def spy(query, key, value, **options):
        seen.append((query, key, value))
        return real(query, key, value, **options)

    shapes = [(1, K, n), (1, K, n), (1, V, n), (1, n, side), (1, n, side)]
    F.scaled_dot_product_attention = spy
    try:
        channel_attention(*(torch.randn(*s, device="cuda", dtype=dtype, requires_grad=True) for s in shapes), half)
    finally:
        F.scaled_dot_product_attention = real
    return SDPAParams(*seen[0], None, 0., False, False)


@pytest.mark.gpu
@pytest.mark.parametrize("half", [None, torch.bfloat16])
@pytest.mark.parametrize("side", [7, 14, 20, 33, 64, 80])
def test_pytorch_says_its_fused_kernel_takes_them(side, half):
    "The memory-efficient one for all; the flash one wants queries and values of one width, so it is not counted on."
    from torch.backends.cuda import can_use_efficient_attention, can_use_flash_attention

    params = gpu_parameters(torch.float32, half, side, 16, 32)
    assert can_use_efficient_attention(params, debug=True)
    can_use_flash_attention(params)


# ---- ways by name

def context(table, fmap=(4, 5), **options):
    torch.manual_seed(0)
    return Context(16, 16, POSITIONS[table](fmap, *head_widths(16, 2)), heads=2, **options)


@pytest.mark.parametrize(("table", "way"), [
    ("factored", "rows"), ("factored", "channels"), ("flat", "flat"), ("flat", "auto"), ("factored", "auto"),
    ("flat", streaming), ("factored", streaming),
])
@pytest.mark.parametrize("training", [True, False])
def test_every_way_gives_the_numbers_of_explicit(table, way, training):
    x = torch.randn(2, 16, 6, 3)
    want = context(table, attend="explicit").train(training)(x)
    torch.testing.assert_close(context(table, attend=way).train(training)(x), want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(attend_with(context(table), way).train(training)(x), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("table", POSITIONS)
def test_a_bare_context_streams_as_the_layer_does(table):
    assert context(table).attend is LESA(16, 16, 4, heads=2, position=table).context.attend is auto
    x = torch.randn(1, 16, 40, 40)
    q = context(table)._split(x)[0]
    way = choose(q, context(table).position, nn.BatchNorm2d(6), (40, 40))
    assert way.name == {"flat": "flat", "factored": "rows"}[table]


def test_a_way_that_cannot_serve_is_refused_and_nothing_changes():
    words = "'rows' serves a FactoredTable, found a FlatTable: choose one of 'auto', 'explicit', 'flat'"
    with pytest.raises(ValueError, match=words):
        context("flat", attend="rows")
    both = nn.ModuleList([context("factored"), context("flat")])
    for way in ("rows", "channels", "flat"):
        with pytest.raises(ValueError, match="serves a"):
            attend_with(both, way)
        assert [part.attend for part in both] == [auto, auto]
    with pytest.raises(ValueError, match="unknown way to attend 'round': choose one of"):
        attend_with(both, "round")
    attend_with(both, "explicit")
    assert [part.attend for part in both] == [explicit, explicit]
    assert all(find_way("explicit", part.position) is explicit for part in both)


class Doubled(nn.BatchNorm2d):
    "A subclass that does more than its parent."
    def forward(self, x):
        return 2*super().forward(x)


@pytest.mark.fault("L3")
@pytest.mark.parametrize("table", POSITIONS)
@pytest.mark.parametrize("make", [lambda C: nn.GroupNorm(2, C), nn.InstanceNorm2d, lambda C: nn.Identity(), Doubled],
                         ids=["group", "instance", "none", "subclass"])
def test_other_norms_of_scores(table, make):
    "On a large map as on a small one: the way is chosen by what the norm is, and named ways refuse."
    one = context(table, fmap=(30, 30))
    one.norm_scores = make(one.norm_scores.num_features)
    x = torch.randn(1, 16, 30, 30)
    two = attend_with(copy.deepcopy(one), "explicit")
    torch.testing.assert_close(one(x), two(x))
    with pytest.raises(ValueError, match=f"{type(one.norm_scores).__name__} does more to scores"):
        attend_with(one, "flat" if table == "flat" else "rows")(x)


@pytest.mark.fault("L3")
@pytest.mark.parametrize("table", POSITIONS)
def test_frozen_norm_of_scores(table):
    "torchvision's FrozenBatchNorm2d is a batch norm at rest, in training mode too."
    one = context(table, attend=streaming)
    frozen = FrozenBatchNorm2d(one.norm_scores.num_features)
    nn.init.uniform_(frozen.running_var, .5, 2)
    nn.init.normal_(frozen.weight)
    one.norm_scores = frozen
    x = torch.randn(2, 16, 6, 5)
    for training in (True, False):
        want = attend_with(copy.deepcopy(one), "explicit").train(training)(x)
        torch.testing.assert_close(one.train(training)(x), want, rtol=1e-4, atol=1e-5)


def test_a_table_of_your_own_is_written_out():
    class Half(FactoredTable):
        pass

    class Own(nn.Module):
        n_scores, n_values = 1, 0

        def scores(self, q, k, size):
            return [torch.zeros(*q.shape[:2], q.shape[-1], q.shape[-1])]

        def values(self, w, size):
            return []

    own = Context(16, 16, Own(), heads=2)
    assert own(torch.randn(1, 16, 24, 24)).shape == (1, 16, 24, 24)
    with pytest.raises(ValueError, match="serves a FactoredTable, found a Own"):
        Context(16, 16, Own(), heads=2, attend="rows")
    assert Context(16, 16, Half((4, 4), 4), heads=2, attend="rows")(torch.randn(1, 16, 6, 6)).shape == (1, 16, 6, 6)
