"""Tensors that are the same at every step, made once for each device: to send one, a GPU's host would wait."""
from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any

import torch
from torch import Tensor

_INFRA = torch._C._TorchDispatchModeKey
#: PyTorch's own modes in which tensors are stand-ins: FakeTensorMode, make_fx, functionalization
_STAND_INS = (_INFRA.FAKE, _INFRA.PROXY, _INFRA.FUNCTIONAL)


def _followed() -> bool:
    """Whether somebody follows this call without numbers, so that what it makes is no tensor for others."""
    if torch.compiler.is_compiling():
        return torch.compiler.is_exporting()
    return any(torch._C._get_dispatch_mode(mode) is not None for mode in _STAND_INS)


def kept(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Decorate a function of hashable arguments to make each tensor once, not at every step. Do not write into them.

    What is made for an exporter, or in a mode of stand-ins (FakeTensorMode), is not kept: it is of no use to others.
    """
    @lru_cache(maxsize=80)
    def remembered(*arguments: Any) -> Tensor:
        with torch.inference_mode(False):  # what is kept must serve in training too
            return make(*arguments)

    @wraps(make)
    def made(*arguments: Any) -> Tensor:
        return make(*arguments) if _followed() else remembered(*arguments)

    return made


@kept
def constant(numbers: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Numbers as a tensor, brought to a device once."""
    return torch.tensor(numbers, device=device, dtype=dtype)
