"""Is a COCO folder sound? Every annotation read by the reader's own rules, every file opened, before training."""
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from os import PathLike
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from .coco import read_split
from .coco_file import ANNOTATION_FAULTS, IMAGE_FAULTS, Fault, check_stuff_map, find_annotation_file


class Report(NamedTuple):
    """What `verify_coco` found."""
    folder: str
    splits: dict  # split -> (images, images to train on, annotations, annotations to train on)
    counts: Counter  # kind of fault -> how often
    faults: list  # of Fault: all fatal ones, and the first 20 of every other kind

    @property
    def fatal(self) -> list[Fault]:
        """What has to be mended before training."""
        return [fault for fault in self.faults if fault.outcome == "fatal"]

    @property
    def ok(self) -> bool:
        """Whether training can start."""
        return not self.fatal

    def __str__(self):
        lines = [f"COCO folder {self.folder}"]
        for split, (images, kept_images, annotations, kept) in self.splits.items():
            lines.append(f"  {split:<12} {images:,} images, {kept_images:,} to train on; "
                         f"{annotations:,} annotations, {kept:,} to train on")
        outcomes = ANNOTATION_FAULTS | IMAGE_FAULTS
        for kind, count in sorted(self.counts.items(), key=lambda item: (outcomes[item[0]] != "fatal", item[0])):
            first = next(fault for fault in self.faults if fault.kind == kind)
            lines.append(f"  {count:>7,} x {kind}: {first.outcome}; first: {str(first).replace(': ' + kind, '', 1)}")
        lines += [f"  fatal: {fault}" for fault in self.fatal[:20]]
        if len(self.fatal) > 20:
            lines.append(f"  ... and {len(self.fatal) - 20} more fatal ones")
        lines.append("  ready to train" if self.ok else
                     "  not ready: mend what is fatal (download those files again, or correct the annotation file)")
        return "\n".join(lines)


def _check_image(path: Path, size: tuple[int, int]) -> tuple[str, str] | None:
    """What is wrong with an image file: (kind, found)."""
    try:
        with Image.open(path) as image:
            if image.size[::-1] != size:
                return "image of another size", f"{image.height}x{image.width}, expected {size[0]}x{size[1]}"
            image.load()
    except FileNotFoundError:
        return "missing image", ""
    except Exception as error:  # a decoder can fail in many ways
        return "unreadable image", str(error)
    return None


def _file_faults(folder: Path, split: str, with_maps: bool, image: dict) -> Iterator[Fault]:
    """What is wrong with the files of one image."""
    name, size = image["file_name"], (image["height"], image["width"])
    file = folder/split.replace("-dev", "")/name
    wrong = _check_image(file, size)
    if wrong:
        yield Fault(wrong[0], str(file), image["id"], None, wrong[1])
    if with_maps:
        file = (folder/"stuffthingmaps"/split/name).with_suffix(".png")
        kind, found, _ = check_stuff_map(file, size)
        if kind:
            yield Fault(kind, str(file), image["id"], None, found)


def verify_coco(
    folder: str | PathLike, splits: Iterable[str] | None = None, *, semantic: bool | None = None,
    workers: int | None = None, progress: bool = True,
) -> Report:
    """Read every annotation and open every file; say what would be left out of training and what would stop it.

    `splits`: None for all that have annotations/instances_*.json. `semantic`: check stuff maps; None: where there is a
    folder of them. `workers`: threads; None: one for each core, 16 at most. `progress`: show a bar.
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
    summary: dict[str, tuple] = {}
    counts: Counter = Counter()
    faults: list[Fault] = []

    def add(fault):
        counts[fault.kind] += 1
        if fault.outcome == "fatal" or counts[fault.kind] <= 20:
            faults.append(fault)

    for split in splits:
        try:
            content = read_split(find_annotation_file(folder, split), training=True)
        except (OSError, ValueError) as error:
            add(Fault("unreadable annotation file", f"instances_{split}.json", found=str(error)))
            continue
        for fault in content.faults:
            add(fault)
        of_image = [f for f in content.faults if f.kind in IMAGE_FAULTS and f.outcome != "fatal"]
        taken = sum(f.kind in ANNOTATION_FAULTS for f in content.faults)
        left = sum(map(len, content.annotations.values()))
        summary[split] = (len(content.images), len(content.images) - len(of_image), left + taken, left)
        with_maps = (folder/"stuffthingmaps"/split).is_dir() if semantic is None else semantic

        def check(image, split=split, with_maps=with_maps):
            return list(_file_faults(folder, split, with_maps, image))

        with ThreadPoolExecutor(workers or min(16, os.cpu_count() or 1)) as pool:
            results = pool.map(check, content.images.values())
            for found in tqdm(results, total=len(content.images), desc=split, unit="image", disable=not progress):
                for fault in found:
                    add(fault)
    return Report(str(folder), summary, counts, faults)
