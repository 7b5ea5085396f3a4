"""From a Pillow picture to what a classifier takes: random crops for training, the middle for validation."""
from typing import NamedTuple

import torch
from PIL import Image
from torchvision.transforms import v2

from lesa_nb.data.photos import picture_rgb
from lesa_nb.layers.inputs import IMAGENET_MEAN, IMAGENET_STD

_LONGEST_RATIO = 16  # of the sides of a picture; what is longer loses its ends before it is resized


class _Augment(NamedTuple):
    """What training may do to a picture, besides mirroring half of them.

    area: part of the picture that is kept, from and to; jitter: brightness, contrast, saturation, hue; trivial: one
    random change of random strength (`v2.TrivialAugmentWide`); erase: probability of a patch without content.
    """

    area: tuple[float, float] = (0.08, 1.0)
    jitter: tuple[float, float, float, float] | None = None
    trivial: bool = False
    erase: float = 0.0


#: name -> what training a classifier may do to a picture
CLASSIFY_AUGMENTS = {
    "published": _Augment(),
    "jitter": _Augment(jitter=(0.4, 0.4, 0.4, 0.1)),
    "modern": _Augment(trivial=True, erase=0.1),
    "gentle": _Augment(area=(0.85, 1.0)),
}


class _TrimEnds(v2.Transform):
    """Cut both ends off a picture that is more than 16 times as long as wide, or it would grow huge when its shorter
    side is resized; what stays is its middle, which is all that validation looks at."""

    def transform(self, inpt: Image.Image, params: dict) -> Image.Image:
        """The picture, or its middle part."""
        width, height = inpt.size
        longest = _LONGEST_RATIO*min(width, height)
        if max(width, height) <= longest:
            return inpt
        left, top = max(0, (width - longest)//2), max(0, (height - longest)//2)
        return inpt.crop((left, top, left + min(width, longest), top + min(height, longest)))


def resized_side(size: int) -> int:
    """Pixels of the shorter side before the middle of `size` is cut out: 256 for 224, as published."""
    return round(256*size/224)


def _checked(size: int) -> int:
    if size < 1:
        raise ValueError(f"size must be at least 1 pixel, got {size}")
    return size


def _standardised() -> list[v2.Transform]:
    """From a Pillow picture to a standardised tensor, eq. (15.3)."""
    return [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(IMAGENET_MEAN, IMAGENET_STD, inplace=True)]


def any_mode(picture: Image.Image) -> Image.Image:
    """A Pillow picture of any mode as RGB, by the rules that files are read by; a ValueError says why it cannot be."""
    return picture_rgb(picture)


def train_transform(size: int = 224, augment: str = "published") -> v2.Compose:
    """Random crop, mirror, and what `augment` says: RGB Pillow picture -> float (3, size, size), standardised.

    size: pixels of the square that comes out; augment: a row of `CLASSIFY_AUGMENTS`. Unknown rows and sizes below 1
    are a ValueError.
    """
    if augment not in CLASSIFY_AUGMENTS:
        raise ValueError(f"no augment {augment!r}; there are {', '.join(CLASSIFY_AUGMENTS)}")
    choice = CLASSIFY_AUGMENTS[augment]
    steps = [v2.RandomResizedCrop(_checked(size), scale=choice.area), v2.RandomHorizontalFlip()]
    if choice.jitter:
        steps.append(v2.ColorJitter(*choice.jitter))
    if choice.trivial:
        steps.append(v2.TrivialAugmentWide(interpolation=v2.InterpolationMode.BILINEAR))
    steps += _standardised()
    if choice.erase:
        steps.append(v2.RandomErasing(choice.erase))
    return v2.Compose(steps)


def eval_transform(size: int = 224) -> v2.Compose:
    """The middle of the picture, always the same: RGB Pillow picture -> float (3, size, size), standardised.

    The shorter side comes to `resized_side(size)` pixels and the middle `size` x `size` is cut out.
    """
    return v2.Compose([_TrimEnds(), v2.Resize(resized_side(_checked(size))), v2.CenterCrop(size), *_standardised()])
