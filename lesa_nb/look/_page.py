"""The file behind the explorer: layers as bytes in a page of HTML, and back. What the numbers mean stands in nb 21."""

import base64
import html
import io
import json
import math
import re
import zlib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from lesa_nb.io.atomic import atomic_text
from lesa_nb.look.answers import format_answer

__all__ = ["ROW_STATISTICS", "Page", "View", "as_picture", "make_page", "pack_view", "read_page"]

#: Of each row of the weights: the largest weight, where it lies, how decided the row is, its weight on itself.
ROW_STATISTICS = ("top", "peak", "decided", "own")

_LONGEST = 720  # pixels: larger pictures are shown smaller, their pixels keep their numbers
_ELEMENT = re.compile(r'<script type="application/json" id="page">(.*?)</script>', re.DOTALL)


class View(NamedTuple):
    """One attention layer on one picture, in bytes, for a map of N = h*w positions.

    layer: its name. kind: "LESA" or "plain attention". size: h, w of its map.
    heads: how many it has, also if only their mean is kept.
    stored: (M, N, N) uint8, a map for each head or one for their mean, eq. (21.1).
    rows: ROW_STATISTICS by name, (K, N) each, of the mean first and then of each head.
    parts: gate, local, context, (N,) each; plain attention has its context only.
    """

    layer: str
    kind: str
    size: tuple[int, int]
    heads: int
    stored: Tensor
    rows: dict[str, Tensor]
    parts: dict[str, Tensor]

    @property
    def maps(self) -> list[str]:
        """What each of the K maps shows."""
        if self.heads == 1:
            return ["the only head"]
        return ["mean of the heads", *(f"head {g + 1}" for g in range(len(self.rows["top"]) - 1))]

    def attention(self, row: int, column: int) -> Tensor:
        """What one position of the layer's map attends to, as the page draws it, eq. (21.2): (K, h, w)."""
        i, top = row*self.size[1] + column, self.rows["top"]
        heads = self.stored[:, i]*top[-len(self.stored):, i, None]/255
        maps = heads if len(top) == 1 else torch.cat([heads.mean(0, keepdim=True), heads])
        return maps.unflatten(-1, self.size)


def pack_view(view: View) -> dict:
    """A view as JSON can hold it: its numbers as float32, then its bytes, compressed where that pays, in base64."""
    rows = torch.cat([view.rows[name].flatten() for name in ROW_STATISTICS])
    numbers = torch.cat([rows, *view.parts.values()])
    raw = numbers.numpy().astype("<f4").tobytes() + view.stored.numpy().tobytes()
    small = zlib.compress(raw, 6)
    deflated = len(small) < 0.9*len(raw)
    return dict(name=view.layer, kind=view.kind, size=view.size, heads=view.heads, maps=view.maps,
                parts=list(view.parts), deflated=deflated, data=base64.b64encode(small if deflated else raw).decode())


def _unpack_view(layer: Mapping[str, Any]) -> View:
    """A view from what JSON held, to the bit."""
    raw = base64.b64decode(layer["data"])
    if layer["deflated"]:
        raw = zlib.decompress(raw)
    N, K, S = math.prod(layer["size"]), len(layer["maps"]), len(ROW_STATISTICS)
    count = (S*K + len(layer["parts"]))*N
    numbers = torch.from_numpy(np.frombuffer(raw, "<f4", count).copy())
    stored = torch.from_numpy(np.frombuffer(raw, np.uint8, offset=4*count).copy())
    height, width = layer["size"]
    rows = dict(zip(ROW_STATISTICS, numbers[:S*K*N].view(S, K, N)))
    parts = dict(zip(layer["parts"], numbers[S*K*N:].view(-1, N)))
    return View(layer["name"], layer["kind"], (height, width), layer["heads"], stored.view(-1, N, N), rows, parts)


