"""The work behind `lesa demo`: both problems, all three networks, everything on disk."""

import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lesa_nb.data.photos import photo_tensor, sample_photo
from lesa_nb.data.pictures import CELL, find_twin
from lesa_nb.io.atomic import atomic_json, atomic_path
from lesa_nb.look.capture import capture_layer
from lesa_nb.look.maps import explain_figure
from lesa_nb.study.fashion import read_fashion
from lesa_nb.study.small import (
    TERM_NAMES,
    Problem,
    Trained,
    digit_problem,
    findings,
    train_small,
    twin_problem,
)
from lesa_nb.tasks.side_by_side import train_terms
from lesa_nb.weights.files import save_weights

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["train_demo"]

_FILES = {"digits": "digits", "find the twin": "twin", "Fashion-MNIST": "fashion"}  # how their weights are called
_FASHION = dict(steps=100, valid=2000)  # about a minute on two cores


def _learning_curves(results: Mapping[str, Mapping[str, Trained]]) -> "Figure":
    """Accuracy on the way, one panel for each problem."""
    from lesa_nb.look.figures import COLORS, new_figure

    fig, axes = new_figure(1, len(results), size=(5*len(results), 3.4), squeeze=False)
    for ax, (name, runs) in zip(axes[0], results.items()):
        for term, run in runs.items():
            label = f"{TERM_NAMES[term]} {run.metadata['accuracy']:.1%}"
            ax.plot(*zip(*run.curve), color=COLORS[term], marker="o", ms=3, label=label)
        chance = next(iter(runs.values())).metadata["chance"]
        ax.axhline(chance, color=COLORS["neutral"], ls=":", label="guessing")
        ax.set(xlabel="step", ylabel="accuracy, 256 unseen pictures", title=name, ylim=(0, 1.02))
        ax.legend(frameon=False, fontsize=8)
    return fig


def _explained(run: Trained, seed: int) -> dict[str, "Figure"]:
    """What a network trained on twins looks at: in a photograph, and from the twin's mark in a twin picture."""
    photo, twins = sample_photo("china"), find_twin(1, torch.Generator().manual_seed(2**31 + 1 + seed))
    label = int(twins.labels[0])
    row, column = twins.corners[0, 1 + label].tolist()
    square = twins.images[0, label, row:row + 3*CELL, column:column + 3*CELL]
    cell = int(square.reshape(3, CELL, 3, CELL).mean((1, 3)).argmax())  # a lit cell of the coloured twin
    pixel = (row + CELL*(cell//3) + CELL//2, column + CELL*(cell % 3) + CELL//2)
    image = twins.images[..., :12*CELL, :12*CELL]  # the last pixels fill no patch
    f = run.metadata
    learned = f"LESA after {f['steps']} steps on twin pictures ({f['accuracy']:.1%} right there), looking "
    seen = capture_layer(run.model, photo_tensor(photo, 160, CELL)[None])
    return {
        "explain.png": explain_figure(photo_tensor(photo), seen, (250, 320),
                                      learned + "at a photograph: nothing it has trained for"),
        "explain_twin.png": explain_figure(image[0], capture_layer(run.model, image), pixel,
                                           learned + "from the twin's mark in a new one"),
    }


def _explained_clothes(run: Trained, problem: Problem) -> "Figure":
    """What the network looks at in a picture of a kind that it was trained on: the first one that it gets right."""
    images, labels = problem.valid.images[:64], problem.valid.labels[:64]
    with torch.no_grad():
        chances = run.model(images).softmax(1)
    right = (chances.argmax(1) == labels).nonzero()[:, 0].tolist()
    i = right[0] if right else 0
    said = chances[i].argmax().item()
    answer = dict(classes=[dict(name=problem.names[said], score=chances[i, said].item())])
    photo = (images[i]*problem.std + problem.mean).clamp(0, 1).expand(3, -1, -1)
    f = run.metadata
    title = (f"LESA after {f['steps']} steps on Fashion-MNIST ({f['accuracy']:.1%} right), looking at clothes that it "
             "has not trained on")
    return explain_figure(photo, capture_layer(run.model, images[i, None]), (14, 14), title, answer=answer)


def _no_bar(losses: Iterator[float], name: str, steps: int) -> Iterator[float]:
    return losses


def train_demo(
    out: str | PathLike,
    *,
    steps: int = 600,
    seed: int = 0,
    batch_size: int = 64,
    lr: float = 2e-3,
    valid: int = 1024,
    fashion: str | PathLike | None = None,
    watch: Callable[[Iterator[float], str, int], Iterable[float]] = _no_bar,
) -> dict[str, Any]:
    """Train the three networks on both problems; write weights, metrics, curves, and figures of what LESA looks at.

    out: folder for everything that is written; made if it does not exist. steps: of every network on every problem.
    batch_size, lr: the recipe of larger batches of nb 30. valid: twin pictures
    kept for validation. fashion: folder that holds FashionMNIST/raw as torchvision keeps it; then 100 steps of each
    network on Fashion-MNIST too, counted on 2,000 pictures. watch: gets the losses, the name and the steps of every
    run; a progress bar, for instance.
    Returns what metrics.json holds. OSError: the folder cannot be written, Fashion-MNIST is not where it should be.
    ValueError: its files are broken.
    """
    import matplotlib.pyplot as plt

    problems = [digit_problem(), twin_problem(valid=valid)]  # what is missing speaks up before anything is written
    steps_of = {problem.name: steps for problem in problems}
    if fashion is not None:
        problems.append(read_fashion(fashion, valid=min(valid, 200) if steps < 10 else _FASHION["valid"]).problem)
        steps_of[problems[-1].name] = min(steps, _FASHION["steps"])
    out, start = Path(out), time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)

    def train(problem: Problem, term: str, **recipe: Any) -> Trained:
        name = f"{problem.name}, {TERM_NAMES[term]}"
        return train_small(problem, term, watch=lambda losses: watch(losses, name, recipe["steps"]), **recipe)

    results: dict[str, dict[str, Trained]] = {}
    for problem in problems:
        runs = results[problem.name] = {}
        recipe: dict[str, Any] = dict(steps=steps_of[problem.name], batch_size=batch_size, lr=lr, seed=seed)
        for term, run in train_terms(train, problem, **recipe):
            runs[term] = run
            save_weights(run.model, out/f"{_FILES[problem.name]}_{term}.safetensors", **run.metadata)
    metadata = {name: {term: run.metadata for term, run in runs.items()} for name, runs in results.items()}
    figures = {"learning_curves.png": _learning_curves(results)}
    figures |= _explained(results[problems[1].name]["lesa"], seed)
    if fashion is not None:
        figures["explain_fashion.png"] = _explained_clothes(results[problem.name]["lesa"], problem)
    for name, fig in figures.items():
        with atomic_path(out/name, what="the figure") as path:
            fig.savefig(path, dpi=110, format="png", bbox_inches="tight")
        plt.close(fig)
    versions = dict(python=platform.python_version(), **{p: version(p) for p in ("torch", "torchvision")})
    metrics = dict(seed=seed, steps=steps, batch_size=batch_size, lr=lr, seconds=round(time.perf_counter() - start, 1),
                   threads=torch.get_num_threads(), versions=versions, results=metadata,
                   findings=[findings(runs) for runs in metadata.values()])
    atomic_json(out/"metrics.json", metrics)
    return metrics
