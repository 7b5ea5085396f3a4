"""Ask a trained network about pictures: names and probabilities of a classifier, boxes and masks of a detector."""
from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor

from lesa_nb.data.listing import is_litter, is_picture, is_unread_picture, list_files
from lesa_nb.data.photos import open_image, picture_rgb
from lesa_nb.data.report import printable
from lesa_nb.tasks.coco_results import pack_masks
from lesa_nb.weights.load import Loaded, load

#: pixels that a picture keeps when it is read for a classifier, which sees a small square of it
_CLASSIFIER_PIXELS = 2**24

_Picture = str | os.PathLike | Image.Image


def _counts(name: str) -> bool:
    """Whether a file in a folder is a picture by the end of its name, one that cannot be read included."""
    return is_picture(name) or is_unread_picture(name)


def find_images(paths: Sequence[str | os.PathLike]) -> list[Path]:
    """Files, folders (searched below, sorted) and glob patterns as one list of files, each once, in the order given.

    A file that is named is taken whatever its name ends in; in folders and patterns pictures count, those in formats
    that are not read here, too (.heic: they shall be named, not left out), and litter of operating systems does not.
    Raises FileNotFoundError for a name that is not there, ValueError where nothing is left.
    """
    found: list[Path] = []
    for path in paths:
        text = os.fspath(path)
        if os.path.isdir(text):
            found += [Path(file) for file in list_files(text).files if _counts(file)]
        elif os.path.exists(text):
            found.append(Path(text))
        else:
            matches = sorted(glob.glob(text, recursive=True))
            if not matches:
                raise FileNotFoundError(f"{printable(text)}: no such file or folder, and no name fits it as a pattern")
            pictures = [match for match in matches if _counts(match) and not is_litter(os.path.basename(match))]
            found += [Path(match) for match in pictures if os.path.isfile(match)]
    if not found:
        raise ValueError(f"no pictures in {', '.join(printable(path) for path in paths)}")
    return list(dict.fromkeys(found))


def _no_picture(thing: object) -> str:
    """The sentence about something that is no picture, with what helps."""
    helps = ""
    if hasattr(thing, "__array__"):
        helps = "; make one of an array (H, W, 3) of bytes in RGB: PIL.Image.fromarray(array)"
    elif hasattr(thing, "read"):
        helps = "; open one from a file: PIL.Image.open(file)"
    return f"expected a path or a PIL picture, or several of them, got {type(thing).__name__}{helps}"


def _read(picture: _Picture, kind: str) -> Image.Image:
    """A picture upright and in RGB, as a person sees it; masks of detectors need every pixel, classifiers do not."""
    if not isinstance(picture, Image.Image):
        return open_image(picture, max_pixels=_CLASSIFIER_PIXELS if kind == "classifier" else None)
    return picture_rgb(picture)


@torch.inference_mode()
def name_classes(loaded: Loaded, inputs: Tensor, top: int) -> list[dict]:
    """What a classifier says of inputs (B, C, H, W): the `top` most probable classes of each, best first; or all."""
    scores = loaded.model(inputs).softmax(1)
    best = scores.topk(min(top, scores.shape[1]), 1)
    return [dict(classes=[dict(name=loaded.classes[i], score=score) for score, i in zip(*row)])
            for row in zip(best.values.tolist(), best.indices.tolist())]


def _detect(loaded: Loaded, inputs: list[Tensor], threshold: float) -> list[dict]:
    """What a detector says of inputs: objects that score at least the threshold, best first."""
    answers: list[dict] = []
    for found, x in zip(loaded.model(inputs, paste=False), inputs):
        kept = found["scores"] >= threshold
        boxes, labels, scores = (found[key][kept].cpu().tolist() for key in ("boxes", "labels", "scores"))
        objects: list[dict[str, Any]] = [dict(name=loaded.classes[label - 1], score=score, box=box)
                                         for label, score, box in zip(labels, scores, boxes)]
        if objects and found.get("masks") is not None:
            drawn = dict(masks=found["masks"][kept], boxes=found["boxes"][kept])
            for thing, mask in zip(objects, pack_masks(loaded.model, drawn, (x.shape[1], x.shape[2]))):
                thing["mask"] = mask
        answers.append(dict(objects=objects))
    return answers


