"""A small COCO folder, drawn: discs, squares and triangles with boxes, outlines, crowds and stuff maps."""
import json
import math
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ..io.atomic import atomic_folder
from .coco import run_lengths
from .coco_file import _NO_STUFF
from .drawn import _check_drawn_size

#: what `make_coco` draws: name -> category id
_SHAPES = {"disc": 2, "square": 17, "triangle": 90}
_STUFF = (123, 156)  # raw values of the two backgrounds in the stuff map; a thing has its category id - 1
_CORNERS = {"disc": 32, "square": 4, "triangle": 3}
_NAMES = {
    "train2017": "instances_train2017", "val2017": "instances_val2017", "test2017": "image_info_test-dev2017"}


def _outline(shape: str, x: float, y: float, radius: float, angle: float) -> np.ndarray:
    """Corners of a shape around a centre, as points (x, y)."""
    turns = angle + 2*np.pi*np.arange(_CORNERS[shape])/_CORNERS[shape]
    return np.stack([x + radius*np.cos(turns), y + radius*np.sin(turns)], -1).round(2)


def _filled(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """The pixels inside a polygon."""
    canvas = Image.new("1", (width, height))
    ImageDraw.Draw(canvas).polygon([tuple(point) for point in points], fill=1)
    return np.array(canvas)


def _background(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Two kinds of texture, one above the other, in greys; and which is where."""
    coarse = Image.fromarray(rng.uniform(80, 150, (height//16 + 2, width//16 + 2)).astype(np.float32))
    grey = np.array(coarse.resize((width, height), Image.Resampling.BICUBIC))
    rows, columns = np.mgrid[:height, :width]
    below = rows > height*rng.uniform(.3, .7) + 6*np.sin(columns/rng.uniform(9, 20))
    grey += np.where(below, 18*np.sin(columns/1.7 + rows/3), 0) + rng.normal(0, 2, (height, width))
    return np.repeat(grey[..., None], 3, -1), np.where(below, *_STUFF).astype(np.uint8)


class _Scene:
    """One image while it is drawn: pixels, stuff map, annotations, and which places are taken."""

    def __init__(self, rng: np.random.Generator, size: int, turn: int):
        self.rng, self.size = rng, size
        self.height, self.width = [(size, size), (3*size//4, size), (size, 3*size//4)][turn % 3]
        self.pixels, self.stuff = _background(rng, self.height, self.width)
        self.annotations: list[dict] = []
        self._placed: list[tuple[float, float, float]] = []

    def place(self, low: float, high: float) -> tuple[float, float, float] | None:
        """A free spot: middle and radius of a circle that touches nothing."""
        for _ in range(40):
            radius = self.size*self.rng.uniform(low, high)
            x = self.rng.uniform(radius + 1, self.width - radius - 1)
            y = self.rng.uniform(radius + 1, self.height - radius - 1)
            if all(math.hypot(x - a, y - b) > radius + r + 2 for a, b, r in self._placed):
                self._placed.append((x, y, radius))
                return x, y, radius
        return None

    def add(self, shape: str, inside: np.ndarray, box: tuple, segmentation: Any, iscrowd: int):
        """Paint the pixels of a thing and write its annotation."""
        hue = self.rng.permutation([self.rng.uniform(170, 255), self.rng.uniform(0, 90), self.rng.uniform(0, 255)])
        self.pixels[inside] = hue + self.rng.normal(0, 3, (inside.sum(), 3))
        self.stuff[inside] = _SHAPES[shape] - 1
        self.annotations.append(dict(
            category_id=_SHAPES[shape], bbox=[float(v) for v in box], area=float(inside.sum()),
            segmentation=segmentation, iscrowd=iscrowd))

    def add_crowd(self):
        """Discs on a spiral, too many to count; nothing where there is no room."""
        spot = self.place(.16, .2)
        if spot is None:
            return
        x, y, radius = spot
        inside = np.zeros((self.height, self.width), bool)
        for turns in np.arange(9)*2.4:
            step = .7*radius*math.sqrt(turns/21.6)
            disc = _outline("disc", x + step*math.cos(turns), y + step*math.sin(turns), .26*radius, 0)
            inside |= _filled(disc, self.height, self.width)
        (top, bottom), (left, right) = [np.flatnonzero(inside.any(axis))[[0, -1]] for axis in (1, 0)]
        runs = dict(size=[self.height, self.width], counts=run_lengths(inside))
        self.add("disc", inside, (left, top, right - left + 1, bottom - top + 1), runs, 1)

    def add_thing(self) -> bool:
        """One shape with its polygon; False if there is no room left."""
        spot = self.place(.08, .2)
        if spot is None:
            return False
        shape = str(self.rng.choice(list(_SHAPES)))
        points = _outline(shape, *spot, self.rng.uniform(0, 2*np.pi))
        low, high = points.min(0), points.max(0)
        inside = _filled(points, self.height, self.width)
        self.add(shape, inside, (*low, *(high - low).round(2)), [points.reshape(-1).tolist()], 0)
        return True


def _draw_scene(rng: np.random.Generator, size: int, turn: int) -> _Scene:
    """An image: each eighth is empty, each eighth has a crowd."""
    scene = _Scene(rng, size, turn)
    if turn % 8 == 3:
        scene.add_crowd()
    if turn % 8 != 5:
        for _ in range(rng.integers(2, 7)):
            if not scene.add_thing():
                break
    scene.stuff[-2:] = _NO_STUFF
    return scene


def _draw_split(root: Path, split: str, place: int, count: int, size: int, seed: int, number: int) -> tuple[dict, int]:
    """Write the images and stuff maps of one split; its annotation file's content, and the last annotation id."""
    test = split == "test2017"
    (root/split).mkdir()
    if not test:
        (root/"stuffthingmaps"/split).mkdir(parents=True)
    images, annotations = [], []
    for i in range(count):
        scene = _draw_scene(np.random.default_rng([seed, place, i]), size, i)
        image_id = 100_000*(place + 1) + 7*i  # gaps here too
        name = f"{image_id:012d}"
        images.append(dict(id=image_id, file_name=f"{name}.jpg", height=scene.height, width=scene.width))
        Image.fromarray(scene.pixels.clip(0, 255).astype(np.uint8)).save(root/split/f"{name}.jpg", quality=90)
        if test:
            continue
        Image.fromarray(scene.stuff).save(root/"stuffthingmaps"/split/f"{name}.png")
        for annotation in scene.annotations:
            number += 1
            annotations.append(dict(id=number, image_id=image_id, **annotation))
    categories = [dict(id=number, name=name, supercategory="shape") for name, number in _SHAPES.items()]
    content: dict = dict(info=dict(description=f"drawn by lesa_nb, seed {seed}"), images=images, categories=categories)
    if not test:
        content["annotations"] = annotations
    return content, number


def make_coco(
    folder: str | PathLike, *, train: int = 32, val: int = 16, test: int = 4, size: int = 160, seed: int = 0,
) -> Path:
    """Draw a COCO folder with everything the real one has; it appears when it is complete.

    `folder` must not exist, or be empty. `train`, `val` and `test` count the images of train2017, val2017 and
    test2017 (the last without annotations); each eighth image is empty, each eighth has a crowd. `size` is the longer
    side in pixels, 64 at least. The same seed draws the same folder. Returns the folder.
    """
    folder = Path(folder)
    _check_drawn_size(size, 64, "to have room for shapes")
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, got {seed}")
    number = 1000
    with atomic_folder(folder) as part:
        (part/"annotations").mkdir()
        for place, (split, count) in enumerate(dict(train2017=train, val2017=val, test2017=test).items()):
            content, number = _draw_split(part, split, place, count, size, seed, number)
            (part/"annotations"/f"{_NAMES[split]}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder
