"""What of a checkpoint fits a network: other terms, other map sizes, other heads, tensor by tensor and by name."""
from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from lesa_nb.layers.position import FactoredTable, FlatTable, fit_offsets, fold_offsets

__all__ = ["Match", "is_table", "table_kind", "middles_of"]

_TABLES = ("context.position.table", "context.position.height", "context.position.width")


def is_table(key: str) -> bool:
    """Whether a tensor of this name is a position table."""
    return key.endswith(_TABLES)


def table_kind(keys: Iterable[str]) -> str | None:
    """ "flat" or "factored", by the first position table; None if there is none."""
    key = next((key for key in keys if is_table(key)), None)
    return None if key is None else "flat" if key.endswith(".table") else "factored"


def _middle_of(tensors: Mapping[str, Tensor], block: str) -> str | None:
    """What a block of a ResNet has for its second convolution: "conv", "attention", "lesa" or "graft"; None: nothing.

    "graft" is a LESA layer whose local term is a dense convolution, without a mix.
    """
    if f"{block}.conv2.local.spatial.weight" in tensors:
        return "lesa" if f"{block}.conv2.local.mix.weight" in tensors else "graft"
    if f"{block}.conv2.context.qkv.weight" in tensors:
        return "attention"
    return "conv" if f"{block}.conv2.weight" in tensors else None


def _blocks(keys: Iterable[str]) -> list[str]:
    """Every block of the stages, such as "layer3.1" or "pyramid.backbone.layer3.1"."""
    found = (re.match(r"(?:.*\.)?layer\d+\.\d+(?=\.)", key) for key in keys)
    return list(dict.fromkeys(match[0] for match in found if match))


def middles_of(tensors: Mapping[str, Tensor]) -> set[str]:
    """Which kinds of `_middle_of` the blocks have."""
    return {kind for block in _blocks(tensors) if (kind := _middle_of(tensors, block))}


def _fitted(key: str, tensor: Tensor, module: nn.Module, what: str) -> Tensor:
    """A position table for another size of the map, as it would serve that map.

    A flat table tells only how many positions it was made for: their map is taken to be a square.

    Raises:
        ValueError: It was made for a map that cannot be a square.
    """
    if isinstance(module, FactoredTable):
        return fit_offsets(tensor.T, module.size[key.endswith(".width")]).T.contiguous()
    assert isinstance(module, FlatTable)
    positions = (tensor.shape[1] + 1)//2
    side = math.isqrt(positions)
    if side*side != positions:
        raise ValueError(f"{what}: its flat position table {key} was made for {positions} positions, which are no "
                         "square, so nothing says which step is which: train at the same image size, or start from "
                         "factored tables")
    old = FlatTable((side, side), *module.widths[1:]).to(tensor)
    old.table.data.copy_(tensor)
    return fold_offsets(old.unfolded(module.size)).detach()


class Match:
    """A checkpoint on its way into a network: `left` holds what goes in, by the network's names.

    Args:
        network: What is to be filled; a network without numbers (device "meta") does as well.
        found: Tensors by the network's names.
        what: Where they are from, for the sentences.
    """

    def __init__(self, network: nn.Module, found: Mapping[str, Tensor], what: str):
        self.network, self.wanted, self.what = network, network.state_dict(), what
        self.left: dict[str, Tensor] = dict(found)
        self.dropped: list[str] = []
        self.fresh: list[str] = []
        self.fitted: list[str] = []
        self.renamed: list[str] = []

    def drop(self, keys: Iterable[str]) -> None:
        """Leave these tensors of the checkpoint out."""
        for key in [key for key in keys if key in self.left]:
            del self.left[key]
            self.dropped.append(key)

    def keep_built(self, keys: Iterable[str]) -> None:
        """Leave these tensors of the network as they were built, where the checkpoint has none for them."""
        self.fresh += [key for key in keys if key not in self.left and key not in self.fresh]

    def other_middles(self) -> None:
        """Blocks that look around with something else than the checkpoint's: their middles stay as built.

        A convolution becomes the local term of a grafted layer: to the bit the same, under other names.
        """
        for block in _blocks(self.wanted):
            here, there = _middle_of(self.wanted, block), _middle_of(self.left, block)
            if here == there or here is None or there is None:
                continue
            middle = (f"{block}.conv2.", f"{block}.bn2.")
            inside = [key for key in self.left if key.startswith(middle)]
            if (here, there) == ("graft", "conv"):
                for key in inside:
                    ours = key.replace(f"{block}.conv2.", f"{block}.conv2.local.spatial.")
                    ours = ours.replace(f"{block}.bn2.", f"{block}.conv2.local.norm.")
                    self.left[ours] = self.left.pop(key)
                    self.renamed.append(ours)
            else:
                self.drop(inside)
            self.keep_built(key for key in self.wanted if key.startswith(middle))

    def fit_tables(self) -> None:
        """Position tables made for another map size, fitted by the rule that serves other sizes."""
        for key in [key for key in self.left if is_table(key) and key in self.wanted]:
            there, here = self.left[key].shape, self.wanted[key].shape
            width = 0 if key.endswith(".table") else 1  # the axis that does not depend on the map
            if there != here and len(there) == 2 and there[width] == here[width]:
                place = self.network.get_submodule(key.rpartition(".")[0])
                self.left[key] = _fitted(key, self.left[key], place, self.what)
                self.fitted.append(key)

    def renew_if_other(self, keys: Iterable[str]) -> None:
        """Parts of these tensors that the checkpoint lacks or has in other shapes: as built, weight and bias alike."""
        parts: dict[str, list[str]] = {}
        for key in keys:
            parts.setdefault(key.rpartition(".")[0], []).append(key)
        for part, wanted in parts.items():
            there = [key for key in self.left if key.rpartition(".")[0] == part]
            same = set(there) == set(wanted) and all(self.left[key].shape == self.wanted[key].shape for key in there)
            if not same:
                self.drop(there)
                self.keep_built(wanted)

    def differences(self) -> list[str]:
        """What keeps the checkpoint from filling the network: nothing if it can."""
        fresh = set(self.fresh)
        missing = [f"{key} (missing)" for key in self.wanted if key not in self.left and key not in fresh]
        unknown = [f"{key} (unknown)" for key in self.left if key not in self.wanted]
        shapes = [f"{key} (expected {tuple(self.wanted[key].shape)}, found {tuple(tensor.shape)})"
                  for key, tensor in self.left.items()
                  if key in self.wanted and tensor.shape != self.wanted[key].shape]
        return [*shapes, *missing, *unknown]

    def fill(self) -> None:
        """Fill the network; one without numbers stays without."""
        if not any(tensor.is_meta for tensor in self.wanted.values()):
            self.network.load_state_dict({key: self.wanted[key] for key in self.fresh} | self.left)
