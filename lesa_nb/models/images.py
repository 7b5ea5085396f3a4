"""What a classifier asks of a batch of images."""
from __future__ import annotations

import torch
from torch import Tensor

from lesa_nb.layers.tracing import Proxy, as_one_step

__all__ = ["check_batch"]


def check_batch(x: Tensor, weight: Tensor | None = None) -> Tensor:
    """The images, if they are a float batch (B, 3, H, W), and, where autocast does not see to it, of the type of the
    `weight` that they meet; else ValueError says what is wrong and how to mend it."""
    if isinstance(x, Proxy):
        return as_one_step(check_batch, x)
    if x.ndim != 4 or x.shape[1] != 3 or 0 in x.shape[2:]:
        hint = ("; add the batch axis with x[None]" if x.ndim == 3
                else "; move the channels to the front with x.permute(0, 3, 1, 2)" if x.shape[-1] == 3 else "")
        raise ValueError(f"need images of shape (B, 3, H, W) with at least one pixel, got {tuple(x.shape)}{hint}")
    if not x.is_floating_point():
        raise ValueError(f"need normalised floating-point images, got {x.dtype}")
    if weight is not None and x.dtype != weight.dtype:
        if x.is_meta or not torch.is_autocast_enabled(x.device.type):
            raise ValueError(f"expected images of {weight.dtype} like the network's weights, found {x.dtype}: convert "
                             f"the images with .to({weight.dtype}) or the network with .to({x.dtype})")
    return x
