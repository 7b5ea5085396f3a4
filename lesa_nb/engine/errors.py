"""What goes wrong in a step, in sentences that say what helps."""
from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence

import torch

from lesa_nb.engine.group import Ranks

__all__ = ["explain_errors", "name_samples"]


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
        if "DataLoader worker (pid" in str(error):
            reason = str(error).splitlines()[0]
            raise ValueError(f"a process that reads ahead has died ({reason}): use fewer workers, or free memory. "
                             "The last checkpoint is intact") from None
        if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        peak = ""
        if device.type == "cuda":
            peak = f", {torch.cuda.max_memory_allocated(device)/2**30:.1f} GiB in use at most"
        raise MemoryError(f"{device} ran out of memory with {samples} samples at once{peak}: {advice}. "
                          "The last checkpoint is intact") from None


def name_samples(names: Sequence[str], losses: dict[str, float], ranks: Ranks) -> str:
    """The samples of a step whose gradient is not finite: of the processes whose loss is not finite, or of all.

    Args:
        names: Of this process's samples.
        losses: Of this process, by name.
        ranks: All processes come here together.
    """
    everyone = ranks.gather((math.isfinite(sum(losses.values())), list(names)))
    guilty = [name for finite, some in everyone if not finite for name in some] or list(names)
    return ", ".join(guilty[:16]) + (f" and {len(guilty) - 16} more" if len(guilty) > 16 else "")
