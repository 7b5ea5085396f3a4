"""Names of objects on a picture: beside their boxes, inside the picture, and not over one another."""
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.text import Text
from matplotlib.transforms import Bbox

from lesa_nb.look._text import no_formulas

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PAD = .6  # points of colour around the letters
_END = "…"  # what stands for the rest of a name that is wider than its picture


class _Name(Text):
    """A text that finds its place anew whenever it is drawn, because only then letters and picture have their sizes."""

    def __init__(self, box: Sequence[float], name: str, end: str, hue: Any) -> None:
        super().__init__(box[0], box[1], "", fontsize=7, color="white", va="bottom",
                         bbox=dict(fc=hue, ec="none", pad=_PAD))
        self._box, self._name, self._end = box, name, end
        self._say(name)
        self.set_in_layout(False)  # it stays inside the picture, so nothing needs to make room for it

    def _say(self, name: str) -> None:
        self.set_text(no_formulas(f"{name} {self._end}".strip()))

    def _extent(self, renderer: Any) -> Bbox:
        """The letters and the colour around them, in pixels."""
        return self.get_window_extent(renderer).padded(renderer.points_to_pixels(_PAD))

    def _shorten(self, renderer: Any, width: float) -> None:
        """Leave away the end of the name until it is no wider than the picture."""
        name = self._name
        self._say(name)
        while name.rstrip(_END) and self._extent(renderer).width > width:
            name = name.rstrip(_END)[:-1] + _END
            self._say(name)

    def _move(self, renderer: Any) -> None:
        """Above the box; where a name of another box lies there, below it or in its upper corners."""
        assert self.axes is not None  # `name_box` has put it on one
        frame = self.axes.get_window_extent(renderer)
        self._shorten(renderer, frame.width)
        before = self.axes.texts[:self.axes.texts.index(self)]
        taken = [text._extent(renderer) for text in before if isinstance(text, _Name)]
        (left, top), (right, bottom) = self.axes.transData.transform([self._box[:2], self._box[2:]])
        now = self._extent(renderer)
        places = [(left, top), (left, bottom - now.height), (left, top - now.height), (right - now.width, top),
                  (right - now.width, bottom - now.height)]
        free: list[tuple[float, int, Bbox]] = []
        for x, y in places:
            x = max(frame.x0, min(x, frame.x1 - now.width))
            y = max(frame.y0, min(y, frame.y1 - now.height))
            here = Bbox.from_bounds(x, y, now.width, now.height)
            common = [Bbox.intersection(here, other) for other in taken]
            free.append((sum(part.width*part.height for part in common if part), len(free), here))
        x, y = min(free)[2].p0 - now.p0 + self.axes.transData.transform(self.get_position())
        x, y = self.axes.transData.inverted().transform((x, y)).tolist()
        self.set_position((x, y))

    def draw(self, renderer: Any) -> None:
        if self.get_visible() and self.axes is not None:
            self._move(renderer)
        super().draw(renderer)


def name_box(ax: Axes, box: Sequence[float], name: str, end: str, hue: Any) -> None:
    """Write on an axis that shows a picture what is in a box (x0, y0, x1, y1).

    name: shortened where the picture is too narrow for it; end: stands behind it, a score for instance.
    """
    ax.add_artist(_Name(box, name, end, hue))
