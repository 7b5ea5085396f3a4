"""What several parts of a detector compute with: precision, distance, samplers, and thinning out within groups."""
from collections.abc import Callable
from functools import lru_cache

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
