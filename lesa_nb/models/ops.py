"""What several parts of a detector compute with: precision, distance, overlap, samplers, thinning out within groups."""
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import batched_nms, nms

#: takes places to choose from and a number, and returns at most so many of them
Sampler = Callable[[Tensor, int], Tensor]


def full_precision(x: Tensor) -> Tensor:
    """At least float32: boxes and losses need it, whatever the network computes in. float64 stays float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def smooth_l1(a: Tensor, b: Tensor, beta: float) -> Tensor:
    """The summed distance |a - b|, a parabola below `beta`, eq. (24.8); with 0 there is no parabola."""
    return F.smooth_l1_loss(a, b, reduction="sum", beta=beta) if beta else F.l1_loss(a, b, reduction="sum")


def pairwise_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of boxes (m, 4) and others (n, 4): (m, n), to the bit what torchvision's `box_iou` says.

    Never more than three tensors of the result's size exist, where `box_iou` makes a dozen.
    """
    (x0, y0, x1, y1), (u0, v0, u1, v1) = boxes[:, :, None].unbind(1), others.unbind(1)
    width, aside = torch.minimum(x1, u1), torch.maximum(x0, u0)
    width.sub_(aside).clamp_(min=0)
    height = torch.minimum(y1, v1)
    height.sub_(torch.maximum(y0, v0, out=aside)).clamp_(min=0)
    both = width.mul_(height)
    union = torch.add((x1 - x0)*(y1 - y0), (u1 - u0)*(v1 - v0), out=height).sub_(both)
    return both.div_(union)


def places_of(masks: Sequence[Tensor]) -> list[Tensor]:
    """Where each mask (n,) is true, in order: `nonzero` of all of them, for one wait for the device instead of many."""
    if not masks:
        return []
    counts = torch.stack([mask.sum() for mask in masks]).tolist()  # the wait
    return [mask.nonzero_static(size=count)[:, 0] if count else mask.new_empty(0, dtype=torch.int64)
            for mask, count in zip(masks, counts)]


def random_sampler(places: Tensor, number: int) -> Tensor:
    """At most `number` of the places (n,), each with the same chance."""
    if len(places) <= number:
        return places
    return places[torch.randperm(len(places), device=places.device)[:number]]


def first_sampler(places: Tensor, number: int) -> Tensor:
    """The first `number` of the places (n,): for comparing two runs."""
    return places[:number]


def grouped_nms(boxes: Tensor, scores: Tensor, groups: Tensor, overlap: float) -> Tensor:
    """Non-maximum suppression within each group, a level or a class.

    Boxes (n, 4) compete with those of the same group (n,) of integers: a box that overlaps a better one by more than
    `overlap` goes. Returns the places of those that stay, best first. Below 10,000 boxes all groups share one pass,
    moved aside so that they do not touch, with the published system's rounding.
    """
    if torch.compiler.is_exporting():
        return _nms_of_a_graph(boxes, scores, groups, overlap)
    if not 0 < len(boxes) < 10_000:
        return batched_nms(boxes, scores, groups, overlap)
    aside = groups.to(boxes.dtype)*(boxes.max() + 1)
    return nms(boxes + aside[:, None], scores, overlap)


def _nms_of_a_graph(boxes: Tensor, scores: Tensor, groups: Tensor, overlap: float) -> Tensor:
    """The same for an exporter, which may not ask how many boxes there are: all groups share one pass.

    torchvision promises an exporter that at least two boxes stay. Two that are alone and last make that true.
    """
    largest = torch.cat([boxes.flatten(), boxes.new_zeros(1)]).max()  # 0 is below all, and there may be none
    aside = groups.to(boxes.dtype)*(largest + 1)
    alone, last = boxes.new_tensor([[-2, -2, -1, -1], [-4, -4, -3, -3]]), scores.new_tensor([-1, -2])
    return nms(torch.cat([boxes + aside[:, None], alone]), torch.cat([scores, last]), overlap)[:-2]


