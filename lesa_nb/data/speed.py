"""How many samples a second a `DataLoader` delivers when nobody trains."""
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from lesa_nb.io.shared import in_shared_memory


def _key_batches(n: int, batch_size: int, seed: int) -> Iterator[list[tuple[int, int]]]:
    """Batches of sample keys (epoch, index) without end, each epoch in a new order."""
    keys: list[tuple[int, int]] = []
    epoch, generator = 0, torch.Generator().manual_seed(seed)
    while True:
        while len(keys) < batch_size:
            keys += [(epoch, index) for index in torch.randperm(n, generator=generator).tolist()]
            epoch += 1
        yield keys[:batch_size]
        keys = keys[batch_size:]


def loader_speed(dataset: Dataset, *, batch_size: int = 64, workers: int = 0, seconds: float = 5.0,
                 collate: Callable | None = None, seed: int = 0) -> float:
    """Samples per second.

    dataset: with keys (epoch, index), which come as in training; workers: processes, 0 for none besides this one;
    seconds: to measure for, after the first batch of each worker; collate: samples -> batch, None for torch's own;
    seed: of the order. Refuses an empty data set and wishes that make no sense with a ValueError.
    """
    n = len(dataset)  # type: ignore[arg-type]  # torch's Dataset promises no length; those with keys have one
    if not n:
        raise ValueError("no pictures to load")
    if batch_size < 1 or workers < 0 or seconds <= 0:
        raise ValueError("need batch_size >= 1, workers >= 0 and seconds > 0, "
                         f"got {batch_size}, {workers} and {seconds}")
    keys = _key_batches(n, batch_size, seed)

    def together(samples: list) -> Any:
        return in_shared_memory((collate or default_collate)(samples))

    loader = DataLoader(dataset, batch_sampler=keys, num_workers=workers, collate_fn=together)
    batches = iter(loader)
    for _ in range(max(1, workers)):
        next(batches)
    samples, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds or not samples:
        next(batches)
        samples += batch_size
    return samples/spent
