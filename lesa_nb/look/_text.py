"""Text that comes from outside, such as names of classes and files, as a figure can write it."""
from __future__ import annotations

from functools import lru_cache
from typing import Any


@lru_cache
def _font() -> Any:
    """The font that figures are written in."""
    from matplotlib.font_manager import findfont, get_font

    return get_font(findfont("DejaVu Sans"))


def has_letters(text: str) -> bool:
    """Whether the font of figures has every letter of a text; others would be drawn as empty boxes."""
    return all(letter == "\n" or _font().get_char_index(ord(letter)) for letter in text)


def no_formulas(text: str) -> str:
    """The same text to the eye, whose dollars start no formula."""
    return text.replace("$", r"\$")
