"""A network with attention layers as `lesa explain` and `lesa explore` open it: what it is, sees, and answers."""
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from lesa_nb.data.photos import Photo
    from lesa_nb.weights.load import Loaded

_TOP = 3  # classes that an answer names


class Network(NamedTuple):
    "A network with LESA layers, and what one must know to show it a photograph."

    model: "torch.nn.Module"  # of a detector its backbone
    title: str  # what it is, for the output and the figure
    channels: int  # of the pictures that it takes
    mean: tuple
    std: tuple
    stride: int  # pixels to one position of its LESA layers
    size: int  # longer side of a picture if the user does not choose
    pair_floats: int  # numbers that it holds at once for each pair of positions
    loaded: "Loaded | None"  # what was in the file; None: untrained


def _untrained() -> Network:
    import torch

    from lesa_nb.layers.inputs import IMAGENET_MEAN, IMAGENET_STD
    from lesa_nb.models.resnet import lesa_resnet50

    torch.manual_seed(0)
    title = "UNTRAINED lesa_resnet50 (random weights, seed 0)"
    return Network(lesa_resnet50().eval(), title, 3, IMAGENET_MEAN, IMAGENET_STD, 16, 448, 120, None)


def _describe(metadata: dict[str, Any], file: str) -> str:
    "What a trained network is, for the output and the figure."
    if metadata["arch"] == "small":
        from lesa_nb.study.small import TERM_NAMES

        run = f"trained {metadata['steps']} steps on {metadata['task']}, {metadata['accuracy']:.1%} right there"
        return f"small {TERM_NAMES[metadata['net']['term']]} network {run}, from {file}"
    from lesa_nb.models.registry import CLASSIFIERS

    network = metadata["network"]  # "graft:NAME" is a grafted network of that name
    title = f"{getattr(CLASSIFIERS.get(network), '__name__', network).lstrip('_')} from {file}"
    if metadata["term"] != "lesa":
        title += f", term {metadata['term']}"
    if metadata.get("scores"):
        title += f", top-1 {metadata['scores']['top1']:.1f} %"
    return title


def open_network(weights: Path | None, name: str | None = None) -> Network:
    "The network in a file, whichever kind it is, called by the file's name or another; of a detector its backbone."
    if weights is None:
        return _untrained()
    from lesa_nb.layers.inputs import IMAGENET_MEAN, IMAGENET_STD
    from lesa_nb.weights.load import load

    loaded, name = load(weights), name or weights.name
    model, _, _, metadata, kind = loaded
    if kind == "detector":
        net = metadata["net"]
        title = f"{net['model']} from {name}, its backbone"
        patch, pair_floats = (8, 30) if net["network"] == "small" else (16, 200)
        backbone = model.get_submodule("pyramid.backbone")
        return Network(backbone, title, 3, IMAGENET_MEAN, IMAGENET_STD, patch, 28 * patch, pair_floats, loaded)
    title = _describe(metadata, name)
    if metadata["arch"] == "small":
        net, mean, std = metadata["net"], (metadata["mean"],), (metadata["std"],)
        return Network(model, title, net["channels"], mean, std, net["patch"], 32 * net["patch"], 30, loaded)
    patch = 8 if metadata["network"] == "small" else 16
    size, pair_floats = metadata["image_size"], dict(small=30, resnet50=120).get(metadata["network"], 200)
    longer = max(size) if isinstance(size, list) else size
    seen_at = max(longer, min(2 * longer, 28 * patch))  # twice as fine as in training, while a page can hold the maps
    return Network(model, title, 3, IMAGENET_MEAN, IMAGENET_STD, patch, seen_at, pair_floats, loaded)


def distinct_names(files: Sequence[Path]) -> list[str]:
    "A name for each file, as short as the others allow: with its folders where two are alike, numbered if it is one."
    places = [file.resolve().parts for file in files]
    count = Counter(places)
    names, seen = [], Counter[tuple[str, ...]]()
    for place in places:
        others = {other for other in places if other != place}
        length = next(n for n in range(1, len(place) + 1) if all(other[-n:] != place[-n:] for other in others))
        seen[place] += 1
        number = f" ({seen[place]})" if count[place] > 1 else ""
        names.append("/".join(place[-length:]).replace("//", "/") + number)
    return names


def drawn_answer(answers: Sequence[tuple[str, dict]]) -> dict | None:
    "The answer that belongs into a picture: the first; where `lesa predict` names another class, with a note of it."
    if not answers:
        return None
    (_, here), (_, asked) = answers[0], answers[-1]
    best, other = here.get("classes", ()), asked.get("classes", ())
    if not (best and other) or best[0]["name"] == other[0]["name"]:
        return here
    otherwise = f"{other[0]['name']} {other[0]['score']:.1%}"
    return dict(here, note=f"but lesa predict, which sees it otherwise, says {otherwise}")


def network_answers(
    network: Network, photo: "Photo", path: Path, image: "torch.Tensor", threshold: float
) -> list[tuple[str, dict]]:
    """What a network says of a photograph: where the answer is from, and the answer as `predict` puts it.

    Of a classifier first that to the image which the maps are of, then that of `lesa predict`, which looks at another
    cut of the photograph. Boxes are corners in pixels of `photo.image`, which may be smaller than the file's.
    """
    if network.loaded is None:
        return []
    from lesa_nb.tasks.predict import iter_predictions, name_classes

    loaded = network.loaded
    (asked,) = iter_predictions(loaded, [path], top=_TOP, threshold=threshold, device="cpu")
    if loaded.kind == "classifier":
        (here,) = name_classes(loaded, image[None], _TOP)
        return [("the whole picture, which the maps are of", here), ("as lesa predict sees it", asked)]
    across, down = (new / old for new, old in zip(photo.image.size, photo.full_size))
    for thing in asked.get("objects", ()):
        thing["box"] = [side * scale for side, scale in zip(thing["box"], (across, down, across, down))]
    return [(f"what scores at least {threshold:g}, as lesa predict sees it", asked)]


def _free_memory() -> int:
    "Bytes that are free, as far as the system tells."
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 8 * 2**30
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")), 8 * 2**30)


def as_input(network: Network, picture: "Image.Image", size: int) -> "torch.Tensor":
    "The picture as the network wants it, in whole patches; refused if too small for it, or too large for this machine."
    import torch

    from lesa_nb.data.photos import fitted, photo_tensor

    if size < network.stride:
        patch = f"{network.stride}x{network.stride}"
        raise ValueError(f"one patch of this network has {patch} pixels: choose a larger --size than {size}")
    width, height = fitted(picture.size, size, network.stride)
    positions = height * width // network.stride**2
    need, free = 4 * network.pair_floats * positions**2, _free_memory()
    if need > free:
        raise ValueError(
            f"at {width}x{height} each of {positions:,} positions looks at all others, which takes about "
            f"{need / 2**30:.0f} GiB, but {free / 2**30:.0f} GiB are free: choose a smaller --size"
        )
    image = photo_tensor(picture, size, network.stride)
    if network.channels == 1:
        image = image.mean(0, keepdim=True)
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (network.mean, network.std))
    return (image - mean) / std