def best_boxes(boxes: Tensor, probabilities: Tensor, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """At most 100 boxes whose names do not repeat each other, eq. (25.8): boxes (d, 4), scores, classes from 0.

    `boxes` (n, k, 4) has a box for each class, or one (k = 1) for all; `probabilities` (n, C) are without background.
    Pairs strictly above `threshold` compete within their class, by an overlap of more than one half; best first.
    """
    places, classes = (probabilities > threshold).nonzero(as_tuple=True)
    boxes = boxes[places, classes if boxes.shape[1] > 1 else 0]
    scores = probabilities[places, classes]
    kept = grouped_nms(boxes, scores, classes, .5)[:100]
    return boxes[kept], scores[kept], classes[kept]


def _taps(low: Tensor, high: Tensor, size: int, cells: int) -> tuple[Tensor, Tensor]:
    """Which cells of one axis each of `size` bins reads, and in what shares: (n, size, 2k) both.

    A bin between `low` and `high` (n,) takes the mean of one sample for each cell of its length, at most k, and each
    sample lies between two cells; rounded in the kernel's order. Samples that a box does not have get a share of 0.
    """
    step = ((high - low)/size)[:, None, None]
    number = step.ceil()
    sample, bins = (torch.arange(n, dtype=low.dtype, device=low.device) for n in (int(number.max()), size))
    at = low[:, None, None] + bins[:, None]*step + (sample + .5)*step/number
    share = ((sample < number) & (at >= -1) & (at <= cells))/number.clamp_min(1)
    at = at.nan_to_num().clamp(0, cells - 1)
    first = at.floor()
    second_share = (at - first)*share
    places = torch.cat([first, (first + 1).clamp_max(cells - 1)], -1).long()
    return places, torch.cat([share - second_share, second_share], -1)


def _spread(grad: Tensor, boxes: Tensor, h: int, w: int) -> Tensor:
    """The gradient of a map (1, C, h, w), given that of its cuts (n, C, size, size) at `boxes` (n, 4) in its pixels.

    RoIAlign's own kernel for CPUs finds every bin's pixels again for each channel, on one core. Here they are found
    once, and each pixel adds up rows of channels: the sum of the kernel in another order.
    """
    boxes, (n, C, size, _) = boxes.nan_to_num(0, 0, 0), grad.shape
    (x, in_x), (y, in_y) = (_taps(boxes[:, i], boxes[:, i + 2], size, cells) for i, cells in ((0, w), (1, h)))
    if n > 1 and n*size*size*x.shape[2]*y.shape[2] > 2**22:  # a few long boxes need many taps: not with all others
        wide = ((boxes[:, 2:] - boxes[:, :2])/size).ceil().prod(1).argsort().chunk(2)
        return _spread(grad[wide[0]], boxes[wide[0]], h, w) + _spread(grad[wide[1]], boxes[wide[1]], h, w)
    pixel = (y[:, :, None, :, None]*w + x[:, None, :, None, :]).flatten().int()  # of box, row, column, and their taps
    share = (in_y[:, :, None, :, None]*in_x[:, None, :, None, :]).flatten()
    pixel, order = pixel.sort(stable=True)
    bins = order//max(1, x.shape[2]*y.shape[2])
    start = torch.searchsorted(pixel, torch.arange(h*w, dtype=pixel.dtype, device=pixel.device))
    rows = grad.flatten(2).transpose(1, 2).reshape(-1, C)
    return F.embedding_bag(bins, rows, start, mode="sum", per_sample_weights=share[order]).T.reshape(1, C, h, w)


class _RoIAlignOnCPU(torch.autograd.Function):
    """RoIAlign of one map by torchvision's kernel, with a gradient that does not wait for its kernel."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, rois: Tensor, size: int, scale: float) -> Tensor:
        ctx.save_for_backward(rois)
        ctx.scale, ctx.shape, ctx.dtype = scale, maps.shape[2:], maps.dtype
        return torch.ops.torchvision.roi_align(maps, rois, scale, size, size, -1, True)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        grad, boxes = full_precision(grads[0]), ctx.saved_tensors[0][:, 1:].to(full_precision(grads[0]).dtype)
        return _spread(grad, boxes*ctx.scale - .5, *ctx.shape).to(ctx.dtype), None, None, None


def roi_align(maps: Tensor, boxes: Tensor | list[Tensor], size: int, scale: float = 1.) -> Tensor:
    """torchvision's `roi_align` with half-pixel centres, always by its kernel: (n, C, size, size).

    `boxes`: (n, 5) with the number of a map in front, or a list of (n, 4) for a single map. Where deterministic
    operators were asked for, torchvision would take a form in Python on a GPU that holds the map once for each box.
    The gradient of a single map on a CPU is our own, which is several times as fast.
    """
    rois = F.pad(boxes[0], (1, 0)) if isinstance(boxes, list) else boxes
    learns = maps.requires_grad and torch.is_grad_enabled() and not torch.compiler.is_compiling()
    if learns and maps.device.type == "cpu" and len(maps) == 1 and len(rois):
        return _RoIAlignOnCPU.apply(maps, rois, size, scale)
    return torch.ops.torchvision.roi_align(maps, rois, scale, size, size, -1, True)


def roi_cuts(maps: Tensor, boxes: Tensor, size: int, scale: float) -> Tensor:
    """Cut boxes (n, 4) out of one map (1, C, h, w) that is `scale` times their image: (n, C, size, size), eq. (25.2).

    RoIAlign with half-pixel centres, in float32 or better, whatever the map and the boxes are in: boxes in half
    precision would move. The cuts are in the map's precision.
    """
    precise = full_precision(maps)
    return roi_align(precise, [boxes.to(precise.dtype)], size, scale).to(maps.dtype)


def cuts_by_level(
    maps: Sequence[Tensor], boxes: Tensor, levels: Tensor, size: int, strides: Sequence[int]
) -> Tensor:
    """Cut every box out of the map of its own level: (n, C, size, size), in the order of the boxes.

    `maps` (1, C, h, w) and `strides` have one for each level, `boxes` (n, 4) lie on `levels` (n,). On a CPU, and in the
    graph of an exporter, each level cuts its own boxes. On other devices nobody waits to hear how many those are: every
    level cuts all boxes, those of other levels shrunk to no area, which take no work and give zeros. The sum over
    levels is the same to the bit.
    """
    if boxes.device.type != "cpu" and not torch.compiler.is_exporting():
        return reduce(torch.add, (roi_cuts(level_map, boxes*(levels == level)[:, None], size, 1/stride)
                                  for level, (level_map, stride) in enumerate(zip(maps, strides))))
    cuts = maps[0].new_zeros(boxes.shape[0], maps[0].shape[1], size, size)
    for level, (level_map, stride) in enumerate(zip(maps, strides)):
        places = (levels == level).nonzero()[:, 0]
        if not torch.compiler.is_compiling() and not len(places):
            continue
        cuts.index_copy_(0, places, roi_cuts(level_map, boxes[places], size, 1/stride))
    return cuts
