"""Draw every later figure in one line, and open every notebook with the same map of LESA."""

__all__ = ['COLORS', 'png', 'show_maps', 'mark', 'show_bars', 'show_curves', 'overlay', 'draw_map']

import io
import re
import textwrap

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, HPacker, TextArea
from matplotlib.patches import FancyBboxPatch
from matplotlib.ticker import LogLocator, NullFormatter
from PIL import Image

COLORS = dict(local="#1F6FCC", context="#CB4A00", gate="#5C2A72",   # the three parts of the formula
              conv="#703C00", attention="#0A5A4F", lesa="#14171C",  # the three networks to compare
              neutral="#6F7581")                                    # everything else

def png(
    fig: Figure,
) -> bytes: # the PNG file
    "Draw a figure as a small PNG, with the same bytes every time."
    full, small = io.BytesIO(), io.BytesIO()
    fit = "tight" if fig.get_layout_engine() else None # a long title widens a plot; the map keeps its size
    fig.savefig(full, dpi=100, bbox_inches=fit, facecolor="white")
    colors = Image.open(full).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    colors.save(small, "png", optimize=True)
    return small.getvalue()

class _Once(Figure):
    "A figure that a notebook shows once, also when it is the last value of a cell."
    def _ipython_display_(self):
        from IPython import display # only a notebook gets here
        plt.close(self)             # or the end of the cell would show it again
        display.display(display.Image(png(self)))

def _title(fig, title):
    "Write the finding above the figure, flush left, wrapped to its width."
    if title: fig.suptitle(textwrap.fill(title, max(48, int(13.5*fig.get_figwidth()))), x=.01, ha="left", fontsize=10)

_NAN = "#FF5CA8" # a pink that neither colour scale contains

def _array(x):
    "Any tensor, array or list, as an array of floats."
    if hasattr(x, "detach"): x = x.detach().cpu().double().numpy()
    return np.asarray(x, dtype=float)

def _as_maps(maps):
    "Whatever `show_maps` accepts, as a list of (H, W) arrays."
    arrays = [_array(m) for m in maps]
    if arrays and all(a.ndim == 1 for a in arrays): arrays = [_array(maps)] # the rows of a single map
    if not arrays or any(a.ndim != 2 or a.size == 0 for a in arrays):
        got = np.shape(maps) if hasattr(maps, "shape") else [a.shape for a in arrays]
        raise ValueError(f"expected maps of shape (H, W) or (n, H, W), got {got}")
    return arrays

def _scale(arrays):
    "The two ends of the colour scale, and its name."
    finite = np.concatenate([a[np.isfinite(a)] for a in arrays] + [np.zeros(0)])
    low, high = (finite.min(), finite.max()) if finite.size else (0., 1.)
    if low < 0 < high: return -max(-low, high), max(-low, high), "BrBG" # 
    return low, high, "viridis"                                         # 

