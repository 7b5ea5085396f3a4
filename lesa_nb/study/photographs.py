"""One photograph before three networks that were trained on photographs: two pictures of the README.

`python tools/draw_images.py triptych` trains and draws the one at the top, `... explorer` the page to click.
"""
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional

from lesa_nb.data.photos import sample_photo
from lesa_nb.data.pictures import Samples, check_samples
from lesa_nb.look.capture import attention_layers, capture_layer
from lesa_nb.look.gallery import dependence
from lesa_nb.study.small import Problem, SmallNet, Trained, train_small
from lesa_nb.tasks.side_by_side import THREE_TERMS, train_terms

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lesa_nb.look.explorer import Page

__all__ = ["draw_triptych", "explore_crop", "train_triptych"]

_HEIGHT = 192  #: pixels that every photograph is reduced to
_SIDE = 60  #: of a crop, pixels
_PATCH = 5  #: of the networks, pixels: a crop has a map of 12 x 12 positions
_FROM_SKIMAGE = ("astronaut", "brick", "camera", "chelsea", "coffee", "coins", "grass", "gravel", "moon", "rocket")
_CALLED = {"camera": "cameraman", "chelsea": "cat", "china": "pavilion"}


def _photographs() -> dict[str, Tensor]:
    """The twelve photographs that come with scikit-image and scikit-learn: name -> (1, 192, W), grey.

    Each has mean 0 and deviation 1, so that brightness and contrast tell nothing.
    """
    from skimage import data as skimage_photos

    found = {_CALLED.get(name, name): getattr(skimage_photos, name)() for name in _FROM_SKIMAGE}
    found |= {_CALLED.get(name, name): sample_photo(name) for name in ("china", "flower")}
    grey = {name: functional.to_image(photo).float().mean(0, keepdim=True) for name, photo in found.items()}
    small = {name: functional.resize(photo, [_HEIGHT], antialias=True) for name, photo in grey.items()}
    return {name: (photo - photo.mean())/photo.std() for name, photo in small.items()}


def _line(width: int) -> int:
    """What lies left of this column is trained on, what lies right of it is tested on."""
    return round(.6*width)


def _crop_of(photos: Mapping[str, Tensor], name: str, place: tuple[int, int]) -> Tensor:
    """One crop as the networks want it, (1, 1, 60, 60); see `_check_place`."""
    _check_place(photos, name, place)
    top, left = place
    return photos[name][None, :, top:top + _SIDE, left:left + _SIDE]


def _check_place(photos: Mapping[str, Tensor], name: str, place: tuple[int, int]) -> None:
    """ValueError: no such photograph, or a crop that is not in the part that nobody trained on."""
    if name not in photos:
        raise ValueError(f"no photograph {name!r}; there are {', '.join(photos)}")
    height, width = photos[name].shape[-2:]
    (top, left), line = place, _line(width)
    if not (0 <= top <= height - _SIDE and line <= left <= width - _SIDE):
        raise ValueError(f"expected a crop right of the line: row 0 to {height - _SIDE}, column {line} to "
                         f"{width - _SIDE} of {name!r}, found {place}")


def _crops(photos: Mapping[str, Tensor], part: str, count: int, generator: torch.Generator) -> Samples:
    """Random crops of one part of the photographs, "train" or "test", and which photograph each is from."""
    labels = torch.randint(len(photos), (count,), generator=generator)
    images, every = [], list(photos.values())
    for label in labels.tolist():
        height, width = every[label].shape[-2:]
        left, right = (0, _line(width)) if part == "train" else (_line(width), width)
        down, along = torch.rand(2, generator=generator).tolist()
        top, start = int(down*(height - _SIDE + 1)), left + int(along*(right - left - _SIDE + 1))
        images.append(every[label][:, top:top + _SIDE, start:start + _SIDE])
    return Samples(torch.stack(images), labels)


