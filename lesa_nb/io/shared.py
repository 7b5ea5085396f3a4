"""Tensors on their way from a process that reads ahead."""
from __future__ import annotations

from typing import Any

import torch
from torch.utils._pytree import tree_map_only
from torch.utils.data import get_worker_info

__all__ = ["in_shared_memory"]


def in_shared_memory(batch: Any) -> Any:
    """In a worker of a `DataLoader`: a batch whose tensors lie where the process that asked for it will find them.

    Without room there it raises a RuntimeError. PyTorch would put them there later, in a thread, where an error drops
    the batch, and who asked for it waits forever. In any other process the batch stays as it is.
    """
    if get_worker_info() is None:
        return batch
    return tree_map_only(torch.Tensor, torch.Tensor.share_memory_, batch)
