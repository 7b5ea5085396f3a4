"""A confusion matrix as a picture: two classes with their numbers written in, or a thousand without names."""
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lesa_nb.look._text import has_letters

if TYPE_CHECKING:  # scoring without drawing needs no plotting
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["confusion_figure"]

_MOST_NAMES = 40  # classes whose names can be read beside the picture
_MOST_NUMBERS = 15  # classes whose cells have room for a number
_MOST_DOTS = 400  # cells of a side that a screen can show one by one
_LONGEST = 24  # letters of a name


def _label(name: str, number: int) -> str:
    """A name as it can be written beside a row: short, or its number if the font lacks a letter of it."""
    if not has_letters(name):
        return f"class {number}"
    return name if len(name) <= _LONGEST else name[:_LONGEST - 1] + "…"


def _shares(counts: np.ndarray) -> np.ndarray:
    """Each row in percent of its sum; NaN where there is nothing."""
    total = counts.sum(1, keepdims=True)
    return 100*np.divide(counts, total, out=np.full(counts.shape, np.nan), where=total > 0)


def _pooled(shares: np.ndarray, block: int) -> np.ndarray:
    """The largest of each block x block cells, so that no dot gets lost; NaN where all are."""
    n = len(shares)
    padded = np.full((-(-n//block)*block,)*2, -1.)
    padded[:n, :n] = np.nan_to_num(shares, nan=-1.)
    largest = padded.reshape(len(padded)//block, block, -1, block).max((1, 3))
    return np.where(largest < 0, np.nan, largest)


def _name_axes(ax: Axes, names: Sequence[str], block: int) -> None:
    """Names beside rows and columns while they can be read, numbers of classes beyond."""
    if len(names) <= _MOST_NAMES:
        labels = [_label(name, number) for number, name in enumerate(names)]
        upright = max(map(len, labels))*len(labels) > 40
        ax.set_xticks(range(len(labels)), labels, fontsize=8, rotation=90*upright)
        ax.set_yticks(range(len(labels)), labels, fontsize=8)
        for text in (*ax.get_xticklabels(), *ax.get_yticklabels()):
            text.set_parse_math(False)  # a name may hold dollars
    else:
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_formatter(lambda cell, _: f"{cell*block:g}")
            axis.set_tick_params(labelsize=8)
    ax.tick_params(length=2)


def confusion_figure(counts: Any, names: Sequence[str], title: str | None = None) -> Figure:
    """Draw how often each class was taken for each, as shares of what a row shows.

    Up to 15 classes have the shares written in; of more, colours go by the square root, so that a single mistake can
    be seen. Up to 40 have their names; above, the axes count classes from 0, in the order of `names`. Of more than 400
    a dot is the largest share in a square of them. Rows of classes without pictures are grey.

    Args:
        counts: (n, n) whole numbers, as an array or a tensor: row: the class that is shown, column: the answer.
        names: Of the n classes, as text.
        title: The finding; what rows, columns and colours are is written below it.

    Raises:
        ValueError: Another shape, or as many names as there are no rows.
    """
    from matplotlib import colormaps
    from matplotlib.colors import Normalize, PowerNorm

    from lesa_nb.look.figures import new_figure

    table = np.asarray(counts.detach().cpu() if hasattr(counts, "detach") else counts, dtype=float)
    n = len(names)
    if table.shape != (n, n) or not n:
        raise ValueError(f"expected a square of counts with a name for each row, got {table.shape} and {n} names")
    block, named, written = -(-n//_MOST_DOTS), n <= _MOST_NAMES, n <= _MOST_NUMBERS
    shares = _pooled(_shares(table), block)
    side, letters = min(6., max(1.8, .36*n)), min(_LONGEST, max(map(len, names)))*named
    fig, ax = new_figure(size=(side + 1.6 + .07*letters, side + .8 + .07*letters), title=title)
    image = ax.imshow(np.ma.masked_invalid(shares), colormaps["viridis"].with_extremes(bad="#D5D8DD"),
                      Normalize(0, 100) if written else PowerNorm(.5, 0, 100), interpolation="nearest")
    for row, column in np.argwhere(shares > 0) if written else ():
        share = shares[row, column]
        ax.text(column, row, f"{share:.0f}", ha="center", va="center", fontsize=8,
                color="black" if share > 60 else "white")
    bar = fig.colorbar(image, ax=ax, shrink=.8, aspect=20, ticks=None if written else [0, 1, 5, 10, 25, 50, 100])
    bar.ax.tick_params(labelsize=8, length=2)
    bar.set_label("percent of the row" + ", square-root scale"*(not written), fontsize=8)
    _name_axes(ax, names, block)
    ax.set_xlabel("answer of the network" + ", number of the class"*(not named), fontsize=9)
    ax.set_ylabel("class that is shown" + ", its number"*(not named), fontsize=9)
    if block > 1:
        ax.set_title(f"each dot: the largest share of {block} x {block} classes", fontsize=8, loc="left")
    return fig
