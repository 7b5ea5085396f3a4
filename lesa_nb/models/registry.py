"""Classifiers and detectors by name: as published, and a small one of each kind.

The small networks have the stages, widths, heads and factored tables of one preset, so the weights of a small
classifier can start the backbone of a small detector, as those of a published classifier start a published detector.
"""
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn

from .htc import HTC, htc_lesa_wrn50, mask_rcnn_lesa_resnet50
from .mask_rcnn import MaskRCNN
from .pyramid import Backbone, Pyramid
from .resnet import TERMS, ResNet, lesa_resnet50, lesa_wrn50

#: what the small networks have in common: one block in each stage, a quarter of the channels, half of the heads
_SMALL: dict[str, Any] = dict(stages=("C", "C", "L", "L"), base=16, heads=4)


def _small_resnet(
    *,
    num_classes: int = 1000,
    image_size: int | tuple[int, int] = 64,
    position: str = "factored",
    term: str = "lesa",
    **term_options,
) -> ResNet:
    """Four blocks, two of them with the term, on maps of an eighth of the image: the large ones, in seconds."""
    return ResNet(strides=(1, 2, 1, 1), num_classes=num_classes, image_size=image_size, position=position, term=term,
                  **_SMALL | term_options)


def _small_detector(kind, *, num_classes=80, image_size=128, term="lesa", **options):
    """Every stage is trained, since nothing published starts it, and few proposals suffice for small images."""
    backbone = Backbone(image_size=image_size, term=term, deformable=(3, 4), frozen=-1, **_SMALL)
    few = dict(pre_nms_top_n=dict(training=200, testing=200), post_nms_top_n=dict(training=64, testing=64))
    return kind(Pyramid(backbone, 32), num_classes=num_classes, image_size=image_size, width=128, **few | options)


#: classifiers: network -> builder
CLASSIFIERS: dict[str, Callable[..., nn.Module]] = dict(resnet50=lesa_resnet50, wrn50=lesa_wrn50, small=_small_resnet)


def register_classifier(network: str, build: Callable[..., nn.Module]) -> None:
    """Let `build_classifier` know another network; `build` takes num_classes, image_size, position and term."""
    CLASSIFIERS[network] = build


def default_position(network: str) -> str:
    """The kind of position table that a classification network, a key of `CLASSIFIERS`, has unless told otherwise."""
    return inspect.signature(CLASSIFIERS[network]).parameters["position"].default


#: pixels to one position of the coarsest map: of classifiers, grafted ones as in a ResNet, and of detectors
_STRIDES = dict(small=8, resnet50=16, wrn50=16)
_COARSEST = 32


def require_image_size(image_size: int | tuple[int, int], network: str | None = None) -> None:
    """Refuse images whose coarsest map would be a single position: nothing is left to attend to, or to normalise over.

    `network` is a key of `CLASSIFIERS`, any other is refused, too; None stands for a detector.
    """
    if network is not None:
        _one_of("network", network, CLASSIFIERS)
    least = 1 + (_COARSEST if network is None else _STRIDES.get(network, _COARSEST))
    shorter = image_size if isinstance(image_size, int) else min(image_size)
    if shorter < least:
        what = "a detector" if network is None else network
        raise ValueError(f"image_size must be at least {least} for {what}, whose coarsest map would be a single "
                         f"position, got {image_size} (on the command line: --image-size)")


#: detectors: model -> network -> builder
DETECTORS: Mapping[str, Mapping[str, Callable[..., MaskRCNN]]] = dict(
    mask_rcnn=dict(published=mask_rcnn_lesa_resnet50, small=partial(_small_detector, MaskRCNN)),
    htc=dict(published=htc_lesa_wrn50, small=partial(_small_detector, HTC)),
)

#: how large each detector can be had
DETECTOR_NETWORKS = ("published", "small")


def _one_of(word, value, known):
    if value not in known:
        raise ValueError(f"{word} must be one of {', '.join(known)}, got {value!r}")


def build_classifier(
    network: str = "resnet50",
    *,
    num_classes: int = 1000,
    image_size: int | tuple[int, int] | None = None,
    position: str | None = None,
    term: str = "lesa",
) -> nn.Module:
    """A classification network.

    `network` is a key of `CLASSIFIERS`, `term` a key of `TERMS`: "lesa", or a control, "attention" or "conv".
    `image_size` is the size the position tables are made for; None stands for 224, or 64 for the small network. One
    whose coarsest map would be a single position is refused.
    `position` is "flat" or "factored"; None stands for "flat", as published, or "factored" for the small network.
    A name that is not known raises ValueError and lists the known ones.
    """
    _one_of("network", network, CLASSIFIERS)
    _one_of("term", term, TERMS)
    if image_size is not None:
        require_image_size(image_size, network)
    given = {name: value for name, value in (("image_size", image_size), ("position", position)) if value is not None}
    return CLASSIFIERS[network](num_classes=num_classes, term=term, **given)


def build_detector(
    model: str = "mask_rcnn",
    *,
    network: str = "published",
    term: str = "lesa",
    num_classes: int = 80,
    image_size: int | None = None,
    keep_ratio: bool = False,
    semantic: bool = True,
    masks: bool = True,
    resize_in_training: bool = True,
) -> MaskRCNN:
    """One of the detectors, as published or small.

    `model` is a key of `DETECTORS`, `network` one of `DETECTOR_NETWORKS`, `term` a key of `TERMS`.
    `image_size` is what images are brought to; None stands for 1024 (Mask R-CNN), 1280 (HTC), or 128 for a small one.
    With `keep_ratio` it is the longer side; otherwise an image becomes a square.
    `semantic`: learn from semantic maps as well, if the model can (HTC).
    `masks=False`: without mask heads, boxes only.
    `resize_in_training=False`: in training the images come at the network's size already.
    A name that is not known raises ValueError and lists the known ones.
    """
    _one_of("model", model, DETECTORS)
    _one_of("network", network, DETECTOR_NETWORKS)
    _one_of("term", term, TERMS)
    options = dict(num_classes=num_classes, term=term, keep_ratio=keep_ratio, masks=masks,
                   resize_in_training=resize_in_training)
    if image_size is not None:
        require_image_size(image_size)
        options["image_size"] = image_size
    if model == "htc":
        options["semantic"] = semantic
    return DETECTORS[model][network](**options)
