"""Tensors on their way from a process that reads ahead."""
from __future__ import annotations

from typing import Any

import torch
from torch.utils._pytree import tree_map_only
from torch.utils.data import get_worker_info

__all__ = ["NoRoomToShare", "in_shared_memory"]


class NoRoomToShare(RuntimeError):
    """A batch found no room in shared memory."""


def in_shared_memory(batch: Any) -> Any:
    """In a worker of a `DataLoader`: a batch whose tensors lie where the process that asked for it will find them.

    PyTorch would put them there later, in a thread, where an error drops the batch, and who asked for it waits forever.
    In any other process the batch stays as it is.

    Raises:
        NoRoomToShare: There is no room.
    """
    if get_worker_info() is None:
        return batch
    try:
        return tree_map_only(torch.Tensor, torch.Tensor.share_memory_, batch)
    except RuntimeError as error:
        if "unable to" not in str(error) or "Too many open files" in str(error):
            raise
        raise NoRoomToShare(f"no room in shared memory for a batch on its way from a worker ({error})") from None
