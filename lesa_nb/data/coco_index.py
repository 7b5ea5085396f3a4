"""Which images a COCO folder has and which annotations are left: everything that is known before a file is opened."""
from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .coco_file import _COCO_FAULTS, _IMAGE_FAULTS, _SET_FAULTS, ANNOTATION_FAULTS, _PackedLists, _present_files
from .coco_layout import SplitFiles
from .report import Fault


class CocoSplit(NamedTuple):
    """What an annotation file holds, after the rules."""
    images: dict[int, dict]  # image id -> its entry
    categories: Any  # `Categories`: ids, names, labels
    annotations: dict[int, list[dict]]  # image id -> what is left; a mask that cannot be used is None
    faults: list[Fault]  # what was left out, and what is fatal


def _take_part(content: CocoSplit, files: SplitFiles) -> CocoSplit:
    """What of an annotation file belongs to a split: everything, unless the names of the pictures decide."""
    ids = list(content.images)
    chosen = files.chosen([content.images[i]["file_name"] for i in ids])
    kept = [i for i, taken in zip(ids, chosen) if taken]
    if len(kept) == len(ids):
        return content
    gone = set(ids) - set(kept)
    return content._replace(images={i: content.images[i] for i in kept},
                            annotations={i: content.annotations[i] for i in kept},
                            faults=[fault for fault in content.faults if fault.image_id not in gone])


def _match_categories(own: Mapping[int, str], other: Mapping[int, str], here: str, there: str) -> list[int]:
    """The ids of `own` (id -> name) in the order of `other`'s names; `here` and `there` name the two for the error."""
    of_name = {name: category_id for category_id, name in own.items()}
    if sorted(own.values()) == sorted(other.values()):
        return [of_name[name] for name in other.values()]
    for category_id, name in own.items():
        if own.keys() == other.keys() and name not in other.values():
            raise ValueError(f"{here}: category {category_id} is {name!r} and in {there} it is {other[category_id]!r}; "
                             "expected the same classes: correct the names in one of the two")
    raise ValueError(f"{here}: expected the categories of {there}, {dict(other)}, found {dict(own)}")


def _image_fault(image: dict, kept: Sequence[dict], reasons: Sequence[str | None]) -> str | None:
    """Why an image is not trained on, or nothing.

    `kept`: the annotations that are left; `reasons`: why each annotation was dropped, None where it was not.
    """
    if min(image["height"], image["width"]) < 32:
        return "side under 32 pixels"
    if kept:
        return None
    if not reasons:
        return "image without annotations"
    return "crowd only" if set(reasons) == {"crowd"} else "no annotation left"


def _refuse(path: Path, fatal: Sequence[Fault]):
    """Refuse to go on, with the first few reasons."""
    more = f" ... and {len(fatal) - 5} more" if len(fatal) > 5 else ""
    raise ValueError(f"{path}: {len(fatal)} fatal faults; `verify_coco` lists them all:\n  "
                     + "\n  ".join(map(str, fatal[:5])) + more)


