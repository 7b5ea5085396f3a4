"""What is found inside a trained network of the study: readers at its marks, looks from mark to mark, its mistakes."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lesa_nb.data.pictures import CELL, Twins, chunks
from lesa_nb.layers.context import Context
from lesa_nb.study.report import name_of
from lesa_nb.study.seeds import drop_terms, shares
from lesa_nb.study.small import SmallNet, Trained

__all__ = ["study_row"]


def _mark_cells(corners: Tensor, side: int) -> Tensor:
    """The nine cells whose middle lies in the square of a mark: (B, M, side, side), bool.

    corners: row and column of the first pixel of each mark, (B, M, 2), see `Twins`. side: cells in a row of the map.
    """
    middle = CELL*torch.arange(side) + CELL//2
    inside = (corners[..., None] <= middle) & (middle < corners[..., None] + 3*CELL)
    return inside[:, :, 0, :, None] & inside[:, :, 1, None, :]


def _readable(features: Tensor, labels: Tensor, classes: int) -> float:
    """How well a linear reader, fitted to the first half, tells the labels of the second: its accuracy there.

    features: (B, D). labels: (B,), 0 to classes - 1. The reader is a ridge regression onto the classes.
    """
    features = (features - features.mean(0))/(features.std(0) + 1e-6)
    padded, half = F.pad(features, (0, 1), value=1.).double(), len(labels)//2
    targets, fit = F.one_hot(labels, classes).double(), padded[:half]
    ridge = 1e-2*half*torch.eye(padded.shape[1], dtype=torch.float64)
    reader = torch.linalg.solve(fit.T @ fit + ridge, fit.T @ targets[:half])
    return ((padded[half:] @ reader).argmax(1) == labels[half:]).float().mean().item()


@torch.no_grad()
def _read_marks(model: SmallNet, twins: Twins) -> list[dict[str, float]]:
    """What a linear reader finds at the red mark: its own turn (`own`), and the white mark's (`far`).

    model: trained on twin pictures. Returns one pair after the stem and one after each block. Chance is 25 % for the
    own turn; whoever knows the own turn only gets 33 % of the other.
    """
    parts = []
    for images, corners in zip(twins.images.split(128), twins.corners.split(128)):
        cells = _mark_cells(corners, images.shape[-1]//CELL)[:, 1:2]
        maps = [model.stem(images), *(out for _, _, out in model.middles(images))]
        parts.append([(x*cells).sum((2, 3))/cells.sum((2, 3)) for x in maps])
    features = [torch.cat(block) for block in zip(*parts)]
    return [dict(own=_readable(f, twins.turns[:, 1], 4), far=_readable(f, twins.turns[:, 0], 4)) for f in features]


def _given(model: SmallNet, twins: Twins) -> Iterator[dict[str, Tensor]]:
    """For every block: direction -> weight that falls on the other mark, in every picture and head, (B, G)."""
    batch, twin = torch.arange(len(twins.labels)), 1 + twins.labels
    other = 1 + (twins.labels + 1) % 3  # a coloured mark that is not the twin
    lit = F.avg_pool2d(twins.images.amax(1), CELL) > .35
    lit = (_mark_cells(twins.corners, lit.shape[-1]) & lit[:, None]).flatten(2).float()
    cue_cells, twin_cells, other_cells = lit[:, 0], lit[batch, twin], lit[batch, other]
    pairs = {"twin to cue": (twin_cells, cue_cells), "other to cue": (other_cells, cue_cells),
             "cue to twin": (cue_cells, twin_cells), "cue to other": (cue_cells, other_cells)}
    for term, x, _ in model.middles(twins.images):
        context = getattr(term, "context", None)
        if isinstance(context, Context):
            w = context.weights(x)
            yield {name: torch.einsum("bgij,bi,bj->bg", w, start/start.sum(1, keepdim=True), end)
                   for name, (start, end) in pairs.items()}
        else:
            yield {}


@torch.no_grad()
def _looking(model: SmallNet, twins: Twins) -> list[dict[str, float]]:
    """The weight that lit cells of one mark give those of another, in the head that gives most.

    model: trained on twin pictures. The head is chosen on the first half of the pictures, its number comes from the
    second. Returns direction -> weight for each block; nothing for a convolution.
    """
    parts = [list(_given(model, Twins(*part))) for part in zip(*(tensor.split(128) for tensor in twins))]
    found, half = [], len(twins.labels)//2
    for block in zip(*parts):
        seen = {}
        for name in block[0]:
            given = torch.cat([part[name] for part in block])
            seen[name] = given[half:, given[:half].mean(0).argmax()].mean().item()
        found.append(seen)
    return found


@torch.no_grad()
def _mistakes(model: SmallNet, pictures: tuple) -> dict[str, Any]:
    """What a network answers instead.

    model: in evaluation mode. pictures: images and labels; `Twins` tell more. Returns the `confusion` matrix (rows are
    labels, columns are answers); for twins also the accuracy `by_distance` of twin and white mark, whose thirds end at
    `cells_apart`, and how often a mark is `chosen_when_turned` by 0 to 3 quarters against the white one.
    """
    answers = torch.cat([model(x).argmax(1) for x, _ in chunks(pictures, 128)])
    labels, n = pictures[1], model.head.out_features
    found: dict[str, Any] = dict(confusion=torch.bincount(n*labels + answers, minlength=n*n).view(n, n).tolist())
    if isinstance(pictures, Twins):
        batch, right = torch.arange(len(answers)), (answers == labels).float()
        away = (pictures.corners[batch, 1 + labels] - pictures.corners[:, 0]).float().norm(dim=1)/CELL
        thirds = away.quantile(torch.tensor([1/3, 2/3]))
        band = torch.bucketize(away, thirds)
        turned = (pictures.turns[:, 1:] - pictures.turns[:, :1]) % 4
        chosen = turned[batch, answers]
        found |= dict(
            cells_apart=[round(t.item(), 1) for t in thirds],
            by_distance={name: right[band == i].mean().item() for i, name in enumerate(("near", "middle", "far"))},
            chosen_when_turned={str(turn): ((chosen == turn).sum()/(turned == turn).any(1).sum()).item()
                                for turn in range(4)})
    return found


def _measure(model: SmallNet, pictures: tuple) -> dict[str, Any]:
    """Everything that can be asked of one trained network: anything in it fits into JSON.

    pictures: images and labels that it has not seen; `Twins` tell more.
    """
    model.eval()
    found = dict(shares=shares(model, pictures[0][:128]), dropped=drop_terms(model, pictures),
                 mistakes=_mistakes(model, pictures))
    if isinstance(pictures, Twins):
        some = Twins(*(t[:512] for t in pictures))
        found |= dict(readable=_read_marks(model, pictures), looking=_looking(model, some))
    return found


def study_row(run: Trained, pictures: tuple) -> dict[str, Any]:
    """One finished run, from `train_small`, and what was found inside: a row of the study's file.

    pictures: for `_measure`.
    """
    keep = ("accuracy", "chance", "pictures", "parameters", "steps", "batch_size", "lr", "seed", "seconds",
            "cpu_seconds")
    given = ("classes", "channels", "size", "patch")
    net = {key: value for key, value in run.metadata["net"].items() if key not in given}
    assert isinstance(run.model, SmallNet)
    return dict(variant=run.metadata["task"], name=name_of(net), net=net,
                **{key: run.metadata[key] for key in keep},
                curve=[list(point) for point in run.curve], inside=_measure(run.model, pictures))
