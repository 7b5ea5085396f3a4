"""The smallest task there is: handwritten digits of 8 x 8 pixels, a second an epoch. To try runs on."""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from lesa_nb.data.pictures import digits
from lesa_nb.engine.recipe import Recipe
from lesa_nb.engine.task import Task

__all__ = ["NoisyDigits", "digits_task"]


class _DigitBatch(NamedTuple):
    """Images (B, 1, 8, 8), their labels (B,), and the numbers of the samples."""

    images: Tensor
    labels: Tensor
    numbers: Sequence[int]


class NoisyDigits(Dataset):
    """Digits that in training get a little noise, which epoch and index decide.

    Args:
        images: (N, 1, 8, 8).
        labels: (N,).
    """

    def __init__(self, images: Tensor, labels: Tensor):
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, Tensor, int]:
        if isinstance(key, int):
            return self.images[key], self.labels[key], key
        epoch, i = key
        generator = torch.Generator().manual_seed(1_000_003*epoch + i)
        return self.images[i] + .1*torch.randn(1, 8, 8, generator=generator), self.labels[i], i


def _network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(.1), nn.Flatten(),
                         nn.Linear(288, 10))


def _collate(samples: Sequence[tuple[Tensor, Tensor, int]]) -> _DigitBatch:
    images, labels, numbers = zip(*samples)
    return _DigitBatch(torch.stack(images), torch.stack(labels), numbers)


def _losses(model: nn.Module, batch: _DigitBatch) -> dict[str, Tensor]:
    return dict(loss=F.cross_entropy(model(batch.images), batch.labels))


def _scores(model: nn.Module, batches: Iterable[_DigitBatch]) -> dict[str, float]:
    right = torch.cat([model(batch.images).argmax(1) == batch.labels for batch in batches])
    return dict(top1=100*right.float().mean().item())


def _names(batch: _DigitBatch) -> list[str]:
    return [f"digit {number}" for number in batch.numbers]


def digits_task(recipe: Recipe) -> Task:
    """Read digits with a small convolution network, batch norm and dropout among its parts, in one process."""
    split = digits()
    train, valid = NoisyDigits(*split.train), NoisyDigits(*split.valid)
    metadata = dict(arch="digits", classes=10)
    return Task(metadata, recipe, _network, train, valid, _collate, _losses, _scores, _names, "top1")
