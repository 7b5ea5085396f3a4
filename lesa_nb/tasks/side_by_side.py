"""Three terms side by side: the same problem, the same recipe, the same seed; only the term differs.

Every comparison in this library, of small networks and of large ones, in notebooks, commands and benchmarks, is made
by this one function.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

__all__ = ["THREE_TERMS", "train_terms"]

Run = TypeVar("Run")

#: the terms that are compared: keys of `lesa_nb.models.resnet.TERMS` -> what they are called in tables and figures
THREE_TERMS = {"conv": "convolution", "attention": "plain attention", "lesa": "LESA"}


def train_terms(
    train: Callable[..., Run], *problem: Any, terms: Iterable[str] = tuple(THREE_TERMS), **recipe: Any,
) -> Iterator[tuple[str, Run]]:
    """Train one network for each term, all alike; each term with its run, as soon as it is finished.

    Nothing is trained before it is asked for, so whoever waits can save or draw one run before the next begins.

    Args:
        train: Called as train(*problem, term, **recipe); returns a finished run, of whatever kind.
        problem: What to learn: the first arguments of `train`, the same for all.
        terms: In this order.
        recipe: Named arguments of `train`, the same for all.
    """
    for term in terms:
        yield term, train(*problem, term, **recipe)
