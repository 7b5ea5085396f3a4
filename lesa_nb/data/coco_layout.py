"""Where the pictures and annotations of a detection set lie, in whatever layout a tool has left them.

COCO's own folder, Roboflow's, the one set that CVAT, labelme and label-studio export, or paths given by hand. Litter of
operating systems is not looked at. Everything that reads COCO asks here.
"""
from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import NamedTuple

from .coco_file import _COCO_FAULTS, _present_files
from .folders import held_out
from .listing import _VALIDATION_NAMES, _list_entries, is_litter, is_picture, require_folder
from .report import Fault, printable

_COCO = "COCO's own layout: annotations/instances_SPLIT.json, and a folder of pictures for each split"
_ROBOFLOW = "Roboflow's layout: SPLIT/_annotations.coco.json beside the pictures"
_ONE_FILE = "COCO files with a folder of pictures, as CVAT, labelme and label-studio export them"
_BY_HAND = "paths given by hand"
_BESIDE = "_annotations.coco"  # how the name of Roboflow's file begins
_HAND_NAMES = ("train_images", "train_annotations", "val_images", "val_annotations")
_SHOWN = 6  # names that one sentence lists


class SplitFiles(NamedTuple):
    """Where one split lies.

    split: its name; annotations: its file; places: folders that its pictures may lie in, the likeliest first; stuff:
    the folder of its stuff maps, which need not exist; val_fraction, validates: where a hash of each file's name splits
    one set, the part that validates, and whether this split is that part.
    """

    split: str
    annotations: Path
    places: tuple[Path, ...]
    stuff: Path
    val_fraction: float | None = None
    validates: bool = False

    def images_folder(self, names: Collection[str]) -> Path:
        """The folder below which the pictures of these names lie: of the possible ones the first that holds most."""
        best, most = self.places[0], 0
        for place in self.places:
            found = len(_present_files(place, names))
            if found > most:
                best, most = place, found
            if found == len(names):
                break
        return best

    def stuff_file(self, file_name: str) -> Path:
        """Where the stuff map of a picture is."""
        return (self.stuff/file_name).with_suffix(".png")

    def chosen(self, names: Sequence[str]) -> list[bool]:
        """Which pictures of the annotation file belong to this split; their names alone decide."""
        if self.val_fraction is None:
            return [True]*len(names)
        if len(names) < 2:
            raise ValueError(f"{self.annotations}: {len(names)} picture(s); a split needs at least two, one for "
                             "training and one for validation")
        return [held == self.validates for held in held_out(names, self.val_fraction)]


class CocoLayout(NamedTuple):
    """A detection set: kind, in words; folder, for messages; splits by name."""

    kind: str
    folder: Path
    splits: dict[str, SplitFiles]

    def __str__(self) -> str:
        return f"layout: {self.kind}; splits: {', '.join(self.splits)}"

    def split_name(self, split: str) -> str | None:
        """The name that this set gives a split, or None: "train" and "val" find train2017, valid, Validation and so on;
        one that is not called by such a name, if it is the only one, is what trains."""
        if split in self.splits or split not in ("train", "val"):
            return split if split in self.splits else None
        named = [name for name, files in self.splits.items() if not files.annotations.stem.startswith("image_info")]
        for start in ("train",) if split == "train" else _VALIDATION_NAMES:
            found = sorted(name for name in named if name.lower().startswith(start))
            if found:
                return found[-1]  # of several years the last
        rest = [name for name in named if not name.lower().startswith(_VALIDATION_NAMES)]
        return rest[0] if split == "train" and len(rest) == 1 else None

    def files(self, split: str) -> SplitFiles:
        """Where a split lies; a FileNotFoundError says what there is instead, and what to do."""
        name = self.split_name(split)
        if name is None:
            place = printable(self.folder)
            raise FileNotFoundError(f"{place}: no split {split!r} ({self.kind}); {self.instead(split)}")
        return self.splits[name]

    def instead(self, split: str) -> str:
        """What there is where a split is missing, and what to do."""
        advice = ""
        if split == "val" and len(self.splits) == 1:
            advice = ("; to split the pictures of one set by their names, say which part validates: val_fraction=0.2, "
                      "or --val-fraction 0.2")
        return f"there is {', '.join(self.splits)}{advice}"


