"""Batch norms over several processes, on any device, and their running statistics.

`torch.nn.SyncBatchNorm` works on GPUs only. `SyncBatchNorm` here is the same module that also adds up its sums on a
CPU, so that what is tested on a laptop is what runs on eight GPUs.
"""
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

_Module = TypeVar("_Module", bound=nn.Module)


class _AllReduceSum(torch.autograd.Function):
    """The sum over all processes; so is its gradient, since each one's numbers reach the losses of all."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        total = x.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return _AllReduceSum.apply(grads[0], ctx.group), None


def all_reduce_sum(x: Tensor, group: Any = None) -> Tensor:
    """Add `x` over all processes of `group` (None: all there are), differentiably; without a process group, `x` itself.

    Every process gets the sum, and every process's loss sends its gradient to everyone's `x`.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return x
    return _AllReduceSum.apply(x, group or dist.group.WORLD)


@torch.no_grad()
def update_running_stats(norm: _BatchNorm, mean: Tensor, var: Tensor, count: Tensor | float) -> None:
    """Move the running averages as `nn.BatchNorm2d` does.

    `mean` and `var` (C,) are the batch's own, the variance biased as it is used to normalise; `count` numbers went
    into each. The running variance is the unbiased one. `momentum=None` means a plain average of all batches.
    """
    assert norm.num_batches_tracked is not None and norm.running_mean is not None and norm.running_var is not None
    norm.num_batches_tracked += 1
    share = 1/norm.num_batches_tracked.double() if norm.momentum is None else norm.momentum
    norm.running_mean += share*(mean - norm.running_mean)
    norm.running_var += share*(var*count/(count - 1) - norm.running_var)


class SyncBatchNorm(nn.SyncBatchNorm):
    """Batch norm over the samples of all processes, on any device, for inputs (B, C, ...).

    With n_r numbers x per channel in process r: mean = sum_r sum x / sum_r n_r, and the variance is the mean square
    less the squared mean. The sums are added in float64, where the difference of two large numbers does no harm. On a
    GPU, in eval mode and in a single process PyTorch's own batch norm does the work.
    """

    def forward(self, input: Tensor) -> Tensor:
        alone = not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1
        if input.is_cuda or not self.training or alone:
            return super().forward(input)
        channels, others = input.shape[1], [d for d in range(input.ndim) if d != 1]
        x = input.double()
        count = x.new_tensor([x.numel()/channels])
        sums = all_reduce_sum(torch.cat([x.sum(others), x.square().sum(others), count]), self.process_group)
        count = sums[-1].detach()
        mean = sums[:channels]/count
        var = sums[channels:-1]/count - mean**2
        if self.track_running_stats:
            update_running_stats(self, mean, var, count)
        shape = [1, channels] + [1]*(x.ndim - 2)
        scale = (var + self.eps).rsqrt()*(self.weight.double() if self.affine else 1)
        shift = (self.bias.double() if self.affine else 0) - mean*scale
        return (x*scale.view(shape) + shift.view(shape)).to(input.dtype)


def convert_sync_batchnorm(model: _Module) -> _Module:
    """Let every batch norm of `model` count the samples of all processes, the ones inside LESA too.

    The modules stay the same objects with the same parameters and buffers, so optimizers and averages made before the
    conversion keep working. Returns `model`.
    """
    for norm in model.modules():
        if isinstance(norm, _BatchNorm):
            norm.__class__ = SyncBatchNorm
            setattr(norm, "process_group", None)  # SyncBatchNorm's: all processes
    return model
