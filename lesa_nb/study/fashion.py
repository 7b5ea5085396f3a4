"""Fashion-MNIST for the study: ten kinds of clothes on 28 x 28 grey pixels, and the same pictures disturbed.

Read by torchvision from a folder that a user has; https://github.com/zalandoresearch/fashion-mnist, MIT licence.
"""
from __future__ import annotations

import base64
import hashlib
import io
import urllib.error
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets import FashionMNIST
from torchvision.transforms.v2 import InterpolationMode, functional

from lesa_nb.data.pictures import Samples, check_samples, chunks, shuffled
from lesa_nb.layers.lesa import LESA
from lesa_nb.study._onecycle import accuracy
from lesa_nb.study.inside import study_row
from lesa_nb.study.report import mean_inside
from lesa_nb.study.seeds import spread, verdicts
from lesa_nb.study.small import Problem, SmallNet, Trained

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["DISTURBANCES", "FASHION_CLASSES", "FASHION_LIMITS", "Fashion", "disturbed_finding", "disturbed_table",
           "fashion_at_hand", "fashion_row", "mean_disturbed", "mean_gates", "read_fashion", "show_errors"]

_FILES = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
FASHION_CLASSES = tuple(FashionMNIST.classes)
#: what these numbers cannot show; printed beside every result
FASHION_LIMITS = (
    "Networks of about 31 thousand weights and a short training: far from the best that Fashion-MNIST has seen, and "
    "nothing here is about ImageNet.",
    "One recipe for all three, chosen for LESA on the generated task; the controls got no search of their own.",
    "Disturbed pictures are scored by networks that were trained on undisturbed ones.",
    "Three seeds decide little about small differences: the intervals say how little.",
)


class Fashion(NamedTuple):
    """Fashion-MNIST as the study wants it, and what is known of its files."""

    problem: Problem
    files: dict[str, Any]


def _digest(folder: Path) -> str:
    """SHA-256 of the four files, names and contents."""
    found = hashlib.sha256()
    for name in _FILES:
        found.update(name.encode())
        found.update((folder/name).read_bytes())
    return found.hexdigest()


def _part(root: Path, name: str, count: int | None) -> Samples:
    """The "train" or "valid" part, or a random `count` of it, which is the same each time; values from 0 to 1."""
    whole = FashionMNIST(root, train=name == "train", download=False)
    total = len(whole.targets)
    if count is not None and not 1 <= count <= total:
        raise ValueError(f"{name}: expected 1 to {total} pictures, as many as the files have, got {count}")
    chosen = torch.randperm(total, generator=torch.Generator().manual_seed(0))[:count]
    return Samples(whole.data[chosen, None].float()/255, whole.targets[chosen].long())


def _missing(root: Path) -> list[str]:
    """Which of the four files are not in a folder that torchvision's layout would have them in."""
    return [name for name in _FILES if not (root/"FashionMNIST"/"raw"/name).is_file()]


def fashion_at_hand(root: str | PathLike = "data") -> bool:
    """Whether all four files are in a folder; `data` is what torchvision's own examples call it."""
    return not _missing(Path(root))


def read_fashion(
    root: str | PathLike, *, train: int | None = None, valid: int | None = None, download: bool = False
) -> Fashion:
    """Fashion-MNIST from a folder in torchvision's layout, cut into patches of 2 x 2 pixels for a `SmallNet`.

    root: holds FashionMNIST/raw with the four files, unpacked. train, valid: how many pictures of each part; None
    for all. download: get what is missing first. The images are standardised with mean and deviation of those that
    are trained on.
    FileNotFoundError: a file is not there. ValueError: one is broken, or has fewer pictures than asked for.
    OSError: no download came through.
    """
    root = Path(root)
    raw = root/"FashionMNIST"/"raw"
    if download and _missing(root):
        try:
            FashionMNIST(root, download=True)
        except (RuntimeError, urllib.error.URLError) as error:
            raise OSError(f"Fashion-MNIST cannot be downloaded into {root} ({error}): get its four files where there "
                          f"is a network, and put them, unpacked, into {raw}") from error
    if missing := _missing(root):
        get = f"from torchvision.datasets import FashionMNIST; FashionMNIST({str(root)!r}, download=True)"
        raise FileNotFoundError(
            f"expected Fashion-MNIST's four files, unpacked, in {raw}, found no {', '.join(missing)}: name the folder "
            f'that holds FashionMNIST/raw, or get them with python -c "{get}"')
    wants = (("train", train), ("valid", valid))
    try:
        parts = {name: _part(root, name, count) for name, count in wants}
    except (AssertionError, IndexError, KeyError, OSError, RuntimeError) as error:
        raise ValueError(f"{raw}: torchvision cannot read these files ({error!r}); get them again") from error
    mean, std = parts["train"].images.mean().item(), parts["train"].images.std().item()
    kept, held = (check_samples(((images - mean)/std, labels), 10) for images, labels in parts.values())

    def batches(batch_size, steps, generator):
        return shuffled(kept, batch_size, steps, generator)

    net = dict(classes=10, channels=1, size=28, patch=2)
    problem = Problem("Fashion-MNIST", net, batches, held, mean, std, FASHION_CLASSES)
    return Fashion(problem, dict(train=len(kept.labels), valid=len(held.labels), sha256=_digest(raw)))


