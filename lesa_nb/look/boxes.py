"""Pictures of boxes, masks and scores: what a detector is told, and what it says."""
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def _draw_objects(ax, image: Tensor, target: dict, names: Sequence[str] | None, threshold: float):
    """One image with its boxes, masks and names."""
    import matplotlib.pyplot as plt  # here, so that training needs no plotting
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
        name = names[label - 1] if names else str(label)
        texts.append((box, name if scores[i] is None else f"{name} {scores[i]:.2f}", hue))
    ax.imshow(canvas)
    for box, text, hue in texts:
        ax.text(box[0], max(box[1], 6), text, fontsize=6, color="white", va="bottom",
                bbox=dict(fc=hue, ec="none", pad=.6))


def show_batch(
    images: Sequence[Tensor], targets: Sequence[dict], names: Sequence[str] | None = None, *,
    title: str | None = None, threshold: float = .5, cols: int = 4, size: float = 1.9,
) -> "Figure":
    """Draw boxes, masks and names on images; crowds are hatched.

    `images`: (3, H, W) in [0, 1]. `targets`: targets, or what a detector returns: boxes, labels and, if there are any,
    masks and scores. `names`: of the labels 1, 2, ... `threshold`: draw what scores at least this. `cols`: images in a
    row, each `size` inches wide.
    """
    from .figures import new_figure
    cols = min(cols, len(images))
    rows = -(-len(images)//cols)
    fig, axes = new_figure(rows, cols, size=(size*cols, size*rows + .45*bool(title)), title=title, squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    for ax, image, target in zip(axes.flat, images, targets):
        _draw_objects(ax, image, target, names, threshold)
    return fig
