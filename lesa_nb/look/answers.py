"""What a network answered, in words and on a picture: names and probabilities, or objects."""
from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lesa_nb.look._text import has_letters, no_formulas

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_answer", "format_answer"]

_MOST_NAMES = 12  # objects that are named on a picture, the best ones


def _objects_in_words(objects: Sequence[Mapping[str, Any]]) -> str:
    """How many there are of each name, in the order of the best of each."""
    counts: dict[str, int] = {}
    for thing in objects:
        counts[thing["name"]] = counts.get(thing["name"], 0) + 1
    return ", ".join(f"{count} x {name}" for name, count in counts.items()) or "no objects"


def format_answer(answer: Mapping[str, Any]) -> str:
    """An answer on one line: names with probabilities, or objects with scores, best first.

    answer: as `tasks.predict` gives it, with "classes" or "objects", or with the "error" that kept it from coming; a
    "note" is what else is to be said.
    """
    note = f"; {answer['note']}" if "note" in answer else ""
    if "error" in answer:
        return answer["error"]
    if "classes" in answer:
        return ", ".join(f"{found['name']} {found['score']:.1%}" for found in answer["classes"]) + note
    return ", ".join(f"{found['name']} {found['score']:.2f}" for found in answer["objects"]) or "no objects"


def draw_answer(ax: Axes, answer: Mapping[str, Any], *, width: int = 36) -> str:
    """Draw the boxes of an answer on an axis that shows the picture.

    answer: see `format_answer`; its boxes are corners in pixels of the picture. width: letters of a line.
    Returns what is to be said in a title, on lines of that width, as matplotlib can write it: names whose letters the
    font lacks are left out.
    """
    import matplotlib.pyplot as plt

    from lesa_nb.look._names import name_box

    objects = answer.get("objects", ())
    hues = {name: plt.get_cmap("tab10")(k % 10) for k, name in enumerate(dict.fromkeys(o["name"] for o in objects))}
    for place, thing in reversed(list(enumerate(objects))):  # the best last, so that it lies on top
        left, top, right, bottom = thing["box"]
        hue = hues[thing["name"]]
        ax.add_patch(plt.Rectangle((left, top), right - left, bottom - top, fill=False, ec=hue, lw=1.4))
        if place < _MOST_NAMES:
            name = thing["name"] if has_letters(thing["name"]) else ""
            name_box(ax, thing["box"], name, f"{thing['score']:.2f}", hue)
    words = format_answer(answer) if "objects" not in answer else _objects_in_words(objects)
    if not has_letters(words):
        words = "names that this font cannot write"
    return no_formulas(textwrap.fill(words, width, max_lines=4, placeholder=" ..."))
