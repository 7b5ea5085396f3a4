"""What goes wrong in a step, in sentences that say what helps."""
from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import torch

from lesa_nb.engine.group import Ranks
from lesa_nb.engine.loader import worker_died
from lesa_nb.engine.loop import NotFinite
from lesa_nb.engine.recipe import Recipe
from lesa_nb.engine.signals import Stopped
from lesa_nb.io.shared import FEWER_WORKERS

__all__ = ["explain_errors", "explain_step", "left_early"]

#: how PyTorch and its libraries say that memory does not suffice, where it is no error of a class of its own
_NO_MEMORY = ("allocate memory", "CUDA error: out of memory", "_STATUS_ALLOC_FAILED")


class _Place(Protocol):
    """Where a training stands."""

    epoch: int
    step: int
    per_epoch: int


def left_early(at: _Place, folder: Path, begun: bool, signal: int, reasons: Sequence[str]) -> Stopped | ValueError:
    """What to raise when a run ends before its time.

    Args:
        at: The training that is left.
        folder: Of the run.
        begun: Whether there is a checkpoint to go on from.
        signal: That asked for it; 0 where a sample could not be read.
        reasons: Of each process why, or nothing.
    """
    where = f"step {at.step} of {at.per_epoch}; everything is in {folder}"
    if signal:
        return Stopped(f"stopped in epoch {at.epoch + 1} after {where}: resume goes on from here", signal)
    reason = next(filter(None, reasons))
    helps = "" if FEWER_WORKERS in reason else "; lesa verify-data names every such file"  # the data are not to blame
    if not begun:
        return ValueError(f"{reason}. Nothing was trained: mend it and start again{helps}")
    return ValueError(f"{reason}. Stopped in epoch {at.epoch + 1} before {where}: mend it and resume{helps}")


@contextlib.contextmanager
def explain_errors(device: torch.device, samples: int, advice: str) -> Iterator[None]:
    """Around a step: if memory does not suffice, say with what size, and what helps; likewise if a reader has died.

    Args:
        device: That the step is made on.
        samples: At once.
        advice: What helps against too many of them.

    Raises:
        MemoryError: In place of PyTorch's own error, which a CPU does not have.
        ValueError: A process that reads ahead has died.
    """
    try:
        yield
    except RuntimeError as error:
        if died := worker_died(error):
            raise ValueError(f"{died}. The last checkpoint is intact") from None
        if not isinstance(error, torch.OutOfMemoryError) and not any(words in str(error) for words in _NO_MEMORY):
            raise
        peak = ""
        if device.type == "cuda":
            peak = f", {torch.cuda.max_memory_allocated(device)/2**30:.1f} GiB in use at most"
        raise MemoryError(f"{device} ran out of memory with {samples} samples at once{peak}: {advice}. "
                          "The last checkpoint is intact") from None


def _name_samples(names: Sequence[str], losses: dict[str, float], ranks: Ranks) -> str:
    """The samples of a step whose gradient is not finite: of the processes whose loss is not finite, or of all.

    Args:
        names: Of this process's samples.
        losses: Of this process, by name.
        ranks: All processes come here together.
    """
    everyone = ranks.gather((math.isfinite(sum(losses.values())), list(names)))
    guilty = [name for finite, some in everyone if not finite for name in some] or list(names)
    return ", ".join(guilty[:16]) + (f" and {len(guilty) - 16} more" if len(guilty) > 16 else "")


@contextlib.contextmanager
def explain_step(
    recipe: Recipe, ranks: Ranks, device: torch.device, *, where: str, names: Callable[[], Sequence[str]]
) -> Iterator[None]:
    """Around a step of training: `explain_errors`, and which samples a gradient that is not finite came from.

    Args:
        recipe: Of the run.
        ranks: All processes come here together.
        device: That the step is made on.
        where: Epoch and step, for the sentence.
        names: Of this process's samples.

    Raises:
        FloatingPointError: The gradient is not finite; the sentence names the samples. The weights were not updated.
        MemoryError, ValueError: As `explain_errors`.
    """
    advice = (f"accumulate={2*recipe.accumulate} halves that and gives the same steps (but for batch norm's "
              "statistics), bfloat16 helps too; a run goes on with both by accept_changed_recipe=True "
              "(--accept-changed-recipe). So do smaller images, in a new run")
    try:
        with explain_errors(device, recipe.local_batch_size(ranks.size), advice):
            yield
    except NotFinite as error:
        guilty = _name_samples(names(), error.losses, ranks)
        raise FloatingPointError(f"{where}: {error}; samples: {guilty}. The weights were not updated: look at these "
                                 "samples, or resume with a smaller rate and accept_changed_recipe=True (--lr, "
                                 "--accept-changed-recipe)") from None
