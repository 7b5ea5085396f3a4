"""Pictures of boxes, masks and scores: what a detector is told, and what it says."""
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ._text import no_formulas
from .capture import capture_layer
from .maps import cell_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def _draw_objects(ax, image: Tensor, target: dict, names: Sequence[str] | None, threshold: float):
    """One image with its boxes, masks and names."""
    import matplotlib.pyplot as plt  # here, so that training needs no plotting

    from ._names import name_box
    canvas = image.detach().cpu().float().clamp(0, 1).permute(1, 2, 0).numpy().copy()
    count = len(target["labels"])
    scores: list = target["scores"].tolist() if "scores" in target else [None]*count
    crowds = target["iscrowd"].tolist() if "iscrowd" in target else [0]*count
    texts = []
    for i, (box, label) in enumerate(zip(target["boxes"].tolist(), target["labels"].tolist())):
        if scores[i] is not None and scores[i] < threshold:
            continue
        hue = plt.get_cmap("tab10")(label % 10)
        if "masks" in target:
            inside = target["masks"][i].detach().cpu().reshape(image.shape[-2:]).float().numpy() >= .5
            canvas[inside] = .45*canvas[inside] + .55*np.array(hue[:3])
        sides = box[2] - box[0], box[3] - box[1]
        ax.add_patch(plt.Rectangle(box[:2], *sides, fill=False, ec=hue, lw=1.4, hatch="//" if crowds[i] else None))
        name, end = names[label - 1] if names else str(label), "" if scores[i] is None else f"{scores[i]:.2f}"
        if name or end:
            texts.append((box, name, end, hue))
    ax.imshow(canvas)
    for text in texts:
        name_box(ax, *text)


def show_batch(
    images: Sequence[Tensor], targets: Sequence[dict], names: Sequence[str] | None = None, *,
    title: str | None = None, threshold: float = .5, cols: int = 4, size: float = 1.9,
) -> "Figure":
    """Draw boxes, masks and names on images; crowds are hatched.

    `images`: (3, H, W) in [0, 1]. `targets`: targets, or what a detector returns: boxes, labels and, if there are any,
    masks and scores. `names`: of the labels 1, 2, ...; "" is not written. `threshold`: draw what scores at least this.
    `cols`: images in a row, each `size` inches wide, 1.6 at least: 160 pixels.
    """
    from .figures import new_figure, title_height
    size, cols = max(size, 1.6), min(cols, len(images))
    rows, tall = -(-len(images)//cols), max(image.shape[-2]/image.shape[-1] for image in images)
    height = size*tall*rows + title_height(title, size*cols)
    fig, axes = new_figure(rows, cols, size=(size*cols, height), title=title, squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    for ax, image, target in zip(axes.flat, images, targets):
        _draw_objects(ax, image, target, names, threshold)
    return fig


def show_scores(scores: Any, *, title: str | None = None, classes: int = 12) -> "Figure":
    """AP of each class, and precision against recall at two thresholds.

    Boxes are drawn broad and pale, masks thin and dark, 0.75 dashed; two equal curves of a kind are one, named so.
    `scores`: with `class_ap(kind)`, `curve(kind, threshold=...)` and `mask` (None without masks), as
    `tasks.coco_eval.Scores`. `title`: the finding. `classes`: at most so many, the best ones.
    """
    from .figures import COLORS, new_figure
    kinds = ["box", "mask"] if scores.mask else ["box"]
    every = {kind: {name: 100*ap for name, ap in scores.class_ap(kind).items() if not np.isnan(ap)} for kind in kinds}
    shown = sorted(every["box"], key=lambda name: every["box"][name], reverse=True)[:classes]
    fig, (left, right) = new_figure(1, 2, size=(7, 2.7), title=title)
    styles = dict(box=dict(alpha=.45, lw=4.5), mask=dict(alpha=1, lw=1.4))  # both are seen where they lie on each other
    for i, kind in enumerate(kinds):
        places = np.arange(len(shown)) + (i - .5)*.38*(len(kinds) > 1)
        left.barh(places, [every[kind].get(name, 0) for name in shown], .36, color=COLORS["neutral"], label=kind,
                  alpha=styles[kind]["alpha"])
        found = {threshold: scores.curve(kind, threshold=threshold) for threshold in (.5, .75)}
        equal = all(np.array_equal(one, other) for one, other in zip(*found.values()))
        for threshold, (recalls, precisions) in list(found.items())[:1 if equal else 2]:
            right.plot(recalls, precisions, ls="-" if threshold == .5 else (0, (2, 1)), color=COLORS["neutral"],
                       label=f"{kind}, IoU {threshold}{' = 0.75'*equal}", **styles[kind])
    left.set_yticks(range(len(shown)), [no_formulas(name) for name in shown])
    left.invert_yaxis()
    left.set(xlabel="AP", xlim=(0, 100))
    right.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.05))
    for ax in (left, right):
        ax.legend(frameon=False, fontsize=8, ncols=2, columnspacing=1, loc="lower left", bbox_to_anchor=(0, 1))
    return fig


def _box_middles(boxes: Tensor, size: tuple[int, int]) -> list[tuple[int, int]]:
    """Row and column of the pixel in the middle of each box; boxes (n, 4) are corners, `size` the image's (H, W)."""
    (height, width), middles = size, ((boxes[:, :2] + boxes[:, 2:])/2).clamp_min(0).tolist()
    return [(min(int(y), height - 1), min(int(x), width - 1)) for x, y in middles]


def context_maps(backbone: nn.Module, x: Tensor, boxes: Tensor, size: tuple[int, int],
                 layer: str | None = None) -> Tensor:
    """What the middle of each box attends to, mean of the heads: (n, h, w), each summing to 1.

    `backbone` with attention layers; `x`: the image as the backbone takes it, (1, 3, H', W'); `boxes`: corners (n, 4)
    in pixels of the image as it came, which has `size` (H, W). `layer`: a name from `attention_layers`; None: the last.
    """
    seen = capture_layer(backbone, x, layer)
    cells = [cell_of(pixel, size, seen.size) for pixel in _box_middles(boxes, size)]
    return torch.stack([seen.attention(*cell)[0].mean(0) for cell in cells])


def show_contexts(image: Tensor, boxes: Tensor, maps: Tensor, names: Sequence[str], *,
                  title: str | None = None) -> "Figure":
    """Objects of an image (3, H, W) and what the middle of each attends to, on one colour scale from zero.

    `boxes`: corners (n, 4); `maps`: (n, h, w) from `context_maps`; `names`: what is written above each. A ValueError
    says so if there are no boxes.
    """
    import matplotlib.pyplot as plt  # here, so that training needs no plotting

    from .figures import new_figure, overlay, scale_bar, title_height
    if not len(boxes):
        raise ValueError("no boxes to look from: the detector found nothing on this picture")
    size = (image.shape[1], image.shape[2])
    width, top = 1.7*len(boxes) + .75, float(maps.max())
    height = 1.7*size[0]/size[1] + .3 + title_height(title, width)
    fig, axes = new_figure(1, len(boxes), size=(width, height), title=title, squeeze=False)
    for ax, box, name, values, middle in zip(axes[0], boxes.tolist(), names, maps, _box_middles(boxes, size)):
        cell = cell_of(middle, size, (values.shape[0], values.shape[1]))
        overlay(image.cpu(), values.cpu(), cell, no_formulas(name), ax, vmin=0, vmax=top)
        ax.add_patch(plt.Rectangle(box[:2], box[2] - box[0], box[3] - box[1], fill=False, ec="white", lw=1.2))
    scale_bar(axes, (0, top), label="weight")
    return fig
