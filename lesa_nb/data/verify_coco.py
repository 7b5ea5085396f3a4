"""Is a COCO folder sound? Every annotation read by the reader's own rules, every file opened, before training."""
from collections import Counter
from collections.abc import Iterable, Iterator
from os import PathLike
from pathlib import Path

from ._threads import check_threads, thread_pool
from .coco import Categories, read_split
from .coco_file import _COCO_FAULTS, ANNOTATION_FAULTS, _check_image, _check_stuff_map, coco_tools
from .coco_index import CocoSplit, _take_part
from .coco_layout import CocoLayout, SplitFiles, _short_name, find_coco_layout
from .report import Fault, Report, printable


def _file_faults(files: SplitFiles, pictures: Path, with_maps: bool, image: dict) -> Iterator[Fault]:
    """What is wrong with the files of one image."""
    name, size = image["file_name"], (image["height"], image["width"])
    file = pictures/name
    kind, found, _ = _check_image(file, size)
    if kind:
        yield _COCO_FAULTS.fault(kind, file, found, image_id=image["id"])
    if with_maps:
        file = files.stuff_file(name)
        kind, found, _ = _check_stuff_map(file, size)
        if kind:
            yield _COCO_FAULTS.fault(kind, file, found, image_id=image["id"])


def _verify_annotations(report: Report, split: str, content: CocoSplit):
    """Count what the reader left out of a split, and whether anything is left."""
    for fault in content.faults:
        report.add(fault)
    left_out = Counter(fault.kind for fault in content.faults if fault.outcome.startswith("dropped"))
    taken = sum(count for kind, count in left_out.items() if kind in ANNOTATION_FAULTS)
    images, left = len(content.images), sum(map(len, content.annotations.values()))
    kept = images - sum(count for kind, count in left_out.items() if kind not in ANNOTATION_FAULTS)
    report.add_split(split, (images, kept, left + taken, left),
                     f"{images:,} images, {kept:,} to train on; {left + taken:,} annotations, {left:,} to train on")
    if not kept:
        why = "; ".join(f"{count:,} x {kind}" for kind, count in left_out.most_common(3)) or "no images"
        report.add_fault("nothing to train on", f"{split}", f"what was left out most: {why}")


def _verify_masks(report: Report, split: str, content: CocoSplit):
    """Say how many objects have no mask, where not all have one."""
    drawn = [a.get("segmentation") is not None for found in content.annotations.values() for a in found]
    if drawn and not any(drawn):
        report.add_line(f"{split}: no object has a mask: boxes only, training makes a detector without mask heads")
    elif not all(drawn):
        report.add_line(f"{split}: {sum(drawn):,} of {len(drawn):,} objects have a mask: masks are learned from these, "
                        "boxes from all")


def _verify_truth(report: Report, split: str, content: CocoSplit):
    """Whether scores can be counted on a split: a box that is none would be missing from the truth."""
    none = [fault for fault in content.faults if fault.kind == "box not finite"]
    if none:
        report.add_fault("nothing to score by", split, f"{len(none):,} x box not finite, first: {none[0]}: scores need "
                         "four finite numbers in every bbox; correct them, or take these annotations out")


def _verify_splits(report: Report, layout: CocoLayout, categories: dict[str, Categories]):
    """Whether training would find both of its splits, and the same classes in them."""
    train, val = layout.split_name("train"), layout.split_name("val")
    for role, name, does in (("train", train, "train"), ("val", val, "validate")):
        if name is None:
            report.add_fault(f"no split to {does} on", layout.folder, layout.instead(role))
    if train in categories and val in categories:
        try:
            categories[val].ordered_like(categories[train])
        except ValueError as error:
            report.add_fault("other categories", val, str(error))


def _verify_stuff(report: Report, layout: CocoLayout, semantic: bool | None):
    """Say that there are no stuff maps: the verifier cannot know whether HTC will ask for them."""
    split = layout.split_name("train")
    if semantic is None and split is not None and not layout.files(split).stuff.is_dir():
        report.add_line("no stuff maps: HTC trains with --no-semantic (Mask R-CNN needs none)")


def _verify_files(report: Report, split: str, files: SplitFiles, content: CocoSplit, semantic: bool | None,
                  workers: int | None, progress: bool):
    """Open every picture and, if asked for, every stuff map."""
    from tqdm import tqdm

    pictures = files.images_folder([image["file_name"] for image in content.images.values()])
    report.add_line(f"{split}: pictures in {printable(pictures)}, annotations in {printable(files.annotations)}")
    with_maps = files.stuff.is_dir() if semantic is None else semantic

    def check(image):
        return list(_file_faults(files, pictures, with_maps, image))

    with thread_pool(workers) as pool:
        results = pool.map(check, content.images.values())
        for found in tqdm(results, total=len(content.images), desc=split, unit="image", disable=not progress):
            for fault in found:
                report.add(fault)


def verify_coco(
    folder: str | PathLike | CocoLayout, splits: Iterable[str] | None = None, *, semantic: bool | None = None,
    workers: int | None = None, progress: bool = True,
) -> Report:
    """Read every annotation and open every file; say what would be left out of training and what would stop it.

    `folder`: of the set, or what `find_coco_layout` made of it. `splits`: None for all that have objects; then it is
    also asked whether training finds what it trains and what it validates on. `semantic`: check stuff maps; None: where
    there is a folder of them. `workers`: threads; None: one for each core, 16 at most. `progress`: show a bar. The
    report's `splits` holds (images, images to train on, annotations, annotations to train on) of each split; a split
    with nothing to train on is not ready.
    """
    check_threads(workers)
    layout = find_coco_layout(folder)
    named = [name for name, files in layout.splits.items() if not files.annotations.stem.startswith("image_info")]
    names = named if splits is None else [splits] if isinstance(splits, str) else list(splits)
    report = Report(f"COCO folder {printable(layout.folder)}", _COCO_FAULTS,
                    "mend what is fatal (broken files: download them again; the rest: correct the annotation file)")
    report.add_line(str(layout))
    categories: dict[str, Categories] = {}
    for split in sorted(names):
        files = layout.files(split)
        kind = "unreadable annotation file"
        try:
            content, kind = read_split(files.annotations, training=True), "too few to split"
            content = _take_part(content, files)
        except (OSError, ValueError) as error:
            report.add_fault(kind, _short_name(files.annotations), str(error))
            continue
        categories[files.split] = content.categories
        _verify_annotations(report, split, content)
        _verify_masks(report, split, content)
        if files.split != layout.split_name("train"):
            _verify_truth(report, split, content)
        _verify_files(report, split, files, content, semantic, workers, progress)
    if splits is None:
        _verify_splits(report, layout, categories)
        _verify_stuff(report, layout, semantic)
        try:
            coco_tools("faster_coco_eval")
        except ModuleNotFoundError as error:
            report.add_fault("missing package", layout.folder, str(error))
    return report