def _batches(loaded: Loaded, pictures: Iterable[_Picture], batch_size: int) -> Iterator[list[tuple[str | None, Any]]]:
    """File names with inputs, or with the error that kept one from being read; one batch after the other."""
    batch: list[tuple[str | None, Any]] = []
    for picture in pictures:
        if not isinstance(picture, _Picture):
            raise TypeError(_no_picture(picture))
        name = None if isinstance(picture, Image.Image) else os.fspath(picture)
        try:
            batch.append((name, loaded.transform(_read(picture, loaded.kind))))
        except (OSError, ValueError) as error:
            batch.append((name, error))
        if len(batch) == batch_size:
            yield batch
            batch = []
    if batch:
        yield batch


@torch.inference_mode()
def iter_predictions(
    loaded: Loaded, pictures: Iterable[_Picture], *,
    top: int = 5, threshold: float = .5, batch_size: int | None = None, device: str | torch.device | None = None,
) -> Iterator[dict]:
    """The answers of `predict` one after the other, as they are found; the same order, one for each picture."""
    if top < 1:
        raise ValueError(f"top must be at least 1, got {top}")
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must lie in 0..1, got {threshold}")
    where = torch.device(device) if device is not None else next(loaded.model.parameters()).device
    loaded.model.to(where).eval()
    for batch in _batches(loaded, pictures, batch_size or (16 if loaded.kind == "classifier" else 1)):
        inputs = [x.to(where) for _, x in batch if isinstance(x, Tensor)]
        answers: list[dict] = []
        if inputs:
            if loaded.kind == "classifier":
                answers = name_classes(loaded, torch.stack(inputs), top)
            else:
                answers = _detect(loaded, inputs, threshold)
        left = iter(answers)
        for name, x in batch:
            yield dict(file=name, **(next(left) if isinstance(x, Tensor) else dict(error=str(x))))


def predict(
    source: str | os.PathLike | Loaded, pictures: _Picture | Iterable[_Picture], *,
    top: int = 5, threshold: float = .5, batch_size: int | None = None, device: str | torch.device | None = None,
) -> list[dict]:
    """What a network says of pictures, one dictionary for each, in their order.

    Args:
        source: A file of weights that `lesa_nb.load` reads, or what it returned.
        pictures: Paths or PIL pictures, or one of them. Pictures from files are turned upright as their EXIF note says;
            PIL pictures are taken as they lie.
        top: Classes that a classifier names.
        threshold: Least score of an object that a detector names.
        batch_size: Pictures at once; None for 16 (classifiers) or 1 (detectors).
        device: Where to compute; None leaves the network where it is.

    Returns:
        Of a classifier {"file", "classes": [{"name", "score"}, ...]}, best first. Of a detector {"file", "objects":
        [{"name", "score", "box": [x1, y1, x2, y2], "mask"}, ...]}, best first, in pixels of the upright picture; "mask"
        is {"size": [H, W], "counts"}, COCO's run lengths, and left out where a detector has no masks. "file" is None
        for PIL pictures. A picture that cannot be read answers {"file", "error": a sentence}, and the others go on.

    Raises:
        FileNotFoundError: There is no such file of weights.
        ValueError: The weights cannot be read, or `top` or `threshold` is out of range.
        TypeError: Something is no picture (an array, a tensor), or `source` no weights; the sentence says what helps.
    """
    if isinstance(source, torch.nn.Module):
        raise TypeError(f"expected a file of weights or what lesa_nb.load returned, got a {type(source).__name__}; a "
                        "network alone knows no names: lesa_nb.weights.load.as_loaded(network, classes=...) adds them")
    loaded = source if isinstance(source, Loaded) else load(source)
    alone = isinstance(pictures, _Picture) or getattr(pictures, "ndim", 1) > 1 or hasattr(pictures, "read")
    several = cast(Iterable[_Picture], [pictures] if alone or not isinstance(pictures, Iterable) else pictures)
    return list(iter_predictions(loaded, several, top=top, threshold=threshold, batch_size=batch_size, device=device))
