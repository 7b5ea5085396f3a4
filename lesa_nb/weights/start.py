"""Start the backbone of a detector from a classifier."""

import os
from collections.abc import Mapping
from typing import NamedTuple

from torch import nn

from lesa_nb.models.resnet import ResNet
from lesa_nb.weights.published import load_published, read_published, to_published

__all__ = ["Started", "backbone_from_classifier"]


class Started(NamedTuple):
    "What happened to the tensors of a checkpoint, by the authors' names."
    dropped: list[str]    # in the checkpoint, not used
    converted: list[str]  # cut to a part of themselves
    fresh: list[str]      # in the backbone, still as it was built

_TABLES = ("relative", "flatten_index", "rel_height", "rel_width")

def _of_sums(key): return ".bn_output." in key and not key.endswith("num_batches_tracked")
def _of_scores(key): return ".bn_similarity." in key and not key.endswith("num_batches_tracked")

def backbone_from_classifier(
    detector: nn.Module, # a detector, a `Pyramid` or a `Backbone`
    source: str | os.PathLike | Mapping | ResNet, # an authors' .pth, what it holds, or a classification network of this library
    *,
    convert: str | None = None, # for a checkpoint with flat tables: "drop" or "slice" its norms of scores and sums
) -> Started: # what was dropped, converted and left as built
    "Fill a detector's backbone from an ImageNet classifier, eq. (23.7); a checkpoint that does not fit changes nothing."
    if convert not in (None, "drop", "slice"): raise ValueError(f"convert must be 'drop', 'slice' or None, got {convert!r}")
    backbone = next((part for part in detector.modules() if isinstance(part, ResNet) and not hasattr(part, "fc")), None)
    if backbone is None: raise ValueError(f"found no Backbone in this {type(detector).__name__}")
    found = to_published(source) if isinstance(source, ResNet) else read_published(source)
    wanted = to_published(backbone)
    last = lambda key: key.rpartition(".")[2]
    dropped = [key for key in found if key.startswith("fc.") or last(key) in _TABLES]                   # (23.7)
    converted = []
    if any(last(key) == "relative" for key in found) and not any(last(key) == "relative" for key in wanted):
        if convert is None: raise ValueError(
            "this checkpoint has flat position tables, the backbone factored ones: in every LESA layer the norms of scores and sums have "
            "other widths. Start from an ImageNet run with position='factored', or say convert='drop' (these norms start afresh) or "
            "convert='slice' (the part that has a counterpart is kept)")
        if convert == "drop": dropped += [key for key in found if _of_scores(key) or _of_sums(key)]
        else:
            converted = [key for key in found if _of_scores(key) or _of_sums(key)]
            found = found | {key: found[key][::2] if _of_sums(key) else found[key][:2*len(found[key])//3] for key in converted} # (23.8)
    kept = {key: tensor for key, tensor in found.items() if key not in set(dropped)}
    own = lambda key: last(key) in _TABLES or ".conv_offset." in key or (key in dropped and convert == "drop")
    fresh = [key for key in wanted if key not in kept and own(key)]
    load_published(backbone, {key: wanted[key] for key in fresh} | kept)                                # (23.7)
    return Started(dropped, converted, fresh)
