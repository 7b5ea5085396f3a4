"""Batches on their way from a process that reads ahead."""
from __future__ import annotations

import errno
import pickle
import tempfile
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
from torch.utils._pytree import tree_map_only
from torch.utils.data import get_worker_info

__all__ = ["FEWER_WORKERS", "CannotShare", "ready_to_send", "what_helps"]

#: in every sentence about the machine: there the data are not to blame
FEWER_WORKERS = "use fewer workers"


class CannotShare(RuntimeError):
    """A batch cannot be handed on: the machine lacks something, whatever the batch holds. The sentence says what
    helps."""


class _Packed:
    """A batch as bytes, which is the batch itself again when another process has it."""

    def __init__(self, data: bytes):
        self.data = data

    def __reduce__(self) -> tuple[Any, tuple[bytes]]:
        return pickle.loads, (self.data,)


def what_helps(error: Exception) -> str:
    """What a machine lacks and what to do about it, where that is what an error of reading ahead is about; or empty."""
    words = str(error)
    files = "Too many open files" in words or "of ancdata" in words  # PyTorch's words for it
    if files or getattr(error, "errno", None) == errno.EMFILE:
        return (f"too many open files: on its way from a worker each tensor is one: {FEWER_WORKERS}, or allow more "
                "files (ulimit -n 65536)")
    if "AF_UNIX path too long" in words:
        return (f"the path of temporary files is too long for workers ({tempfile.gettempdir()}): set TMPDIR to a "
                f"shorter one, such as /tmp, or {FEWER_WORKERS}: none")
    if isinstance(error, RuntimeError) and "unable to" in words:
        return (f"no room in shared memory for a batch on its way from a worker ({words}): {FEWER_WORKERS} or "
                "smaller batches, or make room there (in a container: docker run --shm-size=8g, or --ipc=host)")
    return ""


def ready_to_send(batch: Any) -> Any:
    """In a worker of a `DataLoader`: a batch with everything done that sending it takes, its tensors in shared memory.

    PyTorch would do that later, in a thread, where an error drops the batch, and who asked for it waits forever. In any
    other process the batch stays as it is.

    Raises:
        CannotShare: The machine lacks something. What cannot be pickled raises its own error.
    """
    if get_worker_info() is None:
        return batch
    try:
        return _Packed(bytes(ForkingPickler.dumps(tree_map_only(torch.Tensor, torch.Tensor.share_memory_, batch))))
    except (OSError, RuntimeError) as error:
        if helps := what_helps(error):
            raise CannotShare(helps) from None
        raise
