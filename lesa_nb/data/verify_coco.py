"""Is a COCO folder sound? Every annotation read by the reader's own rules, every file opened, before training."""
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from os import PathLike
from pathlib import Path

from .coco import read_split
from .coco_file import (
    ANNOTATION_FAULTS,
    COCO_FAULTS,
    check_image,
    check_stuff_map,
    find_annotation_file,
    images_folder,
    stuff_file,
)
from .coco_index import CocoSplit
from .report import Fault, Report


def _file_faults(folder: Path, split: str, with_maps: bool, image: dict) -> Iterator[Fault]:
    """What is wrong with the files of one image."""
    name, size = image["file_name"], (image["height"], image["width"])
    file = images_folder(folder, split)/name
    kind, found, _ = check_image(file, size)
    if kind:
        yield COCO_FAULTS.fault(kind, file, found, image_id=image["id"])
    if with_maps:
        file = stuff_file(folder, split, name)
        kind, found, _ = check_stuff_map(file, size)
        if kind:
            yield COCO_FAULTS.fault(kind, file, found, image_id=image["id"])


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


def verify_coco(
    folder: str | PathLike, splits: Iterable[str] | None = None, *, semantic: bool | None = None,
    workers: int | None = None, progress: bool = True,
) -> Report:
    """Read every annotation and open every file; say what would be left out of training and what would stop it.

    `splits`: None for all that have annotations/instances_*.json. `semantic`: check stuff maps; None: where there is a
    folder of them. `workers`: threads; None: one for each core, 16 at most. `progress`: show a bar. The report's
    `splits` holds (images, images to train on, annotations, annotations to train on) of each split; a split with
    nothing to train on is not ready.
    """
    from tqdm import tqdm
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    if splits is None:
        splits = sorted(p.stem.removeprefix("instances_") for p in (folder/"annotations").glob("instances_*.json"))
    splits = [splits] if isinstance(splits, str) else list(splits)
    if not splits:
        raise FileNotFoundError(f"{folder/'annotations'}: no file instances_*.json; is this a COCO folder?")
    report = Report(f"COCO folder {folder}", COCO_FAULTS,
                    "mend what is fatal (download those files again, or correct the annotation file)")
    for split in splits:
        try:
            content = read_split(find_annotation_file(folder, split), training=True)
        except (OSError, ValueError) as error:
            report.add_fault("unreadable annotation file", f"instances_{split}.json", str(error))
            continue
        _verify_annotations(report, split, content)
        with_maps = (folder/"stuffthingmaps"/split).is_dir() if semantic is None else semantic

        def check(image, split=split, with_maps=with_maps):
            return list(_file_faults(folder, split, with_maps, image))

        with ThreadPoolExecutor(workers or min(16, os.cpu_count() or 1)) as pool:
            results = pool.map(check, content.images.values())
            for found in tqdm(results, total=len(content.images), desc=split, unit="image", disable=not progress):
                for fault in found:
                    report.add(fault)
    return report
