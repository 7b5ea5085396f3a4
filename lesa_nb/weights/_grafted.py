"""Grafted networks by name: built for training, described for files."""
from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lesa_nb.models.registry import register_classifier
from lesa_nb.weights._resnets import RESNETS, resnet_name
from lesa_nb.weights.graft import graft

__all__ = ["answers_alike", "build_grafted", "graft_metadata", "PREFIX"]

#: what the names of grafted networks begin with, in metadata and in `build_classifier`
PREFIX = "graft:"


def build_grafted(
    architecture: str,
    *,
    num_classes: int = 1000,
    image_size: int | tuple[int, int] = 224,
    position: str = "factored",
    term: str = "lesa",
    heads: int = 8,
) -> nn.Module:
    """A grafted network with random weights, for training and for weights to be filled in.

    Args:
        architecture: A key of `RESNETS`.
        num_classes: Number of logits.
        image_size: Size the position tables are made for; other sizes run too.
        position: Kind of the tables, "factored" or "flat".
        term: "lesa", or "conv" for the same network without the graft.
        heads: Attention heads.

    Raises:
        ValueError: There is no such architecture or term.
    """
    for word, value, known in (("architecture", architecture, RESNETS), ("term", term, ("lesa", "conv"))):
        if value not in known:
            raise ValueError(f"{word} of a grafted network must be one of {', '.join(known)}, got {value!r}")
    network = RESNETS[architecture](num_classes=num_classes)
    return network if term == "conv" else graft(network, image_size=image_size, position=position, heads=heads)


for _name in RESNETS:
    register_classifier(PREFIX + _name, partial(build_grafted, _name))


def _tables(tensors: Mapping[str, Tensor]) -> tuple[str, list[int], int] | None:
    """Kind of the first position table, the map it was made for, and the number of heads."""
    for key in sorted(tensors):
        place = key.partition(".context.position.")[0]
        if key.endswith(".context.position.height"):
            size = [(len(tensors[f"{place}.context.position.{side}"]) + 1)//2 for side in ("height", "width")]
            return "factored", size, len(tensors[f"{place}.context.norm_scores.weight"])//2
        if key.endswith(".context.position.table"):
            side = round(((tensors[key].shape[1] + 1)/2)**.5)
            return "flat", [side, side], len(tensors[f"{place}.context.norm_scores.weight"])//3
    return None


def graft_metadata(network: nn.Module | Mapping[str, Tensor]) -> dict[str, Any]:
    """What a file must say about a grafted network, so that `load` can build it: pass it to `save_weights`.

    Args:
        network: What `graft` returned, or its state dict.

    Raises:
        ValueError: It was grafted from a network that torchvision does not build by name.
    """
    tensors = network.state_dict() if isinstance(network, nn.Module) else network
    architecture, told = resnet_name(tensors), _tables(tensors)
    if told is None or "fc.weight" not in tensors:
        raise ValueError("expected a grafted classifier: this network has no position tables, or no fc layer")
    position, size, heads = told
    height, width = (16*n for n in size)  # the first table is made for a sixteenth of the image
    metadata = dict(
        arch="classifier", network=PREFIX + architecture, term="lesa", position=position, heads=heads,
        image_size=height if height == width else [height, width],
        classes=[str(i) for i in range(len(tensors["fc.weight"]))])
    with torch.device("meta"):
        wanted = build_grafted(architecture, num_classes=len(tensors["fc.weight"]), image_size=(height, width),
                               position=position, heads=heads).state_dict()
    differ = {(key, tensor.shape) for key, tensor in wanted.items()} ^ {(key, t.shape) for key, t in tensors.items()}
    if differ or (isinstance(network, nn.Module) and not answers_alike(network, partial(_described, metadata))):
        raise ValueError(f"this network is not quite torchvision's {architecture}, so its name would not say how to "
                         "build it: keep the network it was grafted from, and save the state dict")
    return metadata


@torch.no_grad()
def answers_alike(network: nn.Module, build: Callable[[], nn.Module]) -> bool:
    """Whether two classifiers with the same tensors compute the same: strides, for one, leave no trace in tensors."""
    with torch.device("cpu"):  # whatever torch.set_default_device says
        ours, other = copy.deepcopy(network).cpu().float().eval(), build()
    other.load_state_dict(ours.state_dict())
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0), device="cpu")
    return torch.allclose(other.eval()(x), ours(x), rtol=1e-3, atol=1e-4)


def _described(metadata: Mapping[str, Any]) -> nn.Module:
    """The grafted network that the metadata describe."""
    size = metadata["image_size"]
    return build_grafted(
        metadata["network"].removeprefix(PREFIX), num_classes=len(metadata["classes"]), position=metadata["position"],
        image_size=size if isinstance(size, int) else (size[0], size[1]), heads=metadata["heads"])
