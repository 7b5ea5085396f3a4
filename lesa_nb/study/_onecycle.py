"""The study's way to train: AdamW with a learning rate that goes up and down in one cycle.

The study compares many short runs by a recipe of its own; runs of days go by `lesa_nb.engine`.
"""
from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from lesa_nb.engine.loop import decay_groups

__all__ = ["adamw_onecycle", "train_steps", "accuracy"]


def adamw_onecycle(
    model: nn.Module, steps: int, *, lr: float = 1.5e-3, weight_decay: float = 1e-2, warmup: float = 0.1,
    betas: tuple[float, float] = (0.9, 0.98),
) -> tuple[Optimizer, LRScheduler]:
    """AdamW and its learning rate: up and down in one cycle of two cosines.

    With w = max(warmup*steps, 2) - 1 steps on the way up, the rate goes from lr/25 to lr, and then to lr/250,000.
    AdamW divides the gradient by its recent size. With the usual memory of 0.999 that spans a thousand steps, longer
    than a short run, so the large gradients of its start would keep every later step small; here it is 0.98.

    Args:
        model: Whose weights are trained.
        steps: All the steps that will be made.
        lr: The largest learning rate.
        weight_decay: For what has more than one axis.
        warmup: The share of the steps on the way up.
        betas: Memory of the gradient (the cycle moves it) and of its square.
    """
    optimizer = AdamW(decay_groups(model, weight_decay), lr=lr, betas=betas)
    if steps > 2:
        warmup = max(warmup, 2/steps)  # at least one step on the way up
    return optimizer, OneCycleLR(optimizer, lr, total_steps=steps, pct_start=warmup)


def train_steps(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], optimizer: Optimizer,
    schedule: LRScheduler | None = None,
) -> Iterator[float]:
    """Train on batches of images and labels; yields the loss of each step, and does nothing until it is asked for.

    Raises:
        FloatingPointError: The loss is not finite; the sentence says in which step.
    """
    device = next(model.parameters()).device
    model.train()
    for step, (images, labels) in enumerate(batches, 1):
        loss = F.cross_entropy(model(images.to(device)), labels.to(device))
        if not loss.isfinite():
            raise FloatingPointError(
                f"the loss is {loss.item()} at step {step}, learning rate {optimizer.param_groups[0]['lr']:.2g}: "
                "try a smaller rate, and look at the images of this batch")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if schedule:
            schedule.step()
        yield loss.item()
        model.train()  # whoever took the loss may have evaluated in between


@torch.no_grad()
def accuracy(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """The share of images, 0 to 1, whose largest logit is the label; batches may differ in size.

    Raises:
        ValueError: There are no images.
    """
    device, training = next(model.parameters()).device, model.training
    model.eval()
    right = total = 0
    try:
        for images, labels in batches:
            right += int((model(images.to(device)).argmax(1) == labels.to(device)).sum())
            total += len(labels)
    finally:
        model.train(training)
    if not total:
        raise ValueError("no images to evaluate")
    return right/total
