"""`lesa verify-data` and `lesa make-data`: folders to train on, checked or drawn."""
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import OmitArgPrefixes, Positional, arg

from lesa_nb.cli._common import CocoPaths, positive


def verify_imagenet(
    data: Annotated[Positional[Path], arg(metavar="DIR")],
    workers: int | None = None,
    val_fraction: float | None = None,
) -> int:
    """Read every picture of a folder in ImageNet's layout, and list what would stop training and what would not.

    Ends with status 1 if anything would. Pictures are read as for training: turned upright by their EXIF notes,
    litter of operating systems (._x.jpg, __MACOSX, hidden folders) skipped.

    Args:
        data: Folder that holds train/ and val/ (or valid/, validation/, test/), with a folder for each class; with
            --val-fraction, the folders of the classes themselves.
        workers: Pictures that are read at the same time.
        val_fraction: Part of each class that validates, decided by a hash of each file's name.
    """
    from lesa_nb.data.verify import verify_image_folder

    report = verify_image_folder(data, workers=workers, val_fraction=val_fraction)
    print(report)
    return 0 if report.ok else 1


def verify_coco_folder(
    data: Annotated[Positional[Path | None], arg(metavar="DIR")] = None,
    paths: Annotated[CocoPaths, OmitArgPrefixes] = CocoPaths(),
    workers: int | None = None,
) -> int:
    """Read every annotation and open every picture of a detection set.

    Says which layout it saw, what would be left out of training and what would stop it. Ends with status 1 if anything
    would stop it.

    Args:
        data: Folder in COCO's own layout, or as Roboflow, CVAT, labelme and label-studio export COCO.
        paths: Where it lies otherwise.
        workers: Pictures that are read at the same time.
    """
    from lesa_nb.data.verify_coco import verify_coco

    report = verify_coco(paths.layout(data), workers=workers)
    print(report)
    return 0 if report.ok else 1


def make_imagenet(
    out: Annotated[Positional[Path], arg(metavar="DIR")],
    task: Literal["twin", "corner", "both", "digits"] = "twin",
    train: int = 256,
    val: int = 64,
    size: int = 64,
    seed: int = 0,
) -> int:
    """Draw a small folder of pictures in ImageNet's layout, to try everything on.

    Args:
        out: Must not exist, or be empty.
        task: twin: which coloured mark is turned like the white one? corner: does the white mark point up? both: both.
            digits: real handwritten ones.
        train: Pictures of each class to train on.
        val: Pictures of each class to validate on.
        size: Pixels of the shorter side.
        seed: Another seed, other pictures.
    """
    positive(train=train, val=val)
    from lesa_nb.data.drawn import make_digits, make_image_folder

    if task == "digits":
        folder = make_digits(out, size=size, seed=seed)
    else:
        folder = make_image_folder(out, task=task, train=train, val=val, size=size, seed=seed)
    options = f"--network small --image-size {size} --position factored"
    print(f"{folder}: ready for lesa train imagenet --data {folder} {options}")
    return 0


def make_coco_folder(
    out: Annotated[Positional[Path], arg(metavar="DIR")],
    train: int = 64,
    val: int = 16,
    test: int = 8,
    size: int = 160,
    seed: int = 0,
) -> int:
    """Draw a small folder in COCO's layout, with polygons, crowds, empty pictures and stuff maps, to try everything on.

    Args:
        out: Must not exist, or be empty.
        train: Pictures to train on.
        val: Pictures to validate on.
        test: Pictures without annotations.
        size: Pixels of the longer side.
        seed: Another seed, other pictures.
    """
    positive(train=train, val=val, test=test)
    from lesa_nb.data.drawn_coco import make_coco

    folder = make_coco(out, train=train, val=val, test=test, size=size, seed=seed)
    print(f"{folder}: ready for lesa train coco --data {folder} --network small")
    return 0
