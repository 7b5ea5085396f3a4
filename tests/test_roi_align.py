"""RoIAlign's gradient on a CPU: torchvision's, for all boxes, several times as fast."""

import math

import pytest
import torch
import torchvision
from torch.autograd import gradcheck, gradgradcheck

from lesa_nb.models import ops


def case(n, channels=5, h=17, w=23, scale=0.25, dtype=torch.float64, longest=1.3):
    "A map and boxes in the pixels of its picture, some over its edge, some of no area."
    draw = torch.Generator().manual_seed(n)
    maps = torch.randn(1, channels, h, w, dtype=dtype, generator=draw)
    side = torch.tensor([w, h]) / scale
    low = torch.rand(n, 2, generator=draw) * side - 0.2 * side
    boxes = torch.cat([low, low + torch.rand(n, 2, generator=draw) ** 2 * longest * side], 1)
    boxes[::7, 2:] = boxes[::7, :2]
    return maps, boxes.to(dtype), scale


def gradients(cut, maps, boxes, size, scale):
    maps = maps.clone().requires_grad_()
    cuts = cut(maps, [boxes], size, scale)
    cuts.backward(torch.randn(cuts.shape, dtype=cuts.dtype, generator=torch.Generator().manual_seed(0)))
    return cuts.detach(), maps.grad


def theirs(maps, boxes, size, scale):
    return torchvision.ops.roi_align(maps, boxes, size, scale, aligned=True)


@pytest.mark.parametrize("size", [1, 7, 14])
@pytest.mark.parametrize("n", [0, 1, 40])
@pytest.mark.parametrize(("dtype", "off"), [(torch.float64, 1e-13), (torch.float32, 2e-6)])
def test_the_cuts_to_the_bit_and_the_gradient_of_torchvision(size, n, dtype, off):
    for shape in ((17, 23), (1, 1), (2, 40)):
        maps, boxes, scale = case(n, h=shape[0], w=shape[1], dtype=dtype)
        (cuts, grad), (want, expected) = (gradients(cut, maps, boxes, size, scale) for cut in (ops.roi_align, theirs))
        assert cuts.equal(want) and grad.dtype == dtype
        torch.testing.assert_close(grad, expected, rtol=0, atol=off * max(1.0, expected.abs().max().item()))


def test_long_boxes_are_worked_off_apart(monkeypatch):
    "So that a long one does not make room for its samples in all the others; the sum is the same."
    sizes, real = [], ops.F.embedding_bag
    monkeypatch.setattr(ops.F, "embedding_bag", lambda bins, *rest, **options: sizes.append(len(bins)) or real(
        bins, *rest, **options))
    maps, boxes, scale = case(60, channels=2, h=200, w=200, longest=0.2)
    boxes[3] = torch.tensor([0.0, 0.0, 790.0, 3.0])
    boxes[5] = torch.tensor([0.0, 0.0, 3.0, 790.0])
    (_, grad), (_, expected) = (gradients(cut, maps, boxes, 14, scale) for cut in (ops.roi_align, theirs))
    torch.testing.assert_close(grad, expected, rtol=1e-12, atol=1e-12)
    assert len(sizes) > 1 and max(sizes) <= 2**22


def test_boxes_of_no_number_get_no_gradient():
    maps, boxes, scale = case(4, dtype=torch.float32)
    for bad in (math.nan, math.inf, -math.inf):
        boxes[1] = bad
        grad = gradients(ops.roi_align, maps, boxes, 7, scale)[1]
        others = gradients(ops.roi_align, maps, boxes[[0, 2, 3]], 7, scale)[1]
        assert grad.isfinite().all() and others.abs().sum() > 0


def test_derivatives_of_any_order():
    "torchvision's kernel has no second derivative; this one's gradient is made of operations that have."
    maps, boxes, scale = case(6, channels=2, h=5, w=6)
    maps.requires_grad_()
    cut = lambda m: ops.roi_align(m, [boxes], 3, scale)  # noqa: E731
    assert gradcheck(cut, maps) and gradgradcheck(cut, maps)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_under_autocast(half):
    maps, boxes, scale = case(20, dtype=torch.float32)
    with torch.autocast("cpu", dtype=half):
        for m in (maps, maps.to(half)):
            cuts, grad = gradients(ops.roi_align, m, boxes, 7, scale)
            want, expected = gradients(theirs, m, boxes, 7, scale)
            assert cuts.equal(want) and grad.dtype == m.dtype
            torch.testing.assert_close(grad, expected, rtol=2e-2, atol=2e-2)


def test_compilers_and_several_maps_get_the_kernel():
    maps, boxes, scale = case(20, dtype=torch.float32)
    rois = torch.cat([torch.arange(20)[:, None] % 2, boxes], 1)
    two = torch.cat([maps, maps]).requires_grad_()
    (got,) = torch.autograd.grad(ops.roi_align(two, rois, 7, scale).square().sum(), two)
    want = torchvision.ops.roi_align(two, rois, 7, scale, aligned=True)
    assert got.equal(torch.autograd.grad(want.square().sum(), two)[0])
    fast = torch.compile(lambda m, b: ops.roi_align(m, [b], 7, scale), backend="aot_eager", fullgraph=True)
    one = maps.requires_grad_()
    (got,) = torch.autograd.grad(fast(one, boxes).square().sum(), one)
    (want,) = torch.autograd.grad(theirs(one, [boxes], 7, scale).square().sum(), one)
    assert got.equal(want)