class CocoIndex:
    """The images of a split and what is known of them.

    `files`: where the split lies; `content`: what `read_split` made of it; `training`: whether its filter was applied;
    `keep_empty`: images without boxes stay; `missing`: "error", or "drop" for images that are not there. A ValueError
    lists what is fatal, or says why no image is left.

    Attributes: `files`; `split`, its name; `path` of the annotation file; `categories`; `image_ids`, sorted; `dropped`:
    kind of fault -> how often something was left out for it; `has_masks`: whether there is anything to learn or to find
    but boxes; `pictures`: the folder of the images; `content`: a hash of all that is left of the annotations.
    """

    def __init__(self, files: SplitFiles, content: CocoSplit, *, training: bool,
                 keep_empty: bool = False, missing: str = "error"):
        if missing not in ("error", "drop"):
            raise ValueError(f"missing must be 'error' or 'drop', got {missing!r}")
        self.files, self.training = files, training
        self.split, self.path, self.categories = files.split, files.annotations, content.categories
        images = content.images
        names = [image["file_name"] for image in images.values()]
        self.pictures = files.images_folder(names)
        if not self.pictures.is_dir():
            raise FileNotFoundError(f"{self.pictures}: no such folder; the images of {self.split} belong there"
                                    + f", or in {', '.join(map(str, files.places[1:]))}"*(len(files.places) > 1))
        there = _present_files(self.pictures, names)
        gone = [_COCO_FAULTS.fault("missing image", self.pictures/image["file_name"], image_id=i)
                for i, image in images.items() if image["file_name"] not in there]
        fatal = [f for f in content.faults if f.fatal] + (gone if missing == "error" else [])
        if fatal:
            _refuse(self.path, fatal)
        self._unscorable = [f for f in content.faults if f.kind == "box not finite"]
        out = {f.image_id for f in content.faults if f.kind in _IMAGE_FAULTS}
        if keep_empty:
            out = {f.image_id for f in content.faults if f.kind == "side under 32 pixels"}
        out |= {f.image_id for f in gone}
        noted = [f for f in content.faults + gone if not f.outcome.startswith("kept")]
        self.dropped = Counter(f.kind for f in noted if f.kind in ANNOTATION_FAULTS | _SET_FAULTS or f.image_id in out)
        self.image_ids = sorted(i for i in images if i not in out)
        if not self.image_ids:
            most = f"most of all for: {self.dropped.most_common(1)[0][0]}; " if self.dropped else ""
            raise ValueError(f"{self.path}: none of {len(images)} images is left; {most}left out: {dict(self.dropped)}")
        self._place = {image_id: place for place, image_id in enumerate(self.image_ids)}
        self._names = np.array([images[i]["file_name"] for i in self.image_ids])
        self._sizes = np.array([(images[i]["height"], images[i]["width"]) for i in self.image_ids])
        self._annotations = _PackedLists(content.annotations[i] for i in self.image_ids)
        self.content = self._annotations.digest()
        every = [a.get("segmentation") is not None for i in self.image_ids for a in content.annotations[i]]
        self.has_masks = any(every) or not every

    def __len__(self) -> int:
        return len(self.image_ids)

    def notes(self) -> list[str]:
        """What there is to say before training: what was left out, and that no object has a mask."""
        kinds = ", ".join(f"{count} x {kind}" for kind, count in sorted(self.dropped.items()))
        boxes = "boxes only: no object to train on has a mask, so the detector gets no mask heads"
        return [f"left out of training: {kinds}"]*bool(kinds) + [boxes]*(not self.has_masks)

    def size(self, image_id: int) -> tuple[int, int]:
        """Height and width of an image."""
        if image_id not in self._place:
            raise ValueError(f"{self.path}: no image {image_id}")
        height, width = self._sizes[self._place[image_id]].tolist()
        return height, width

    def file(self, image_id: int) -> Path:
        """The file of an image."""
        return self.pictures/str(self._names[self._place[image_id]])

    def stuff_file(self, image_id: int) -> Path:
        """Where the stuff map of an image is."""
        return self.files.stuff_file(str(self._names[self._place[image_id]]))

    def annotations(self, image_id: int) -> list[dict]:
        """What is left of the annotations of an image, as in the JSON file; a mask that cannot be used is None."""
        return self._annotations[self._place[image_id]]


def require_scorable(index: CocoIndex):
    """Refuse a truth in which a box is none, before anybody is measured by it: COCO's own tools raise on one, and a NaN
    they take for a hit; without the object scores would be better than they are."""
    if index._unscorable:
        first, others = index._unscorable[0], len(index._unscorable) - 1
        raise ValueError(f"{index.path}: {first}" + f", and {others} more"*bool(others) + ": scores need four finite "
                         "numbers in every bbox; correct the file, or take the annotation out")


def require_truth(index: CocoIndex, keep_empty: bool = False):
    """Refuse a truth that says nothing of what is learned: `require_scorable`, and an object that counts. Without one
    AP is 0 whatever a network has learned, and the weights of the first epoch are the best. `keep_empty`: images
    without objects are as they should be."""
    require_scorable(index)
    objects = (not annotation["iscrowd"] for i in index.image_ids for annotation in index.annotations(i))
    if not keep_empty and not any(objects):
        raise ValueError(f"{index.path}: nothing to score by: {len(index):,} images and no object, but for crowds; "
                         "annotate them, or let another split validate")


def require_stuff_maps(index: CocoIndex):
    """Refuse a folder without a stuff map for each of its images, before anybody learns from them."""
    root = index.files.stuff
    advice = ("HTC learns from stuff maps: get stuffthingmaps_trainval2017, or train without them "
              "(semantic=False, on the command line --no-semantic)")
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder; {advice}")
    files = [index.file(image_id).relative_to(index.pictures).with_suffix(".png").as_posix()
             for image_id in index.image_ids]
    gone = sorted(set(files) - _present_files(root, files))
    if gone:
        raise FileNotFoundError(f"{root/gone[0]}: no such file, nor {len(gone) - 1} others of {len(files)}; {advice}")
