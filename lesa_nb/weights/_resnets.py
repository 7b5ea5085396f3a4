"""Torchvision's ResNets by name, told by the names and shapes of their tensors."""
from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn
from torchvision import models

__all__ = ["RESNETS", "resnet_name", "resnet_from"]

#: ResNets that can be grafted: name -> torchvision's builder
RESNETS: dict[str, Callable[..., nn.Module]] = {
    build.__name__: build
    for build in (models.resnet18, models.resnet34, models.resnet50, models.resnet101, models.resnet152,
                  models.wide_resnet50_2, models.wide_resnet101_2)
}

# blocks of the four stages, whether they are bottlenecks, channels inside the first block
_SHAPES: dict[tuple[tuple[int, ...], bool, int], str] = {
    ((2, 2, 2, 2), False, 64): "resnet18",
    ((3, 4, 6, 3), False, 64): "resnet34",
    ((3, 4, 6, 3), True, 64): "resnet50",
    ((3, 4, 23, 3), True, 64): "resnet101",
    ((3, 8, 36, 3), True, 64): "resnet152",
    ((3, 4, 6, 3), True, 128): "wide_resnet50_2",
    ((3, 4, 23, 3), True, 128): "wide_resnet101_2",
}


def resnet_name(tensors: Mapping[str, Tensor]) -> str:
    """The key of `RESNETS` that a state dict is from, grafted or not.

    Raises:
        ValueError: It is from none of them.
    """
    first = tensors.get("layer1.0.conv1.weight")
    counts = tuple(len({key.split(".")[1] for key in tensors if key.startswith(f"layer{i}.")}) for i in (1, 2, 3, 4))
    name = None if first is None else _SHAPES.get((counts, "layer1.0.conv3.weight" in tensors, first.shape[0]))
    if name is None:
        known = ", ".join(RESNETS)
        raise ValueError(f"expected a ResNet of torchvision, one of {known}; found stages of {counts} blocks")
    return name


def resnet_from(tensors: Mapping[str, Tensor]) -> nn.Module:
    """The ResNet that a state dict of torchvision, or of timm's plain ones, is from, filled with it.

    Raises:
        ValueError: It is from none of `RESNETS`, or its names and shapes are not quite theirs.
    """
    name = resnet_name(tensors)
    fc = tensors.get("fc.weight")
    network = RESNETS[name](num_classes=1000 if fc is None else len(fc))
    try:
        network.load_state_dict(dict(tensors))
    except RuntimeError as error:
        problem = " ".join(str(error).split())
        raise ValueError(f"the state dict is not quite a {name} of torchvision: {problem}") from None
    return network
