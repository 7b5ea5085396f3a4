"""Start a classifier or a detector from trained weights, and say what happened to every tensor."""
from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lesa_nb.models.registry import CLASSIFIERS, build_classifier
from lesa_nb.models.resnet import ResNet
from lesa_nb.weights._grafted import PREFIX
from lesa_nb.weights._matching import Match, is_table, middles_of, table_kind
from lesa_nb.weights._names import unwrap
from lesa_nb.weights._resnets import RESNETS, resnet_name
from lesa_nb.weights.files import _load_tensors, _read_weights, _weights_file

__all__ = ["Started", "start_backbone", "start_classifier", "start_detector", "start_metadata", "graft_network"]

_Source = str | PathLike | Mapping[str, Any] | nn.Module

#: where detectors keep their backbone: ours, torchvision's
_BACKBONES = ("pyramid.backbone.", "backbone.body.")
_COUNT = "num_batches_tracked"  # old files do without


class Started(NamedTuple):
    """What happened to the tensors of a checkpoint, by our names.

    Attributes:
        loaded: Taken over as they are.
        dropped: In the checkpoint, not used.
        converted: Cut to a part of themselves.
        fresh: In the network, still as it was built.
        stripped: What wrappers had put into the names and was taken out.
        fitted: Position tables made for another size of the map.
        renamed: Of those loaded, convolutions and norms that became the local term of a grafted layer.
    """

    loaded: list[str]
    dropped: list[str]
    converted: list[str]
    fresh: list[str]
    stripped: tuple[str, ...] = ()
    fitted: Sequence[str] = ()
    renamed: Sequence[str] = ()

    @property
    def blank_norms(self) -> set[str]:
        """Norms of a detector's backbone that the checkpoint had no statistics for."""
        return {key.removeprefix("pyramid.backbone.").removesuffix(".running_mean") for key in self.fresh
                if key.endswith(".running_mean")}

    def format(self) -> str:
        """A short table: how many tensors were loaded, and by name what happened to all others.

        Many tensors of one part share an entry: `layer3.1.conv2.* (23)`.
        """
        lines = [f"loaded: {len(self.loaded)}"]
        for name, why, keys, always in (
                ("renamed", "loaded as the local term of a grafted layer", self.renamed, False),
                ("dropped", "not used", self.dropped, True),
                ("fresh", "not in the checkpoint, as built", self.fresh, True),
                ("converted", "cut to the part that has a counterpart", self.converted, True),
                ("fitted", "position tables for another size of the map", self.fitted, False)):
            if keys or always:
                lines.append(f"{name} ({why}): {len(keys)}{': '*bool(keys)}{', '.join(_grouped(keys))}")
        if self.stripped:
            lines.append(f"taken out of the names: {', '.join(self.stripped)}")
        return "\n".join(lines)


def _grouped(keys: Iterable[str]) -> list[str]:
    """Names, those of one part in one entry where there are more than three."""
    groups: dict[str, list[str]] = {}
    for key in keys:
        middle = re.match(r".*layer\d+\.\d+\.conv2(?=\.)", key)
        part = middle[0] if middle else f"*.{_COUNT}" if key.endswith(_COUNT) else key.partition(".")[0]
        groups.setdefault(part, []).append(key)
    entries: list[str] = []
    for part, names in groups.items():
        entries += names if len(names) <= 3 else [f"{part}{'' if part.startswith('*') else '.*'} ({len(names)})"]
    return entries


def _of_sums(key: str) -> bool:
    return ".context.norm_out." in key and not key.endswith(_COUNT)


def _of_scores(key: str) -> bool:
    return ".context.norm_scores." in key and not key.endswith(_COUNT)


