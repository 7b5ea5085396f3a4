"""How a detector's run begins: what its weights start from, what its data left out, and which losses it learns by."""
from __future__ import annotations

from collections.abc import Callable
from os import PathLike
from typing import Any

from torch import Tensor, nn

from lesa_nb.data.coco import CocoFolder
from lesa_nb.models.mask_rcnn import MaskRCNN
from lesa_nb.weights.start import start_detector

__all__ = ["data_metadata", "detection_losses", "start_run"]


def data_metadata(pictures: CocoFolder) -> dict[str, Any]:
    """What a run notes of its data: names and ids of the categories and, where the names of the pictures split one set,
    the part that validates."""
    fraction = pictures.files.val_fraction
    found: dict[str, Any] = dict(classes=pictures.categories.names, category_ids=pictures.categories.ids)
    return found | (dict(val_fraction=fraction) if fraction else {})


def detection_losses(model: nn.Module, batch: tuple[list[Tensor], list[dict[str, Any]]]) -> dict[str, Tensor]:
    """The losses of a batch of a `CocoFolder`, which has judged its numbers while they lay on the CPU.

    A detector wants tensors, and the image's id for its messages.
    """
    images, targets = batch
    tensors = [{k: v for k, v in t.items() if isinstance(v, Tensor) or k == "image_id"} for t in targets]
    return model(images, tensors, checked=True)


def start_run(
    detector: MaskRCNN,
    pictures: CocoFolder,
    calibrate: Callable[..., None],
    start: str | PathLike | None,
    *,
    convert: str | None = None,
    warn: bool = False,
) -> list[str]:
    """Give a detector its start.

    Args:
        detector: As it was built.
        pictures: What it will be trained on.
        calibrate: Gives norms of the backbone the statistics of a few pictures: detector, pictures, and names of the
            norms; without names all of them.
        start: File of a classifier or a detector; None: random numbers.
        convert: See `start_backbone`.
        warn: Say that random numbers are no start for this network.

    Returns:
        What there is to say about the start and the data.
    """
    lines = pictures.notes()
    few = [pictures.picture(i) for i in pictures.image_ids[:4]]
    if start is not None:
        report = start_detector(detector, start, convert=convert)
        lines.append(f"started from {start}\n{report.format()}")
        if report.blank_norms:
            calibrate(detector, few, report.blank_norms)
            lines.append(f"{len(report.blank_norms)} norms of the backbone that the file has no statistics for get "
                         f"those of {len(few)} pictures")
        return lines
    calibrate(detector, few)
    if warn:
        lines.append("no ImageNet run to start from: the backbone starts from random numbers, and its stem and first "
                     "stage stay there. The published recipe starts from an ImageNet run with position='factored'")
    return lines