def _photo_problem(valid: int = 600) -> Problem:
    """Which of the twelve photographs is this crop from? No test crop shares a pixel with a training crop."""
    photos = _photographs()

    def batches(batch_size: int, steps: int, generator: torch.Generator) -> Iterator[Samples]:
        for _ in range(steps):
            yield _crops(photos, "train", batch_size, generator)

    held = _crops(photos, "test", valid, torch.Generator().manual_seed(99))
    net = dict(classes=len(photos), channels=1, size=_SIDE, patch=_PATCH)
    return Problem("which photograph", net, batches, check_samples(held, len(photos)))


def train_triptych(steps: int = 250, **recipe: Any) -> dict[str, Trained]:
    """The three small networks, trained alike on crops of photographs: name of the term -> run."""
    return dict(train_terms(train_small, _photo_problem(), steps=steps, **recipe))


class _Seen(NamedTuple):
    """What the last block of a network reads, from one position p of its map, on one picture.

    local: how much each position matters to the term that sees a ring, as shares that sum to 1, (h, w); None: it has
    no such term. context: what p attends to, mean of the heads, in equal shares, (h, w); None: it does not attend.
    gate: mean over channels at p, 0 to 1; None: it has none. answer: names and probabilities, the best first.
    """

    local: Tensor | None
    context: Tensor | None
    gate: float | None
    answer: list[tuple[str, float]]


def _see(model: SmallNet, crop: Tensor, cell: tuple[int, int], names: Sequence[str]) -> _Seen:
    """Ask one network about one crop (1, 1, H, W), and about one position of its map."""
    layer, inputs, _ = list(model.middles(crop))[-1]
    ring = layer if isinstance(layer, nn.Conv2d) else getattr(layer, "local", None)
    local = context = gate = None
    if ring is not None:
        local = dependence(ring, inputs, cell)
        local = local/local.sum()
    if attention_layers(model):
        seen = capture_layer(model, crop)
        heads = seen.attention(*cell)[0].mean(0)
        context = heads*heads.numel()
        gate = None if seen.gate is None else seen.gate[0, :, cell[0], cell[1]].mean().item()
    with torch.no_grad():
        chances = model(crop).softmax(1)[0]
    order = chances.argsort(descending=True).tolist()
    return _Seen(local, context, gate, [(names[i], chances[i].item()) for i in order])


def _lay(ax: Axes, values: Tensor, hue: str, most: float, opaque: float = .9) -> None:
    """Lay a map over a picture that fills (0, 1) x (0, 1): the more, the more of the hue."""
    from matplotlib.colors import to_rgb

    colors = torch.tensor(to_rgb(hue)).expand(*values.shape, 3)
    veil = (values/most).clamp(0, 1)[..., None]*opaque
    ax.imshow(torch.cat([colors, veil], -1).numpy(), extent=(0, 1, 1, 0), interpolation="nearest")


