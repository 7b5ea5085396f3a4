"""The files of a COCO folder: whether they can be read, and what is wrong if not; where they are: `coco_layout`."""
import hashlib
import importlib
import itertools
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

from .photos import _photo_fault, _read_photo
from .report import FaultKinds

_NO_STUFF = 255  #: unlabelled in a stuff map
_RAW_VALUES = 183  # stuff maps hold 0..182
_SHOWN = 5  # faults of types that one error lists
_FARTHEST = 1e5  # of a corner that is scored, in pixels: drawing takes memory for each pixel on the way there
_LONGEST_SIDE = 10**6  # of a picture that is believed
_MOST_PIXELS = 10**8  # of a mask of another size that is looked at

#: what can be wrong with an annotation: name -> what happens
ANNOTATION_FAULTS = FaultKinds({
    "unknown image": "dropped", "unknown category": "dropped", "box not finite": "dropped",
    "crowd": "dropped for training", "no area": "dropped for training", "box outside the image": "dropped for training",
    "duplicate annotation id": "kept, nothing needs the id",
    "empty segmentation": "box kept, mask left out", "polygon of fewer than 3 points": "box kept, mask left out",
    "broken segmentation": "box kept, mask left out",
    "mask of another size": "counted as an object that nothing can match, as COCO's own tools do"})
#: what can be wrong with an image or a file
_IMAGE_FAULTS = FaultKinds({
    "image without annotations": "dropped for training", "crowd only": "dropped for training",
    "no annotation left": "dropped for training", "side under 32 pixels": "dropped for training",
    "missing image": "fatal", "unreadable image": "fatal", "image of another size": "fatal",
    "duplicate image id": "fatal", "unreadable annotation file": "fatal", "missing stuff map": "fatal",
    "unreadable stuff map": "fatal", "stuff map of another size": "fatal", "unknown value in stuff map": "fatal",
    "nothing to train on": "fatal"})
#: what can be wrong with a set as a whole
_SET_FAULTS = FaultKinds({
    "unused supercategory": "left out, gets no label", "no split to train on": "fatal",
    "no split to validate on": "fatal", "other categories": "fatal", "too few to split": "fatal",
    "missing package": "fatal", "nothing to score by": "fatal"})
#: everything that can be wrong with a COCO folder
_COCO_FAULTS = FaultKinds(ANNOTATION_FAULTS | _IMAGE_FAULTS | _SET_FAULTS)


