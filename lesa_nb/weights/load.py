"""One `load` for every file of weights: this library's, a run's checkpoint, a bare state dict, the authors'."""
from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from importlib import import_module
from os import PathLike
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2

from lesa_nb.data.transforms import any_mode, eval_transform
from lesa_nb.models.registry import (
    CLASSIFIERS,
    DETECTOR_NETWORKS,
    build_classifier,
    build_detector,
    require_image_size,
)
from lesa_nb.weights._grafted import PREFIX, answers_alike, build_grafted, graft_metadata
from lesa_nb.weights.files import _load_tensors, _read_weights

__all__ = ["Loaded", "Kind", "register_kind", "load", "as_loaded"]

_Metadata = Mapping[str, Any]
_Tensors = Mapping[str, Tensor]
_Transform = Callable[[Image.Image], Tensor]


class Loaded(NamedTuple):
    """A trained network and what one must know to ask it.

    Attributes:
        model: In evaluation mode, on the CPU.
        classes: Name of each class, in the order of the network's numbers; a detector's label 1 is the first.
        transform: From a Pillow picture of any mode to what `model` takes: for a classifier a standardised tensor
            (3, H, W) of the size it was made for, for a detector RGB (3, H, W) from 0 to 1.
        metadata: What the file says about itself, or what its tensors say where it is silent; then `classes_guessed`
            says that nobody gave the classes their names.
        kind: "classifier" or "detector".
    """

    model: nn.Module
    classes: list[str]
    transform: _Transform
    metadata: dict[str, Any]
    kind: str

    def transform_at(self, image_size: int | None) -> _Transform:
        """A classifier's `transform` for images of another size than it was made for; None: of its own.

        Raises:
            ValueError: So small an image would come to a single position.
        """
        if image_size is None:
            return self.transform
        if (network := self.metadata.get("network")) in CLASSIFIERS:  # of a network of one's own nothing is known
            require_image_size(image_size, network)
        return eval_transform(image_size)


class Kind(NamedTuple):
    """How networks of one architecture come back from a file.

    Attributes:
        kind: "classifier" or "detector": how they are asked.
        build: Metadata -> a network with random weights.
        transform: Metadata -> what turns a Pillow picture into its input.
        classes: Metadata -> the names of its classes.
        describe: A state dict in our names -> the metadata of the network it is from, or None if it is of another
            architecture; left out if tensors cannot tell.
    """

    kind: str
    build: Callable[[_Metadata], nn.Module]
    transform: Callable[[_Metadata], _Transform]
    classes: Callable[[_Metadata], Iterable[Any]]
    describe: Callable[[_Tensors], dict[str, Any] | None] | None = None


_KINDS: dict[str, Kind] = {}
#: architectures of rooms above this one: arch -> the module that registers it when it is imported
_REGISTERED_BY = {"small": "lesa_nb.study.small"}


def register_kind(arch: str, kind: Kind) -> None:
    """Let `load` know the networks whose metadata say `arch`."""
    _KINDS[arch] = kind


def _kind_of(arch: Any) -> Kind | None:
    """The registered kind of an architecture, if there is one."""
    if not isinstance(arch, str):
        return None
    if arch not in _KINDS and arch in _REGISTERED_BY:
        import_module(_REGISTERED_BY[arch])
    return _KINDS.get(arch)


# ---- what the tensors say


def _term_of(tensors: _Tensors) -> str:
    """What looks around in the network's last stages, a key of `TERMS`."""
    if any(".conv2.local." in key for key in tensors):
        return "lesa"
    return "attention" if any(".conv2.context." in key for key in tensors) else "conv"


