"""Which files of a folder are pictures, which folders are classes, and where training and validation lie.

Litter of operating systems and tools (`._cat.jpg`, `__MACOSX`, `.ipynb_checkpoints`, hidden files and folders) is
skipped, and so are links that lead back to a folder above them, which would list every picture again and again. What
was skipped is counted.
"""
from __future__ import annotations

import os
import stat
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from PIL import features

from lesa_nb.data.photos import _photo_fault
from lesa_nb.data.report import printable

#: ends of names that count as pictures, and the format each one promises: torchvision's, and more that Pillow reads
PICTURE_FORMATS = {
    ".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".png": "PNG", ".apng": "PNG", ".ppm": "PPM",
    ".pgm": "PPM", ".pbm": "PPM", ".pnm": "PPM", ".bmp": "BMP", ".dib": "DIB", ".tif": "TIFF", ".tiff": "TIFF",
    ".webp": "WEBP", ".gif": "GIF", ".tga": "TGA"}
_UNREAD = {".heic", ".heif", ".jxl", ".svg", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".psb", ".exr", ".hdr"}
_BUILT_IN = ((".avif", "AVIF", "avif"), (".jp2", "JPEG2000", "jpg_2000"), (".j2k", "JPEG2000", "jpg_2000"))
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # an old Pillow warns of features that it does not know
    for _end, _format, _feature in _BUILT_IN:  # if this Pillow was built with it
        if features.check(_feature):
            PICTURE_FORMATS[_end] = _format
        else:
            _UNREAD.add(_end)

#: names of the folders beside train/ that count as validation, the first that exists
_VALIDATION_NAMES = ("val", "valid", "validation", "test")

#: what is wrong with a folder of a single class
_ONE_CLASS = "expected two or more to tell apart, found one; add a folder of pictures for another class"

_LITTER = {"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "lost+found",
           "system volume information", "__pycache__"}


def is_picture(name: str) -> bool:
    """Whether a file's name ends like a picture's that can be read."""
    return os.path.splitext(name)[1].lower() in PICTURE_FORMATS


def is_unread_picture(name: str) -> bool:
    """Whether a file's name ends like a picture's in a format that cannot be read here, such as .heic."""
    return os.path.splitext(name)[1].lower() in _UNREAD


def is_litter(name: str) -> bool:
    """Whether a name belongs to an operating system or a tool, not to the data: hidden ones, __MACOSX, Thumbs.db and
    so on."""
    return name.startswith(".") or name.lower() in _LITTER


class _Skipped(NamedTuple):
    """Something that is not part of the data, and why."""

    kind: str  # "system file" or "link to a folder above"
    path: str


class _Entries(NamedTuple):
    """What lies in one folder."""

    folders: list[str]  # names, sorted
    files: list[str]  # names, sorted
    skipped: list[_Skipped]


def _identity(path: str) -> tuple[int, int]:
    state = os.stat(path)
    return state.st_dev, state.st_ino


def _above(folder: str) -> frozenset[tuple[int, int]]:
    """A folder and all those that it lies in."""
    path, found = os.path.realpath(folder), set()
    while True:
        found.add(_identity(path))
        if path == os.path.dirname(path):
            return frozenset(found)
        path = os.path.dirname(path)


def _entries_in(folder: str, chain: frozenset[tuple[int, int]]) -> _Entries:
    folders: list[str] = []
    files: list[str] = []
    skipped: list[_Skipped] = []
    with os.scandir(folder) as found:
        for entry in found:
            link = entry.is_symlink()
            if is_litter(entry.name):
                skipped.append(_Skipped("system file", entry.path))
            elif not (os.path.isdir(entry.path) if link else entry.is_dir()):  # is_dir raises for a link to itself
                files.append(entry.name)
            elif link and _identity(entry.path) in chain:
                skipped.append(_Skipped("link to a folder above", entry.path))
            else:
                folders.append(entry.name)
    return _Entries(sorted(folders), sorted(files), sorted(skipped))