def show_maps(
    maps,                # tensor, array or list: (H, W) or (n, H, W); a list may mix sizes
    title: str = None,   # the finding, above all maps
    titles: list = None, # one short title for each map
    cmap: str = None,    # colour scale; chosen by the signs of the numbers if None
    cols: int = None,    # maps in a row; as many as fit into 8 inches if None
    size: float = 1.6,   # width of one map in inches
    vmin: float = None,  # lower end of the colour scale
    vmax: float = None,  # upper end of the colour scale
    colorbar: bool = False, # say which number a colour stands for
    shared: bool = True,    # one colour scale for all maps, or one for each
) -> Figure: # one axis for each map, then the colour bars
    "Draw maps side by side; NaN and infinity are pink."
    arrays = _as_maps(maps)
    n = len(arrays)
    if titles is not None and len(titles) != n: raise ValueError(f"{n} maps need {n} titles, got {len(titles)}")
    if cols is None:
        rows = -(-n // max(1, int(8/size))) # as few rows as fit,
        cols = -(-n // rows)                # then equally long ones
    rows = -(-n // cols)
    height = max(size*max(a.shape[0]/a.shape[1] for a in arrays), .7*colorbar) + .25*(titles is not None)
    fig, axs = plt.subplots(rows, cols, figsize=(size*cols + .6*colorbar, height*rows + .3*bool(title)),
                            squeeze=False, layout="constrained", FigureClass=_Once)
    for ax in axs.flat[n:]: ax.remove()
    for i, (ax, a) in enumerate(zip(axs.flat, arrays)):
        low, high, auto = _scale(arrays if shared else [a])
        colors = plt.get_cmap(cmap or auto).with_extremes(bad=_NAN)
        drawn = ax.imshow(np.ma.masked_invalid(a), colors, interpolation="nearest",
                          vmin=low if vmin is None else vmin, vmax=high if vmax is None else vmax) # 
        ax.axis("off")
        if titles is not None: ax.set_title(titles[i], fontsize=9)
        if colorbar and not shared: _colorbar(fig, drawn, ax)
    if colorbar and shared: _colorbar(fig, drawn, list(axs.flat[:n]))
    _title(fig, title)
    return fig

def _colorbar(fig, drawn, axs):
    bar = fig.colorbar(drawn, ax=axs, shrink=.85, aspect=16)
    bar.ax.tick_params(labelsize=8, length=2)
    bar.ax.locator_params(nbins=4)
    bar.outline.set_visible(False)

def mark(
    ax: Axes,     # an axis that shows a map or an image
    pixel: tuple, # row, column
):
    "Ring one pixel."
    row, col = pixel
    ax.plot(col, row, "o", ms=9, mfc="none", mec="black", mew=3.2)
    ax.plot(col, row, "o", ms=9, mfc="none", mec="white", mew=1.4)

def _styles(names):
    "For each name: its hue, and how many names before it have the same hue."
    used = []
    for name in names:
        words = re.findall("[a-z]+", str(name).lower())
        hue = next((COLORS[word] for word in words if word in COLORS), COLORS["neutral"])
        yield hue, used.count(hue)
        used.append(hue)

def _axes(width, title, xlabel, ylabel):
    "An empty plot with little ink of its own."
    fig, ax = plt.subplots(figsize=(width, 2.6), layout="constrained", FigureClass=_Once)
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=8, length=2)
    ax.set_xlabel(xlabel, fontsize=9)
    ax.set_ylabel(ylabel, fontsize=9)
    _title(fig, title)
    return fig, ax

def _legend(ax):
    "Above the plot, where it hides nothing, in as many columns as fit; each name once."
    handles, names = ax.get_legend_handles_labels()
    once = dict(zip(names, handles))
    fit = int((ax.figure.get_figwidth() - .4) / (.7 + .065*max(map(len, once)))) # inches: the sample, the letters
    if len(once) > 1: ax.legend(once.values(), once.keys(), loc="lower left", bbox_to_anchor=(0, 1), ncols=max(1, fit), fontsize=8,
                                frameon=False, borderaxespad=.2, handlelength=2.6, columnspacing=1.4)

def _number(y):
    "A number as short as its use allows: 0.333, 79.55, 23,777,512."
    return f"{y:,.0f}" if abs(y) >= 1e4 else f"{y:.4g}" if abs(y) >= 10 else f"{y:.3g}"

def show_bars(
    values: dict,       # name -> number, or name -> {series -> number}
    title: str = None,  # the finding
    ylabel: str = None, # what the numbers are
) -> Figure:
    "Draw a bar for each name, or a group of bars; None and NaN read `not run`."
    if not values: raise ValueError("show_bars needs at least one name -> number")
    groups = {name: v if isinstance(v, dict) else {name: v} for name, v in values.items()}
    slots = max(len(group) for group in groups.values())
    series = list(dict.fromkeys(s for group in groups.values() for s in group))
    style = dict(zip(series, _styles(series)))
    each = max(.3 + .5*slots, .1 + .07*max(len(str(name)) for name in groups)) # inches, for bars and for the name
    each = min(each, 6.6/len(groups))
    fig, ax = _axes(1.4 + each*len(groups), title, None, ylabel)
    for x, group in enumerate(groups.values()):
        for i, (name, value) in enumerate(group.items()):
            hue, nth = style[name]
            y = np.nan if value is None else float(value)
            at, top = x + (i - (len(group) - 1)/2)*.84/slots, np.nan_to_num(y)
            ax.bar(at, top, .8/slots, color=hue, alpha=1/(1 + nth) if slots > 1 else 1, label=name)
            ax.annotate("not run" if np.isnan(y) else _number(y), (at, top), (0, -2 if y < 0 else 2), textcoords="offset points",
                        fontsize=8, color=hue, rotation=90*np.isnan(y), ha="center", va="top" if y < 0 else "bottom")
    labels = [textwrap.fill(str(name), max(8, int(each/.07))) for name in groups]
    wrapped = any("\n" in label for label in labels)
    ax.set_xticks(range(len(groups)), labels, fontsize=9, va="top" if wrapped else "baseline")
    ax.tick_params(axis="x", length=0, pad=3 if wrapped else 13)
    ax.margins(y=.12) # room for the numbers
    if slots > 1: _legend(ax)
    return fig

def show_curves(
    curves: dict,       # name -> ys, or name -> (xs, ys) as a tuple
    title: str = None,  # the finding
    xlabel: str = None,
    ylabel: str = None,
    logx: bool = False, # logarithmic axes
    logy: bool = False,
) -> Figure:
    "Draw a line for each name; without xs the points are counted from 0."
    if not curves: raise ValueError("show_curves needs at least one name -> ys")
    lines = {name: [_array(v) for v in (c if isinstance(c, tuple) else (range(len(c)), c))] for name, c in curves.items()}
    for name, (xs, ys) in lines.items():
        if xs.shape != ys.shape or ys.ndim != 1:
            raise ValueError(f"{name}: expected as many xs as ys, got shapes {xs.shape} and {ys.shape}")
    fig, ax = _axes(5.6, title, xlabel, ylabel)
    for (name, (xs, ys)), (hue, nth) in zip(lines.items(), _styles(lines)):
        ax.plot(xs, ys, color=hue, lw=1.8, ls=("-", "--", ":", "-.")[nth % 4], label=name,
                marker="o" if len(ys) <= 12 else None, ms=3.5)
    ax.set(xscale="log" if logx else "linear", yscale="log" if logy else "linear")
    for axis in [ax.xaxis]*logx + [ax.yaxis]*logy:
        low, high = axis.get_view_interval()
        if high < 100*low: # powers of ten alone would be too few
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())
    whole = all((xs % 1 == 0).all() for xs, _ in lines.values())
    if whole and not logx: ax.locator_params(axis="x", integer=True) # there is no epoch 1.5
    ax.grid(color="#E5E7EB", lw=.7)
    _legend(ax)
    return fig

def overlay(
    image_CHW,           # tensor or array (3, H, W) or (1, H, W); values outside [0, 1] are stretched into it
    map_HW,              # tensor or array (h, w), laid over the whole image
    pixel: tuple = None, # row and column of the *map* to ring
    title: str = None,
    ax: Axes = None,     # an axis of yours to draw on
) -> Figure: # None if it is your axis
    "Lay a map over a grey image: the brighter, the larger."
    image, values = _array(image_CHW), _array(map_HW)
    if image.ndim != 3 or image.shape[0] not in (1, 3) or values.ndim != 2:
        raise ValueError(f"expected an image (3, H, W) and a map (H, W), got {image.shape} and {values.shape}")
    (H, W), (h, w), fig = image.shape[1:], values.shape, None
    if ax is None:
        fig, ax = plt.subplots(figsize=(2.6, 2.6*H/W + .3*bool(title)), layout="constrained", FigureClass=_Once)
        _title(fig, title)
    elif title: ax.set_title(title, fontsize=9)
    low, high = min(0, image.min()), max(1, image.max())
    ax.imshow((image.mean(0) - low)/(high - low), "gray", vmin=0, vmax=1)
    ax.imshow(values, "inferno", alpha=.5, extent=(-.5, W - .5, H - .5, -.5), interpolation="bilinear")
    if pixel is not None: mark(ax, ((pixel[0] + .5)*H/h - .5, (pixel[1] + .5)*W/w - .5)) # 
    ax.axis("off")
    return fig

_LAYER = dict( # left, top, width, height; number of the notebook; what it says; hue
    layer=(44, 36, 678, 228, "09", "all of LESA, a drop-in for a 3×3 convolution", "lesa"),
    terms=(58, 124, 80, 58, "02", "one sum,\ntwo parts", "lesa"),
    local=(172, 68, 342, 48, "03", "grouped 3×3, then 1×1: a pixel and its ring", "local"),
    attention=(172, 172, 88, 48, "01", "q, k, v", "context"),
    position=(296, 202, 88, 48, "04", "q·r, k·r", "context"),
    context=(416, 138, 98, 48, "05", "softmax, then v", "context"),
    moments=(416, 202, 98, 48, "06", "σ without scores", "context"),
    blockwise=(546, 202, 164, 48, "07", "no N×N tensor", "context"),
    fusion=(546, 84, 164, 86, "08", "", "gate"), #  is written into it
)
_BUILT = dict( # equal boxes in a row, so only: number, what it says
    resnet=("09", "the network"), published=("10", "their weights"), data=("11", "pictures"), training=("12", "the loop"),
    imagenet=("13", "the recipe"), maps=("14", "what it sees"), detection=("15–18", "boxes, masks"), coco=("19–20", "evaluation"),
)
_BOXES = _LAYER | {name: (44 + 86*i, 294, 76, 48, *words, "lesa") for i, (name, words) in enumerate(_BUILT.items())}

_ARROWS = ( # corners; the last one is the head
    ((24, 153), (58, 153)),                            # x -> terms
    ((138, 141), (155, 141), (155, 92), (172, 92)),    # terms -> local
    ((138, 165), (155, 165), (155, 196), (172, 196)),  # terms -> attention
    ((260, 187), (278, 187), (278, 162), (296, 162)),  # attention -> content
    ((260, 205), (278, 205), (278, 226), (296, 226)),  # attention -> position
    ((384, 162), (416, 162)),                          # content -> context
    ((384, 226), (400, 226), (400, 174), (416, 174)),  # position -> context
    ((514, 92), (530, 92), (530, 112), (546, 112)),    # local -> fusion
    ((514, 162), (530, 162), (530, 142), (546, 142)),  # context -> fusion
    ((710, 127), (732, 127)),                          # fusion -> out
    ((82, 264), (82, 294)),                            # layer -> resnet
)

def _tint(hue, amount):
    "A hue mixed with white."
    return tuple(1 - amount*(1 - np.array(to_rgb(hue))))

_PALE = _tint(COLORS["neutral"], .85)

def _draw_box(ax, name, lit, bright):
    "One box: solid if it is the lit one, tinted if bright, else an outline."
    x, y, w, h, number, words, hue = _BOXES[name]
    hue, frame = COLORS[hue], name == "layer"
    solid = name == lit and not frame
    face = hue if solid else _tint(hue, .08) if bright and not frame else "white"
    edge = _tint(hue, 1 if name == lit else .7 if bright else .3)
    ink = "white" if solid else hue if bright else _PALE
    ax.add_patch(FancyBboxPatch((x, y), w, h, boxstyle="round,pad=0,rounding_size=6", facecolor=face, edgecolor=edge,
                                lw=2.2 if name == lit else 1, zorder=0 if frame else 1))
    if frame: ha, at, below = "left", (x + 24, y + 19), (x + 66, y + 19)
    else:     ha, at, below = "center", (x + w/2, y + 26), (x + w/2, y + 40 + 12*words.count("\n"))
    ax.text(x + 6, y + 13, number, color=ink, fontsize=6.5)
    ax.text(*at, name, color=ink, fontsize=9 if w > 76 else 8.5, weight="bold", ha=ha)
    ax.text(*below, words, color=ink, fontsize=7.5, linespacing=1.15, ha=ha)

def _draw_formula(ax, lit, bright):
    " in the colours of its parts, inside the fusion box."
    def ink(key): return "white" if lit == "fusion" else COLORS[key] if bright else _PALE
    parts = ("local", "local"), ("+", "lesa"), ("gate", "gate"), ("×", "lesa"), ("context", "context")
    words = [TextArea(word, textprops=dict(color=ink(key), fontsize=8.5, weight="bold")) for word, key in parts]
    ax.add_artist(AnnotationBbox(HPacker(children=words, sep=4, pad=0, align="baseline"), (628, 130), frameon=False, pad=0))
    ax.text(628, 156, "the gate has seen both", color=ink("gate"), fontsize=7.5, ha="center")

def draw_map(
    lit: str = None, # the box to light, by the name of its module
) -> Figure:
    "Draw all of LESA and what is built from it."
    if lit is not None and lit not in _BOXES: raise ValueError(f"no box {lit!r} on the map, only {', '.join(_BOXES)}")
    bright = _BOXES if lit is None else _LAYER if lit == "layer" else (lit,)
    ink = _tint(COLORS["lesa"], .8 if len(bright) > 1 else .4)
    fig = plt.figure(figsize=(7.6, 3.5), dpi=100, FigureClass=_Once)
    ax = fig.add_axes((0, 0, 1, 1), xlim=(0, 760), ylim=(350, 0)) # one unit is one pixel, downwards
    ax.axis("off")
    ax.plot((82, 684), (318, 318), color=_tint(COLORS["lesa"], .3), lw=1, zorder=0) # the reading order
    ax.plot((465, 465), (187, 201), color=ink, lw=1.3, ls=":")                      # context = moments, then blocks
    ax.plot((515, 545), (226, 226), color=ink, lw=1.3, ls=":")
    for name in _BOXES: _draw_box(ax, name, lit, name in bright)
    _draw_formula(ax, lit, "fusion" in bright)
    for corners in _ARROWS:
        ax.plot(*zip(*corners[:-1]), color=ink, lw=1.1, zorder=.5) # above the frame, below the boxes
        ax.annotate("", corners[-1], corners[-2], zorder=.5,
                    arrowprops=dict(arrowstyle="-|>", color=ink, lw=1.1, shrinkA=0, shrinkB=0, mutation_scale=9))
    for x, y, word in (14, 153, "x"), (746, 127, "out"), (340, 162, "content q·k"):
        ax.text(x, y, word, color=ink, fontsize=8.5, ha="center", va="center")
    here = "LESA, and what this library builds from it" if lit is None else f"You are here: {_BOXES[lit][4]} {lit}"
    ax.text(44, 19, here, color=COLORS[_BOXES[lit or "layer"][6]], fontsize=10, weight="bold", va="center")
    return fig
