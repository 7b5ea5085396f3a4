"""`lesa eval`: weights scored on validation pictures."""
from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, arg

from lesa_nb.cli._common import (
    CocoPaths,
    ScoreOptions,
    UsageError,
    check_image_size,
    check_new_file,
    check_new_folder,
    echo,
    open_classifier,
    write_json,
)
from lesa_nb.engine.group import is_main_process


def eval_imagenet(
    data: Annotated[Path, arg(metavar="DIR")],
    weights: Annotated[Path, arg(metavar="FILE")],
    image_size: int | None = None,
    val_fraction: float | None = None,
    options: Annotated[ScoreOptions, OmitArgPrefixes] = ScoreOptions(batch_size=64),
    out: Annotated[Path | None, arg(metavar="FILE.json")] = None,
    confusion: Annotated[Path | None, arg(metavar="DIR")] = None,
) -> int:
    """Score weights on the validation pictures of a folder in ImageNet's layout, in all and class by class.

    Args:
        data: Folder that holds val/, or the folders of the classes themselves. Pictures are turned upright by their
            EXIF notes, as in training.
        weights: A .safetensors of `lesa train`, or a .pth of the authors.
        image_size: Pixels of a side. Default: what the network was made for.
        val_fraction: As in training, where no folder holds what validates: only that part is scored.
        options: How pictures go through the network.
        out: Also write the scores there, with the accuracy of every class.
        confusion: Also write into this folder what was taken for what: confusion.png, confusion.csv, and classes.csv
            with the accuracies.
    """
    check_image_size(image_size)
    check_new_file("--out", out, weights, replaces=".json")
    check_new_folder("--confusion", confusion)
    from lesa_nb.tasks.confusion import MOST_CLASSES, score_by_class, write_class_scores

    classifier = open_classifier(weights)
    metadata, found = classifier.metadata, len(classifier.classes)
    if confusion and found > MOST_CLASSES:
        raise UsageError(f"--confusion is for at most {MOST_CLASSES:,} classes, the network has {found:,}")
    tables = f"{metadata['position']} tables for {metadata['image_size']} px"
    echo(f"{metadata['network']}, term {metadata['term']}, {tables}, from {weights}")
    scores, by_class = score_by_class(
        classifier,
        data,
        image_size=image_size,
        val_fraction=val_fraction,
        **options.words("batch"),
    )
    percent = ", ".join(f"top-{name[3:]} {scores[name]:.2f} %" for name in ("top1", "top5") if name in scores)
    echo(f"{scores['samples']:,} pictures: {percent}, loss {scores['loss']:.4f}")
    echo(by_class.format() if by_class else f"more than {MOST_CLASSES:,} classes: not counted one by one")
    if not is_main_process():
        return 0
    if out:
        classes = dict(classes=by_class.accuracy()) if by_class else {}
        write_json(out, dict(scores, **classes, weights=str(weights), data=str(data)), "the scores")
    if confusion and by_class:
        print(f"confusion matrix: {', '.join(map(str, write_class_scores(by_class, confusion)))}")
    return 0


def eval_coco(
    data: Annotated[Path | None, arg(metavar="DIR")] = None,
    *,
    weights: Annotated[Path, arg(metavar="FILE")],
    paths: Annotated[CocoPaths, OmitArgPrefixes] = CocoPaths(),
    split: str = "val",
    options: Annotated[ScoreOptions, OmitArgPrefixes] = ScoreOptions(),
    out: Annotated[Path | None, arg(metavar="FILE.json")] = None,
) -> int:
    """Score a detector on a split of a detection set: boxes and masks, COCO's numbers, and AP class by class.

    Args:
        data: Folder in COCO's own layout, or as Roboflow, CVAT, labelme and label-studio export COCO.
        weights: A .safetensors of lesa train coco, or a .pth of the authors.
        paths: Where the set lies otherwise, and how it is split: as in training.
        split: Which pictures: val, train, or the set's own name for a split.
        options: How pictures go through the network.
        out: Also write the scores there, with AP class by class.
    """
    check_new_file("--out", out, weights, replaces=".json")
    from lesa_nb.tasks.class_ap import format_class_ap
    from lesa_nb.tasks.detect_eval import evaluate_detector

    layout = paths.layout(data)
    check_new_file("--out", out, *(files.annotations for files in layout.splits.values()))
    echo(f"{layout}; scored: {layout.files(split).split}")
    scores = evaluate_detector(
        layout,
        weights,
        split=split,
        **options.words("image"),
        say=echo,
    )
    echo(scores)
    echo(format_class_ap(scores))
    if out and is_main_process():
        classes = {kind: scores.class_ap(kind) for kind in scores.precision}
        numbers = dict(box=scores.box, mask=scores.mask, classes=classes)
        write_json(out, dict(numbers, weights=str(weights), data=str(layout.folder), split=split), "the scores")
    return 0