class Page(NamedTuple):
    """A page to click. The last line of a notebook's cell shows it; `save` writes it to a file for any browser.

    html: all of it. height: in pixels, in a notebook.
    """

    html: str
    height: int

    def save(self, path: str | PathLike) -> Path:
        """Write the page to a file, .html by custom; its folder is made if it does not exist. ValueError: a folder."""
        path = Path(path)
        if path.is_dir(): raise ValueError(f"{path}: a folder; expected the name of a file")
        path.parent.mkdir(parents=True, exist_ok=True)
        return atomic_text(path, self.html, what="the page")

    def __repr__(self) -> str:
        return f"Explorer, a page of {len(self.html)/1e6:.1f} MB"

    def _repr_html_(self) -> str:
        """The page in a frame of its own: neither its style nor its script can touch the notebook."""
        return (f'<iframe srcdoc="{html.escape(self.html)}" sandbox="allow-scripts" title="click a pixel" '
                f'width="100%" height="{self.height}" style="border: 0; border-radius: 10px"></iframe>')


def as_picture(photo: Any) -> Image.Image:
    """An image of any mode, or a tensor (3 or 1, H, W) in [0, 1], as an RGB image. ValueError: another shape."""
    if isinstance(photo, Image.Image):
        return photo.convert("RGB")
    if getattr(photo, "ndim", 0) != 3 or photo.shape[0] not in (1, 3):
        found = tuple(getattr(photo, "shape", ())) or type(photo).__name__
        raise ValueError(f"expected a photo as a PIL image or a tensor (3, H, W) in [0, 1], found {found}")
    levels = (255*photo.detach().cpu().float().clamp(0, 1)).round().byte()
    return Image.fromarray(levels.expand(3, -1, -1).permute(1, 2, 0).numpy())


def make_page(
    title: str,
    picture: Image.Image,
    pixel: tuple[int, int],
    networks: Sequence[tuple[str, Sequence[dict]]],
    *,
    answers: Mapping[str, Mapping[str, Any]] | None = None,
    height: int = 980,
) -> Page:
    """Fill the template with one picture and what some networks make of it.

    picture: RGB, as a person sees it. pixel: row and column where the page starts.
    networks: name and packed views of each, side by side. answers: name -> what that network says of the picture, see
    `answers.format_answer`; boxes are corners in pixels of the picture. height: in pixels, in a notebook.
    """
    from matplotlib import colormaps  # here, so that training needs no plotting

    from lesa_nb.look.figures import COLORS

    scales = {
        use: base64.b64encode(colormaps[name](range(256), bytes=True)[:, :3].tobytes()).decode()
        for use, name in dict(attention="inferno", parts="viridis").items()
    }
    data = dict(title=_well_formed(title), picture=(picture.height, picture.width), pixel=pixel,
                photo=_png_uri(picture), statistics=ROW_STATISTICS, scales=scales,
                networks=[dict(name=_well_formed(name), layers=layers, **_answered((answers or {}).get(name)))
                          for name, layers in networks])
    colors = " ".join(f"--{name}: {hue};" for name, hue in COLORS.items())
    fill = dict(title=html.escape(_well_formed(title)), page=_in_script(data), colors=colors)
    template = (files("lesa_nb.look")/"explorer.html").read_text(encoding="utf-8")
    return Page(re.sub(r"\{\{(\w+)\}\}", lambda place: fill[place[1]], template), height)


def _answered(answer: Mapping[str, Any] | None) -> dict[str, Any]:
    """What the page shows of an answer: a line of text, and boxes with what is written at each."""
    if answer is None:
        return {}
    boxes = [dict(box=list(thing["box"]), text=_well_formed(f"{thing['name']} {thing['score']:.2f}"))
             for thing in answer.get("objects", ())]
    return dict(answer=_well_formed(format_answer(answer)), boxes=boxes)


def read_page(page: str) -> tuple[dict, dict[str, list[View]]]:
    """Read the HTML of a page as the browser does.

    Returns everything the page holds, and network -> its layers. ValueError: another page.
    """
    found = _ELEMENT.search(page)
    if not found: raise ValueError("expected a page made by `explorer`, found no data in it")
    data = json.loads(found[1])
    return data, {network["name"]: [_unpack_view(layer) for layer in network["layers"]] for network in data["networks"]}


def _png_uri(picture: Image.Image) -> str:
    """A picture as an address that holds the picture itself."""
    if max(picture.size) > _LONGEST:
        picture = ImageOps.contain(picture, (_LONGEST, _LONGEST), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, "png", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _in_script(data: Any) -> str:
    """JSON that nothing inside can break out of."""
    return json.dumps(data).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _well_formed(text: str) -> str:
    """Text that can be written as UTF-8, whatever bytes a file's name is made of."""
    return text.encode("utf-8", "replace").decode()
