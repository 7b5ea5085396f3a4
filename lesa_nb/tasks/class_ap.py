"""Average precision class by class, as a table: which classes a detector finds, and which it does not."""
from __future__ import annotations

import math

from lesa_nb.tasks._tables import cell_text, format_rows
from lesa_nb.tasks.coco_eval import Scores

__all__ = ["format_class_ap"]


def format_class_ap(scores: Scores, rows: int = 20) -> str:
    """AP of each class in percent, boxes and (if they were scored) masks, the worst class first.

    Of more classes than `rows`, half as many of the worst and of the best, with a line on those between. A class
    without objects has no AP: it is counted in a sentence. Classes of equal AP stay in the order of their labels.
    """
    kinds = list(scores.precision)
    of = {kind: scores.class_ap(kind) for kind in kinds}
    box = of["box"]
    there = sorted((name for name in box if not math.isnan(box[name])), key=lambda name: box[name])

    def row(name: str) -> tuple[str, ...]:
        numbers = (of[kind][name] for kind in kinds)
        return (cell_text(name), *("-" if math.isnan(number) else f"{100*number:.2f}" for number in numbers))

    many = len(there) > rows
    table = [("class, the worst first", *(f"{kind} AP" for kind in kinds))]
    table += [row(name) for name in (there[:rows//2] + there[len(there) - rows//2:] if many else there)]
    lines = format_rows(table)
    if many:
        lines.insert(1 + rows//2, f"... {len(there) - 2*(rows//2):,} more classes ...")
    if missing := len(scores.categories) - len(there):
        lines.append(f"{missing:,} class{'es'*(missing > 1)} without objects")
    return "\n".join(lines)
