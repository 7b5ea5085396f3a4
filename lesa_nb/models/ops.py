"""What several parts of a detector compute with: precision, distance, samplers, and thinning out within groups."""
from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import batched_nms, nms, roi_align

#: takes places to choose from and a number, and returns at most so many of them
Sampler = Callable[[Tensor, int], Tensor]


def full_precision(x: Tensor) -> Tensor:
    """At least float32: boxes and losses need it, whatever the network computes in. float64 stays float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def smooth_l1(a: Tensor, b: Tensor, beta: float) -> Tensor:
    """The summed distance |a - b|, a parabola below `beta`, eq. (24.8); with 0 there is no parabola."""
    return F.smooth_l1_loss(a, b, reduction="sum", beta=beta) if beta else F.l1_loss(a, b, reduction="sum")


@lru_cache(maxsize=80)
def constant(numbers: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Numbers as a tensor, brought to a device once and not at every step. Do not write into it."""
    with torch.inference_mode(False):  # what is kept must serve in training too
        return torch.tensor(numbers, device=device, dtype=dtype)


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
    if not 0 < len(boxes) < 10_000:
        return batched_nms(boxes, scores, groups, overlap)
    aside = groups.to(boxes.dtype)*(boxes.max() + 1)
    return nms(boxes + aside[:, None], scores, overlap)


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


def roi_cuts(maps: Tensor, boxes: Tensor, size: int, scale: float) -> Tensor:
    """Cut boxes (n, 4) out of one map (1, C, h, w) that is `scale` times their image: (n, C, size, size), eq. (25.2).

    RoIAlign with half-pixel centres, in float32 or better, whatever the map and the boxes are in: boxes in half
    precision would move. The cuts are in the map's precision.
    """
    precise = full_precision(maps)
    return roi_align(precise, [boxes.to(precise.dtype)], size, scale, aligned=True).to(maps.dtype)