def _panel(ax: Axes, crop: Tensor, seen: _Seen, cell: tuple[int, int], most: float) -> None:
    """One network's panel: the crop in pale grey, the context in its hue, the ring in its own, p ringed."""
    from matplotlib.patches import Rectangle

    from lesa_nb.look.figures import COLORS

    ax.imshow(crop[0, 0].numpy(), "gray", vmin=-2.6, vmax=2.6, extent=(0, 1, 1, 0), interpolation="bicubic", alpha=.6)
    if seen.context is not None:
        _lay(ax, seen.context, COLORS["context"], most)
    if seen.local is not None:
        _lay(ax, seen.local, COLORS["local"], float(seen.local.max()), .7)
        h, w = seen.local.shape
        rows, cols = (seen.local > 0).nonzero().T
        left, top = cols.min().item()/w, rows.min().item()/h
        wide, tall = (cols.max().item() + 1)/w - left, (rows.max().item() + 1)/h - top
        ax.add_patch(Rectangle((left, top), wide, tall, fill=False, edgecolor=COLORS["local"], lw=2.5))
    h, w = (_SIDE//_PATCH,)*2
    for width, hue in ((4.5, "black"), (2.2, "white")):
        ax.plot((cell[1] + .5)/w, (cell[0] + .5)/h, "o", ms=15, mfc="none", mec=hue, mew=width)
    ax.set(xlim=(0, 1), ylim=(1, 0), xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def _words(seen: _Seen, truth: str) -> str:
    """What a network says of the crop, and whether that is right."""
    name, chance = seen.answer[0]
    return f"{'✓' if name == truth else '✗'} “{name}”, {chance:.0%}"


def draw_triptych(
    runs: Mapping[str, Trained], name: str, place: tuple[int, int], cell: tuple[int, int],
) -> Figure:
    """The same crop before three trained networks: what the ringed position reads in the last block of each.

    runs: from `train_triptych`. name: a photograph, a key of `_photographs`. place: row and column of the crop in it,
    in the part that nobody trained on. cell: row and column of the position on the map of 12 x 12.
    """
    from matplotlib import pyplot as plt
    from matplotlib.offsetbox import AnchoredOffsetbox, HPacker, TextArea

    from lesa_nb.look.figures import COLORS

    photos = _photographs()
    crop = _crop_of(photos, name, place)
    seen = {term: _see(run.model, crop, cell, list(photos)) for term, run in runs.items()}  # type: ignore[arg-type]
    most = max(float(found.context.max()) for found in seen.values() if found.context is not None)
    fig = plt.figure(figsize=(9, 4.5), dpi=100)
    sees = dict(conv=("a ring", "local"), attention=("everything", "context"), lesa=("both", "gate"))
    for i, (term, found) in enumerate(seen.items()):
        ax = fig.add_axes((.01 + .333*i, .2, .313, .626))
        _panel(ax, crop, found, cell, most)
        middle = .01 + .333*i + .1565
        fig.text(middle, .955, THREE_TERMS[term], ha="center", va="center", fontsize=19, weight="bold",
                 color=COLORS[term])
        word, hue = sees[term]
        words = (TextArea("sees", textprops=dict(fontsize=17, color=COLORS["lesa"])),
                 TextArea(word, textprops=dict(fontsize=17, color=COLORS[hue], weight="bold")))
        packed = HPacker(children=[*words], sep=7, pad=0, align="baseline")
        row = AnchoredOffsetbox("center", child=packed, frameon=False,
                                bbox_to_anchor=(middle, .873), bbox_transform=fig.transFigure, borderpad=0)
        fig.add_artist(row)
        fig.text(middle, .15, _words(found, name), ha="center", va="center", fontsize=17, color=COLORS["lesa"])
    bar = fig.add_axes((.343, .028, .2, .05))  # the scale of both maps, as they are laid over white
    _lay(bar, torch.linspace(0, 1, 64)[None], COLORS["context"], 1)
    bar.set(xticks=[], yticks=[], xlim=(0, 1), ylim=(1, 0), aspect="auto")
    bar.spines[:].set_color(COLORS["neutral"])
    fig.text(.555, .05, f"0 to {most:.1f} times an equal share", va="center", fontsize=17, color=COLORS["lesa"])
    return fig


def explore_crop(
    runs: Mapping[str, Trained], name: str, place: tuple[int, int], cell: tuple[int, int],
) -> Page:
    """The explorer's page of the same crop before the two networks that attend; arguments as of `draw_triptych`."""
    from lesa_nb.look.explorer import explorer

    photos = _photographs()
    crop = _crop_of(photos, name, place)
    grey = (crop[0] - crop.min())/(crop.max() - crop.min())
    shown = functional.resize(grey, [5*_SIDE], antialias=True).clamp(0, 1).expand(3, -1, -1)
    networks: dict[str, nn.Module] = {THREE_TERMS[term]: runs[term].model for term in ("lesa", "attention")}
    answers = {}
    for title, network in networks.items():
        with torch.no_grad():
            chances, order = network(crop).softmax(1)[0].topk(2)
        found = [dict(name=list(photos)[i], score=chance) for i, chance in zip(order.tolist(), chances.tolist())]
        answers[title] = dict(classes=found)
    row, column = (round((at + .5)*5*_PATCH) for at in cell)
    return explorer(shown, networks, crop, answers=answers, pixel=(row, column),
                    title="Which photograph? What does a pixel look at?")
