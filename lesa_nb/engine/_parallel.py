"""A network that several processes train: gradients averaged, batch norms over all samples if the recipe says so."""
from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lesa_nb.engine.group import Ranks
from lesa_nb.engine.recipe import Recipe
from lesa_nb.layers.norms import convert_sync_batchnorm

__all__ = ["averaging_gradients"]


def _lay_out_gradient(parameter: nn.Parameter) -> None:
    """Let the gradient of a parameter have its strides.

    The weights of a 1x1 convolution fit several memory formats, and PyTorch picks one for the weights and another for
    their gradient. DistributedDataParallel keeps its buckets in the strides of the weights, so it would copy each such
    gradient piece by piece, and warn about it.
    """
    size, stride = parameter.size(), parameter.stride()
    alike = [d for d, n in enumerate(size) if n > 1]

    def relaid(grad: Tensor) -> Tensor:
        if grad.stride() == stride:
            return grad
        if all(grad.stride(d) == stride[d] for d in alike):
            return grad.as_strided(size, stride)  # only axes of one entry differ: nothing moves
        return torch.empty_strided(size, stride, dtype=grad.dtype, device=grad.device).copy_(grad)

    parameter.register_hook(relaid)


def averaging_gradients(model: nn.Module, recipe: Recipe, device: torch.device, ranks: Ranks) -> nn.Module:
    """The network as a run trains it: itself, or in a wrapper that averages the gradients of all processes.

    The network's own modules, parameters and buffers stay the same objects. Batch norms over all processes go in after
    the wrapper, which refuses them on a CPU.
    """
    if ranks.size == 1:
        return model
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.ndim == 4:
            _lay_out_gradient(parameter)
    # Norms over all processes keep equal statistics; others part, and then the main process's count.
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # before torch 2.14
    options: dict[str, Any] = {buffers: not recipe.sync_norm}
    wrapped = DistributedDataParallel(model, [device.index] if device.type == "cuda" else None, **options)
    if recipe.sync_norm:
        convert_sync_batchnorm(model)
    return wrapped