def _shifted(images: Tensor, generator: torch.Generator, dark: float) -> Tensor:
    """By 3 pixels, each picture in one of four directions."""
    moves = ((3, 0), (-3, 0), (0, 3), (0, -3))
    ways = torch.stack([functional.affine(images, 0, list(move), 1., [0., 0.], fill=[dark]) for move in moves])
    return ways[torch.randint(4, (len(images),), generator=generator), torch.arange(len(images))]


def _rotated(images: Tensor, generator: torch.Generator, dark: float) -> Tensor:
    """By 20 degrees, each picture to one of two sides."""
    ways = torch.stack([functional.rotate(images, angle, InterpolationMode.BILINEAR, fill=[dark])
                        for angle in (20., -20.)])
    return ways[torch.randint(2, (len(images),), generator=generator), torch.arange(len(images))]


def _occluded(images: Tensor, generator: torch.Generator, dark: float) -> Tensor:
    """A dark square of 10 x 10 pixels, at a place of its own in each picture."""
    side = torch.arange(images.shape[-1])
    place = torch.randint(images.shape[-1] - 9, (2, len(images), 1), generator=generator)
    rows, columns = ((start <= side) & (side < start + 10) for start in place)
    return images.masked_fill((rows[:, :, None] & columns[:, None])[:, None], dark)


