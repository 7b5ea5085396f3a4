"""What a detector may be given: images and targets are checked once, at its door, before anything is computed."""
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

#: an image in [0, 1] may overshoot a little after augmentation; one in 0..255 is nowhere near
_LARGEST_PIXEL = 10.

#: values of COCO's stuff maps: 0 to 182; 255 says nothing
STUFF_CLASSES = 183


def image_name(target: Mapping[str, Any] | None, index: int) -> str:
    """What error messages call an image: its `image_id`, a number or a word, or else its place in the batch."""
    if target is None or "image_id" not in target:
        return f"image {index}"
    image_id = target["image_id"]
    return f"image_id {image_id.item() if isinstance(image_id, Tensor) and image_id.numel() == 1 else image_id}"


def check_images(images: Sequence[Tensor], names: Sequence[str]) -> None:
    """Refuse with ValueError what is no RGB image (3, H, W) of floats. Pixels are judged by `check_values`."""
    for image, name in zip(images, names):
        if image.ndim != 3 or image.shape[0] != 3 or 0 in image.shape:
            raise ValueError(f"{name}: expected an RGB image of shape (3, H, W), found {tuple(image.shape)}")
        if not image.is_floating_point():
            raise ValueError(f"{name}: expected a float image, nominally in [0, 1], found {image.dtype}")
    if any(image.is_meta for image in images):
        raise ValueError("a meta tensor has no numbers, and how many objects an image has depends on them: "
                         "detector.extract(x) gives the shapes of everything before the first choice of boxes")


def check_target(target: Mapping[str, Any], size: tuple[int, int], name: str, *, semantic: bool) -> None:
    """Refuse with ValueError a target that lacks something or does not fit an image of `size` (H, W).

    Expected are `boxes` (n, 4), `labels` (n,) of type int64, optionally `masks` (n, H, W) and `has_mask` (n,), which
    says whose masks are true, and, if `semantic`, a map `semantic` (H, W). Values are judged by `check_values`, once
    the boxes are as they will be used.
    """
    if missing := [key for key in ("boxes", "labels") if key not in target]:
        raise ValueError(f"{name}: its target has no {', '.join(missing)}")
    for key in ("boxes", "labels", "masks", "has_mask"):
        if key in target and not isinstance(target[key], Tensor):
            raise ValueError(f"{name}: expected target {key} to be of type Tensor, found {type(target[key]).__name__}")
    boxes, labels = target["boxes"], target["labels"]
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"{name}: expected target boxes to be a tensor of shape [N, 4], found {list(boxes.shape)}; "
                         "an image without objects has torch.zeros(0, 4)")
    layout = getattr(boxes, "format", None)  # torchvision's BoundingBoxes have one
    if layout is not None and getattr(layout, "value", layout) != "XYXY":
        raise ValueError(f"{name}: expected boxes as x0, y0, x1, y1, found BoundingBoxes in {layout}; "
                         "v2.ConvertBoundingBoxFormat('XYXY') converts them")
    if labels.dtype != torch.int64:
        raise ValueError(f"{name}: expected target labels of type int64, found {labels.dtype}; "
                         "convert them with .long()")
    n, (H, W) = len(boxes), size
    for key, shape in dict(labels=(n,), masks=(n, H, W), has_mask=(n,)).items():
        if key in target and tuple(target[key].shape) != shape:
            raise ValueError(f"{name}: expected {key} of shape {shape}, found {tuple(target[key].shape)}")
    if semantic and "semantic" not in target:
        raise ValueError(f"{name}: its target has no semantic map, which this detector learns from; "
                         "build it with semantic=False to go without")
    if semantic and tuple(target["semantic"].shape) != size:
        found = tuple(target["semantic"].shape)
        raise ValueError(f"{name}: expected a semantic map of the image's size {size}, found {found}")


def _unusable(target: Mapping[str, Any], fit: Mapping[str, Any], classes: int, semantic: bool) -> list[Tensor]:
    """Which boxes are endless, which have no area as they will be used, which labels and stuff values are unknown."""
    labels, found, boxes = target["labels"], target["boxes"], fit["boxes"]
    faults = [~found.isfinite().all(1), ~(boxes[:, 2:] > boxes[:, :2]).all(1), (labels < 1) | (labels > classes)]
    if semantic:
        stuff = fit["semantic"][::8, ::8]  # those that are learned from
        faults.append(((stuff < 0) | (stuff >= STUFF_CLASSES)) & (stuff != 255))
    return faults


def check_values(
    images: Sequence[Tensor],
    targets: Sequence[Mapping[str, Any]],
    fitted: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    *,
    classes: int,
    semantic: bool,
) -> None:
    """Refuse with ValueError pixels, boxes, labels and stuff values that cannot be learned from.

    `fitted` are the targets as they will be used: boxes in float32, cut at the edges, of the network's size. Labels run
    from 1 to `classes`; stuff values are judged if `semantic`. However many images there are, the device is asked once.
    """
    if not len(images):  # they may be one tensor (B, 3, H, W)
        return
    faults = [_unusable(target, fit, classes, semantic) for target, fit in zip(targets, fitted)]
    numbers = [image.detach().amax().float() for image in images]
    numbers += [bad.any().float() for of_image in faults for bad in of_image]
    found = torch.stack(numbers).tolist()  # the one wait for the device
    for value, name in zip(found, names):
        if not value <= _LARGEST_PIXEL:  # NaN is neither
            cure = ": divide an image of 0..255 by 255"*(value > _LARGEST_PIXEL)
            raise ValueError(f"{name}: expected values nominally in [0, 1], found {value:g}{cure}")
    if any(found[len(images):]):
        for image, target, fit, of_image, name in zip(images, targets, fitted, faults, names):
            _refuse(image, target, fit, of_image, name, classes)


def _refuse(
    image: Tensor, target: Mapping[str, Any], fit: Mapping[str, Any], faults: Sequence[Tensor], name: str, classes: int
) -> None:
    """Say in a sentence which of `_unusable` it is, if it is any."""
    (H, W), (endless, flat, unknown) = image.shape[1:], faults[:3]
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
    if len(faults) > 3 and faults[3].any():
        found = fit["semantic"][::8, ::8][faults[3]][0].item()
        raise ValueError(f"{name}: expected semantic values from 0 to {STUFF_CLASSES - 1}, or 255 for unknown, "
                         f"found {found}")
