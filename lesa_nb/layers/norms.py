"""Batch norms over several processes, on any device, and their running statistics.

`torch.nn.SyncBatchNorm` works on GPUs only, picks processes out with a mask, and so makes the host wait for the GPU
twice a layer and breaks a compiler's graph. `SyncBatchNorm` here does the same with sums in closed form and one
all-reduce forward and one backward, so that what is tested on a laptop is what runs on eight GPUs.
"""
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

_Module = TypeVar("_Module", bound=nn.Module)


def _summed(x: Tensor, group: Any) -> Tensor:
    """The sum of `x` over the processes of a group, in a tensor of its own."""
    total = x.clone()
    dist.all_reduce(total, group=group)
    return total


class _AllReduceSum(torch.autograd.Function):
    """The sum over all processes; so is its gradient, since each one's numbers reach the losses of all."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return _summed(x, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return _AllReduceSum.apply(grads[0], ctx.group), None


def several_processes() -> bool:
    """Whether a process group of more than one process is open."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def counts_together(norm: nn.Module) -> bool:
    """Whether a norm would take its statistics from the samples of several processes now.

    It then adds up sums over all processes, forward and backward: each of them has to take part, in the same order and
    with tensors of the same size, however many samples of its own it has.
    """
    return isinstance(norm, nn.SyncBatchNorm) and norm.training and several_processes()


def all_reduce_sum(x: Tensor, group: Any = None) -> Tensor:
    """Add `x` over all processes of `group` (None: all there are), differentiably; in a single process, `x` itself.

    Every process gets the sum, and every process's loss sends its gradient to everyone's `x`.
    """
    if not several_processes():
        return x
    return _AllReduceSum.apply(x, group or dist.group.WORLD)


def only_normalizes(norm: nn.Module) -> bool:
    """Whether a module is a batch norm of PyTorch or of this library and no more.

    A subclass with a `forward` of its own may do more: timm's BatchNormAct2d holds the activation, too.
    """
    known = (_BatchNorm.forward, nn.SyncBatchNorm.forward, SyncBatchNorm.forward)
    return isinstance(norm, _BatchNorm) and type(norm).forward in known


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


