"""Parts that are one step of a graph for torch.fx, and so for torchvision's `create_feature_extractor`.

torch.fx runs a network once with a stand-in for its input and notes what is asked of it. A stand-in has no shape, so a
part that chooses by shapes (how to attend, what to refuse) cannot be followed, and does not have to be: it is noted as
one step, and runs as it always does when the graph is used, with maps of any size.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.fx import Proxy

__all__ = ["Proxy", "as_one_step"]


def as_one_step(part: nn.Module | Callable[[Any], Any], x: Any) -> Any:
    """Note a part as one step of the graph that is being traced.

    Args:
        part: A module of the network that is traced, or a function that has a name in its module.
        x: The part's one input, for which `isinstance(x, Proxy)` holds.

    Returns:
        The stand-in for what the part will give.
    """
    if isinstance(part, nn.Module):
        return x.tracer.create_proxy("call_module", x.tracer.path_of_module(part), (x,), {})
    return x.tracer.create_proxy("call_function", part, (x,), {})