def _list_entries(folder: str | os.PathLike) -> _Entries:
    """The folders and files in a folder, without litter and without links to folders above it."""
    folder = os.fspath(folder)
    return _entries_in(folder, _above(folder))


class _Listing(NamedTuple):
    """All files below a folder."""

    files: list[str]  # paths, in torchvision's order
    skipped: list[_Skipped]


def list_files(folder: str | os.PathLike) -> _Listing:
    """All files below a folder, in torchvision's order. Links are followed; a folder that cannot be listed is an
    OSError."""
    skipped: list[_Skipped] = []

    def walk(at: str, chain: frozenset[tuple[int, int]]) -> Iterator[tuple[str, list[str]]]:
        found = _entries_in(at, chain)
        skipped.extend(found.skipped)
        yield at, found.files
        for name in found.folders:
            below = os.path.join(at, name)
            yield from walk(below, chain | {_identity(below)})

    folder = os.fspath(folder)
    files = [os.path.join(at, name) for at, names in sorted(walk(folder, _above(folder))) for name in names]
    return _Listing(files, skipped)


def case_twins(names: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of names that differ only in capital and small letters: many file systems take them for one."""
    first: dict[str, str] = {}
    return [(first[name.casefold()], name) for name in names if first.setdefault(name.casefold(), name) != name]


def _kind_of_file(path: str) -> str | None:
    """Why a listed file is no picture: "format not read" or "other file"; None for a picture."""
    if is_picture(path):
        return None
    return "format not read" if is_unread_picture(path) else "other file"


def _list_pictures(folder: str | os.PathLike, classes: Sequence[str]) -> tuple[list[list[str]], Counter[str]]:
    """The pictures of each class, as paths below `folder` (class/name, in torchvision's order), and how many files of
    which kind were skipped. A class that cannot be listed is an OSError that names it."""
    folder = os.fspath(folder)
    start = len(os.path.join(folder, ""))
    found: list[list[str]] = []
    skipped: Counter[str] = Counter()
    try:
        skipped.update(kind for kind, _ in _list_entries(folder).skipped)
        for name in classes:
            listing = list_files(os.path.join(folder, name))
            skipped.update(kind for kind, _ in listing.skipped)
            skipped.update(kind for kind in map(_kind_of_file, listing.files) if kind)
            found.append([path[start:] for path in listing.files if is_picture(path)])
    except OSError as error:
        raise type(error)(str(_photo_fault(error.filename, error))) from None
    return found, skipped


def require_folder(folder: str | os.PathLike) -> None:
    """Refuse what is no folder, in an OSError that says what it is instead: nothing, a file, or out of reach."""
    try:
        mode = os.stat(folder).st_mode
    except FileNotFoundError:
        found = "a link that leads nowhere" if os.path.islink(folder) else "no such folder"
        raise FileNotFoundError(f"{printable(folder)}: {found}") from None
    except OSError as error:
        raise type(error)(f"{printable(folder)}: cannot be looked into ({error.strerror})") from None
    if not stat.S_ISDIR(mode):
        raise NotADirectoryError(f"{printable(folder)}: expected a folder, found a file; name the folder that holds "
                                 "the data, and unpack it first if it is an archive")


class Layout(NamedTuple):
    """Where the pictures for training and for validation lie."""

    train: str  # a folder that holds a folder for each class
    val: str  # likewise; the same one where the pictures are split by their names
    val_fraction: float | None  # part of the pictures that validate, or None where two folders hold them

    def __str__(self) -> str:
        if self.val_fraction is None:
            return f"{os.path.basename(self.train)}/ and {os.path.basename(self.val)}/ hold a folder for each class"
        part = f"{100*self.val_fraction:g} % of the pictures"
        return f"one folder for each class; a hash of each file's name puts {part} into validation"


def _validation_folder(folder: str | os.PathLike) -> str | None:
    """The folder for validation inside a data set's folder, or None: val, valid, validation or test."""
    for name in _VALIDATION_NAMES:
        path = os.path.join(folder, name)
        if os.path.isdir(path):
            return path
    return None


def _expected_layout(folder: str | os.PathLike) -> str:
    """What a folder without both splits should hold, and how to do without if it holds folders of pictures."""
    says = f"expected train/ and val/ in {printable(folder)}"
    train = os.path.isdir(os.path.join(folder, "train"))
    val = _validation_folder(folder)
    if (train and not val) or (not train and not val and _list_entries(folder).folders):
        says += ("; to split the pictures of one folder by their names, say which part validates: "
                 "val_fraction=0.2, or --val-fraction 0.2")
    return says


def _describe_skipped(skipped: Counter[str]) -> str:
    """What is not part of the data, in one line; empty if there was nothing."""
    return ", ".join(f"{count:,} x {kind}" for kind, count in sorted(skipped.items()))


def describe_split(train: int, val: int, skipped: Counter[str], val_fraction: float | None = None) -> str:
    """One line on how many pictures train and validate, what decided that, and what was skipped."""
    says = f"{train:,} pictures to train on, {val:,} to validate"
    if val_fraction is not None:
        says += f"; a hash of each file's name decides, {100*val_fraction:g} % validate"
    return says + (f"; skipped: {_describe_skipped(skipped)}" if skipped else "")


def find_layout(folder: str | os.PathLike, val_fraction: float | None = None) -> Layout:
    """Find training and validation in a folder.

    folder: holds train/ and val/ (or valid/, validation/, test/); with `val_fraction`, in 0..1: holds the folders of
    the classes itself, or a train/ that holds them. What is not there is a FileNotFoundError, a fraction that makes no
    sense a ValueError.
    """
    folder = os.fspath(folder)
    require_folder(folder)
    train, val = os.path.join(folder, "train"), _validation_folder(folder)
    if val_fraction is not None:
        if not 0 < val_fraction < 1:
            raise ValueError(f"val_fraction must lie between 0 and 1, got {val_fraction}")
        if not os.path.isdir(train):
            return Layout(folder, folder, val_fraction)
        if val:
            raise ValueError(f"{printable(folder)}: holds train/ and {os.path.basename(val)}/ already; "
                             "leave val_fraction out")
        return Layout(train, train, val_fraction)
    if os.path.isdir(train) and val:
        return Layout(train, val, None)
    missing = train if val else os.path.join(folder, "val")
    raise FileNotFoundError(f"{printable(missing)}: no such folder; {_expected_layout(folder)}")


def require_held_out(folder: str | os.PathLike, val_fraction: float | None, trained: float | None) -> None:
    """Refuse to score a part of a folder that holds pictures which the network was trained on.

    val_fraction: the part that is scored; trained: the part that validated when it was trained. None: no part.
    """
    if val_fraction and trained and val_fraction > trained:
        raise ValueError(
            f"{printable(folder)}: the network was trained on all but val_fraction={trained} of such a folder, and of "
            f"{val_fraction} it knows some: score {trained} or less, or put other pictures into test/")


def find_scored(folder: str | os.PathLike, val_fraction: float | None = None, trained: float | None = None) -> str:
    """The folder of class folders to score a network on: validation where it is apart, else the folder itself.

    val_fraction: as for `find_layout`. trained: the fraction that validated when the network was trained, None where
    validation lay apart. A folder without a split, or a larger part of it, would then count pictures that were trained
    on: a ValueError.
    """
    require_folder(folder)
    require_held_out(folder, val_fraction, trained)
    if val_fraction:
        return find_layout(folder, val_fraction).val
    apart = _validation_folder(folder)
    if apart is None and trained:
        raise ValueError(
            f"{printable(folder)}: the network was trained on a part of such a folder, and its score on all would say "
            f"nothing: name the part that validates, val_fraction={trained}, or put other pictures into test/")
    return apart or os.fspath(folder)
