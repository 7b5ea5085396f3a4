"""What a classifier makes of each class: how many it gets right, and what it takes the others for."""
from __future__ import annotations

import csv
import io
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from lesa_nb.data.folders import class_names
from lesa_nb.data.listing import find_scored
from lesa_nb.data.report import printable
from lesa_nb.engine.group import pick_device, process_group
from lesa_nb.io.atomic import atomic_path, atomic_text
from lesa_nb.tasks._tables import cell_text, format_rows
from lesa_nb.tasks.classify import score_folder
from lesa_nb.weights.load import Loaded

__all__ = ["MOST_CLASSES", "ClassScores", "score_by_class", "write_class_scores"]

#: of a network that is counted class by class; the square of it is held in memory
MOST_CLASSES = 5000
_ROWS = 20  # of the table on screen


class ClassScores(NamedTuple):
    """How often each class was taken for each.

    Attributes:
        classes: Their names.
        counts: (n, n) whole numbers: row: the class that is shown, column: the answer.
    """

    classes: list[str]
    counts: Tensor

    @property
    def pictures(self) -> list[int]:
        """How many pictures there are of each class."""
        return self.counts.sum(1).tolist()

    @property
    def right(self) -> list[int]:
        """How many of them the network names."""
        return self.counts.diagonal().tolist()

    def accuracy(self) -> dict[str, float]:
        """Percent of each class that the network names; nan for a class without pictures."""
        shares = (100*r/n if n else float("nan") for r, n in zip(self.right, self.pictures))
        return dict(zip(self.classes, shares))

    def mistaken(self, number: int) -> tuple[int, int] | None:
        """What a class is taken for most often, and how often; None if never for another."""
        row = self.counts[number].clone()
        row[number] = 0
        times, other = row.max(0)
        return (int(other), int(times)) if times else None

    def format(self, rows: int = _ROWS) -> str:
        """The worst classes in a table, and a sentence on the others."""
        shares = list(self.accuracy().values())
        pictures, right = self.pictures, self.right
        there = sorted((i for i, n in enumerate(pictures) if n), key=lambda i: (shares[i], -pictures[i], i))
        table: list[tuple[str, ...]] = [("class, the worst first", "right", "pictures", "taken for")]
        for i in there[:rows]:
            other = self.mistaken(i)
            wrong = f"{cell_text(self.classes[other[0]])} ({other[1]:,})" if other else "-"
            table.append((cell_text(self.classes[i]), f"{shares[i]:.1f} %", f"{right[i]:,} of {pictures[i]:,}", wrong))
        lines, left = format_rows(table, left=(0, 3)), there[rows:]
        if left:
            best = f"{shares[left[0]]:.1f} to {shares[left[-1]]:.1f} % right"
            lines.append(f"and {len(left):,} more class{'es'*(len(left) > 1)}, {best}")
        if len({pictures[i] for i in there}) > 1:
            mean = sum(shares[i] for i in there)/len(there)
            lines.append(f"mean of {len(there):,} classes, each counted alike: {mean:.2f} %")
        if missing := len(pictures) - len(there):
            lines.append(f"{missing:,} class{'es'*(missing > 1)} without pictures")
        return "\n".join(lines)


def score_by_class(
    classifier: Loaded, folder: str | PathLike, *, val_fraction: float | None = None, device: str | None = None,
    **options: Any,
) -> tuple[dict[str, float], ClassScores | None]:
    """What `score_folder` returns, and the same pictures class by class; under torchrun all processes get both.

    Of more than `MOST_CLASSES` classes nothing is counted: None.

    `options` are `score_folder`'s: image_size, batch_size, workers, watch. Where the folders' names are not the
    network's, as with ImageNet's numbers and words, a class is called by both.
    """
    from torchmetrics.classification import MulticlassConfusionMatrix

    known, on = classifier.classes, pick_device(device)
    if len(known) > MOST_CLASSES:
        return score_folder(classifier, folder, val_fraction=val_fraction, device=device, **options), None
    counts = MulticlassConfusionMatrix(max(2, len(known))).to(on)  # of one class the scorer itself complains
    with process_group(on):
        scores = score_folder(classifier, folder, val_fraction=val_fraction, device=device, more=[counts], **options)
        table = counts.compute().cpu()
    names = class_names(find_scored(folder, val_fraction, classifier.metadata.get("val_fraction")))
    both = [name if name == word else f"{name} ({word})" for name, word in zip(names, known)]
    return scores, ClassScores(both, table)


def _csv(rows: list[list[Any]]) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(rows)
    return file.getvalue()


def write_class_scores(scores: ClassScores, folder: str | PathLike) -> list[Path]:
    """Write confusion.png, confusion.csv and classes.csv into a folder, which is made if it does not exist.

    confusion.csv has a row for each class that is shown and a column for each answer, counts in the cells.
    Returns the three paths. OSError: something cannot be written.
    """
    from lesa_nb.look.confusion import confusion_figure
    from lesa_nb.look.figures import save_png

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    names, total = [printable(name) for name in scores.classes], sum(scores.pictures)
    matrix = [[name, *row] for name, row in zip(names, scores.counts.tolist())]
    rows: list[list[Any]] = []
    shares = scores.accuracy().values()
    for i, (name, n, right, share) in enumerate(zip(names, scores.pictures, scores.right, shares)):
        other = scores.mistaken(i)
        taken_for = (names[other[0]], other[1]) if other else ("", 0)
        rows.append([i, name, n, right, f"{share:.4f}" if n else "", *taken_for])
    head = ["number", "class", "pictures", "right", "percent", "taken for", "times"]
    percent = 100*sum(scores.right)/max(1, total)
    title = f"{total:,} pictures of {len(names):,} classes: {percent:.1f} % are named right, on the diagonal"
    files = [folder/name for name in ("confusion.png", "confusion.csv", "classes.csv")]
    with atomic_path(files[0], what="the picture") as beside:
        save_png(confusion_figure(scores.counts, names, title), beside)
    atomic_text(files[1], _csv([["shown \\ answer", *names], *matrix]), what="the confusion matrix")
    atomic_text(files[2], _csv([head, *rows]), what="the accuracies")
    return files
