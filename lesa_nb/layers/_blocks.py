"""What attention in blocks stands on: cutting the work, buffers that are used again, a softmax in place, operators.

The mathematics is in notebook 07; here is what keeps it fast and what registers it with PyTorch.
"""
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

#: So many channels K + H + W at most go through a fused kernel on a GPU; beyond, row blocks do the work.
#: What speaks for the kernel: row blocks write and read their scores, some 24 bytes for each forward and 56 backward,
#: while the kernel keeps them on the chip. What speaks against it: H + W more multiply-adds for each score, and three
#: times as many backward. A data-centre GPU does 10 (plain float32) to 25 multiply-adds (in three TF32 products, as the
#: kernel does them) in the time of a byte, so both are even at about H + W = 250 to 600 forward and 200 to 450 backward
#: if both run at their best, which narrow products do not. 256 stays below, and is also the widest that the flash
#: kernels take; the published detectors have 144 to 224. benchmarks/gpu.py measures both sides of it.
MOST_CHANNELS = 256

#: A logit this far below the largest of its row has a weight of exp(-60) = 1e-26: nothing, but not denormal.
_DEEP = 60.


def _even(n: int, most: int) -> int:
    """The size of parts of `n` things as equal as can be, at most `most` (at least 1) each."""
    return -(-n//-(-n//max(1, min(n, most))))


def blocks(pairs: int, positions: int, unit: int, budget: int, lanes: int) -> list[tuple[slice, slice]]:
    """Cut (pairs, rows of scores) into blocks: slices of image-head pairs and of rows, as (pairs, rows).

    A row has `positions` scores; a block holds at most `budget` scores, but at least `unit` rows of one pair; its rows
    are a multiple of `unit`, and it has `lanes` pairs if they fit. Without pairs there are no blocks.
    """
    if not pairs:
        return []
    rows = _even(positions//unit, budget//(positions*unit*min(pairs, lanes)))*unit
    some = _even(pairs, budget//(rows*positions))
    return [(slice(p, min(p + some, pairs)), slice(i, min(i + rows, positions)))
            for p in range(0, pairs, some) for i in range(0, positions, rows)]


def block_shape(p: slice, i: slice, positions: int) -> tuple[int, int, int]:
    """Pairs, rows and columns of the scores of one block."""
    return p.stop - p.start, i.stop - i.start, positions


class Scratch:
    """Buffers for one call: getting fresh memory for every block would cost more than the block's products."""

    def __init__(self, like: Tensor) -> None:
        self.like = like
        self.buffers: dict[str, Tensor] = {}

    def __call__(self, name: str, *shape: int) -> Tensor:
        """An uninitialised tensor of this shape; the next one of the same name takes its memory."""
        n = math.prod(shape)
        if name not in self.buffers or len(self.buffers[name]) < n:
            self.buffers[name] = self.like.new_empty(n)
        return self.buffers[name][:n].view(shape)


def can_be_deep(q: Tensor, k: Tensor, h: Tensor, w: Tensor) -> bool:
    """Can logits of a row be more than `_DEEP` apart? Not if the bound of their spread says no; only CPUs mind.

    q, k: (P, K, N) queries and keys; h, w: (P, N, H), (P, N, W) row and column part, see `row_attention`
    """
    if q.device.type != "cpu":
        return False
    parts = sum((part.amax(-1) - part.amin(-1)).amax(-1) for part in (h, w))
    return bool((2*q.norm(dim=1).amax(-1)*k.norm(dim=1).amax(-1) + parts > _DEEP).any())


def weigh_(logits: Tensor, deep: bool) -> Tensor:
    """Logits to weights, in place: a softmax over the last axis.

    With `deep`, logits are raised to `_DEEP` below the largest of their row first, since denormal numbers are a hundred
    times slower on many processors.
    """
    if deep:
        torch.maximum(logits, logits.amax(-1, keepdim=True) - _DEEP, out=logits)
    return torch.softmax(logits, -1, out=logits)


def unweigh_(grad: Tensor, weights: Tensor) -> Tensor:
    """Gradients of weights to gradients of logits, in place: w*(g - sum of w*g over the last axis), in one pass."""
    return torch._softmax_backward_data(grad, weights, -1, weights.dtype, grad_input=grad)


def in_full_precision(sums: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Tensor:
    """`sums(q, k, v, *rest)` in float32 at least, whatever autocast says; the answer has the type of q."""
    qkv = [t.float() if t.dtype in (torch.bfloat16, torch.float16) else t for t in (q, k, v)]
    if q.is_meta:  # knows no autocast; PyTorch 2.11's compiler cannot follow `is_autocast_available`
        return sums(*qkv, *rest).to(q.dtype)
    with torch.autocast(q.device.type, enabled=False):
        return sums(*qkv, *rest).to(q.dtype)


def _gradients_again(written_out: Callable[..., Tensor], inputs: tuple[Tensor, ...],
                     grad: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients that can be differentiated again, by the form with N x N tensors: `create_graph=True` lands here."""
    wanted = [t for t in inputs if t.requires_grad]
    grads = iter(torch.autograd.grad(written_out(*inputs), wanted, grad, create_graph=True))
    return tuple(next(grads) if t.requires_grad else None for t in inputs)


class _DifferentiableAgain(torch.autograd.Function):
    """A fused function with its own gradient; the written-out form gives one that can be differentiated again."""

    @staticmethod
    def forward(ctx: Any, fused: Callable[..., Tensor], written_out: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*inputs)
        ctx.fused, ctx.written_out = fused, written_out
        ctx.inner = ctx.out = None
        # Whoever saves tensors another way, as a checkpoint does, would keep these beside: backward makes them again.
        if torch._C._autograd._top_saved_tensors_default_hooks(True) is not None:
            return fused(*inputs)
        ctx.inner, ctx.out = _DifferentiableAgain._call(ctx, inputs)
        return ctx.out.detach()

    @staticmethod
    def _call(ctx: Any, inputs: tuple[Tensor, ...]) -> tuple[list[Tensor], Tensor]:
        with torch.enable_grad():
            inner = [t.detach().requires_grad_(needed) for t, needed in zip(inputs, ctx.needs_input_grad[2:])]
            return inner, ctx.fused(*inner)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        inputs = ctx.saved_tensors
        if torch.is_grad_enabled():
            return None, None, *_gradients_again(ctx.written_out, inputs, grads[0])
        inner, out = (ctx.inner, ctx.out) if ctx.out is not None else _DifferentiableAgain._call(ctx, inputs)
        ctx.inner = ctx.out = None  # what the fused kernel kept goes once used; a second backward computes it again
        found = iter(torch.autograd.grad(out, [t for t in inner if t.requires_grad], grads[0]))
        return None, None, *(next(found) if t.requires_grad else None for t in inner)


def differentiable_again(fused: Callable[..., Tensor], written_out: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """`fused(*inputs)`, whose gradient can be differentiated again although a fused kernel's cannot.

    First gradients are the fused kernel's own; with `create_graph=True` they come from `written_out(*inputs)`, the same
    function in plain operations.
    """
    if torch.compiler.is_compiling() or not (torch.is_grad_enabled() and any(t.requires_grad for t in inputs)):
        return fused(*inputs)
    return _DifferentiableAgain.apply(fused, written_out, *inputs)


def side_by_side(*parts: Tensor, multiple: int = 8) -> Tensor:
    """Join tensors along their last axis, filled up with zeros to a multiple of 8 channels, contiguous.

    That is the layout in which every fused attention kernel takes its operands; zeros change no product.
    """
    missing = -sum(part.shape[-1] for part in parts) % multiple
    return torch.cat([*parts, parts[0].new_zeros(*parts[0].shape[:-1], missing)], -1).contiguous()


def half_of_a_gpu(q: Tensor) -> torch.dtype | None:
    """bfloat16 where a GPU's network handed over bfloat16, so that its fused kernel may use what is built for it."""
    return torch.bfloat16 if q.is_cuda and q.dtype == torch.bfloat16 else None


def in_halves(queries: tuple[Tensor, ...], keys: tuple[Tensor, ...],
              half: torch.dtype | None) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The parts of queries as sums of two numbers each, and the parts of keys twice: (q + dq).k = [q, dq].[k, k].

    A bfloat16 has 8 bits: a logit of 10 would be off by 0.02, and its weight by 2 %. Two of them have 16, and products
    of bfloat16 are exact in the float32 in which a kernel adds them up. The keys' numbers are bfloat16's already,
    whatever their type. Without `half` both stay as they are.
    """
    if half is None:
        return queries, keys
    high = tuple(part.to(half) for part in queries)
    low = tuple((part - whole).to(half).detach() for part, whole in zip(queries, high))  # its gradient is that of high
    once = tuple(part.to(half) for part in keys)
    return high + low, once + once


def register_gradients(op: Any, backward_op: Any, written_out: Callable[..., Tensor], *, tensors: int) -> None:
    """Give a custom operator its gradients.

    op: the operator; its first `tensors` arguments are tensors, then come numbers, the last of which is the budget
    backward_op: takes the output's gradient and all of op's arguments; returns one gradient for each tensor
    written_out: the same function of all arguments but the budget, which PyTorch can differentiate as often as it likes
    """
    def setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:tensors])
        ctx.numbers = inputs[tensors:]

    def backward(ctx: Any, grad: Tensor) -> tuple:
        inputs, numbers = ctx.saved_tensors, ctx.numbers
        if torch.is_grad_enabled():
            grads = _gradients_again(lambda *t: written_out(*t, *numbers[:-1]), inputs, grad)
        else:
            grads = backward_op(grad.contiguous(), *inputs, *numbers)
        return *grads, *[None]*len(numbers)

    def shapes(grad: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
        return tuple(t.new_empty(t.shape) for t in inputs[:tensors])

    op.register_autograd(backward, setup_context=setup)
    backward_op.register_fake(shapes)
