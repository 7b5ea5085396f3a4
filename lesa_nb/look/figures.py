"""Draw every figure of the notebooks in one line, and open every page with the same map of LESA."""

import io
import re
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Normalize, to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, HPacker, TextArea
from matplotlib.patches import FancyBboxPatch, Rectangle
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from PIL import Image

__all__ = [
    "COLORS",
    "OTHERS",
    "as_image",
    "draw_map",
    "draw_tall_map",
    "mark",
    "new_figure",
    "overlay",
    "reduced",
    "save_png",
    "scale_bar",
    "show_bars",
    "show_curves",
    "show_maps",
    "title_height",
    "words_of",
]

#: One hue for one idea, the same in every figure: the parts of the formula, the networks to compare, everything else.
COLORS = dict(
    local="#1F6FCC",
    context="#CB4A00",
    gate="#5C2A72",
    conv="#703C00",
    attention="#0A5A4F",
    lesa="#14171C",
    neutral="#6F7581",
)

#: For what is none of these, where several lie in one plot: the neutral hue, then three that are like no other.
OTHERS = (COLORS["neutral"], "#8B18FF", "#1FA673", "#AF7CBF")

_WORDS = dict(COLORS, convolution=COLORS["conv"])  # words of a name that decide its hue
_NAN = "#FF5CA8"  # a pink that neither colour scale contains


# ---------------------------------------------------------------------------------------------------------- figures


