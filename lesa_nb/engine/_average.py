"""PyTorch's average of weights, for a host that does not wait for its GPU."""
from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

__all__ = ["PatientAverage"]


class PatientAverage(AveragedModel):
    """`AveragedModel` with the same numbers and the same state dict, all of whose tensors move without a question.

    PyTorch's own sends its count of updates to the device twice at every update, and waits. Here the count stays on the
    CPU. It needs a `multi_avg_fn` that does not look at the count, and averages buffers too.
    """

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Average in the parameters and buffers of `model`; the first time, copy them."""
        mine, theirs = ([*network.parameters(), *network.buffers()] for network in (self.module, model))
        if self.n_averaged == 0:
            for own, new in zip(mine, theirs):
                own.copy_(new)
        else:
            pairs: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
            for own, new in zip(mine, theirs):
                for tensors, tensor in zip(pairs.setdefault(own.dtype, ([], [])), (own, new)):
                    tensors.append(tensor)
            assert self.multi_avg_fn is not None
            for own_list, new_list in pairs.values():
                self.multi_avg_fn(own_list, new_list, self.n_averaged)
        self.n_averaged += 1
