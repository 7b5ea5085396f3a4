"""Folders of pictures to practise on: drawn ones whose answers are known, and scikit-learn's handwritten digits."""
from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from lesa_nb.data.photos import MAX_PIXELS
from lesa_nb.data.pictures import TWIN_CLASSES, Twins, digits, find_twin
from lesa_nb.data.seeding import _mixed_seed
from lesa_nb.io.atomic import atomic_folder

#: question -> names of its classes, and the class of each picture of `find_twin`
FOLDER_TASKS: dict[str, tuple[tuple[str, ...], Callable[[Twins], Tensor]]] = {
    "twin": (TWIN_CLASSES, lambda twins: twins.labels),
    "corner": (("high", "low"), lambda twins: (twins.turns[:, 0] < 2).long()),
    "both": (tuple(f"{colour}-{corner}" for colour in TWIN_CLASSES for corner in ("high", "low")),
             lambda twins: 2*twins.labels + (twins.turns[:, 0] < 2)),
}
_MARGIN = 5  # pixels around the scene of 64, because validation cuts an eighth off each side length
_LONGER = 16  # pixels that are added to one side of two pictures in three
_LARGEST = math.isqrt(MAX_PIXELS)  # pixels of a side: what is drawn can be read whole


def _check_drawn_size(size: int, least: int, reason: str) -> None:
    """Refuse pictures too small to show anything, and those that fill the memory before the disk.

    Raises:
        ValueError: `size` pixels are fewer than `least`, or more than 4096.
    """
    if size < least:
        raise ValueError(f"size must be at least {least} pixels, {reason}; got {size}")
    if size > _LARGEST:
        raise ValueError(f"size must be at most {_LARGEST} pixels, got {size}")


def _save(image: Tensor, path: Path, size: int) -> None:
    """Write a float image (3, H, W) as PNG, its shorter side `size` pixels long; pixels become squares."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = Image.fromarray((255*image.clamp(0, 1)).round().byte().permute(1, 2, 0).numpy())
    scale = size/min(pixels.size)
    width, height = (round(scale*side) for side in pixels.size)
    pixels.resize((width, height), Image.Resampling.BOX).save(path, compress_level=1)


def _framed(image: Tensor, shape: int, noise: float, generator: torch.Generator) -> Tensor:
    """The scene in the middle of a dark picture; shape: 0 square, 1 wide, 2 high."""
    height, width = image.shape[1:]
    rows = height + 2*_MARGIN + _LONGER*(shape == 2)
    columns = width + 2*_MARGIN + _LONGER*(shape == 1)
    framed = noise*torch.randn(3, rows, columns, generator=generator)
    top, left = (rows - height)//2, (columns - width)//2
    framed[:, top:top + height, left:left + width] = image
    return framed


def make_image_folder(folder: str | os.PathLike, *, task: str = "twin", train: int = 64, val: int = 16, size: int = 256,
                      seed: int = 0, noise: float = 0.06, **knobs: Any) -> Path:
    """Draw train/CLASS/*.png and val/CLASS/*.png whose answers are known; the folder appears when it is complete.

    folder: must not exist, or be empty; task: a row of `FOLDER_TASKS`; train, val: pictures of each class; size:
    pixels of the shorter side; seed: the same seed, the same folder; noise: of each pixel; knobs: of `find_twin`
    (aligned, clutter). Returns the folder. Wishes that cannot be met are a ValueError, a folder that is not empty a
    FileExistsError.
    """
    if task not in FOLDER_TASKS:
        raise ValueError(f"no task {task!r}; there are {', '.join(FOLDER_TASKS)}")
    if min(train, val) < 1:
        raise ValueError(f"need at least one picture of each class, got train={train}, val={val}")
    _check_drawn_size(size, 32, "or marks cannot be told apart")
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, got {seed}")
    names, answer = FOLDER_TASKS[task]
    with atomic_folder(folder) as part:
        for place, (split, count) in enumerate((("train", train), ("val", val))):
            generator = torch.Generator().manual_seed(_mixed_seed(seed, place, 0))
            drawn: Counter[str] = Counter()
            while min(drawn[name] for name in names) < count:  # until the slowest class is full
                twins = find_twin(64, generator, noise=noise, **knobs)
                for image, label in zip(twins.images, answer(twins).tolist()):
                    name = names[label]
                    n = drawn[name]
                    if n == count:
                        continue
                    drawn[name] += 1
                    _save(_framed(image, n % 3, noise, generator), part/split/name/f"{n:05d}.png", size)
    return Path(folder)


def make_digits(folder: str | os.PathLike, *, size: int = 64, seed: int = 0) -> Path:
    """Write scikit-learn's handwritten digits as train/0 to train/9 and val/0 to val/9, PNG files of `size` x `size`
    pixels.

    folder: must not exist, or be empty; seed: of the split. Returns the folder.
    """
    _check_drawn_size(size, 8, "to show a digit")
    split = digits(channels=3, seed=seed)
    with atomic_folder(folder) as part:
        for name, samples in (("train", split.train), ("val", split.valid)):
            images = samples.images*split.std + split.mean
            for i, (image, label) in enumerate(zip(images, samples.labels.tolist())):
                _save(image, part/name/str(label)/f"{i:05d}.png", size)
    return Path(folder)