def _short_name(annotations: Path) -> str:
    """The name of an annotation file, with its folder where the name says no more than what it is."""
    if annotations.name.startswith(_BESIDE):
        return f"{annotations.parent.name}/{annotations.name}"
    return annotations.name


# ---- layouts


def _json_files(folder: Path) -> list[Path]:
    """The .json files in a folder, without litter; none if there is no such folder."""
    if not folder.is_dir():
        return []
    files = _list_entries(folder).files
    return [folder/name for name in files if name.lower().endswith(".json") and not is_litter(name)]


def _places(folder: Path, annotations: Path, split: str) -> tuple[Path, ...]:
    """Where the pictures of an annotation file may lie; COCO's own place first. test-dev2017 is a part of test2017."""
    name = split.replace("-dev", "")
    found = [folder/name, folder/"images"/name, folder/"images", folder/"JPEGImages", annotations.parent, folder]
    return tuple(dict.fromkeys(found))


def _coco_sets(folder: Path) -> Iterator[SplitFiles]:
    """Files whose name says that they are COCO's; those of test sets hold images only."""
    for start in ("instances_", "image_info_"):
        for path in _json_files(folder/"annotations"):
            if path.stem.startswith(start):
                split = path.stem.removeprefix(start)
                yield SplitFiles(split, path, _places(folder, path, split), folder/"stuffthingmaps"/split)


def _roboflow_sets(folder: Path) -> Iterator[SplitFiles]:
    """Folders that hold their own annotations; also one of them alone."""
    for place in [folder/name for name in _list_entries(folder).folders] + [folder]:
        for path in _json_files(place):
            if path.name.startswith(_BESIDE):
                yield SplitFiles(place.name, path, (place, place/"images"), place/"stuffthingmaps")