def _sliced(key: str, tensor: Tensor) -> Tensor:
    """The part of a flat layer's norm that has a counterpart in a factored one, eq. (23.8)."""
    return tensor[::2] if _of_sums(key) else tensor[:2*len(tensor)//3]  # (23.8)


def _stored(source: _Source) -> tuple[str, dict[str, Tensor], dict[str, Any], tuple[str, ...]]:
    """What a source is called, its tensors in our names, its metadata, and what was taken out of the names."""
    if isinstance(source, nn.Module):
        what = f"the given {type(source).__name__}"
        tensors, stripped = unwrap(source.state_dict(), what)
        return what, tensors, {}, stripped
    stored = _read_weights(source)
    what = "the given state dict" if isinstance(source, Mapping) else os.fspath(source)
    return what, stored.tensors, stored.metadata, stored.stripped


def _is_detector(tensors: Iterable[str]) -> bool:
    return any(key.startswith(_BACKBONES) for key in tensors)


def _backbone_of(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of a checkpoint's backbone, and the names of the others; of a classifier's all are its backbone."""
    for place in _BACKBONES:
        if any(key.startswith(place) for key in tensors):
            inside = {key.removeprefix(place): tensor for key, tensor in tensors.items() if key.startswith(place)}
            return inside, [key for key in tensors if not key.startswith(place)]
    return dict(tensors), []


def _ends(match: Match, *words: str) -> list[str]:
    """Names of the network's tensors that hold one of these words."""
    return [key for key in match.wanted if any(word in key for word in words)]


def _report(match: Match, stripped: tuple[str, ...], converted: Sequence[str] = ()) -> Started:
    special = {*match.fitted, *converted}
    return Started([key for key in match.left if key not in special], match.dropped, list(converted), match.fresh,
                   stripped, match.fitted, match.renamed)


# ---- detectors


def start_backbone(detector: nn.Module, source: _Source, *, convert: str | None = None) -> Started:
    """Fill a detector's backbone from a classifier, eq. (23.7); a checkpoint that does not fit changes nothing.

    Position tables and deformable offsets, which depend on the image's size and on the task, stay as they were built,
    and so do LESA layers where the checkpoint has convolutions.

    Args:
        detector: A detector, a `Pyramid` or a `Backbone`.
        source: A file that `_read_weights` can read, what it holds, or a network of this library; a detector's
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
    what, stored, _, stripped = _stored(source)
    found, others = _backbone_of(stored)
    match = Match(backbone, found, what)
    match.other_middles()
    match.drop([key for key in match.left if key.startswith("fc.") or is_table(key)])  # (23.7)
    match.dropped = others + match.dropped
    converted: list[str] = []
    if table_kind(found) == "flat" and table_kind(match.wanted) == "factored":
        converted = [key for key in match.left if _of_scores(key) or _of_sums(key)]
        if converted and convert is None:
            raise ValueError(
                f"{what}: this checkpoint has flat position tables, the backbone factored ones: in every LESA layer "
                "the norms of scores and sums have other widths. Start from an ImageNet run with position='factored', "
                "or say convert='drop' (these norms start afresh) or convert='slice' (the part that has a counterpart "
                "is kept)")
        if convert == "drop":
            match.drop(converted)
            match.keep_built(converted)
            converted = []
        match.left.update({key: _sliced(key, match.left[key]) for key in converted})
    match.keep_built(key for key in match.wanted if is_table(key))
    match.keep_built(_ends(match, ".conv_offset.", f".{_COUNT}"))
    fresh = {key: match.wanted[key] for key in match.fresh}
    if match.differences():
        _load_tensors(backbone, fresh | match.left, what)  # whose sentence lists them all
    match.fill()  # (23.7)
    return _report(match, stripped, converted)


def _in_our_places(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Backbone and pyramid of torchvision's detectors by our names, and the names of the rest; ours stay."""
    if not any(key.startswith("backbone.body.") for key in tensors):
        return dict(tensors), []
    renamed, others = {}, []
    for key, tensor in tensors.items():
        if key.startswith("backbone.body."):
            renamed[key.replace("backbone.body.", "pyramid.backbone.", 1)] = tensor
        elif key.startswith("backbone.fpn."):  # released files have layers without the 0 of a Sequential
            ours = re.sub(r"(inner|layer)_blocks\.(\d+)\.(weight|bias)$", r"\1_blocks.\2.0.\3", key)
            renamed[ours.replace("backbone.fpn.", "pyramid.fpn.", 1)] = tensor
        else:
            others.append(key)
    return renamed, others


def start_detector(detector: nn.Module, source: _Source, *, convert: str | None = None) -> Started:
    """Fill a detector from a classifier or from another detector; a checkpoint that does not fit changes nothing.

    From a classifier: as `start_backbone`. From a detector of ours, of the authors or of torchvision (backbone and
    pyramid): the backbone with its offsets, its position tables fitted to the map, and every layer behind it that has
    the same name and shape. Layers that depend on the classes start afresh if their number is another.

    Args:
        detector: A detector of this library.
        source: A file that `_read_weights` can read, what it holds, or a network.
        convert: For a classifier with flat tables, see `start_backbone`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The backbone is another; the message says why, and what helps.
    """
    what, stored, _, stripped = _stored(source)
    if not _is_detector(stored):
        return start_backbone(detector, source, convert=convert)
    found, others = _in_our_places(stored)
    match = Match(detector, found, what)
    match.other_middles()
    match.fit_tables()
    behind = [key for key in match.wanted if not key.startswith("pyramid.backbone.")]
    match.renew_if_other(behind)
    match.drop([key for key in match.left if key not in match.wanted
                and (not key.startswith("pyramid.backbone.") or ".conv_offset." in key)])
    match.keep_built(_ends(match, ".conv_offset.", f".{_COUNT}"))
    if differ := match.differences():
        raise ValueError(
            f"{what}: a detector with another backbone; {len(differ)} names or shapes differ: {', '.join(differ[:3])}. "
            "Ask for the network and term it was trained with (--network, --term, --model), or start from a "
            "classifier; the detector is unchanged")
    match.fill()
    match.dropped += others
    return _report(match, stripped)


# ---- classifiers


def _match_classifier(
    model: nn.Module, found: Mapping[str, Tensor], what: str, same_classes: Callable[[int], bool] = lambda number: True
) -> Match:
    """What of a checkpoint goes into a classifier."""
    match = Match(model, found, what)
    match.other_middles()
    match.fit_tables()
    here, there = match.wanted.get("fc.weight"), match.left.get("fc.weight")
    if here is not None and there is not None and there.ndim == 2 and here.shape[1] == there.shape[1]:
        if len(here) != len(there) or not same_classes(len(there)):
            match.drop(("fc.weight", "fc.bias"))
    if here is not None and "fc.weight" not in match.left:
        match.keep_built(("fc.weight", "fc.bias"))
    match.keep_built(_ends(match, f".{_COUNT}"))
    return match


def _cure(match: Match, found: Mapping[str, Tensor]) -> str:
    """What to do about a checkpoint that does not fit."""
    here, there = table_kind(match.wanted), table_kind(match.left)
    why, flag, word = "", "", ""
    if here and there and here != there:
        why = f"its position tables are {there}, the network's {here}, and neither turns into the other; "
        flag, word = f" --position {there}", f", position={there!r}"
    term = next((kind for kind in ("lesa", "attention") if kind in middles_of(found)), "lesa")
    for name in [name for name in CLASSIFIERS if not name.startswith(PREFIX)]:
        with torch.device("meta"):
            ghost = build_classifier(name, num_classes=2, position=there or here, term=term)
        try:
            fits = not _match_classifier(ghost, found, match.what).differences()
        except ValueError:
            continue
        if fits:
            return f"{why}it fits the network {name}: train with --network {name}{flag} (network={name!r}{word})"
    try:
        name = resnet_name(found)
    except ValueError:
        return ("expected a classifier of this library or of the authors, or a ResNet of torchvision or timm "
                f"({', '.join(RESNETS)})")
    grafted = "graft" in middles_of(found)
    return (f"it is a grafted {name}: --graft goes on with it" if grafted else
            f"it may be a {name} of torchvision or timm: --graft makes a LESA network of it")


def start_classifier(model: nn.Module, source: _Source, *, classes: Sequence[str] | None = None) -> Started:
    """Fill a classifier from trained weights; a checkpoint that does not fit changes nothing.

    Position tables made for another image size are fitted as the layer itself fits them to a map (`fit_offsets`). The
    head starts afresh where the checkpoint has another number of classes, or says that it has others. Blocks that look
    around with something else (a plain ResNet's convolutions where LESA is wanted) start their middle afresh, and a
    grafted layer takes over the convolution as its local term.
    Strides leave no trace in a file: torchvision's last stage halves the map, that of our published networks keeps it.

    Args:
        model: A classifier of this library, or a grafted one, built for the classes and image size of the task; on
            the device "meta" it is only checked.
        source: A file that `_read_weights` can read, what it holds, or a network.
        classes: Names of the task's classes: a file that names others, as many as they may be, gives no head.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is of another network; the message says what helps.
    """
    what, found, metadata, stripped = _stored(source)
    if _is_detector(found):
        raise ValueError(f"{what}: holds a detector, and a classifier starts from a classifier: name the file that the "
                         "detector was started from, or train a detector with it (lesa train coco --start)")

    def same_classes(number: int) -> bool:
        names = metadata.get("classes")
        return classes is None or not isinstance(names, list) or names == list(classes)

    match = _match_classifier(model, found, what, same_classes)
    if differ := match.differences():
        raise ValueError(f"{what}: weights of another network; {len(differ)} names or shapes differ: "
                         f"{', '.join(differ[:3])}; {_cure(match, found)}; the network is unchanged")
    match.fill()
    return _report(match, stripped)


def graft_network(source: _Source) -> str:
    """The name by which `build_classifier` makes the grafted network of a plain ResNet, or of one that is grafted.

    Args:
        source: A file with a ResNet of torchvision or timm, what it holds, or a network.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It holds something else; the message says what helps.
    """
    what, found, metadata, _ = _stored(source)
    ours = str(metadata.get("network", PREFIX))
    if {"lesa", "attention"} & middles_of(found) or not ours.startswith(PREFIX):
        raise ValueError(f"{what}: is a network of this library already, and a graft starts from a ResNet of "
                         "torchvision or timm: leave --graft out")
    try:
        return PREFIX + resnet_name(found)
    except ValueError as error:
        raise ValueError(f"{what}: {error}, so there is nothing to graft") from None


def start_metadata(path: str | PathLike | None) -> dict[str, dict[str, str]]:
    """What a run notes about the file it started from, under "start": its name, and the first half of its SHA-256."""
    if path is None:
        return {}
    with open(_weights_file(path), "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(2**20):
            digest.update(block)
    return dict(start=dict(file=Path(path).name, sha256=digest.hexdigest()[:32]))
