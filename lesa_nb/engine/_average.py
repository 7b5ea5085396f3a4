"""PyTorch's average of weights, for a host that does not wait for its GPU."""
from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

__all__ = ["PatientAverage"]


class PatientAverage(AveragedModel):
    """`AveragedModel` with the same averages and the same state dict, for a host that does not wait.

    PyTorch's own sends its count of updates to the device twice at every update, and launches four kernels for each
    whole number among the buffers, such as the batches that a norm has seen. Here the count stays on the CPU, and whole
    numbers, of which there is no average, are copied, all in one go. It needs a `multi_avg_fn` that does not look at
    the count, and averages buffers too.
    """

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Average in the parameters and buffers of `model`; the first time, copy them."""
        mine, theirs = ([*network.parameters(), *network.buffers()] for network in (self.module, model))
        first, pairs = bool(self.n_averaged == 0), dict[torch.dtype | None, list[tuple[Tensor, Tensor]]]()
        for own, new in zip(mine, theirs):
            averaged = own.is_floating_point() and not first
            pairs.setdefault(own.dtype if averaged else None, []).append((own, new))
        assert self.multi_avg_fn is not None
        for dtype, together in pairs.items():
            own_list, new_list = map(list, zip(*together))
            if dtype is None:
                torch._foreach_copy_(own_list, new_list)
            else:
                self.multi_avg_fn(own_list, new_list, self.n_averaged)
        self.n_averaged += 1
