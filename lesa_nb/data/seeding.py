"""Random numbers that belong to a sample: the same for the same seed, epoch and index, whoever asks and when."""
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def _mixed_seed(*numbers: int) -> int:
    """One seed of 64 bits from several whole numbers, mixed: seed 1, epoch 0 is not seed 0, epoch 1."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


@contextmanager
def seeded(seed: int, epoch: int, index: int) -> Iterator[None]:
    """Inside, torch's random numbers on the CPU depend on these three numbers alone, eq. (15.2); outside, nothing
    changes.

    A GPU's generators go on undisturbed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(_mixed_seed(seed, epoch, index))
        yield
