"""What a detector may be given: images and targets are checked once, at its door, before anything is computed."""
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

#: an image in [0, 1] may overshoot a little after augmentation; one in 0..255 is nowhere near
_LARGEST_PIXEL = 10.


def image_name(target: Mapping[str, Any] | None, index: int) -> str:
    """What error messages call an image: its `image_id`, a number or a word, or else its place in the batch."""
    if target is None or "image_id" not in target:
        return f"image {index}"
    image_id = target["image_id"]
    return f"image_id {image_id.item() if isinstance(image_id, Tensor) and image_id.numel() == 1 else image_id}"


def check_images(images: Sequence[Tensor], names: Sequence[str]) -> None:
    """Refuse with ValueError what is no RGB image (3, H, W) of floats, nominally in [0, 1]."""
    for image, name in zip(images, names):
        if image.ndim != 3 or image.shape[0] != 3 or 0 in image.shape:
            raise ValueError(f"{name}: expected an RGB image of shape (3, H, W), found {tuple(image.shape)}")
        if not image.is_floating_point():
            raise ValueError(f"{name}: expected a float image, nominally in [0, 1], found {image.dtype}")
    if any(image.is_meta for image in images):
        raise ValueError("a meta tensor has no numbers, and how many objects an image has depends on them: "
                         "detector.extract(x) gives the shapes of everything before the first choice of boxes")
    if not images:
        return
    largest = torch.stack([image.detach().amax().float() for image in images]).tolist()  # the one wait for the device
    for value, name in zip(largest, names):
        if value > _LARGEST_PIXEL:
            raise ValueError(f"{name}: expected values nominally in [0, 1], found {value:g}: "
                             "divide an image of 0..255 by 255")


def check_target(target: Mapping[str, Any], size: tuple[int, int], name: str, *, semantic: bool) -> None:
    """Refuse with ValueError a target that lacks something or does not fit an image of `size` (H, W).

    Expected are `boxes` (n, 4), `labels` (n,) of type int64, optionally `masks` (n, H, W) and, if `semantic`, a map
    `semantic` (H, W). Values are judged by `check_values`, once the boxes are as they will be used.
    """
    if missing := [key for key in ("boxes", "labels") if key not in target]:
        raise ValueError(f"{name}: its target has no {', '.join(missing)}")
    for key in ("boxes", "labels", "masks"):
        if key in target and not isinstance(target[key], Tensor):
            raise ValueError(f"{name}: expected target {key} to be of type Tensor, found {type(target[key]).__name__}")
    boxes, labels = target["boxes"], target["labels"]
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"{name}: expected target boxes to be a tensor of shape [N, 4], found {list(boxes.shape)}; "
                         "an image without objects has torch.zeros(0, 4)")
    if labels.dtype != torch.int64:
        raise ValueError(f"{name}: expected target labels of type int64, found {labels.dtype}; "
                         "convert them with .long()")
    n, (H, W) = len(boxes), size
    for key, shape in dict(labels=(n,), masks=(n, H, W)).items():
        if key in target and tuple(target[key].shape) != shape:
            raise ValueError(f"{name}: expected {key} of shape {shape}, found {tuple(target[key].shape)}")
    if semantic and "semantic" not in target:
        raise ValueError(f"{name}: its target has no semantic map, which this detector learns from; "
                         "build it with semantic=False to go without")
    if semantic and tuple(target["semantic"].shape) != size:
        found = tuple(target["semantic"].shape)
        raise ValueError(f"{name}: expected a semantic map of the image's size {size}, found {found}")


def check_values(
    targets: Sequence[Mapping[str, Any]],
    boxes: Sequence[Tensor],
    sizes: Sequence[tuple[int, int]],
    names: Sequence[str],
    *,
    classes: int,
) -> None:
    """Refuse with ValueError boxes and labels that cannot be learned from.

    `boxes` are those of the targets as they will be used: float32, cut at the edges, of the network's size.
    `sizes` are (H, W) of the images as they came. Labels run from 1 to `classes`.
    """
    faults = []
    for target, used in zip(targets, boxes):
        endless, flat = ~target["boxes"].isfinite().all(1), ~(used[:, 2:] > used[:, :2]).all(1)
        faults.append((endless, flat, (target["labels"] < 1) | (target["labels"] > classes)))
    if not faults or not torch.stack([bad.any() for of_image in faults for bad in of_image]).any():
        return  # the one wait for the device
    for target, (endless, flat, unknown), (H, W), name in zip(targets, faults, sizes, names):
        if endless.any():
            first = target["boxes"][endless][0].tolist()
            raise ValueError(f"{name}: {int(endless.sum())} boxes have an edge that is no finite number; "
                             f"the first is {first}")
        if flat.any():
            first = target["boxes"][flat][0].tolist()
            raise ValueError(f"{name}: {int(flat.sum())} boxes have no area inside the image of {W} x {H} pixels; "
                             f"the first is {first}")
        if unknown.any():
            found = target["labels"][unknown][0].item()
            raise ValueError(f"{name}: expected labels from 1 to {classes}, found {found}")
