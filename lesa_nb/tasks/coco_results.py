"""From a detector's answers to COCO results: category ids, x y w h, masks as run lengths; and the file for test-dev."""
import json
import math
from collections.abc import Iterable, Iterator
from os import PathLike
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

from ..data.coco import CocoFolder
from ..data.coco_file import coco_tools, segmentation_fault
from ..engine.group import gather
from ..io.atomic import atomic_write

_AT_ONCE = 2**26  # numbers of masks that are pasted at once: a quarter of a GiB


def _check_answer(boxes: Tensor, scores: Tensor, labels: Tensor, image_id: int, classes: int):
    """Refuse an answer that cannot be scored, naming the image and what is wrong."""
    n, where = len(scores), f"image {image_id}"
    if len(boxes) != n or len(labels) != n:
        raise ValueError(f"{where}: {len(boxes)} boxes, {len(labels)} labels and {n} scores do not go together")
    if not (boxes.isfinite().all() and scores.isfinite().all()):
        raise ValueError(f"{where}: boxes or scores are not finite; has training diverged?")
    if n and not (0 <= scores.min() and scores.max() <= 1):
        raise ValueError(f"{where}: scores must lie in 0..1, found {scores.min():.4g}..{scores.max():.4g}")
    if n and not (1 <= labels.min() and labels.max() <= classes):
        raise ValueError(f"{where}: labels must lie in 1..{classes}, found {labels.min()}..{labels.max()}; "
                         "was the detector made for another number of classes?")


def _encode_masks(masks: Tensor, size: tuple[int, int], image_id: int) -> list[dict]:
    """Soft masks (n, 1, H, W) or (n, H, W) as compressed run lengths of what is at least one half."""
    masks = masks.detach()
    if masks.ndim == 4:
        masks = masks.squeeze(1)
    if masks.shape[1:] != size:
        raise ValueError(f"image {image_id}: masks must be pasted at the image's size, {(len(masks), *size)}; "
                         f"found {tuple(masks.shape)}")
    if not len(masks):
        return []
    inside = (masks >= .5).to(torch.uint8)  # also right for bool and whole numbers
    columns = inside.transpose(1, 2).contiguous().cpu().numpy().transpose(2, 1, 0)  # run lengths go down the columns
    encoded = coco_tools("faster_coco_eval.core.mask").encode(columns)
    return [dict(size=list(size), counts=rle["counts"].decode("ascii")) for rle in encoded]


def pack_masks(model: Any, found: dict[str, Tensor], size: tuple[int, int], image_id: int = 0) -> list[dict]:
    """The masks of a detector's answer without pasting (`paste=False`) as compressed run lengths.

    A few at a time are pasted into the image's `size`, so that a large image takes no more memory than one mask of it.
    """
    few = max(1, _AT_ONCE//(size[0]*size[1]))
    parts = zip(found["masks"].split(few), found["boxes"].split(few))
    return [rle for masks, boxes in parts for rle in _encode_masks(model.paste(masks, boxes, size), size, image_id)]


def to_results(
    output: dict, image_id: int, dataset: CocoFolder, *, limit: int = 100, model: nn.Module | None = None,
) -> list[dict]:
    """One image's detections as COCO results: image_id, category_id, bbox, score and, with masks, segmentation.

    `output`: a detector's answer for the image, boxes (corners), labels, scores and, if it has them, soft masks of the
    image's size. `dataset`: that the image is from. `limit`: at most so many, the best ones. `model`: the detector, if
    it has left its masks for `pack_masks`. Masks are packed at once: dense ones are never kept. A ValueError names the
    image and what cannot be scored.
    """
    size = dataset.size(image_id)
    boxes, scores, labels = (output[name].detach().cpu() for name in ("boxes", "scores", "labels"))
    boxes, scores = boxes.double().reshape(-1, 4), scores.double()
    _check_answer(boxes, scores, labels, image_id, len(dataset.categories))
    best = scores.argsort(descending=True, stable=True)[:limit]
    boxes = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)
    results = [dict(image_id=image_id, category_id=dataset.categories.id(label), bbox=box, score=score)
               for label, box, score in zip(labels[best].tolist(), boxes[best].tolist(), scores[best].tolist())]
    masks = output.get("masks")
    if masks is not None:
        if len(masks) != len(scores):
            raise ValueError(f"image {image_id}: {len(masks)} masks and {len(scores)} scores do not go together")
        there = best.to(masks.device)
        packed = (_encode_masks(masks[there], size, image_id) if model is None else
                  pack_masks(model, dict(masks=masks[there], boxes=output["boxes"][there]), size, image_id))
        for result, rle in zip(results, packed):
            result["segmentation"] = rle
    return results