def _is_coco_file(path: Path) -> bool:
    """Whether a .json file holds images and categories."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and all(isinstance(content.get(key), list) for key in ("images", "categories"))


def _other_sets(folder: Path) -> Iterator[SplitFiles]:
    """COCO files of any name, in annotations/ or beside the pictures."""
    for place in (folder/"annotations", folder):
        found = [path for path in _json_files(place) if _is_coco_file(path)]
        for path in found:
            yield SplitFiles(path.stem, path, _places(folder, path, path.stem), folder/"stuffthingmaps"/path.stem)
        if found:
            return


def _described(folder: Path) -> str:
    """What lies in a folder, in a few words."""
    found = _list_entries(folder)
    pictures = sum(map(is_picture, found.files))
    others = [name for name in found.files if not is_picture(name)]
    names = [f"{name}/" for name in found.folders] + others
    more = [f"and {len(names) - _SHOWN:,} more"]*(len(names) > _SHOWN)
    words = [printable(name) for name in names[:_SHOWN]] + more + [f"{pictures:,} pictures"]*bool(pictures)
    return ", ".join(words) or "nothing"


def _found_in(folder: Path) -> CocoLayout:
    """The layout of a folder; a FileNotFoundError says what was looked for and what was found."""
    require_folder(folder)
    for kind, sets in ((_COCO, _coco_sets), (_ROBOFLOW, _roboflow_sets), (_ONE_FILE, _other_sets)):
        splits: dict[str, SplitFiles] = {}
        for files in sets(folder):
            splits.setdefault(files.split, files)
        if splits:
            own = any(files.places[0].is_dir() for files in splits.values())
            return CocoLayout(kind if own or kind != _COCO else _ONE_FILE, folder, splits)
    raise FileNotFoundError(
        f"{printable(folder)}: no COCO folder: looked for annotations/instances_SPLIT.json with SPLIT/ (COCO), "
        f"SPLIT/{_BESIDE}.json beside the pictures (Roboflow), and a COCO file such as annotations/*.json or "
        f"result.json with images/ (CVAT, labelme, label-studio); found {_described(folder)}; export the set as COCO, "
        "or give its paths by hand (--train-images, --train-annotations, --val-images, --val-annotations)")


def _given(name: str, images: Path, annotations: Path) -> SplitFiles:
    """A split whose two paths were given."""
    if not images.is_dir():
        raise FileNotFoundError(f"{printable(images)}: no such folder; the pictures of {name} belong there")
    if not annotations.is_file():
        raise FileNotFoundError(f"{printable(annotations)}: no such file; the annotations of {name} belong there")
    return SplitFiles(name, annotations, (images,), images.parent/"stuffthingmaps"/images.name)


def _by_hand(paths: dict[str, Path | None]) -> CocoLayout:
    """The layout of paths that were given."""
    splits = {}
    for name in ("train", "val"):
        images, annotations = paths[f"{name}_images"], paths[f"{name}_annotations"]
        if (images is None) != (annotations is None):
            lacking = f"{name}_images" if images is None else f"{name}_annotations"
            raise ValueError(f"{lacking} is missing: pictures and annotations of a split are given together "
                             f"(--{name}-images DIR --{name}-annotations FILE)")
        if images is not None and annotations is not None:
            splits[name] = _given(name, images, annotations)
    return CocoLayout(_BY_HAND, next(iter(splits.values())).places[0].parent, splits)


def _split_one(layout: CocoLayout, val_fraction: float) -> CocoLayout:
    """The one set of a layout, split by the names of its pictures."""
    if not 0 < val_fraction < 1:
        raise ValueError(f"val_fraction must lie between 0 and 1, got {val_fraction}")
    held = layout.split_name("val")
    if held is not None and layout.split_name("train") is not None:
        raise ValueError(f"{printable(layout.folder)}: has {held!r} to validate on already; leave val_fraction out")
    one = layout.files("train" if held is None else held)
    splits = {name: one._replace(split=name, val_fraction=val_fraction, validates=name == "val")
              for name in ("train", "val")}
    part = f"a hash of each file's name puts {100*val_fraction:g} % of {one.annotations.name} into validation"
    return CocoLayout(f"{layout.kind}; {part}", layout.folder, splits)


def find_coco_layout(
    folder: str | PathLike | CocoLayout | None = None, *, val_fraction: float | None = None,
    train_images: str | PathLike | None = None, train_annotations: str | PathLike | None = None,
    val_images: str | PathLike | None = None, val_annotations: str | PathLike | None = None,
) -> CocoLayout:
    """Find out how a detection set is laid out.

    `folder`: of the set; a layout is returned as it is. `val_fraction`, in 0..1: for a set without validation, the part
    of its pictures that validates, decided by a hash of each file's name, so that pictures that are added move no
    others. The four paths, instead of a folder: where the pictures and annotations are; those of one split go together.

    A layout that is not known is a FileNotFoundError that says what was looked for and what was found. Annotation
    files of a known name are not read here.
    """
    if isinstance(folder, CocoLayout):
        return folder
    given = dict(zip(_HAND_NAMES, (train_images, train_annotations, val_images, val_annotations)))
    paths = {name: None if path is None else Path(path) for name, path in given.items()}
    if any(paths.values()) and folder is not None:
        raise ValueError(f"a folder ({printable(folder)}) and paths by hand: give one of the two")
    if not any(paths.values()) and folder is None:
        raise ValueError("no data: give a folder (--data DIR), or paths by hand (--train-images DIR "
                         "--train-annotations FILE --val-images DIR --val-annotations FILE)")
    layout = _by_hand(paths) if folder is None else _found_in(Path(folder))
    return layout if val_fraction is None else _split_one(layout, val_fraction)


def require_splits(folder: str | PathLike | CocoLayout, *splits: str) -> CocoLayout:
    """The layout of a set that has all of these splits; speaks up before any file is read, see `find_coco_layout`."""
    layout = find_coco_layout(folder)
    for split in splits:
        layout.files(split)
    return layout


# ---- categories


def _used_categories(content: Mapping[str, list[dict]], path: Path) -> tuple[list[dict], list[Fault]]:
    """The categories of an annotation file without one that only groups all others and that no annotation uses, as
    Roboflow writes it; and the fault that says so."""
    used, listed = {a["category_id"] for a in content["annotations"]}, content["categories"]
    for category in listed:
        others = [other for other in listed if other["id"] != category["id"]]
        name = category.get("name")
        if others and category["id"] not in used and all(other.get("supercategory") == name for other in others):
            if name is not None:
                found = f"category {category['id']}, {name!r}: no annotation uses it, it is what groups the others"
                return others, [_COCO_FAULTS.fault("unused supercategory", _short_name(path), found)]
    return listed, []