def reduced(image: Image.Image, scale: str | None = None) -> Image.Image:
    """A picture (RGB) in at most 256 colours: its own, or the nearest of 244 and the hues of figures, which stay.

    scale: a colour scale of which 32 colours shall stay too, because a narrow bar has them all.
    """
    if image.getcolors(256):
        return image.quantize(256, dither=Image.Dither.NONE)
    fixed = [*COLORS.values(), *OTHERS[1:], "white", "black"]
    if scale is not None:
        fixed += [to_hex(color) for color in plt.get_cmap(scale)(np.linspace(0, 1, 32))]
    pixels = np.asarray(image).reshape(-1, 3)
    kept = np.array([to_rgb(hue) for hue in fixed])*255
    few = image.quantize(256 - len(fixed), kmeans=2, dither=Image.Dither.NONE).getpalette()
    palette = np.concatenate([np.array(few).reshape(-1, 3), kept.round()]).astype(np.int32)
    keys = pixels.astype(np.int32)@np.array([65536, 256, 1], dtype=np.int32)  # one number for each colour
    found, where = np.unique(keys, return_inverse=True)
    colors = np.stack([found >> 16, found >> 8 & 255, found & 255], 1)
    nearest = np.concatenate([np.square(part[:, None] - palette).sum(-1).argmin(1)
                              for part in np.array_split(colors, 1 + len(colors)//4096)])
    small = Image.fromarray(nearest[where.reshape(-1)].reshape(image.size[::-1]).astype(np.uint8), "P")
    small.putpalette(palette.astype(np.uint8).tobytes())
    return small


def _png(fig: Figure) -> bytes:
    """A figure as a small PNG file of at most 256 colours, with the same bytes every time."""
    full, small = io.BytesIO(), io.BytesIO()
    fit = "tight" if fig.get_layout_engine() else None  # a long title widens a plot; the map keeps its size
    fig.savefig(full, dpi=100, bbox_inches=fit, facecolor="white")
    over = any(image.get_cmap().name == "inferno" for ax in fig.axes for image in ax.images)
    reduced(Image.open(full).convert("RGB"), "inferno" if over else None).save(small, "png", optimize=True)
    return small.getvalue()


def save_png(fig: Figure, path: str | PathLike) -> Path:
    """Write a figure as `_png` draws it, and close it. Returns the path; its folder must exist."""
    data = _png(fig)
    plt.close(fig)
    path = Path(path)
    path.write_bytes(data)
    return path


def words_of(fig: Figure) -> str:
    """A figure for who does not see it: its label, else its title, else titles of its panels, else names of its axes.

    A formula stands there as it was written.
    """
    panels = [ax.get_title(loc) for ax in fig.axes for loc in ("left", "center", "right")]
    names = [name for ax in fig.axes for name in (ax.get_ylabel(), ax.get_xlabel())]
    said = [str(fig.get_label()), fig.get_suptitle()]
    said += ["; ".join(filter(None, panels)), " against ".join(filter(None, names))]
    return " ".join(next(filter(None, said), "").split())


def as_image(fig: Figure) -> Any:
    """Close a figure and return it as an `IPython.display.Image`, with `words_of` it as alternative text."""
    from IPython.display import Image as Shown  # only a notebook gets here

    plt.close(fig)  # or the end of the cell would show it again
    return Shown(_png(fig), alt=words_of(fig) or None)


class _ShownOnce(Figure):
    """A figure that a notebook shows once, also when it is the last value of a cell."""

    def _ipython_display_(self) -> None:
        from IPython import display

        display.display(as_image(self))


def new_figure(
    rows: int = 1,
    cols: int = 1,
    *,
    size: tuple[float, float],
    title: str | None = None,
    **subplots: Any,
) -> tuple[Figure, Any]:
    """An empty figure and its axes, like `plt.subplots`, but shown once in a notebook and titled as all others.

    size: width and height in inches. title: the finding, above everything. subplots: whatever else
    `plt.subplots` takes, `squeeze=False` or `width_ratios=...` for instance.
    Returns the figure and, as `plt.subplots` does, one axis or an array of them.
    """
    fig, axs = plt.subplots(rows, cols, figsize=size, layout="constrained", FigureClass=_ShownOnce, **subplots)
    _set_title(fig, title)
    return fig, axs


def _set_title(fig: Figure, title: str | None) -> None:
    """Write the finding above a figure, flush left, wrapped to its width; None writes nothing."""
    if title:
        fig.suptitle(_on_lines(title, fig.get_figwidth()), x=.01, ha="left", fontsize=10)


def _on_lines(title: str, width: float) -> str:
    """A title, wrapped for a figure of that many inches."""
    return _balanced(title, max(36, int(13.5*width)))


def title_height(title: str | None, width: float) -> float:
    """Inches that a title takes above a figure of that width: what to add, so that the panels keep their size."""
    return .3 + .17*_on_lines(title, width).count("\n") if title else 0.


def _balanced(text: str, width: int) -> str:
    """A text on as few lines of that many letters as it needs, all about equally long: no word stands alone."""
    wide = textwrap.wrap(text, width)
    narrow = (textwrap.wrap(text, n, break_long_words=False) for n in range(1, width))
    lines = next((found for found in narrow if len(found) <= len(wide)), wide)
    return "\n".join(lines if max(map(len, lines), default=0) <= width else wide)


# ------------------------------------------------------------------------------------------------------------- maps


def _array(x: Any) -> np.ndarray:
    """Any tensor, array or list, as an array of floats."""
    if hasattr(x, "detach"):
        x = x.detach().cpu().double().numpy()
    return np.asarray(x, dtype=float)


def _as_maps(maps: Any) -> list[np.ndarray]:
    """Whatever `show_maps` accepts, as a list of (H, W) arrays."""
    arrays = [_array(m) for m in maps]
    if arrays and all(a.ndim == 1 for a in arrays):
        arrays = [_array(maps)]  # the rows of a single map
    if not arrays or any(a.ndim != 2 or a.size == 0 for a in arrays):
        got = np.shape(maps) if hasattr(maps, "shape") else [a.shape for a in arrays]
        raise ValueError(f"expected maps of shape (H, W) or (n, H, W), got {got}")
    return arrays


def _scale(arrays: Sequence[np.ndarray]) -> tuple[float, float, str]:
    """The two ends of the colour scale, and its name: zero is white on a scale of both signs."""
    finite = np.concatenate([a[np.isfinite(a)] for a in arrays] + [np.zeros(0)])
    low, high = (finite.min(), finite.max()) if finite.size else (0., 1.)
    if low < 0 < high:
        return -max(-low, high), max(-low, high), "BrBG"
    return low, high, "viridis"


def show_maps(
    maps: Any,
    title: str | None = None,
    titles: Sequence[str] | None = None,
    cmap: str | Sequence[str | None] | None = None,
    cols: int | None = None,
    size: float = 1.6,
    vmin: float | None = None,
    vmax: float | None = None,
    colorbar: bool | None = None,
    shared: bool = True,
    axes: tuple[str, str] | None = None,
) -> Figure:
    """Draw maps side by side; NaN and infinity are pink.

    maps: tensor, array or list, (H, W) or (n, H, W); a list may mix sizes. title: the finding, above all maps.
    titles: one short title for each map. cmap: colour scale; None: chosen by the signs of the numbers; a list of one
    for each map, where scales are not shared: "gray" for the photograph among them.
    cols: maps in a row; None: as many as fit into 8 inches. size: width of one map in inches, 1.6 at least: 150 pixels.
    vmin, vmax: ends of the colour scale; the bar has a tip where maps go beyond.
    colorbar: which number a colour stands for, beside the maps; None: of all but photographs, which have cmap="gray".
    shared: one colour scale for all maps, or one for each.
    axes: what rows and columns are, of matrices; then both get ticks, which pictures go without.
    Returns a figure with one axis for each map, then the colour bar of all. ValueError: no maps, or other shapes.
    """
    arrays = _as_maps(maps)
    n = len(arrays)
    if titles is not None and len(titles) != n: raise ValueError(f"{n} maps need {n} titles, got {len(titles)}")
    if axes is not None and len(axes) != 2:
        raise ValueError(f"axes names rows and columns, as in ('query', 'key'); got {axes!r}")
    cmaps = [cmap]*n if cmap is None or isinstance(cmap, str) else list(cmap)
    if len(cmaps) != n: raise ValueError(f"{n} maps need {n} colour scales, got {len(cmaps)}")
    if shared and len({*cmaps}) > 1: raise ValueError("maps of several colour scales share none: pass shared=False")
    bars = [one != "gray" if colorbar is None else colorbar for one in cmaps]
    colorbar = any(bars)
    size, own = max(size, 1.6), colorbar and not shared
    room = .45*bool(axes)  # for ticks and names
    wide = size + room + .55*own
    if cols is None:
        rows = -(-n // max(1, int(8/wide)))  # as few rows as fit,
        cols = -(-n // rows)                 # then equally long ones
    rows = -(-n // cols)
    height = max(size*max(a.shape[0]/a.shape[1] for a in arrays), .7*colorbar) + .25*(titles is not None)
    across = wide*cols + (.57 + .08*rows)*(colorbar and shared)  # a taller bar is broader
    inches = (across, (height + room)*rows + title_height(title, across))
    fig, axs = new_figure(rows, cols, size=inches, title=title, squeeze=False)
    for ax in axs.flat[n:]:
        ax.remove()
    for i, (ax, a) in enumerate(zip(axs.flat, arrays)):
        low, high, auto = _scale(arrays if shared else [a])
        colors = plt.get_cmap(cmaps[i] or auto).with_extremes(bad=_NAN)
        limits = dict(vmin=low if vmin is None else vmin, vmax=high if vmax is None else vmax)
        drawn = ax.imshow(np.ma.masked_invalid(a), colors, interpolation="nearest", **limits)
        if axes is None:
            ax.axis("off")
        else:
            ax.set_ylabel(axes[0], fontsize=9)
            ax.set_xlabel(axes[1], fontsize=9)
            ax.tick_params(labelsize=8, length=2)
            ax.locator_params(nbins=5, integer=True)
        if titles is not None:
            ax.set_title(titles[i], fontsize=9)
        if own and bars[i]:
            beside = fig.colorbar(drawn, cax=ax.inset_axes((1.04, 0, .06, 1)), extend=_beyond([a], vmin, vmax))
            _finish(beside, size*a.shape[0]/a.shape[1], [a])
    if colorbar and shared:
        scale_bar(axs.flat[:n], drawn, arrays, extend=_beyond(arrays, vmin, vmax))
    return fig


def _beyond(arrays: Sequence[np.ndarray], vmin: float | None, vmax: float | None) -> str:
    """At which end of a colour scale there are numbers that it has no colour of their own for."""
    finite = np.concatenate([a[np.isfinite(a)] for a in arrays] + [np.zeros(0)])
    below = vmin is not None and finite.size > 0 and finite.min() < vmin - 1e-6*abs(vmin)
    above = vmax is not None and finite.size > 0 and finite.max() > vmax + 1e-6*abs(vmax)
    return "both" if below and above else "min" if below else "max" if above else "neither"


def scale_bar(
    axes: Any,
    drawn: Any,
    arrays: Sequence[Any] | None = None,
    *,
    label: str | None = None,
    extend: str = "neither",
) -> Colorbar:
    """Say beside axes which number a colour stands for.

    axes: one axis, or several that share the scale. drawn: an image of one of them, or two numbers: the ends of the
    scale that `overlay` was given as vmin and vmax. arrays: the maps; if all hold whole numbers, the bar does.
    label: what the numbers are. extend: "min", "max" or "both", where maps go beyond the scale. Returns the bar.
    """
    places = list(np.ravel(axes))
    fig = places[0].get_figure()
    if not isinstance(drawn, ScalarMappable):
        low, high = drawn
        drawn = ScalarMappable(Normalize(low, high), "inferno")
    bar = fig.colorbar(drawn, ax=places, shrink=.85, aspect=16, extend=extend)
    _finish(bar, fig.get_figheight() - .5, arrays or ())
    if label:
        bar.set_label(label, fontsize=9)
    return bar


def _finish(bar: Colorbar, tall: float, arrays: Sequence[Any]) -> None:
    """The numbers of a colour bar `tall` inches high: few enough not to touch, whole beside maps of whole numbers."""
    finite = [a[np.isfinite(a)] for a in map(_array, arrays)]
    whole = bool(finite) and all(a.size and (a % 1 == 0).all() for a in finite)
    bar.ax.tick_params(labelsize=8, length=2)
    bar.set_ticks(MaxNLocator(max(1, min(4, int(4*tall - .6))), steps=[1, 2, 2.5, 5, 10], integer=whole))
    bar.outline.set_visible(False)


def mark(ax: Axes, pixel: tuple[float, float]) -> None:
    """Ring one pixel (row, column) of an axis that shows a map or an image: white inside black shows everywhere."""
    row, col = pixel
    ax.plot(col, row, "o", ms=9, mfc="none", mec="black", mew=3.2)
    ax.plot(col, row, "o", ms=9, mfc="none", mec="white", mew=1.4)


def overlay(
    image: Any,
    values: Any,
    pixel: tuple[float, float] | None = None,
    title: str | None = None,
    ax: Axes | None = None,
    *,
    vmin: float | None = None,
    vmax: float | None = None,
) -> Figure | None:
    """Lay a map over a grey image, cell by cell: the brighter, the larger.

    image: (3, H, W) or (1, H, W); numbers outside [0, 1] are stretched into it. values: (h, w), laid over the
    whole image. pixel: row and column *of the map* to ring; cell r of an h-row map has its middle at
    (r + 1/2) H/h - 1/2 on the image, because whole numbers are the centres of pixels.
    ax: an axis of yours to draw on. vmin, vmax: ends of the colour scale; None: those of the map.
    Returns the figure, with the scale beside the picture; None if it is your axis: `scale_bar` draws yours.
    """
    picture, field = _array(image), _array(values)
    if picture.ndim != 3 or picture.shape[0] not in (1, 3) or field.ndim != 2:
        raise ValueError(f"expected an image (3, H, W) and a map (H, W), got {picture.shape} and {field.shape}")
    (H, W), (h, w), fig = picture.shape[1:], field.shape, None
    if ax is None:
        fig, ax = new_figure(size=(3.3, 2.6*H/W + title_height(title, 3.3)), title=title)
    elif title:
        ax.set_title(title, fontsize=9)
    low, high = min(0, picture.min()), max(1, picture.max())
    ax.imshow((picture.mean(0) - low)/(high - low), "gray", vmin=0, vmax=1)
    drawn = ax.imshow(field, "inferno", alpha=.5, extent=(-.5, W - .5, H - .5, -.5), interpolation="nearest",
                      vmin=vmin, vmax=vmax)
    if pixel is not None:
        mark(ax, ((pixel[0] + .5)*H/h - .5, (pixel[1] + .5)*W/w - .5))
    ax.axis("off")
    if fig is not None:
        scale_bar(ax, drawn.get_clim(), [field], extend=_beyond([field], vmin, vmax))
    return fig


# -------------------------------------------------------------------------------------------------- bars and curves


def _styles(names: Sequence[str]) -> Iterator[tuple[str, int]]:
    """For each name: its hue, and how many names before it have the same hue."""
    used: list[str] = []
    for name in names:
        words = re.findall("[a-z]+", str(name).lower())
        hue = next((_WORDS[word] for word in words if word in _WORDS), COLORS["neutral"])
        yield hue, used.count(hue)
        used.append(hue)


def _axes(width: float, title: str | None, xlabel: str | None, ylabel: str | None) -> tuple[Figure, Axes]:
    """An empty plot with little ink of its own."""
    fig, ax = new_figure(size=(width, 2.6), title=title)
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=8, length=2)
    ax.set_xlabel(xlabel, fontsize=9)
    ax.set_ylabel(ylabel, fontsize=9)
    return fig, ax


def _legend(ax: Axes) -> None:
    """Above the plot, where it hides nothing, in as many columns as fit; each name once."""
    handles, names = ax.get_legend_handles_labels()
    once = dict(zip(names, handles))
    inches = .7 + .065*max(map(len, once))  # the sample and the letters
    fit = int((ax.get_figure(root=True).get_figwidth() - .4)/inches)  # type: ignore[union-attr]  # it has a figure
    if len(once) > 1:
        ax.legend(once.values(), once.keys(), loc="lower left", bbox_to_anchor=(0, 1), ncols=max(1, fit),
                  fontsize=8, frameon=False, borderaxespad=.2, handlelength=2.6, columnspacing=1.4)


def _number(y: float, digits: int = 3) -> str:
    """A number as short as its use allows: 0.333, 79.55, 23,777,512; digits: of a small one."""
    return f"{y:,.0f}" if abs(y) >= 1e4 else f"{y:.{digits + (abs(y) >= 10)}g}"


def _numbers(values: Sequence[float], inches: float) -> list[str]:
    """What stands above bars that are so many inches apart: two digits, where three would touch; `not run` for NaN."""
    words = [["not run" if np.isnan(y) else _number(y, digits) for y in values] for digits in (3, 2)]
    longest = max([len(word) for word, y in zip(words[0], values) if not np.isnan(y)], default=0)
    return words[.066*longest > inches]


def show_bars(values: Mapping[str, Any], title: str | None = None, ylabel: str | None = None) -> Figure:
    """Draw a bar for each name, or a group of bars; None and NaN read `not run`.

    values: name -> number, or name -> {series -> number}. A name that contains a word of `COLORS` gets its hue; of
    several series of one hue each is paler than the one before, in equal steps. title: the finding. ylabel: what the
    numbers are.
    """
    if not values: raise ValueError("show_bars needs at least one name -> number")
    groups = {name: v if isinstance(v, dict) else {name: v} for name, v in values.items()}
    slots = max(len(group) for group in groups.values())
    series = list(dict.fromkeys(s for group in groups.values() for s in group))
    style = dict(zip(series, _styles(series)))
    alike = Counter(hue for hue, _ in style.values())
    each = max(.3 + .5*slots, .1 + .07*max(len(str(name)) for name in groups))  # inches, for bars and for the name
    each = min(each, 6.6/len(groups))
    fig, ax = _axes(1.4 + each*len(groups), title, None, ylabel)
    every = [np.nan if value is None else float(value) for group in groups.values() for value in group.values()]
    numbers = iter(_numbers(every, each*.84/slots))
    for x, group in enumerate(groups.values()):
        for i, (name, value) in enumerate(group.items()):
            hue, nth = style[name]
            y = np.nan if value is None else float(value)
            at, top = x + (i - (len(group) - 1)/2)*.84/slots, np.nan_to_num(y)
            pale = max(.28, 1/alike[hue])**(nth/max(1, alike[hue] - 1)) if slots > 1 else 1
            ax.bar(at, top, .8/slots, color=hue, alpha=pale, label=name)
            ax.annotate(next(numbers), (at, top), (0, -2 if y < 0 else 2), textcoords="offset points", fontsize=8,
                        color=hue, rotation=90*np.isnan(y), ha="center", va="top" if y < 0 else "bottom")
    labels = [_balanced(str(name), max(8, int(each/.07))) for name in groups]
    wrapped = any("\n" in label for label in labels)
    ax.set_xticks(range(len(groups)), labels, fontsize=9, va="top" if wrapped else "baseline")
    ax.tick_params(axis="x", length=0, pad=3 if wrapped else 13)
    ax.margins(y=.12)  # room for the numbers
    if np.isnan(every).all():
        ax.set(ylim=(0, 1), yticks=[])  # no scale where nothing was measured
    if slots > 1:
        _legend(ax)
    return fig


def show_curves(
    curves: Mapping[str, Any],
    title: str | None = None,
    xlabel: str | None = None,
    ylabel: str | None = None,
    logx: bool = False,
    logy: bool = False,
) -> Figure:
    """Draw a line for each name; without xs the points are counted from 0.

    curves: name -> ys, or name -> (xs, ys) as a tuple. A name that contains a word of `COLORS` gets its hue, the
    second one of the same hue is dashed; the others get `OTHERS`, and are dashed too. title: the finding.
    logx, logy: logarithmic axes. Axes of whole numbers have no others beside them.
    """
    if not curves: raise ValueError("show_curves needs at least one name -> ys")
    pairs = {name: c if isinstance(c, tuple) else (range(len(c)), c) for name, c in curves.items()}
    lines = {name: (_array(xs), _array(ys)) for name, (xs, ys) in pairs.items()}
    for name, (xs, ys) in lines.items():
        if xs.shape != ys.shape or ys.ndim != 1:
            raise ValueError(f"{name}: expected as many xs as ys, got shapes {xs.shape} and {ys.shape}")
    fig, ax = _axes(5.6, title, xlabel, ylabel)
    for (name, (xs, ys)), (hue, nth) in zip(lines.items(), _styles(list(lines))):
        ax.plot(xs, ys, color=OTHERS[nth % 4] if hue == OTHERS[0] else hue, lw=1.8,
                ls=("-", "--", ":", "-.")[nth % 4], label=name,
                marker="o" if len(ys) <= 12 else None, ms=3.5)
    ax.set(xscale="log" if logx else "linear", yscale="log" if logy else "linear")
    for axis in [ax.xaxis]*logx + [ax.yaxis]*logy:
        low, high = axis.get_view_interval()
        if high < 100*low:  # powers of ten alone would be too few
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())
    whole = [all((numbers % 1 == 0).all() for numbers in each) for each in zip(*lines.values())]
    if whole[0] and not logx:
        ax.locator_params(axis="x", integer=True)  # there is no epoch 1.5,
    if whole[1] and not logy:
        ax.locator_params(axis="y", integer=True)  # and no level
    ax.grid(color="#E5E7EB", lw=.7)
    _legend(ax)
    return fig


# ------------------------------------------------------------------------------------------------------------- the map

# What is inside the layer. Name of the module: left, top, width, height; number of the page; what it says; hue.
_LAYER: dict[str, tuple] = dict(
    lesa=(44, 36, 678, 228, "09", "all of LESA, a drop-in for a 3×3 convolution", "lesa"),
    terms=(58, 124, 80, 58, "02", "one sum,\ntwo parts", "lesa"),
    local=(172, 68, 342, 48, "03", "grouped 3×3, then 1×1: a pixel and its ring", "local"),
    attention=(172, 172, 88, 48, "01", "q, k, v", "context"),
    position=(296, 202, 88, 48, "04", "q·r, k·r", "context"),
    context=(416, 138, 98, 48, "05", "softmax, then v", "context"),
    moments=(416, 202, 62, 48, "06", "norm of q·k", "context"),
    blockwise=(484, 202, 76, 48, "07", "no N×N tensor", "context"),
    gate=(576, 84, 134, 86, "08", "", "gate"),  # the formula is written into it
)

# What is built from it: one panel for each part of the course, in which each page has a line.
# Name of the part: number of columns, then page by page the name of its module.
_PARTS: dict[str, tuple[int, int, tuple[str, ...]]] = {
    "2 networks": (2, 10, ("resnet", "published", "graft", "folding")),
    "3 training": (2, 14, ("pictures", "folders", "loop", "run", "classify", "small")),
    "4 seeing": (1, 20, ("maps", "explorer", "gallery")),
    "5 detection": (2, 23, ("pyramid", "rpn", "mask_rcnn", "htc", "coco", "coco_eval", "detect")),
    "6 evidence": (1, 30, ("seeds", "benchmarks")),
}

_ARROWS = (  # corners; the last one is the head
    ((24, 153), (58, 153)),                            # x -> terms
    ((138, 141), (155, 141), (155, 92), (172, 92)),    # terms -> local
    ((138, 165), (155, 165), (155, 196), (172, 196)),  # terms -> attention
    ((260, 187), (278, 187), (278, 162), (296, 162)),  # attention -> content
    ((260, 205), (278, 205), (278, 226), (296, 226)),  # attention -> position
    ((384, 162), (416, 162)),                          # content -> context
    ((384, 226), (400, 226), (400, 174), (416, 174)),  # position -> context
    ((514, 92), (545, 92), (545, 112), (576, 112)),    # local -> gate
    ((514, 162), (545, 162), (545, 142), (576, 142)),  # context -> gate
    ((710, 127), (732, 127)),                          # gate -> out
    ((90, 264), (90, 284)),                            # layer -> networks
)

_CHIP, _LINE, _PANELS = 85, 22, 284  # width and height of a page's box below the layer, top of the panels


def _panels() -> Iterator[tuple[str, tuple[float, float, float, float], dict[str, tuple]]]:
    """For each part: its name, its rectangle, and the boxes of its pages."""
    left = 8.
    for part, (cols, first, names) in _PARTS.items():
        rows = -(-len(names) // cols)
        boxes = {
            name: (left + 4 + (_CHIP + 2)*(i // rows), _PANELS + 24 + _LINE*(i % rows), _CHIP, _LINE - 2,
                   str(first + i), "", "lesa")
            for i, name in enumerate(names)
        }
        width = 6 + (_CHIP + 2)*cols
        yield part, (left, _PANELS, width, 26 + 4*_LINE), boxes
        left += width + 5


_BOXES = _LAYER | {name: box for _, _, boxes in _panels() for name, box in boxes.items()}


def _tint(hue: str, amount: float) -> tuple[float, ...]:
    """A hue mixed with white."""
    return tuple(1 - amount*(1 - np.array(to_rgb(hue))))


_PALE = _tint(COLORS["neutral"], .85)


def _draw_box(ax: Axes, name: str, lit: str | None, bright: bool) -> None:
    """One box: solid if it is the lit one, tinted if bright, else an outline."""
    x, y, w, h, number, words, key = _BOXES[name]
    hue, frame, line = COLORS[key], name == "lesa", h < 30
    solid = name == lit and not frame
    face = hue if solid else _tint(hue, .08) if bright and not frame else "white"
    edge = _tint(hue, 1 if name == lit else .7 if bright else .3)
    ink = "white" if solid else hue if bright else _PALE
    ax.add_patch(FancyBboxPatch((x, y), w, h, boxstyle="round,pad=0,rounding_size=" + ("4" if line else "6"),
                                facecolor=face, edgecolor=edge, lw=2.2 if name == lit else 1, zorder=0 if frame else 1))
    if frame:
        align, at, below = "left", (x + 24, y + 19), (x + 60, y + 19)
    elif line:
        align, at, below = "left", (x + 17.5, y + 14), (x, y)
    else:
        align, at, below = "center", (x + w/2, y + 26), (x + w/2, y + 40 + 12*words.count("\n"))
    ax.text(x + (3 if line else 6), y + (14 if line else 13), number, color=ink, fontsize=6.5)
    ax.text(*at, name, color=ink, fontsize=6.6 if line else 9 if w > 76 else 8, weight="bold", ha=align)
    ax.text(*below, words, color=ink, fontsize=7 if w < 78 else 7.5, linespacing=1.15, ha=align)


def _draw_formula(ax: Axes, lit: str | None, bright: bool) -> None:
    """out = local + gate * context in the colours of its parts, inside the box of the gate."""
    def ink(key: str) -> Any:
        return "white" if lit == "gate" else COLORS[key] if bright else _PALE

    parts = ("local", "local"), ("+", "lesa"), ("gate", "gate"), ("×", "lesa"), ("context", "context")
    style = dict(fontsize=7.5, weight="bold")
    words: list[Artist] = [TextArea(word, textprops=dict(color=ink(key), **style)) for word, key in parts]
    row = HPacker(children=words, sep=3, pad=0, align="baseline")
    ax.add_artist(AnnotationBbox(row, (643, 130), frameon=False, pad=0))
    ax.text(643, 156, "the gate has seen both", color=ink("gate"), fontsize=7.5, ha="center")


def draw_map(lit: str | None = None) -> Figure:
    """Draw all of LESA and what is built from it, each page of the course as a box with its number.

    lit: the box to light, by the name of its page's module; None: all are bright. "lesa" lights the whole layer.
    """
    if lit is not None and lit not in _BOXES: raise ValueError(f"no box {lit!r} on the map, only {', '.join(_BOXES)}")
    bright = list(_BOXES) if lit is None else list(_LAYER) if lit == "lesa" else [lit]
    ink = _tint(COLORS["lesa"], .8 if len(bright) > 1 else .4)
    fig = plt.figure(figsize=(7.6, 4.1), dpi=100, FigureClass=_ShownOnce)
    ax = fig.add_axes((0, 0, 1, 1), xlim=(0, 760), ylim=(410, 0))  # one unit is one pixel, downwards
    ax.axis("off")
    ax.plot((447, 447), (187, 201), color=ink, lw=1.3, ls=":")  # context = its moments,
    ax.plot((500, 500), (187, 201), color=ink, lw=1.3, ls=":")  # and block by block
    for part, (x, y, w, h), boxes in _panels():
        within = lit is None or lit in boxes
        ax.add_patch(FancyBboxPatch((x, y), w, h, boxstyle="round,pad=0,rounding_size=6", facecolor="white",
                                    edgecolor=_tint(COLORS["lesa"], .7 if within else .3), zorder=0))
        ax.text(x + 8, y + 16, part, color=COLORS["lesa"] if within else _PALE, fontsize=8.5, weight="bold")
    for name in _BOXES:
        _draw_box(ax, name, lit, name in bright)
    _draw_formula(ax, lit, "gate" in bright)
    for corners in _ARROWS:
        ax.plot(*zip(*corners[:-1]), color=ink, lw=1.1, zorder=.5)  # above the frame, below the boxes
        ax.annotate("", corners[-1], corners[-2], zorder=.5,
                    arrowprops=dict(arrowstyle="-|>", color=ink, lw=1.1, shrinkA=0, shrinkB=0, mutation_scale=9))
    for x, y, word in ((14, 153, "x"), (746, 127, "out"), (340, 162, "content q·k")):
        ax.text(x, y, word, color=ink, fontsize=8.5, ha="center", va="center")
    here = "LESA, and what this library builds from it" if lit is None else f"You are here: {_BOXES[lit][4]} {lit}"
    fig.set_label(here if lit is None else f"{here}, on the map of LESA and what this library builds from it")
    ax.text(44, 19, here, color=COLORS[_BOXES[lit or "lesa"][6]], fontsize=10, weight="bold", va="center")
    return fig


# ------------------------------------------------------------------------------------------- the map for a narrow page

_TALL = 720  # pixels wide: on a phone, at half this width, the letters are 11 pixels high
_TERM_BOXES: dict[str, tuple] = dict(  # as _LAYER, with two lines of words at most
    terms=(34, 120, 652, 62, "02", "one sum, two parts", "lesa"),
    local=(34, 232, 300, 250, "03", "a pixel and its ring:\ngrouped 3×3, then 1×1", "local"),
    context=(372, 232, 314, 250, "05", "all other pixels", "context"),
    gate=(34, 532, 652, 104, "08", "", "gate"),
)
_WITHIN_CONTEXT = dict(attention="01", position="04", moments="06", blockwise="07")


def _rounded(ax: Axes, box: Sequence[float], hue: str, fill: float = .08, edge: float = .7) -> None:
    """A rounded box (left, top, width, height) in tints of a hue."""
    x, y, w, h = box
    ax.add_patch(FancyBboxPatch((x, y), w, h, boxstyle="round,pad=0,rounding_size=10", lw=1.6,
                                facecolor=_tint(hue, fill), edgecolor=_tint(hue, edge)))


def _draw_tall_layer(ax: Axes) -> None:
    """The inside of the layer, from above downwards."""
    _rounded(ax, (12, 62, 696, 596), COLORS["lesa"], 0)
    ax.text(34, 92, "09  lesa", fontsize=16, weight="bold", va="center")
    ax.text(150, 92, "in place of a 3×3 convolution", fontsize=16, va="center")
    for name, (x, y, w, h, number, words, key) in _TERM_BOXES.items():
        hue = COLORS[key]
        _rounded(ax, (x, y, w, h), hue)
        ax.text(x + 16, y + 31, f"{number}  {name}", color=hue, fontsize=17, weight="bold", va="center")
        if h < 100:
            ax.text(x + 176, y + 31, words, color=hue, fontsize=16, va="center")
        elif words:
            ax.text(x + 16, y + 54, words, color=hue, fontsize=16, va="top", linespacing=1.25)
    for i, (name, number) in enumerate(_WITHIN_CONTEXT.items()):
        hue, top = COLORS["context"], 322 + 38*i
        ax.add_patch(FancyBboxPatch((388, top), 282, 32, boxstyle="round,pad=0,rounding_size=6", lw=1.2,
                                    facecolor="white", edgecolor=_tint(hue, .5)))
        ax.text(400, top + 16, f"{number}  {name}", color=hue, fontsize=15.5, va="center")
    for row in range(3):  # the ring
        for col in range(3):
            ax.add_patch(Rectangle((134 + 34*col, 366 + 34*row), 32, 32, lw=1.2, edgecolor=COLORS["local"],
                                   facecolor=_tint(COLORS["local"], .75 if row == col == 1 else .25)))
    style, ink = dict(fontsize=18, weight="bold"), COLORS["lesa"]
    hues = {"out =": ink, "local": COLORS["local"], "+": ink, "gate": COLORS["gate"], "×": ink,
            "context": COLORS["context"]}
    formula: list[Artist] = [TextArea(word, textprops=dict(color=hue, **style)) for word, hue in hues.items()]
    line = HPacker(children=formula, sep=8, pad=0, align="baseline")
    ax.add_artist(AnnotationBbox(line, (360, 608), frameon=False, pad=0))
    ax.text(176, 563, "has seen both", color=COLORS["gate"], fontsize=16, va="center")
    for corners in (((184, 182), (184, 232)), ((529, 182), (529, 232)), ((184, 482), (184, 532)),
                    ((529, 482), (529, 532)), ((360, 658), (360, 700))):
        ax.annotate("", corners[1], corners[0], arrowprops=dict(arrowstyle="-|>", color=_tint(COLORS["lesa"], .8), lw=2,
                                                                shrinkA=0, shrinkB=2, mutation_scale=18))


def _tall_parts() -> Iterator[tuple[str, float, float, list[tuple[float, float, str]]]]:
    """For each part: its name, top and height, and left, top and words of its pages."""
    top = 700.
    for part, (_, first, names) in _PARTS.items():
        pages = [(34. + 165*(i % 4), top + 66 + 36*(i // 4), f"{first + i} {name}") for i, name in enumerate(names)]
        y = pages[-1][1]
        yield part, top, y + 26 - top, pages
        top = y + 38


def draw_tall_map() -> Figure:
    """The map of `draw_map` for a narrow page: one column, and letters that a phone shows 11 pixels high."""
    parts = list(_tall_parts())
    height = parts[-1][1] + parts[-1][2] + 12
    fig = plt.figure(figsize=(_TALL/100, height/100), dpi=100, FigureClass=_ShownOnce)
    ax = fig.add_axes((0, 0, 1, 1), xlim=(0, _TALL), ylim=(height, 0))  # one unit is one pixel, downwards
    ax.axis("off")
    ax.text(14, 32, "LESA, and what this library builds from it", fontsize=18, weight="bold", va="center")
    _draw_tall_layer(ax)
    for part, top, tall, pages in parts:
        _rounded(ax, (12, top, 696, tall), COLORS["lesa"], 0)
        ax.text(34, top + 28, part, fontsize=17, weight="bold", va="center")
        for x, y, words in pages:
            ax.text(x, y, words, fontsize=16, va="center")
    return fig