@torch.no_grad()
def _predict_results(
    model: nn.Module, batches: Iterable[tuple[list[Tensor], list[dict]]], dataset: CocoFolder, *, limit: int = 100,
) -> Iterator[tuple[int, list[dict]]]:
    """Run a detector in evaluation mode; yields image id and results, one image at a time.

    `model` has torchvision's detection API. `batches`: images and targets; of a target only image_id is used.
    """
    device, training = next(model.parameters()).device, model.training
    leaves: dict[str, Any] = dict(paste=False) if hasattr(model, "paste") else {}  # ours can leave masks unpasted
    try:
        for images, targets in batches:
            model.eval()  # whoever took the last results may have trained in between
            for target, output in zip(targets, model([image.to(device) for image in images], **leaves)):
                image_id = int(target["image_id"])
                yield image_id, to_results(output, image_id, dataset, limit=limit, model=model if leaves else None)
    finally:
        model.train(training)


def _check_result(result: dict, image_id: int, dataset: CocoFolder, where: str):
    """Refuse a result that COCO's server would not take, or that would count as wrong there."""
    size, categories = list(dataset.size(image_id)), dataset.categories
    if result["image_id"] != image_id:
        raise ValueError(f"{where}: it says image_id {result['image_id']}")
    if result["category_id"] not in categories.ids:
        raise ValueError(f"{where}: category_id must be an id of {dataset.path.name}, {categories.ids}; "
                         f"found {result['category_id']}")
    if not 0 <= result["score"] <= 1:
        raise ValueError(f"{where}: score must lie in 0..1, found {result['score']}")
    box = result["bbox"]
    if len(box) != 4 or not all(map(math.isfinite, box)) or min(box[2:]) < 0:
        raise ValueError(f"{where}: bbox must be x, y, width, height, found {box}")
    rle = result.get("segmentation")
    if rle is not None and (rle["size"] != size or segmentation_fault(rle, *size)):
        raise ValueError(f"{where}: the mask's run lengths must fill the image, {size}; its size says {rle['size']}")


def _write_results(file: IO[str], results: Iterable[tuple[int, list[dict]]], path: Path, dataset: CocoFolder,
                   limit: int) -> int:
    """Write every line that passes; returns how many images there were."""
    seen: set[int] = set()
    separator = "["
    for image_id, found in results:
        dataset.size(image_id)  # speaks up if there is no such image
        if image_id in seen:
            raise ValueError(f"{path}: image {image_id} comes twice")
        if len(found) > limit:
            raise ValueError(f"{path}: image {image_id} has {len(found)} detections, at most {limit} may be sent")
        seen.add(image_id)
        for number, result in enumerate(found):
            _check_result(result, image_id, dataset, f"{path}: image {image_id}, detection {number}")
            file.write(separator + json.dumps(result, allow_nan=False))
            separator = ",\n"
    file.write("]\n" if separator != "[" else "[]\n")
    return len(seen)


def write_testdev(
    path: str | PathLike, dataset: CocoFolder, results: dict | Iterable[tuple[int, list[dict]]], *, limit: int = 100,
    partial: bool = False,
) -> Path:
    """Check results and write them as COCO's server wants them; the file is replaced in one go or not at all.

    `dataset`: of the split "test-dev2017". `results`: image id -> results, or pairs of them from `_predict_results`:
    images go through one at a time, so the file may be larger than memory. `limit`: detections that one image may have.
    `partial`: allow images that nothing was said about; their objects count as not found. Returns the path. A
    ValueError names the image, the detection and what is wrong.
    """
    path = Path(path)
    with atomic_write(path, "w", what="the results") as file:
        pairs = results.items() if isinstance(results, dict) else results
        missing = len(dataset) - _write_results(file, pairs, path, dataset, limit)
        if missing and not partial:
            raise ValueError(f"{path}: {missing} of {len(dataset)} images of {dataset.split} are missing from the "
                             "results; run on all of them, or say partial=True")
    return path


def _gather_results(results: dict[int, list[dict]]) -> dict[int, list[dict]]:
    """Bring the results of all processes together, each image once; alone, nothing changes."""
    return {image_id: found for part in gather(results) for image_id, found in part.items()}
