"""The ends of a colour scale: far enough apart to see something, and written so that they differ."""
from __future__ import annotations

import math

from torch import Tensor

_LEAST = 1e-6  # of the largest number: what lies closer together is rounding, and no picture


def _is_even(low: float, high: float) -> bool:
    """Whether a map holds one number, but for rounding."""
    return high - low <= _LEAST*max(abs(low), abs(high))


def color_range(values: Tensor) -> tuple[float, float]:
    """Smallest and largest number of a map, the ends of its colour scale.

    A map that is the same everywhere goes from 0 to its number, or to 1: no colours are made of rounding.
    """
    low, high = values.min().item(), values.max().item()
    return (min(0., low), max(high, 0. if low < 0 else 1.)) if _is_even(low, high) else (low, high)


def scale_in_words(values: Tensor) -> str:
    """The ends of a map's colour scale, with as many digits as it takes to tell them apart; two at least."""
    low, high = values.min().item(), values.max().item()
    if _is_even(low, high):
        return f"{low:.2f} everywhere"
    digits = max(2, 1 - math.floor(math.log10(high - low)))
    return f"{low:.{digits}f} to {high:.{digits}f}"
