"""Tensors that are the same at every step, made once for each device: to send one, a GPU's host would wait."""
from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any

import torch
from torch import Tensor


def kept(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Decorate a function of hashable arguments to make each tensor once, not at every step. Do not write into them.

    What an exporter makes is not kept: it is part of a graph.
    """
    @lru_cache(maxsize=80)
    def remembered(*arguments: Any) -> Tensor:
        with torch.inference_mode(False):  # what is kept must serve in training too
            return make(*arguments)

    @wraps(make)
    def made(*arguments: Any) -> Tensor:
        return make(*arguments) if torch.compiler.is_exporting() else remembered(*arguments)

    return made


@kept
def constant(numbers: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Numbers as a tensor, brought to a device once."""
    return torch.tensor(numbers, device=device, dtype=dtype)
