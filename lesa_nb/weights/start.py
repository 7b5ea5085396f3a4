"""Start the backbone of a detector from a classifier, and say what happened to every tensor."""
from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any, NamedTuple

from torch import Tensor, nn

from lesa_nb.models.resnet import ResNet
from lesa_nb.weights.files import load_tensors, read_weights

__all__ = ["Started", "start_backbone"]

_TABLES = ("context.position.table", "context.position.height", "context.position.width")
#: where detectors keep their backbone: ours, torchvision's
_BACKBONES = ("pyramid.backbone.", "backbone.body.")


class Started(NamedTuple):
    """What happened to the tensors of a checkpoint, by our names.

    Attributes:
        loaded: Taken over as they are.
        dropped: In the checkpoint, not used.
        converted: Cut to a part of themselves.
        fresh: In the backbone, still as it was built.
        stripped: What wrappers had put into the names and was taken out.
    """

    loaded: list[str]
    dropped: list[str]
    converted: list[str]
    fresh: list[str]
    stripped: tuple[str, ...] = ()

    def format(self) -> str:
        """A paragraph: how many tensors were loaded, and by name what happened to all others."""
        parts = [("dropped", "not used", self.dropped), ("fresh", "not in the checkpoint, as built", self.fresh),
                 ("converted", "cut to the part that has a counterpart", self.converted)]
        lines = [f"loaded: {len(self.loaded)}"]
        lines += [f"{name} ({why}): {len(keys)}{': '*bool(keys)}{', '.join(keys)}" for name, why, keys in parts]
        if self.stripped:
            lines.append(f"taken out of the names: {', '.join(self.stripped)}")
        return "\n".join(lines)


def _is_table(key: str) -> bool:
    return key.endswith(_TABLES)


def _of_sums(key: str) -> bool:
    return ".context.norm_out." in key and not key.endswith("num_batches_tracked")


def _of_scores(key: str) -> bool:
    return ".context.norm_scores." in key and not key.endswith("num_batches_tracked")


def _sliced(key: str, tensor: Tensor) -> Tensor:
    """The part of a flat layer's norm that has a counterpart in a factored one, eq. (23.8)."""
    return tensor[::2] if _of_sums(key) else tensor[:2*len(tensor)//3]  # (23.8)


def _has_flat_tables(keys) -> bool:
    return any(key.endswith("context.position.table") for key in keys)


def _backbone_of(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of a checkpoint's backbone, and the names of the others; of a classifier's all are its backbone."""
    for place in _BACKBONES:
        if any(key.startswith(place) for key in tensors):
            inside = {key.removeprefix(place): tensor for key, tensor in tensors.items() if key.startswith(place)}
            return inside, [key for key in tensors if not key.startswith(place)]
    return dict(tensors), []


def start_backbone(
    detector: nn.Module,
    source: str | PathLike | Mapping[str, Any] | nn.Module,
    *,
    convert: str | None = None,
) -> Started:
    """Fill a detector's backbone from a classifier, eq. (23.7); a checkpoint that does not fit changes nothing.

    Position tables and deformable offsets, which depend on the image's size and on the task, stay as they were built.

    Args:
        detector: A detector, a `Pyramid` or a `Backbone`.
        source: A file that `read_weights` can read, what it holds, or a network of this library; a detector's
            backbone is taken out of it.
        convert: For a checkpoint with flat tables: what becomes of its norms of scores and sums, which have other
            widths. "drop" starts them afresh, "slice" keeps the part that has a counterpart, eq. (23.8).

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: There is no backbone, or the checkpoint does not fit it; the message says why, and what helps.
    """
    if convert not in (None, "drop", "slice"):
        raise ValueError(f"convert must be 'drop', 'slice' or None, got {convert!r}")
    resnets = (part for part in detector.modules() if isinstance(part, ResNet))
    backbone = next((part for part in resnets if not hasattr(part, "fc")), None)  # a classifier has one
    if backbone is None:
        raise ValueError(f"found no Backbone in this {type(detector).__name__}")
    if isinstance(source, nn.Module):
        what, stored, stripped = f"the given {type(source).__name__}", source.state_dict(), tuple[str, ...]()
    else:
        what = "the given state dict" if isinstance(source, Mapping) else str(source)
        stored, _, stripped, _ = read_weights(source)
    found, dropped = _backbone_of(stored)
    wanted = backbone.state_dict()
    dropped += [key for key in found if key.startswith("fc.") or _is_table(key)]  # (23.7)
    converted: list[str] = []
    if _has_flat_tables(found) and not _has_flat_tables(wanted):
        if convert is None:
            raise ValueError(
                f"{what}: this checkpoint has flat position tables, the backbone factored ones: in every LESA layer "
                "the norms of scores and sums have other widths. Start from an ImageNet run with position='factored', "
                "or say convert='drop' (these norms start afresh) or convert='slice' (the part that has a counterpart "
                "is kept)")
        others = [key for key in found if _of_scores(key) or _of_sums(key)]
        if convert == "drop":
            dropped += others
        else:
            converted = others
    left_out = set(dropped)
    kept = {key: _sliced(key, tensor) if key in converted else tensor
            for key, tensor in found.items() if key not in left_out}
    fresh = [key for key in wanted
             if key not in kept and (_is_table(key) or ".conv_offset." in key or key in left_out)]
    load_tensors(backbone, {key: wanted[key] for key in fresh} | kept, what)  # (23.7)
    return Started([key for key in kept if key not in converted], dropped, converted, fresh, stripped)