def _written_out(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, group: Any) -> Tensor:
    """What `_Normalize` computes, in float64 and in operations that can be differentiated as often as anybody likes."""
    C, axes, shape = x.shape[1], [d for d in range(x.ndim) if d != 1], [1, -1] + [1]*(x.ndim - 2)
    wide = x.double()
    own = torch.cat([wide.sum(axes), wide.square().sum(axes), wide.new_full((1,), x.numel()//C)])
    total, squares, count = _AllReduceSum.apply(own, group).split([C, C, 1])
    mean = total/count
    over = (squares/count - mean*mean + eps).rsqrt()
    y = (wide - mean.view(shape))*(over if weight is None else over*weight).view(shape)
    return (y if bias is None else y + bias.view(shape)).to(x.dtype)


class _Normalize(torch.autograd.Function):
    """Normalise x (B, C, ...) by mean and variance of all processes' samples; returns these and the count, too.

    With n_r numbers per channel in process r, of mean m_r and variance v_r, and n = sum_r n_r:

        m = sum_r n_r m_r/n,   v = sum_r n_r (v_r + m_r^2)/n - m^2,   y = (x - m) a + b,   a = weight/sqrt(v + eps)

    and with g the gradient for y, and both sums over all numbers of all processes,

        dx = a (g - sum g/n - (x - m)/(v + eps) * sum g (x - m)/n)

    A process without samples adds zeros. The sums travel in float64, where the difference of two large numbers does no
    harm; everything that is as large as x stays in float32 (or x's own float64).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, group: Any) -> Any:
        C, axes, shape = x.shape[1], [d for d in range(x.ndim) if d != 1], [1, -1] + [1]*(x.ndim - 2)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        n = x.numel()//C
        own = torch.zeros(2*C + 1, dtype=torch.float64, device=x.device)
        if n:
            v, m = (t.double() for t in torch.var_mean(wide, axes, correction=0))
            own[:C], own[C:-1] = n*m, n*(v + m*m)
            own[-1].fill_(n)
        total = _summed(own, group)
        count = total[-1]
        mean = total[:C]/count
        var = (total[C:-1]/count - mean*mean).clamp_min(0)
        over = (var + eps).rsqrt()
        ctx.axes, ctx.shape, ctx.eps, ctx.group = axes, shape, eps, group
        ctx.save_for_backward(x, weight, bias, mean, over, count)
        ctx.mark_non_differentiable(mean, var, count)
        scale = over if weight is None else over*weight
        y = (wide - mean.to(wide.dtype).view(shape))*scale.to(wide.dtype).view(shape)
        return (y if bias is None else y + bias.to(wide.dtype).view(shape)).to(x.dtype), mean, var, count

    @staticmethod
    def backward(ctx: Any, g: Tensor, *_: Tensor) -> Any:
        x, weight, bias, mean, over, count = ctx.saved_tensors
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # create_graph=True
            again = [t if needed else None for t, needed in zip((x, weight, bias), ctx.needs_input_grad)]
            wanted = [t for t in again if t is not None]
            y = _written_out(x, weight, bias, ctx.eps, ctx.group)
            found = iter(torch.autograd.grad(y, wanted, g, create_graph=True))
            return *(None if t is None else next(found) for t in again), None, None
        wide, shape = torch.promote_types(x.dtype, torch.float32), ctx.shape
        g, off = g.to(wide), x.to(wide) - mean.to(wide).view(shape)
        own = torch.stack([g.sum(ctx.axes), (g*off).sum(ctx.axes)]).double()
        s, t = (_summed(own, ctx.group)/count).unbind()
        a = over if weight is None else over*weight
        per_channel = (a, -a*s, -a*over*over*t)  # dx = a g - a s - a over^2 t (x - m)
        a, c, d = (numbers.to(wide).view(shape) for numbers in per_channel)
        dx = ((g*a).add_(c) + off*d).to(x.dtype) if ctx.needs_input_grad[0] else None
        dw = (own[1]*over).to(weight.dtype) if weight is not None and ctx.needs_input_grad[1] else None
        db = own[0].to(weight.dtype) if weight is not None and ctx.needs_input_grad[2] else None
        return dx, dw, db, None, None


class SyncBatchNorm(nn.SyncBatchNorm):
    """Batch norm over the samples of all processes, on any device, for inputs (B, C, ...).

    In training, one all-reduce forward and one backward; a process may have no samples at all. In eval mode and in a
    single process it is PyTorch's batch norm. With `create_graph=True` its gradient can be differentiated
    again, for which every process must ask.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not counts_together(self):
            return _BatchNorm.forward(self, input)  # nn.SyncBatchNorm's own refuses CPUs where a process group is open
        y, mean, var, count = _Normalize.apply(input, self.weight, self.bias, self.eps,
                                               self.process_group or dist.group.WORLD)
        if self.track_running_stats:
            update_running_stats(self, mean, var, count)
        return y


def convert_sync_batchnorm(model: _Module) -> _Module:
    """Let every batch norm of `model` count the samples of all processes, the ones inside LESA too.

    The modules stay the same objects with the same parameters and buffers, so optimizers and averages made before the
    conversion keep working. Returns `model`.

    A subclass of PyTorch's batch norms with a `forward` of its own, which would be lost, is a ValueError; then nothing
    has changed.
    """
    norms = {name: norm for name, norm in model.named_modules() if isinstance(norm, _BatchNorm)}
    if others := [name for name, norm in norms.items() if not only_normalizes(norm)]:
        kind = type(norms[others[0]])
        raise ValueError(f"expected batch norms of PyTorch, found {len(others)} with a forward of their own, first "
                         f"{others[0] or 'the network itself'}, a {kind.__module__}.{kind.__name__}, which may do "
                         "more: convert them with the function of the library they are from")
    for norm in norms.values():
        norm.__class__ = SyncBatchNorm
        setattr(norm, "process_group", None)  # SyncBatchNorm's: all processes
    return model
