"""Numbers of Python as tensors, made once for each device: to send them at every step, a GPU's host would wait."""
from functools import lru_cache

import torch
from torch import Tensor


def constant(numbers: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Numbers as a tensor, brought to a device once and not at every step. Do not write into it."""
    if torch.compiler.is_exporting():  # what an exporter is given must not outlive its graph
        return torch.tensor(numbers, device=device, dtype=dtype)
    return _kept(numbers, device, dtype)


@lru_cache(maxsize=80)
def _kept(numbers: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):  # what is kept must serve in training too
        return torch.tensor(numbers, device=device, dtype=dtype)