def coco_tools(name: str) -> ModuleType:
    """A module that is needed only for COCO masks and scores, or one sentence on how to get it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ModuleNotFoundError(
            f"COCO masks and scores need {name.partition('.')[0]}: "
            f"pip install 'lesa_nb[coco]' ({error})") from error


# ---- outlines


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


def _draw_masks(outlines: Sequence[Any], height: int, width: int) -> np.ndarray:
    """Outlines (None for none) as masks (n, H, W) of 0 and 1; the mask of no outline is empty."""
    masks = np.zeros((len(outlines), height, width), np.uint8)
    there = [i for i, outline in enumerate(outlines) if outline is not None]
    if there:
        rles = [encode_segmentation(outlines[i], height, width) for i in there]
        masks[there] = coco_tools("faster_coco_eval.core.mask").decode(rles).transpose(2, 0, 1)
    return masks


def _runs_fill(segmentation: dict, height: int, width: int) -> bool:
    """Whether run lengths, as a list or compressed, are whole numbers that fill the image."""
    counts = segmentation.get("counts")
    size = segmentation.get("size")
    if size != [height, width] or not all(map(_whole, size)):
        return False
    if isinstance(counts, list):
        return all(_whole(run) and run >= 0 for run in counts) and sum(counts) == height*width
    if not isinstance(counts, (str, bytes)):
        return False
    try:
        coco_tools("faster_coco_eval.core.mask").decode(dict(size=[height, width], counts=counts))
    except (ValueError, RuntimeError):  # the decoder's two words for a string that does not fit
        return False
    return True


def segmentation_fault(segmentation: Any, height: int, width: int) -> list[str]:
    """What is wrong with an outline (a name from ANNOTATION_FAULTS), or nothing."""
    if isinstance(segmentation, dict):
        return [] if _runs_fill(segmentation, height, width) else ["broken segmentation"]
    if not isinstance(segmentation, list) or not any(segmentation):
        return ["empty segmentation"]
    usable = _usable(segmentation)
    if not usable:
        short = all(isinstance(p, list) and len(p) < 6 for p in segmentation)
        return ["polygon of fewer than 3 points" if short else "broken segmentation"]
    far = max(abs(v) for polygon in usable for v in polygon) > 10*max(height, width)
    return ["broken segmentation"] if far else []


def _same_polygons(outline: list) -> list | None:
    """Polygons with something wrong as COCO's own tools read them: numbers may be written as text, a coordinate without
    partner and what has fewer than three points draw nothing; None where they raise, or never end."""
    try:
        polygons = [[float(v) for v in polygon] for polygon in outline if isinstance(polygon, list)]
    except (TypeError, ValueError, OverflowError):
        return None
    far = max((abs(v) for polygon in polygons for v in polygon if not math.isnan(v)), default=0)
    known = len(polygons) == len(outline) > 0 and len(polygons[0]) > 4  # four numbers they take for a box, and raise
    if not known or far > _FARTHEST or any(map(math.isnan, itertools.chain(*polygons))):
        return None
    return [polygon[:len(polygon)//2*2] for polygon in polygons if len(polygon) >= 6]


def _same_runs(outline: dict, height: int, width: int) -> tuple[dict | None, list[str]]:
    """Run lengths with something wrong as COCO's own tools read them; see `_scored_outline`."""
    size, counts = outline.get("size"), outline.get("counts")
    if not isinstance(size, list) or len(size) != 2 or not all(map(_side, size)) or size[0]*size[1] > _MOST_PIXELS:
        return None, ["broken segmentation"]
    if isinstance(counts, list):
        try:
            counts = [int(run) for run in counts]
        except (TypeError, ValueError, OverflowError):
            return None, ["broken segmentation"]
    if not _runs_fill(dict(size=size, counts=counts), *size):
        return None, ["broken segmentation"]
    if size == [height, width]:
        return dict(size=size, counts=counts), []
    return dict(size=[height, width], counts=[height*width]), ["mask of another size"]


def _scored_outline(outline: Any, faults: list[str], height: int, width: int) -> tuple[Any, list[str]]:
    """The outline that a score counts, and what is wrong with it (names from ANNOTATION_FAULTS).

    `faults`: what `segmentation_fault` found. Scores are compared between tools, so an outline means what it means to
    COCO's own, even where training leaves it out; None where those raise or never end. Runs of another size fill no
    pixel of the picture: nothing can match them.
    """
    if not faults and (isinstance(outline, dict) or len(_usable(outline)) == len(outline)):
        return outline, []
    if isinstance(outline, dict):
        return _same_runs(outline, height, width)
    polygons = _same_polygons(outline) if isinstance(outline, list) else None
    if polygons is None:
        return None, faults or ["broken segmentation"]
    return polygons or dict(size=[height, width], counts=[height*width]), []


def _kept_outline(annotation: Mapping[str, Any], names: Iterable[str], scored_in: Mapping[str, Any] | None,
                  ) -> tuple[Any, list[str]]:
    """The outline that the reader keeps, and what is wrong with it.

    `names`: what `annotation_faults` found; `scored_in`: the image's entry where the outline is for a score, or None
    """
    outline = annotation.get("segmentation")
    maskless = [name for name in names if "mask left out" in ANNOTATION_FAULTS[name]]
    if scored_in is not None:
        return _scored_outline(outline, maskless, scored_in["height"], scored_in["width"])
    return (None if maskless else outline), maskless


