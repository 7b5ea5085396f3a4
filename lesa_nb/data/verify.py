"""Look at every file of a folder of classes once, before training: what would stop it, and what would not."""
from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterable

from lesa_nb.data._threads import check_threads, thread_pool
from lesa_nb.data.folders import class_names, held_out, same_classes
from lesa_nb.data.listing import (
    _ONE_CLASS,
    PICTURE_FORMATS,
    Layout,
    _expected_layout,
    _kind_of_file,
    _list_entries,
    _validation_folder,
    case_twins,
    find_layout,
    is_picture,
    list_files,
    require_folder,
)
from lesa_nb.data.photos import _PHOTO_FAULTS, MAX_PIXELS, _photo_fault, _read_photo
from lesa_nb.data.report import FATAL, Fault, FaultKinds, Report, printable

#: what can be wrong with a folder of classes: kind -> "fatal", or what becomes of it
FOLDER_FAULTS = FaultKinds({
    **_PHOTO_FAULTS,
    "missing folder": FATAL, "no classes": FATAL, "one class": FATAL, "classes differ": FATAL, "empty class": FATAL,
    "class too small": FATAL, "wrong extension": "read as what it is", "format not read": "left out",
    "names differ in case only": "two classes, but one on file systems that ignore case",
    "other file": "ignored", "system file": "skipped",
    "link to a folder above": "skipped"})
_MEND = "mend what is fatal (broken files: download them again, or remove them)"


def _inspect(path: str, exif: bool) -> list[Fault]:
    """Everything that is wrong with one file."""
    kind = _kind_of_file(path)
    if kind:
        return [FOLDER_FAULTS.fault(kind, path)]
    try:
        photo = _read_photo(path, exif=exif, max_pixels=MAX_PIXELS)
    except Exception as error:  # Pillow's decoders fail in many ways
        return [_photo_fault(path, error)]
    faults = [FOLDER_FAULTS.fault(kind, path, found) for kind, found in photo.notes]
    promised = PICTURE_FORMATS[os.path.splitext(path)[1].lower()]
    if photo.format not in (promised, {"JPEG": "MPO"}.get(promised)):
        faults.append(FOLDER_FAULTS.fault("wrong extension", path, f"a {photo.format} file"))
    return faults


def _list_classes(report: Report, folder: str, names: list[str]) -> dict[str, list[str]]:
    """All files of each class that can be listed; what is not part of the data goes into the report."""
    beside = _list_entries(folder)
    for name in beside.files:
        report.add_fault("other file", os.path.join(folder, name), "outside the class folders")
    for kind, path in beside.skipped:
        report.add_fault(kind, path)
    found = {}
    for name in names:
        place = os.path.join(folder, name)
        try:
            listing = list_files(place)
        except OSError as error:
            report.add(_photo_fault(error.filename, error))
            continue
        for kind, path in listing.skipped:
            report.add_fault(kind, path)
        found[name] = listing.files
        if not any(map(is_picture, listing.files)):
            report.add_fault("empty class", place, "no pictures")
    return found


def _add_split(report: Report, split: str, classes: Counter[str]) -> None:
    """The numbers of a split, and how many pictures its classes have."""
    least, most = min(classes.values()), max(classes.values())
    each = f"{least:,} to {most:,}" if least < most else f"{most:,}"
    report.add_split(split, classes, f"{len(classes):,} classes, {sum(classes.values()):,} pictures, {each} in a class")


def _count_by_name(report: Report, layout: Layout, pictures: dict[str, list[str]]) -> None:
    """The numbers of both splits where a hash of the names decides."""
    fraction, start = layout.val_fraction or 0.0, len(os.path.join(layout.train, ""))
    train: Counter[str] = Counter()
    val: Counter[str] = Counter()
    for name, paths in pictures.items():
        try:
            held = held_out([path[start:] for path in paths], fraction)
        except ValueError as error:
            report.add_fault("class too small", os.path.join(layout.train, name), str(error).partition(": ")[2])
            continue
        train[name], val[name] = len(held) - sum(held), sum(held)
    if train:
        _add_split(report, "train", train)
        _add_split(report, "val", val)


def _find_classes(report: Report, folder: str, half: str) -> list[str] | None:
    """The classes of one folder, or a fault in the report."""
    try:
        return class_names(half)
    except FileNotFoundError:
        report.add_fault("missing folder", half, _expected_layout(folder))
    except PermissionError as error:
        report.add(_photo_fault(half, error))
    except ValueError as error:
        report.add_fault("no classes", half, str(error).partition("no classes: ")[2])
    return None


def _halves(folder: str, splits: Iterable[str]) -> dict[str, str]:
    """Split -> its folder, which may be missing."""
    halves = {split: os.path.join(folder, split) for split in splits}
    if "val" in halves:
        halves["val"] = _validation_folder(folder) or halves["val"]
    return halves


def verify_image_folder(folder: str | os.PathLike, splits: Iterable[str] = ("train", "val"), *,
                        val_fraction: float | None = None, exif: bool = True, workers: int | None = None,
                        progress: bool = True) -> Report:
    """List the classes, open every file and decode it to the last pixel; say what would stop training and what would
    not.

    folder: holds train/ and val/ (or valid/, validation/, test/); splits: which of them to look at; val_fraction: as
    in `class_folders`, for a folder without a split; exif: as training will read; workers: threads, None for one for
    each core, 16 at most; progress: show a bar. `report.splits` counts the pictures of each class. A folder that is
    not there is a FileNotFoundError.
    """
    from tqdm import tqdm

    folder = os.fspath(folder)
    require_folder(folder)
    check_threads(workers)
    layout = find_layout(folder, val_fraction) if val_fraction is not None else None
    halves = {"all": layout.train} if layout else _halves(folder, [splits] if isinstance(splits, str) else splits)
    report = Report(f"picture folder {printable(folder)}", FOLDER_FAULTS, _MEND)
    if layout:
        report.add_line(str(layout))
    names: dict[str, list[str]] = {}
    with thread_pool(workers) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for split, half in halves.items():
            classes = _find_classes(report, folder, half)
            if classes is None:
                continue
            names[split] = classes
            for one, other in case_twins(classes):
                report.add_fault("names differ in case only", os.path.join(half, other), f"and {printable(one)}")
            files = _list_classes(report, half, classes)
            pictures = {name: [path for path in paths if is_picture(path)] for name, paths in files.items()}
            if layout:
                _count_by_name(report, layout, {name: paths for name, paths in pictures.items() if paths})
            else:
                _add_split(report, split, Counter({name: len(pictures.get(name, ())) for name in classes}))
            paths = [path for listed in files.values() for path in listed]
            groups = [paths[i:i + 16] for i in range(0, len(paths), 16)]
            with tqdm(total=len(paths), desc=split, unit="file", disable=not progress) as bar:
                for group in pool.map(lambda group: [_inspect(path, exif) for path in group], groups):
                    bar.update(len(group))
                    for fault in (fault for faults in group for fault in faults):
                        report.add(fault)
    first, *rest = names or [""]
    if len(names.get(first, ())) == 1:
        report.add_fault("one class", halves[first], _ONE_CLASS)
    for split in rest:
        try:
            same_classes(names[first], names[split])
        except ValueError as error:
            report.add_fault("classes differ", folder, str(error).partition("classes differ: ")[2])
    return report
