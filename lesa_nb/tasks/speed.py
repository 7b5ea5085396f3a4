"""Which one limits a run, loading or training: each measured alone."""
from __future__ import annotations

import time
from typing import Any

import torch

from lesa_nb.data.speed import loader_speed
from lesa_nb.engine.backends import backends
from lesa_nb.engine.group import pick_device
from lesa_nb.engine.loop import build_optimizer, train_step
from lesa_nb.engine.task import Task

__all__ = ["speeds", "describe_speeds"]


def speeds(task: Task, *, workers: int = 0, device: str | None = None, seconds: float = 5.) -> dict[str, float]:
    """Samples per second of the loader when nobody trains, and of the network when nobody loads: "loader", "network".

    Args:
        task: With its recipe; both are measured with the micro-batch of one process.
        workers: Processes that read ahead.
        device: "cpu" or "cuda"; None stands for a GPU if there is one.
        seconds: To measure for, each.
    """
    recipe, on = task.recipe.changed(accumulate=1), pick_device(device)
    n = task.recipe.local_batch_size()
    batch = task.collate([task.train[0, i % len(task.train)] for i in range(n)])
    model = task.build().to(on)
    if recipe.precision == "float64":
        model.double()
    if recipe.channels_last:
        model.to(memory_format=torch.channels_last)
    optimizer = build_optimizer(model, recipe)
    trained: Any = torch.compile(model) if recipe.compile else model

    def step() -> None:  # `train_step` reads the loss, and so waits for the GPU
        train_step(trained, [batch], task.losses, optimizer, recipe, on, recipe.peak_lr)

    with backends(recipe, model, on, fixed_size=task.fixed_size):
        step()
        step()
        steps, start = 0, time.perf_counter()
        while (spent := time.perf_counter() - start) < seconds or not steps:
            step()
            steps += 1
    loader = loader_speed(task.train, batch_size=n, workers=workers, seconds=seconds, collate=task.collate)
    return dict(loader=loader, network=n*steps/spent)


def describe_speeds(found: dict[str, float], workers: int) -> str:
    """Both numbers of `speeds`, and which one limits."""
    slow = min(found, key=lambda name: found[name])
    advice = dict(loader="more workers, or smaller files, would help", network="faster loading would not help")[slow]
    return (f"loader alone {found['loader']:.0f} samples/s with {workers} worker(s), network alone "
            f"{found['network']:.0f} samples/s: the {slow} limits; {advice}")