# ---- the annotation file


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _whole_or_missing(value: Any) -> bool:
    return value is None or _whole(value)


def _side(value: Any) -> bool:
    return _whole(value) and 0 < value <= _LONGEST_SIDE


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _text_or_missing(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _number_or_missing(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _flag_or_missing(value: Any) -> bool:
    return value is None or (isinstance(value, (bool, int, float)) and value in (0, 1))


_SIDE = f"a whole number from 1 to {_LONGEST_SIDE:,}"
#: list of the file -> field -> (test, what it must be); other fields are not looked at
_FIELDS = {
    "images": {"id": (_whole, "a whole number"), "file_name": (_text, "a text"),
               "height": (_side, _SIDE), "width": (_side, _SIDE)},
    "categories": {"id": (_whole, "a whole number"), "name": (_text_or_missing, "a text")},
    "annotations": {"id": (_whole_or_missing, "a whole number, or none"), "image_id": (_whole, "a whole number"),
                    "category_id": (_whole, "a whole number"), "area": (_number_or_missing, "a number, or none"),
                    "iscrowd": (_flag_or_missing, "0 or 1, or none")}}
_TYPES = {str: "text", list: "a list", dict: "an object", float: "a number with a fraction", bool: "true or false",
          int: "a whole number", type(None): "null"}


def _type_faults(content: Mapping[str, Any]) -> Iterator[str]:
    """Fields of the wrong type: which entry, which field, what it must be, what was found."""
    for name, fields in _FIELDS.items():
        for place, entry in enumerate(content.get(name) or []):
            for field, (fits, expected) in fields.items():
                value = entry.get(field)
                if fits(value):
                    continue
                number = f" (id {entry['id']})" if field != "id" and _whole(entry.get("id")) else ""
                found = f"{json.dumps(value)[:60]} ({_TYPES[type(value)]})" if field in entry else "no such field"
                yield f"entry {place} of {name}{number} must have {field}: expected {expected}, found {found}"


def _load_json(path: str | PathLike) -> dict:
    """An annotation file whose outer form is right: an object with lists of objects."""
    try:
        with open(path, encoding="utf-8-sig") as file:  # some tools begin with a byte-order mark
            content = json.load(file)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a complete JSON file ({error}); download it again") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected an object with images, annotations and categories, "
                         f"found a {type(content).__name__}")
    for key in _FIELDS:
        entries = content.get(key, [] if key == "annotations" else None)
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise ValueError(f"{path}: expected a list of objects under {key!r}, found {type(entries).__name__}")
    return content


def _inner_name(path: str | PathLike, image: dict) -> str:
    """The name of an image's file below the folder of its split, without detours.

    Tools on Windows, label-studio among them, write a backslash between folder and file.
    """
    name = image["file_name"]
    pure = PurePosixPath(name.replace("\\", "/"))
    if pure.is_absolute() or ".." in pure.parts or PureWindowsPath(name).drive:
        raise ValueError(f"{path}: image {image['id']}: file_name {name!r} leads out of the folder; write where the "
                         "file lies below the folder of the pictures, as COCO does")
    return pure.as_posix()


def _read_annotation_file(path: str | PathLike) -> dict:
    """The content of an annotation file: lists of images, categories and annotations, every field of the right type.

    A missing or null iscrowd becomes 0, a missing or null area the box's. A ValueError names the file and the first
    fields that are wrong: entry, field, what it must be, what was found.
    """
    content = _load_json(path)
    wrong = list(_type_faults(content))
    if wrong:
        more = f"\n  ... and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise ValueError(f"{path}: " + "\n  ".join(wrong[:_SHOWN]) + more)
    for image in content["images"]:
        image["file_name"] = _inner_name(path, image)
    content.setdefault("annotations", [])
    for annotation in content["annotations"]:
        annotation["iscrowd"] = int(annotation.get("iscrowd") or 0)
        if annotation.get("area") is None and _is_box(annotation.get("bbox")):
            annotation["area"] = annotation["bbox"][2]*annotation["bbox"][3]
    return content


def _is_box(box: Any) -> bool:
    """Whether something is a box in COCO's form: four finite numbers."""
    return isinstance(box, list) and len(box) == 4 and all(
        isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v) for v in box)


