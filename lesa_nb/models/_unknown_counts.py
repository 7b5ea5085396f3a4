"""The same boxes without a question about how many: what an exporter gets, which follows a picture it has not seen.

A graph for every picture may not ask how many boxes there are, or how many belong to a level. Eager PyTorch takes the
shorter ways beside the calls of these functions.
"""
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchvision.ops import nms

#: cuts boxes (n, 4) out of one map at a size and a scale, see `roi_cuts`
_Cut = Callable[[Tensor, Tensor, int, float], Tensor]


def cut_from_levels(
    maps: Sequence[Tensor], boxes: Tensor, levels: Tensor, size: int, strides: Sequence[int], cut: _Cut
) -> Tensor:
    """`roi_features` of notebook 25: every box from its own level, and back to its place.

    maps: (1, C, h, w) of each level; boxes: (n, 4); levels: (n,), the level of each box; returns (n, C, size, size).
    """
    cuts = maps[0].new_zeros(boxes.shape[0], maps[0].shape[1], size, size)
    for level, (level_map, stride) in enumerate(zip(maps, strides)):
        places = (levels == level).nonzero()[:, 0]
        cuts = cuts.index_copy(0, places, cut(level_map, boxes[places], size, 1/stride))
    return cuts


def shared_nms(boxes: Tensor, scores: Tensor, groups: Tensor, overlap: float) -> Tensor:
    """`grouped_nms` for any number of boxes, none included: all groups in one pass, moved aside."""
    largest = torch.cat([boxes.flatten(), boxes.new_zeros(1)]).max()  # boxes lie inside their image: 0 is below all
    return nms(boxes + (groups.to(boxes.dtype)*(largest + 1))[:, None], scores, overlap)
