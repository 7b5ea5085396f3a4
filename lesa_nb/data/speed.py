"""How many samples a second a `DataLoader` delivers when nobody trains."""
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from lesa_nb.io.shared import CannotShare, ready_to_send


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


class _Batches(Dataset):
    """Makes whole batches. What is wrong with a picture comes as an error, not as a traceback of a worker's."""

    def __init__(self, dataset: Any, collate: Callable):
        self.dataset, self.collate = dataset, collate

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> Any:
        try:
            return ready_to_send(self.collate([self.dataset[key] for key in keys]))
        except (OSError, ValueError, CannotShare) as error:
            return type(error)(str(error))


def _as_it_is(batch: Any) -> Any:
    return batch


def loader_speed(dataset: Dataset, *, batch_size: int = 64, workers: int = 0, seconds: float = 5.0,
                 collate: Callable | None = None, seed: int = 0) -> float:
    """Samples per second.

    dataset: with keys (epoch, index), which come as in training; workers: processes, 0 for none besides this one;
    seconds: to measure for, after the first batch of each worker; collate: samples -> batch, None for torch's own;
    seed: of the order. Refuses an empty data set and wishes that make no sense with a ValueError. A sample that cannot
    be read raises its own error.
    """
    n = len(dataset)  # type: ignore[arg-type]  # torch's Dataset promises no length; those with keys have one
    if not n:
        raise ValueError("no pictures to load")
    if batch_size < 1 or workers < 0 or seconds <= 0:
        raise ValueError("need batch_size >= 1, workers >= 0 and seconds > 0, "
                         f"got {batch_size}, {workers} and {seconds}")
    keys = _key_batches(n, batch_size, seed)
    made = _Batches(dataset, collate or default_collate)
    batches = iter(DataLoader(made, batch_sampler=keys, num_workers=workers, collate_fn=_as_it_is))

    def take() -> None:
        if isinstance(batch := next(batches), Exception):
            raise batch

    for _ in range(max(1, workers)):
        take()
    samples, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds or not samples:
        take()
        samples += batch_size
    return samples/spent
