"""The files of a COCO folder: where they are, whether they can be read, and what is wrong if not."""
import importlib
import json
import math
from os import PathLike
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

NO_STUFF = 255  #: unlabelled in a stuff map
_RAW_VALUES = 183  # stuff maps hold 0..182

#: what can be wrong with an annotation: name -> what happens
ANNOTATION_FAULTS = {
    "unknown image": "dropped", "duplicate annotation id": "dropped", "unknown category": "dropped",
    "box not finite": "dropped", "crowd": "dropped for training", "no area": "dropped for training",
    "box outside the image": "dropped for training", "empty segmentation": "dropped",
    "polygon of fewer than 3 points": "dropped", "broken segmentation": "dropped"}
#: what can be wrong with an image
IMAGE_FAULTS = {
    "image without annotations": "dropped for training", "crowd only": "dropped for training",
    "no annotation left": "dropped for training", "side under 32 pixels": "dropped for training",
    "missing image": "fatal", "unreadable image": "fatal", "image of another size": "fatal",
    "duplicate image id": "fatal", "unreadable annotation file": "fatal", "missing stuff map": "fatal",
    "unreadable stuff map": "fatal", "stuff map of another size": "fatal", "unknown value in stuff map": "fatal"}


class Fault(NamedTuple):
    """One thing that is wrong with a COCO folder."""
    kind: str  # a name from ANNOTATION_FAULTS or IMAGE_FAULTS
    file: str
    image_id: int | None = None
    annotation_id: int | None = None
    found: str = ""  # what is there

    @property
    def outcome(self) -> str:
        """What happens to it."""
        return (ANNOTATION_FAULTS | IMAGE_FAULTS)[self.kind]

    def __str__(self):
        ids = [f"{name} {value}" for name, value in (("image", self.image_id), ("annotation", self.annotation_id))
               if value is not None]
        return ": ".join([", ".join([self.file, *ids]), self.kind + (f" ({self.found})" if self.found else "")])


def coco_tools(name: str) -> ModuleType:
    """A module that is needed only for COCO masks and scores, or one sentence on how to get it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ModuleNotFoundError(
            f"COCO masks and scores need {name.partition('.')[0]}: "
            f"pip install faster-coco-eval torchmetrics pycocotools ({error})") from error


def _unpacked(text: str) -> list[int]:
    """The run lengths in a compressed string: 5 bits in a character, differences to the count before the last."""
    counts: list[int] = []
    value = shift = 0
    for code in text.encode("ascii"):
        code -= 48
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue  # more bits follow
        if code & 16:
            value -= 1 << shift  # a negative difference
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    return counts


def _usable(polygons: list) -> list:
    """The polygons that have an inside: three points or more, finite."""
    return [p for p in polygons if isinstance(p, list) and len(p) >= 6 and len(p) % 2 == 0
            and all(isinstance(v, (int, float)) and math.isfinite(v) for v in p)]


def encode_segmentation(segmentation: Any, height: int, width: int) -> dict:
    """Polygons, run lengths or compressed run lengths, as compressed run lengths."""
    masks = coco_tools("faster_coco_eval.core.mask")
    if isinstance(segmentation, list):
        return masks.merge(masks.frPyObjects(_usable(segmentation), height, width))
    if isinstance(segmentation["counts"], list):
        return masks.frPyObjects(segmentation, height, width)
    return segmentation


def segmentation_fault(segmentation: Any, height: int, width: int) -> list[str]:
    """What is wrong with an outline (a name from ANNOTATION_FAULTS), or nothing."""
    if isinstance(segmentation, dict):
        counts = segmentation.get("counts")
        try:
            runs = counts if isinstance(counts, list) else _unpacked(counts)
        except (AttributeError, UnicodeEncodeError):
            return ["broken segmentation"]
        whole = all(isinstance(run, int) and run >= 0 for run in runs) and sum(runs) == height*width
        return [] if whole and list(segmentation.get("size", ())) == [height, width] else ["broken segmentation"]
    if not isinstance(segmentation, list) or not any(segmentation):
        return ["empty segmentation"]
    usable = _usable(segmentation)
    if not usable:
        short = all(isinstance(p, list) and len(p) < 6 for p in segmentation)
        return ["polygon of fewer than 3 points" if short else "broken segmentation"]
    far = max(abs(v) for polygon in usable for v in polygon) > 10*max(height, width)
    return ["broken segmentation"] if far else []


def find_annotation_file(folder: str | PathLike, split: str) -> Path:
    """Where the annotations of a split are; those of the test sets hold images only."""
    names = [f"instances_{split}.json", f"image_info_{split}.json"]
    place = Path(folder)/"annotations"
    for name in names:
        if (place/name).is_file():
            return place/name
    raise FileNotFoundError(f"{place/names[0]}: no such file; a COCO folder holds train2017, val2017, "
                            "annotations/instances_*.json and, for the semantic branch, stuffthingmaps")


def read_annotation_file(path: str | PathLike) -> dict:
    """The content of an annotation file, as far as its outer form is right."""
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a complete JSON file ({error}); download it again") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected an object with images, annotations and categories, "
                         f"found a {type(content).__name__}")
    for key in "images", "categories", "annotations":
        entries = content.get(key, [] if key == "annotations" else None)
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise ValueError(f"{path}: expected a list of objects under {key!r}, found {type(entries).__name__}")
    for place, image in enumerate(content["images"]):
        name, sides = image.get("file_name"), [image.get("height"), image.get("width")]
        sized = all(isinstance(side, int) and side > 0 for side in sides)
        if not isinstance(image.get("id"), int) or not isinstance(name, str) or not sized:
            raise ValueError(f"{path}: entry {place} of images must have id, file_name, height and width, found {image}")
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\\" in name:
            raise ValueError(f"{path}: image {image['id']}: file_name {name!r} leads out of the folder")
    return content


def check_stuff_map(path: Path, size: tuple[int, int]) -> tuple[str | None, str, np.ndarray | None]:
    """What is wrong with a stuff map (kind, found), and its values; `size` is (height, width) of its image."""
    if not path.is_file():
        return "missing stuff map", "no such file", None
    try:
        with Image.open(path) as image:
            values = np.array(image)
    except Exception as error:  # a decoder can fail in many ways
        return "unreadable stuff map", str(error), None
    if values.shape != tuple(size):
        return "stuff map of another size", f"{values.shape}, expected {tuple(size)}", None
    strange = np.unique(values)
    strange = strange[(strange >= _RAW_VALUES) & (strange != NO_STUFF)]
    if values.dtype != np.uint8 or strange.size:
        return "unknown value in stuff map", f"{values.dtype} {strange[:5].tolist()}", None
    return None, "", values
