"""The ways to attend, by name: what `Context(attend=...)` and `attend_with` look up.

A way is a function with the signature of `explicit`: queries, keys, values, offset table, norm of the scores and map
size in, all value sums out. A module that has one to offer registers it: "explicit" comes from `context`, the ways
without N x N tensors from `blockwise`; importing the package `lesa_nb.layers` loads both.
"""
from collections.abc import Callable
from typing import NamedTuple, Protocol

from torch import Tensor, nn

_Size = tuple[int, int]


class OffsetTable(Protocol):
    """What an offset table adds to plain attention: `FlatTable`, `FactoredTable`, or one of your own."""

    n_scores: int  # maps of scores
    n_values: int  # value sums

    def scores(self, q_BGKN: Tensor, k_BGKN: Tensor, size: _Size) -> list[Tensor]:
        """Maps of scores (B, G, N, N), query by key."""

    def values(self, w_BGNN: Tensor, size: _Size) -> list[Tensor]:
        """Value sums (B, G, V, N) of these weights."""


def answers_as(position: OffsetTable, *kinds: type) -> bool:
    """Whether a table is of one of these kinds and answers as they do.

    What reads a table's numbers itself would not ask a subclass with `scores`, `values` or `unfolded` of its own.
    """
    kind = next((kind for kind in kinds if isinstance(position, kind)), None)
    return kind is not None and all(getattr(type(position), name, None) is getattr(kind, name, None)
                                    for name in ("scores", "values", "unfolded"))


#: (queries, keys, values, offset table, norm of the scores, map size) -> all value sums, see `explicit`
Way = Callable[[Tensor, Tensor, Tensor, OffsetTable, nn.Module, _Size], Tensor]


class _Entry(NamedTuple):
    way: Way
    tables: tuple[type, ...]  # kinds of table it serves; empty: all


_WAYS: dict[str, _Entry] = {}


def register_way(name: str, *tables: type) -> Callable[[Way], Way]:
    """Decorate a function to be found as `name`; with `tables`, it serves these kinds of offset table only."""
    def register(way: Way) -> Way:
        _WAYS[name] = _Entry(way, tables)
        return way
    return register


def _names(position: OffsetTable | None = None) -> str:
    def serves(entry: _Entry) -> bool:
        return position is None or not entry.tables or isinstance(position, entry.tables)

    return ", ".join(repr(name) for name, entry in sorted(_WAYS.items()) if serves(entry))


def find_way(way: str | Way, position: OffsetTable) -> Way:
    """The function behind a name, or `way` itself if it is a function.

    ValueError for an unknown name, and for a way that cannot serve this kind of table.
    """
    if callable(way):
        return way
    if not isinstance(way, str) or way not in _WAYS:
        raise ValueError(f"unknown way to attend {way!r}: choose one of {_names()}, or pass a function like `explicit`")
    entry = _WAYS[way]
    if entry.tables and not isinstance(position, entry.tables):
        served = " or ".join(kind.__name__ for kind in entry.tables)
        raise ValueError(f"the way {way!r} serves a {served}, found a {type(position).__name__}: "
                         f"choose one of {_names(position)}")
    return entry.way
