"""A picture at its own size with boxes, masks, names and scores drawn in: what `lesa predict` writes."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor


class _Masks(Protocol):
    def __getitem__(self, i: int, /) -> Tensor:
        raise NotImplementedError


def _hue(number: int) -> tuple[int, int, int]:
    """A colour for a label: ten that differ, the same for every picture."""
    from matplotlib import colormaps  # here, so that predicting without drawing needs no plotting

    red, green, blue = (round(255*part) for part in colormaps["tab10"](number % 10)[:3])
    return red, green, blue


def annotate(
    image: Tensor, boxes: Tensor, labels: Sequence[int], texts: Sequence[str], masks: _Masks | None = None,
) -> Image.Image:
    """Draw objects into a picture, the best last, so that it lies on top.

    image: (3, H, W) in [0, 1]. boxes: (n, 4), xyxy in its pixels, best first. labels: whole numbers, which choose the
    colours. texts: what is written at each box. masks: `masks[i]` is (H, W), true inside object i; asked for one after
    the other. Returns a picture of the same size.
    """
    from matplotlib import get_data_path
    from torchvision.utils import draw_bounding_boxes

    canvas = (255*image.clamp(0, 1)).round().to(torch.uint8)
    order = list(reversed(range(len(boxes))))
    colors = [_hue(labels[i]) for i in order]
    if order and masks is not None:
        painted = canvas.clone()
        for i, color in zip(order, colors):
            painted[:, masks[i].bool()] = torch.tensor(color, dtype=torch.uint8)[:, None]
        canvas = (.55*canvas + .45*painted).to(torch.uint8)
    if order:
        longest = max(image.shape[1:])
        whole = boxes[order].round()
        whole[:, 2:] = torch.maximum(whole[:, 2:], whole[:, :2])  # a box thinner than a pixel is a line
        canvas = draw_bounding_boxes(
            canvas, whole, labels=[texts[i] for i in order], colors=colors, label_colors="white",
            label_background_colors=colors, fill_labels=True, width=max(1, longest//300),
            font=f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf", font_size=max(9, longest//45))
    return Image.fromarray(canvas.permute(1, 2, 0).numpy())
