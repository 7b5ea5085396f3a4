"""PyTorch's own switches while a run goes: fast where shapes stay the same, the same numbers again where asked."""
from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch
from torch import nn

from lesa_nb.engine.recipe import Recipe

__all__ = ["check_recipe", "not_deterministic", "backends"]

#: class of a network's part -> the operator in it that has no deterministic form on a GPU
_OPERATORS = {"DeformableConv2d": "deform_conv2d", "MaskRCNN": "roi_align"}


def check_recipe(recipe: Recipe, device: torch.device, processes: int) -> None:
    """Refuse what cannot be trained here.

    Raises:
        ValueError: The batch cannot be cut among the processes, or the GPU computes bfloat16 in software only.
    """
    recipe.local_batch_size(processes)
    if device.type != "cuda" or recipe.precision != "bfloat16":
        return
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ValueError(f"{torch.cuda.get_device_name(device)} does not compute in bfloat16: choose --precision "
                         "float16 (its loss is scaled, so that small gradients survive) or float32")


def not_deterministic(model: nn.Module) -> list[str]:
    """Names of the operators in a network that have no deterministic form on a GPU, as far as this library uses them.

    A fused attention kernel is among them then, too: PyTorch makes it deterministic only where everything else is.
    """
    names = {_OPERATORS[kind.__name__] for part in model.modules() for kind in type(part).__mro__
             if kind.__name__ in _OPERATORS}
    return sorted(names | {"scaled_dot_product_attention"}) if names else []


@contextlib.contextmanager
def backends(recipe: Recipe, model: nn.Module, device: torch.device, *, fixed_size: bool = False) -> Iterator[None]:
    """Set PyTorch's switches as a recipe wants them, and set them back at the end.

    On a GPU: TF32 in products and convolutions, or neither; trying out which convolution is fastest, where images have
    one size. On a CPU, where a compiled network meets images of many sizes: no choice of layouts by the compiler, which
    in PyTorch 2.10 to 2.14 may fail with gradients of another size than the first ones.
    With `recipe.deterministic` nothing is tried out, and PyTorch takes deterministic forms; it refuses
    operators that have none, unless the network holds one of `not_deterministic`.

    Args:
        recipe: Of the run.
        model: Its network.
        device: That it is on.
        fixed_size: All images have one size.

    Raises:
        ValueError: PyTorch has no deterministic form of an operator; the sentence names it.
    """
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32
    mode = torch.get_deterministic_debug_mode()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]  # a property of the module
    try:
        if device.type == "cuda":
            cudnn.allow_tf32 = matmul.allow_tf32 = recipe.tf32
            cudnn.benchmark = fixed_size and not recipe.deterministic
        if recipe.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read with the first product on a GPU
            cudnn.deterministic = True
            torch.use_deterministic_algorithms(True, warn_only=bool(not_deterministic(model)))
            _fill(False)  # what is asked for empty is written before it is read
        with _free_sizes() if recipe.compile and device.type == "cpu" and not fixed_size else contextlib.nullcontext():
            yield
    except RuntimeError as error:
        if "does not have a deterministic implementation" not in str(error):
            raise
        raise ValueError(f"{str(error).splitlines()[0].split(' You can')[0]} Leave out --deterministic") from None
    finally:
        cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32 = before
        torch.set_deterministic_debug_mode(mode)
        _fill(fill)


def _free_sizes() -> contextlib.AbstractContextManager[None]:
    from torch._inductor import config  # half a second

    return config.patch(layout_optimization=False)


def _fill(value: bool) -> None:
    torch.utils.deterministic.fill_uninitialized_memory = value  # type: ignore[attr-defined]