def _first_table(tensors: _Tensors) -> tuple[str, tuple[int, int]] | None:
    """Kind of the first position table, and height and width of the map it was made for.

    A flat table tells only the number of positions: the map is taken to be a square.
    """
    tables = {key: tensors[key] for key in sorted(tensors) if ".context.position." in key and tensors[key].ndim == 2}
    for key, table in tables.items():
        if key.endswith(".table"):
            side = round(((table.shape[1] + 1)/2)**.5)  # 2N - 1 columns
            return "flat", (side, side)
        width = tables.get(key.removesuffix("height") + "width")
        if key.endswith(".height") and width is not None:
            return "factored", ((len(table) + 1)//2, (len(width) + 1)//2)  # 2S - 1 rows
    return None


def _shapes(tensors: _Tensors) -> set[tuple[str, tuple[int, ...]]]:
    return {(key, tuple(tensor.shape)) for key, tensor in tensors.items()}


def _closest(
    candidates: Iterable[dict[str, Any]], build: Callable[[_Metadata], nn.Module], tensors: _Tensors
) -> dict[str, Any]:
    """Of several descriptions the one whose network differs least from the tensors."""
    def differences(metadata: dict[str, Any]) -> int:
        with torch.device("meta"):
            return len(_shapes(build(metadata).state_dict()) ^ _shapes(tensors))

    return min(candidates, key=differences)


def _image_size(size: tuple[int, int], stride: int) -> int | list[int]:
    """The image whose map at a stride has this size, as JSON holds it: a number if it is a square."""
    height, width = (n*stride for n in size)
    return height if height == width else [height, width]


def _describe_classifier(tensors: _Tensors) -> dict[str, Any] | None:
    """The classifier of this library that a state dict is from."""
    table, dims = _first_table(tensors), {key: tensor.ndim for key, tensor in tensors.items()}
    if table is None or dims.get("fc.weight") != 2 or dims.get("layer1.0.conv1.weight") != 4:
        return None
    if not any(".local.mix." in key for key in tensors) and _term_of(tensors) == "lesa":  # a dense local term
        return graft_metadata(tensors) | dict(classes=_class_names(len(tensors["fc.weight"]), "classifier"))
    position, size = table
    base = dict(arch="classifier", term=_term_of(tensors), position=position,
                classes=_class_names(len(tensors["fc.weight"]), "classifier"))
    # The first table of the published networks is made for a sixteenth of the image, the small one's for an eighth.
    candidates = [base | dict(network=network, image_size=_image_size(size, stride))
                  for network in CLASSIFIERS if not network.startswith(PREFIX) for stride in (16, 8)]
    return _closest(candidates, _build_classifier, tensors)


_BOX_HEADS = {"mask_rcnn": "box_head.classify.weight", "htc": "box_head.0.classify.weight"}


def _describe_detector(tensors: _Tensors) -> dict[str, Any] | None:
    """The detector of this library that a state dict is from."""
    model = next((model for model, key in _BOX_HEADS.items() if tensors.get(key, torch.empty(0)).ndim == 2), None)
    if model is None:
        return None
    num_classes, table = len(tensors[_BOX_HEADS[model]]) - 1, _first_table(tensors)
    net = dict(model=model, term=_term_of(tensors), num_classes=num_classes,
               semantic=any(key.startswith("semantic_head.") for key in tensors),
               masks=any(key.startswith("mask_head.") for key in tensors))
    base = dict(arch="detector", classes=_class_names(num_classes, "detector"))
    sizes = [_image_size(table[1], stride) for stride in (16, 8)] if table else [None]
    candidates = [base | dict(net=net | dict(network=network, image_size=size))
                  for network in DETECTOR_NETWORKS for size in sizes]
    return _closest(candidates, _build_detector, tensors)


def _class_names(number: int, kind: str) -> list[str]:
    """ImageNet's and COCO's names, where there are as many classes as these have; else numbers, a detector's from 1."""
    if kind == "classifier" and number == 1000:
        from torchvision.models import ResNet50_Weights

        return list(ResNet50_Weights.DEFAULT.meta["categories"])
    if kind == "detector" and number == 80:
        from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights

        known = MaskRCNN_ResNet50_FPN_Weights.DEFAULT.meta["categories"]
        return [name for name in known if name not in ("__background__", "N/A")]
    return [str(i + (kind == "detector")) for i in range(number)]


# ---- how they are built and asked


def _pair(size: Any) -> Any:
    """JSON's list as the pair it was."""
    return tuple(size) if isinstance(size, list) else size


def _build_classifier(metadata: _Metadata) -> nn.Module:
    network, options = metadata["network"], dict(
        num_classes=len(metadata["classes"]), term=metadata["term"], position=metadata["position"],
        image_size=_pair(metadata["image_size"]))
    if network.startswith(PREFIX):
        return build_grafted(network.removeprefix(PREFIX), heads=metadata.get("heads", 8), **options)
    return build_classifier(network, **options)


def _build_detector(metadata: _Metadata) -> nn.Module:
    return build_detector(**metadata["net"])


def _to_unit(image: Tensor) -> Tensor:
    """Bytes as numbers from 0 to 1, divided as the reader of COCO folders does: the same picture, the same bits."""
    return image/255


def _classifier_transform(metadata: _Metadata) -> _Transform:
    """Shorter side to 256/224 of the image size, middle, standardised; of (height, width) the longer one counts."""
    size = _pair(metadata["image_size"])
    if isinstance(size, int):
        return v2.Compose([v2.Lambda(any_mode), eval_transform(size)])
    return v2.Compose([v2.Lambda(any_mode), eval_transform(max(size)), v2.CenterCrop(size)])


def _detector_transform(metadata: _Metadata) -> _Transform:
    """RGB from 0 to 1: a detector standardises and resizes by itself."""
    return v2.Compose([v2.Lambda(any_mode), v2.PILToTensor(), v2.Lambda(_to_unit)])


def _classes_of_detector(metadata: _Metadata) -> Iterable[Any]:
    number = metadata["net"]["num_classes"]
    names = metadata.get("classes") or _class_names(number, "detector")
    if len(names) != number:
        raise ValueError(f"{number} classes, but {len(names)} names of classes")
    return names


register_kind("classifier", Kind(
    "classifier", _build_classifier, _classifier_transform, lambda metadata: metadata["classes"], _describe_classifier))
register_kind("detector", Kind(
    "detector", _build_detector, _detector_transform, _classes_of_detector, _describe_detector))


# ---- load


def _described(tensors: _Tensors, what: str) -> dict[str, Any]:
    """The metadata of a file that has none."""
    for kind in _KINDS.values():
        if kind.describe and (metadata := kind.describe(tensors)) is not None:
            return metadata
    dims = {key: tensor.ndim for key, tensor in tensors.items()}
    if lacking := [key for key in ("fc.weight", "layer1.0.conv1.weight") if dims.get(key, 0) < 2]:
        raise ValueError(
            f"{what}: no network of this library: nothing says what it is, its metadata have no arch, and its tensors "
            f"are no LESA classification network's (no {' and no '.join(lacking)}) and no detector's (no box_head)")
    raise ValueError(
        f"{what}: no LESA classification network: it has no position table of a LESA layer. A plain ResNet does not "
        "say whether its last stage keeps the size of its map, as this library's control does, or halves it, as "
        "torchvision's does: build the network and fill it with load_published, or make a LESA network of "
        "torchvision's with graft")


def _checked(kind: Kind, metadata: _Metadata, tensors: _Tensors, what: str) -> tuple[list[str], _Transform]:
    """Classes and transform of a network of this kind, once it is known that metadata and tensors describe one."""
    try:
        with torch.device("meta"):  # what they say about sizes may be wrong: look before memory is asked for
            ghost = kind.build(metadata)
        classes, transform = [str(name) for name in kind.classes(metadata)], kind.transform(metadata)
    except Exception as error:  # anything can be wrong with what a file or a caller says
        raise ValueError(f"{what}: its metadata do not describe a network that can be built "
                         f"({type(error).__name__}: {error})") from error
    _load_tensors(ghost, {key: tensor.to("meta") for key, tensor in tensors.items()}, what)
    return classes, transform


def load(path: str | PathLike, *, kind: str | None = None) -> Loaded:
    """Whatever file of weights it is: its network, ready to be asked.

    Reads what this library writes (.safetensors, and a run's last.pt), `torch.save(model.state_dict(), path)` of its
    networks, the state dict also as "model", "model_state_dict" or "state_dict" of a checkpoint, and the authors' .pth.
    Nothing in a file is executed. What wrappers had put into the names (`module.`, `model.`, `_orig_mod.`) is taken
    out; `metadata["stripped"]` lists it, and a warning says so if it is no part of the format.

    Args:
        path: The file, or a folder that `save_pretrained` wrote.
        kind: Refuse a file that holds another kind: "classifier" or "detector".

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no file of weights, is damaged, describes no network that can be built, or its tensors do not
            fit the network it describes.
    """
    what = os.fspath(path)
    tensors, said, stripped, published = _read_weights(path)
    metadata = dict(said) if said else _described(tensors, what) | dict(classes_guessed=True)
    arch = metadata.get("arch")
    found = _kind_of(arch)
    if found is None or kind not in (None, found.kind):
        wanted = kind or "network of a known kind"
        from_where = dict(classifier="; choose one of lesa train imagenet", detector="; choose one of lesa train coco")
        raise ValueError(f"{what}: holds no {wanted} (its metadata say arch = {arch!r}){from_where.get(wanted, '')}")
    classes, transform = _checked(found, metadata, tensors, what)
    with torch.device("cpu"):  # whatever torch.set_default_device says
        model = _load_tensors(found.build(metadata), tensors, what)
    if stripped:
        metadata["stripped"] = list(stripped)
        if not published:
            warnings.warn(f"{what}: {' and '.join(stripped)} taken out of the names of its tensors", stacklevel=2)
    return Loaded(model.eval(), classes, transform, metadata, found.kind)


# ---- networks in memory


def _told_by(network: nn.Module) -> dict[str, Any]:
    """The metadata of a network that was not loaded: what its tensors say, and what only its attributes do."""
    metadata = _described(network.state_dict(), f"this {type(network).__name__}")
    if "net" in metadata:
        seen = {name: getattr(network, name) for name in ("image_size", "keep_ratio") if hasattr(network, name)}
        metadata["net"] = metadata["net"] | seen
    return metadata


def as_loaded(network: nn.Module, /, *, classes: Iterable[Any] | None = None, **metadata: Any) -> Loaded:
    """What `load` would return of the file of a network, for one in memory: to predict with it, or to save it.

    Args:
        network: Of this library, as one of its builders made it; it is not copied, and put into evaluation mode.
        classes: Names of its classes; None: as the metadata or the number of classes have them.
        metadata: What is known of it. Without `arch` its tensors are asked, which do not tell everything of a control.

    Raises:
        ValueError: No network that `load` builds is like it; the sentence says what differs.
    """
    while (wrapped := getattr(network, "_orig_mod", getattr(network, "module", None))) is not None:
        network = wrapped  # of torch.compile, DataParallel and the like, in any order
    what = f"this {type(network).__name__}"
    told = dict(metadata) if "arch" in metadata else _told_by(network) | metadata
    if classes is not None:
        told["classes"] = [str(name) for name in classes]
    found = _kind_of(told.get("arch"))
    if found is None:
        raise ValueError(f"{what}: no network of a known kind (its metadata say arch = {told.get('arch')!r})")
    names, transform = _checked(found, told, network.state_dict(), what)
    if found.kind == "classifier" and not answers_alike(network, partial(found.build, told)):
        raise ValueError(f"{what}: has the tensors of {told.get('network', told['arch'])!r} and computes something "
                         "else (other strides, for one), so its name would not say how to build it")
    return Loaded(network.eval(), names, transform, told, found.kind)