class _PackedLists(Sequence[list]):
    """Lists of what JSON can hold, kept as bytes in one array: processes that load data share it, objects they copy."""

    def __init__(self, lists: Iterable[list]):
        blocks = [json.dumps(entries).encode() for entries in lists]
        self._ends = np.cumsum([0, *map(len, blocks)])
        self._bytes = np.frombuffer(b"".join(blocks), np.uint8)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def digest(self) -> str:
        """A hash of all lists."""
        return hashlib.sha256(self._bytes.data).hexdigest()[:16]

    def __getitem__(self, place):
        return json.loads(self._bytes[self._ends[place]:self._ends[place + 1]].tobytes())


# ---- images and stuff maps


def _present_files(root: str | PathLike, names: Iterable[str]) -> set[str]:
    """Which of these files are there, links followed; each folder that is named is listed once."""
    of_folder: dict[str, set[str]] = {}
    for name in names:
        of_folder.setdefault(os.path.dirname(name), set()).add(name)
    present: set[str] = set()
    for folder, wanted in of_folder.items():
        try:
            with os.scandir(os.path.join(root, folder)) as entries:
                here = {os.path.join(folder, entry.name) for entry in entries if entry.is_file()}
        except OSError:
            continue  # no such folder: nothing of it is there
        present |= wanted & here
    return present


def _check_image(path: Path, size: tuple[int, int]) -> tuple[str | None, str, np.ndarray | None]:
    """What is wrong with an image's file (kind, found), and its pixels (H, W, 3) as they are stored.

    `size` is (height, width) as the annotation file says.
    """
    try:
        photo = _read_photo(path, exif=False)
    except Exception as error:  # a decoder can fail in many ways
        fault = _photo_fault(path, error)
        kind = "missing image" if fault.kind == "missing file" else "unreadable image"
        return kind, f"{fault.kind}: {fault.found}", None
    height, width = photo.image.height, photo.image.width
    if (height, width) == size:
        return None, "", np.array(photo.image)
    found = f"{height}x{width} pixels (height x width), the annotation file says {size[0]}x{size[1]}"
    turned = any(kind == "EXIF rotation kept" for kind, _ in photo.notes) and (width, height) == size
    cause = ("; its EXIF note turns it, and boxes count pixels as they are stored: save it upright, without the note"
             if turned else "; the boxes would not fit: replace one of the two")
    return "image of another size", found + cause, None


def _read_image(path: Path, size: tuple[int, int], image_id: int) -> np.ndarray:
    """The pixels (H, W, 3) of an image; a ValueError names the file, the image and what is wrong."""
    kind, found, pixels = _check_image(path, size)
    if pixels is None:
        raise ValueError(f"{path}: image {image_id}: {kind} ({found})")
    return pixels


def _check_stuff_map(path: Path, size: tuple[int, int]) -> tuple[str | None, str, np.ndarray | None]:
    """What is wrong with a stuff map (kind, found), and its values (H, W); `size` is (height, width) of its image."""
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
    strange = strange[(strange >= _RAW_VALUES) & (strange != _NO_STUFF)]
    if values.dtype != np.uint8 or strange.size:
        return "unknown value in stuff map", f"{values.dtype} {strange[:5].tolist()}", None
    return None, "", values


def _read_stuff_map(path: Path, size: tuple[int, int], image_id: int) -> np.ndarray:
    """The raw values (H, W) of an image's stuff map; a ValueError names the file, the image and what is wrong."""
    kind, found, values = _check_stuff_map(path, size)
    if values is None:
        raise ValueError(f"{path}: image {image_id}: {kind} ({found}); get stuffthingmaps_trainval2017 again, "
                         "or train with semantic=False (on the command line: --no-semantic)")
    return values