def _patches_shuffled(images: Tensor, generator: torch.Generator, dark: float) -> Tensor:
    """The sixteen patches of 7 x 7 pixels in a new order, the same for all pictures: near stays near, far does not."""
    b, c, h, w = images.shape
    patches = images.view(b, c, 4, h//4, 4, w//4).transpose(3, 4).reshape(b, c, 16, h//4, w//4)
    patches = patches[:, :, torch.randperm(16, generator=generator)]
    return patches.view(b, c, 4, 4, h//4, w//4).transpose(3, 4).reshape(b, c, h, w)


def _noisy(images: Tensor, generator: torch.Generator, dark: float) -> Tensor:
    """Gaussian noise, half as strong as the pictures' own deviation."""
    return images + .5*torch.randn(images.shape, generator=generator)


#: what is done to pictures that a network has not seen: name -> function of images (B, 1, 28, 28), a generator and the
#: value of a dark pixel
DISTURBANCES: dict[str, Callable[[Tensor, torch.Generator, float], Tensor]] = {
    "shifted": _shifted, "rotated": _rotated, "occluded": _occluded, "patches shuffled": _patches_shuffled,
    "noisy": _noisy}


@torch.no_grad()
def _gate_by_class(model: SmallNet, samples: Samples) -> list[list[float]]:
    """What the gate lets through on average, for each block that has one and each class; empty without gates."""
    found = []
    for term, inputs, _ in model.middles(samples.images):
        if isinstance(term, LESA):
            gate = term.terms(inputs).gate.mean((1, 2, 3))
            found.append([gate[samples.labels == label].mean().item() for label in range(len(FASHION_CLASSES))])
    return found


@torch.no_grad()
def _worst_errors(run: Trained, samples: Samples, count: int = 5) -> list[dict[str, Any]]:
    """The wrong answers that a network is surest of: which picture (and a PNG of it), what it is, what it is taken for.

    index: of the picture among the samples. label, answer: numbers of the classes. probability: of the answer.
    """
    chances = torch.cat([run.model(images).softmax(1) for images, _ in chunks(samples, 128)])
    sure, answers = chances.max(1)
    wrong = (answers != samples.labels).nonzero()[:, 0]
    found = []
    for i in wrong[sure[wrong].argsort(descending=True)[:count]].tolist():
        levels = 255*(samples.images[i, 0]*run.metadata["std"] + run.metadata["mean"]).clamp(0, 1)
        file = io.BytesIO()
        Image.fromarray(levels.round().byte().numpy()).save(file, "png", optimize=True)
        found.append(dict(index=i, label=samples.labels[i].item(), answer=answers[i].item(),
                          probability=sure[i].item(), png=base64.b64encode(file.getvalue()).decode()))
    return found


def fashion_row(run: Trained, held: Samples, *, looked_at: int = 2000) -> dict[str, Any]:
    """One finished run and what was found inside, as `study_row` has it: a row of the file of results.

    Beside it `disturbed`, the accuracy on disturbed pictures by name of the disturbance ("none" among them),
    `gate_by_class`, one list for each block, and `errors`, the pictures whose wrong answer is the surest. held: the
    pictures of validation, standardised; all three are measured on the first `looked_at` of them.
    """
    assert isinstance(run.model, SmallNet)
    row, some = study_row(run, held), Samples(held.images[:looked_at], held.labels[:looked_at])
    row["looked_at"] = len(some.labels)
    dark = -run.metadata["mean"]/run.metadata["std"]
    sets = {"none": some.images} | {name: disturb(some.images, torch.Generator().manual_seed(0), dark)
                                    for name, disturb in DISTURBANCES.items()}
    row["inside"] |= dict(
        disturbed={name: accuracy(run.model, chunks((images, some.labels), 128)) for name, images in sets.items()},
        gate_by_class=_gate_by_class(run.model, Samples(some.images[:1000], some.labels[:1000])),
        errors=_worst_errors(run, some))
    return row


def mean_disturbed(rows: Sequence[dict]) -> dict[str, dict[str, float]]:
    """Disturbance ("undisturbed" first) -> network -> accuracy, mean of the seeds; of no rows, nothing."""
    if not rows:
        return {}
    names, variant = dict.fromkeys(row["name"] for row in rows), rows[0]["variant"]
    return {"undisturbed" if kind == "none" else kind:
            {name: mean_inside(rows, variant, name, "disturbed", kind) for name in names}
            for kind in rows[0]["inside"]["disturbed"]}


def disturbed_table(rows: Sequence[dict]) -> str:
    """What each disturbance leaves of every network's accuracy: mean and interval over the seeds, and the verdict.

    The verdict is that of `lesa_nb.study.seeds.verdicts`, for LESA against each rival on these pictures.
    """
    if not rows:
        return "not run"
    names, lines = list(dict.fromkeys(row["name"] for row in rows)), []
    lines.append(f"{'pictures':<18}" + "".join(f"{name:>24}" for name in names))
    for kind in rows[0]["inside"]["disturbed"]:
        cells = []
        for name in names:
            own = spread([row["inside"]["disturbed"][kind] for row in rows if row["name"] == name])
            cells.append(f"{own.mean:.1%}" + (f" +- {100*own.half:.1f}" if own.n > 1 else ""))
        lines.append(f"{'undisturbed' if kind == 'none' else kind:<18}" + "".join(f"{cell:>24}" for cell in cells))
    for kind in rows[0]["inside"]["disturbed"]:
        if kind != "none":
            asked = [dict(row, variant=kind, accuracy=row["inside"]["disturbed"][kind], pictures=row["looked_at"])
                     for row in rows]
            lines += verdicts(asked, kind)
    return "\n".join(lines)


def show_errors(rows: Sequence[dict], *, seed: int = 0, count: int = 2) -> Figure:
    """The wrong answers that each network is surest of, `count` below one another; `not run` without rows."""
    from lesa_nb.look.figures import new_figure, show_bars

    chosen = [row for row in rows if row["seed"] == seed and row["inside"].get("errors")]
    if not chosen:
        return show_bars({"not run": None}, title="Fashion-MNIST, examples of errors: not run", ylabel="pictures")
    fig, axes = new_figure(count, len(chosen), size=(1.9*len(chosen), 2.1*count + .7), squeeze=False,
                           title=f"Fashion-MNIST, seed {seed}: the errors that each network is surest of: "
                           "what it is, and what it is taken for")
    for ax in axes.flat:
        ax.axis("off")
    for column, row in zip(axes.T, chosen):
        for place, (ax, found) in enumerate(zip(column, row["inside"]["errors"])):
            ax.imshow(Image.open(io.BytesIO(base64.b64decode(found["png"]))), "gray", vmin=0, vmax=255)
            is_a, said = FASHION_CLASSES[found["label"]], FASHION_CLASSES[found["answer"]]
            words = f"{is_a},\nnot {said} ({found['probability']:.0%})"
            ax.set_title(words if place else f"{row['name']}\n\n{words}", fontsize=9)
    return fig


def disturbed_finding(rows: Sequence[dict]) -> str:
    """Which network has the highest mean under each disturbance, in words, for a title; says nothing of chance."""
    if not rows:
        return "not run"
    best = {kind: max(by_name, key=lambda name: by_name[name]) for kind, by_name in mean_disturbed(rows).items()}
    seeds = len({row["seed"] for row in rows})
    return (f"Fashion-MNIST, mean of {seeds} seed{'s'*(seeds > 1)}; highest: "
            + ", ".join(f"{kind} {name}" for kind, name in best.items()))


def mean_gates(rows: Sequence[dict]) -> dict[str, dict[str, float]]:
    """Kind of clothes -> block -> what LESA's gate lets through, mean of the seeds; of no rows, nothing."""
    gates = torch.tensor([row["inside"]["gate_by_class"] for row in rows if row["inside"]["gate_by_class"]])
    return {} if not len(gates) else {
        name: {f"block {1 + block}": gate.item() for block, gate in enumerate(by_block)}
        for name, by_block in zip(FASHION_CLASSES, gates.mean(0).T)}
