"""The authors' names of all our parts, as data: one table for each type of module; and both ways between the names."""
from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import TypeVar

__all__ = ["LAYER_NAMES", "TABLES_OF_NAMES", "translate", "unwrap", "in_our_names", "is_published"]

_T = TypeVar("_T")

#: what stands in front of all names: of DataParallel, and usually of a LightningModule
_WRAPPERS = ("module", "model")

#: one LESA layer: our name -> the authors'
LAYER_NAMES = {
    "local.spatial": "x_transform.0",
    "local.mix": "x_transform.1",
    "local.norm": "bn_x",
    "context.qkv": "qkv_transform",
    "context.norm_qkv": "bn_qkv",
    "context.norm_scores": "bn_similarity",
    "context.norm_out": "bn_output",
    "context.position.table": "relative",
    "context.position.height": "rel_height",
    "context.position.width": "rel_width",
    "gate.reason": "reasoning",
    "gate.project": "projection",
}

_BOX_HEAD_NAMES = {
    "hidden.0": "shared_fcs.0",
    "hidden.2": "shared_fcs.1",
    "classify": "fc_cls",
    "move": "fc_reg",
}

_MASK_HEAD_NAMES = {
    **{f"convs.{i}": f"convs.{i}.conv" for i in range(4)},
    "enlarge": "upsample",
    "draw": "conv_logits",
    "flow": "conv_res.conv",
}

_SEMANTIC_HEAD_NAMES = {
    **{f"laterals.{i}": f"lateral_convs.{i}.conv" for i in range(5)},
    **{f"convs.{i}": f"convs.{i}.conv" for i in range(4)},
    "embed": "conv_embedding.conv",
    "classify": "conv_logits",
}

_DETECTOR_NAMES = {
    "pyramid.backbone": "backbone",
    **{f"pyramid.fpn.inner_blocks.{i}.0": f"neck.lateral_convs.{i}.conv" for i in range(4)},
    **{f"pyramid.fpn.layer_blocks.{i}.0": f"neck.fpn_convs.{i}.conv" for i in range(4)},
    "rpn.head.conv.0.0": "rpn_head.rpn_conv",
    "rpn.head.cls_logits": "rpn_head.rpn_cls",
    "rpn.head.bbox_pred": "rpn_head.rpn_reg",
    "box_head": "roi_head.bbox_head",
    "mask_head": "roi_head.mask_head",
    "semantic_head": "roi_head.semantic_head",
}

#: name of a module's type -> its table of names, eq. (11.1); a module that is not listed has the authors' names already
TABLES_OF_NAMES = {
    "LESA": LAYER_NAMES,
    "BoxHead": _BOX_HEAD_NAMES,
    "MaskHead": _MASK_HEAD_NAMES,
    "SemanticHead": _SEMANTIC_HEAD_NAMES,
    "MaskRCNN": _DETECTOR_NAMES,
}

#: type of module -> a part that tells it in the authors' names, outer types first
_MARKS = {
    "MaskRCNN": "rpn_head.rpn_conv",
    "BoxHead": "shared_fcs.0",
    "MaskHead": "upsample",
    "SemanticHead": "conv_embedding.conv",
    "LESA": "qkv_transform",
}


def translate(path: str, table: Mapping[str, str]) -> str:
    """A path of words with its first words replaced, if the table has them.

    Args:
        path: Such as `"context.qkv.weight"`.
        table: First words -> what stands for them.
    """
    part = next((part for part in table if f"{path}.".startswith(f"{part}.")), None)
    return path if part is None else table[part] + path[len(part):]


def unwrap(tensors: Mapping[str, _T], what: str | PathLike) -> tuple[dict[str, _T], tuple[str, ...]]:
    """Names without what wrappers have put in, `module.` or `model.` in front, `_orig_mod.` anywhere; and which it was.

    Args:
        tensors: Names as they are stored.
        what: Where they are from, for the error's sentence.

    Raises:
        ValueError: A name is there with and without a wrapper's word.
    """
    renamed, stripped = {}, set()
    for key, tensor in tensors.items():
        words = [word for word in key.split(".") if word != "_orig_mod"]
        stripped |= {"_orig_mod."} if len(words) < len(key.split(".")) else set()
        while len(words) > 1 and words[0] in _WRAPPERS:
            stripped.add(f"{words.pop(0)}.")
        renamed[".".join(words)] = tensor
    if len(renamed) < len(tensors):
        raise ValueError(f"{what} holds some names twice, with and without {' or '.join(map(repr, sorted(stripped)))}: "
                         "which are meant?")
    return renamed, tuple(sorted(stripped, reverse=True))


def _places(keys, mark: str) -> list[str]:
    """What stands before the mark, for every name that has it."""
    end = f".{mark}.weight"
    return [f".{key}".removesuffix(end)[1:] for key in keys if f".{key}".endswith(end)]


def is_published(tensors: Mapping[str, _T]) -> bool:
    """Whether a state dict is in the authors' names, as far as the names can tell."""
    return any(_places(tensors, mark) for mark in _MARKS.values())


def in_our_names(tensors: Mapping[str, _T]) -> dict[str, _T]:
    """A state dict in our names: eq. (11.1) the other way round, told by the names alone.

    Index buffers of flat tables, which hold no news, are left out. Names that are ours already stay as they are.

    Args:
        tensors: Names without what wrappers put in, see `unwrap`.
    """
    renamed = dict(tensors)
    for kind, mark in _MARKS.items():
        table = {theirs: ours for ours, theirs in TABLES_OF_NAMES[kind].items()}
        for place in _places(renamed, mark):
            p = f"{place}." if place else ""
            renamed.pop(f"{p}flatten_index", None)
            renamed = {p + translate(key[len(p):], table) if key.startswith(p) else key: tensor
                       for key, tensor in renamed.items()}
    return renamed
