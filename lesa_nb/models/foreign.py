"""Names of arguments that other libraries have: understood where they ask for nothing, else answered with ours."""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

__all__ = ["refuse_pretrained", "settle"]

#: a name elsewhere -> ours
_OURS = {
    **dict.fromkeys(("n_classes", "nb_classes", "n_class", "num_class", "classes"), "num_classes"),
    **dict.fromkeys(("img_size", "input_size", "size", "resolution", "min_size", "max_size"), "image_size"),
    **dict.fromkeys(("n_heads", "num_heads", "nhead"), "heads"),
}
#: names that ask for trained weights unless they are None or False
_WEIGHTS = ("pretrained", "weights", "pretrained_backbone", "weights_backbone")
#: names for the number of channels of an image
_CHANNELS = ("in_chans", "in_channels")
#: names that mean nothing where nothing is fetched
_IDLE = ("progress",)
#: names of torchvision's and timm's builders for which there is nothing here, and what there is
_NONE = {
    "trainable_backbone_layers": "build the backbone yourself, lesa_nb.models.pyramid.Backbone(frozen=...)",
    "replace_stride_with_dilation": "lesa_nb.models.resnet.ResNet(strides=...) chooses where the map shrinks",
    "output_stride": "lesa_nb.models.resnet.ResNet(strides=...) chooses where the map shrinks",
    "norm_layer": "lesa_nb.layers.norms.convert_sync_batchnorm(network) exchanges the norms",
    "box_score_thresh": "set it after building, detector.threshold = 0.5",
    "box_detections_per_img": "a detector answers with the best 100 objects; take the first of them",
    **{f"rpn_{when}_nms_top_n_{mode}": f"{when}_nms_top_n=dict(training=..., testing=...) says both numbers"
       for when in ("pre", "post") for mode in ("train", "test")},
    **dict.fromkeys(("image_mean", "image_std"), "images are normalised as lesa_nb.layers.inputs.normalize does it"),
    "zero_init_residual": "set it after building, torch.nn.init.zeros_(block.bn3.weight)",
}

_NOT_HOSTED = "no weights of LESA networks are hosted"
_LOAD = ("lesa_nb.load(FILE) opens a file of this library or of the authors, lesa_nb.load_published(network, FILE) "
         "fills a network with the authors', and lesa_nb.graft(torchvision.models.resnet50(weights='DEFAULT')) makes a "
         "LESA network of ImageNet weights")
_LOAD_BACKBONE = ("lesa_nb.weights.start.start_detector(detector, FILE) fills a detector's backbone from a file of "
                  "this library, of the authors or of torchvision")


def refuse_pretrained(asked: Mapping[str, Any], *, more: str = "") -> None:
    """Say how weights are loaded, and whatever is `more`, if any argument asks for some; None and False do not.

    Raises:
        ValueError: One does; the sentence says what to call instead.
    """
    for name, value in asked.items():
        if value is not None and value is not False:
            load = _LOAD_BACKBONE if "backbone" in name else _LOAD
            raise ValueError(f"{name}={value!r}: {_NOT_HOSTED}; {load}{more}")


def settle(options: Mapping[str, Any], *, known: Iterable[str] = ()) -> dict[str, Any]:
    """Options of a builder without those of other libraries.

    `pretrained=False`, `weights=None`, `progress=...` and `in_chans=3` ask for what is done anyway and are left out.

    Args:
        options: Arguments that the caller does not name itself.
        known: Those of them that it understands.

    Raises:
        ValueError: One asks for weights, or for other than RGB images; the sentence says what to call instead.
        TypeError: One is not known; the sentence says its name here, which may have been meant, or which there are.
    """
    known = set(known)
    refuse_pretrained({name: value for name, value in options.items() if name in _WEIGHTS})
    for name, value in options.items():
        if name in known or name in _WEIGHTS or name in _IDLE:
            continue
        if name in _CHANNELS:
            if value == 3: continue
            raise ValueError(f"{name}={value!r}: images are RGB, three channels; repeat the one of a grey image, "
                             "x.expand(-1, 3, -1, -1)")
        if name in _OURS:
            raise TypeError(f"{name} is called {_OURS[name]} here: {_OURS[name]}={value!r}")
        if name in _NONE:
            raise TypeError(f"there is no {name} here: {_NONE[name]}")
        meant = get_close_matches(name, {*known, *_OURS.values()}, n=1)
        if meant:
            raise TypeError(f"there is no option {name} here: did you mean {meant[0]}?")
        also = f"; beside the options it names itself a network takes {', '.join(sorted(known))}" if known else ""
        raise TypeError(f"there is no option {name} here{also}")
    return {name: value for name, value in options.items() if name in known}
