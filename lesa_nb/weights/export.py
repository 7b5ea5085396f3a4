"""Networks that leave Python: one graph for images of every size, and ONNX files."""
from __future__ import annotations

from importlib.util import find_spec
from os import PathLike, fspath
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from lesa_nb.layers.context import Context
from lesa_nb.layers.lesa import attend_with
from lesa_nb.layers.local import DeformableConv2d
from lesa_nb.weights.folding import fold_norms

__all__ = ["export_program", "export_onnx"]


def _example(network: nn.Module, image_size: int | tuple[int, int]) -> Tensor:
    """An image to follow through the network."""
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    weight = next(network.parameters())
    return torch.zeros(1, 3, height, width, dtype=weight.dtype, device=weight.device)


def _open_sizes(min_size: int, max_size: int) -> dict[str, dict[int, Any]]:
    """Both sides of an image as unknowns between two bounds.

    Below 17 the last map is a single row, which torch.export treats as a case of its own.
    """
    if not 17 <= min_size < max_size:
        raise ValueError(f"expected 17 <= min_size < max_size, found {min_size} and {max_size}")
    return dict(x_BCHW={2: Dim("height", min=min_size, max=max_size), 3: Dim("width", min=min_size, max=max_size)})


def _check_ready(network: nn.Module) -> None:
    if network.training:
        raise ValueError("expected a network in eval mode: call .eval() before exporting it")


def export_program(
    network: nn.Module,
    *,
    image_size: int | tuple[int, int] = 224,
    min_size: int = 32,
    max_size: int = 1024,
) -> ExportedProgram:
    """The network as one graph for all image sizes in a range.

    The graph takes x of shape (1, 3, h, w); `torch.export.save` writes it to a file. It calls this library's attention
    kernels: a program that loads it imports `lesa_nb.layers.blockwise` first.

    Args:
        network: A classification network in eval mode, folded or not.
        image_size: Height and width of the image it is followed with.
        min_size: Least height and width the graph takes, 17 or more.
        max_size: Largest height and width.

    Raises:
        ValueError: The network is in training mode, or the bounds are not in order.
    """
    _check_ready(network)
    sizes = _open_sizes(min_size, max_size)
    return torch.export.export(network, (_example(network, image_size),), dynamic_shapes=sizes)


def export_onnx(
    network: nn.Module,
    path: str | PathLike,
    *,
    image_size: int | tuple[int, int] = 224,
    min_size: int = 32,
    max_size: int | None = None,
) -> None:
    """Write the inference form as an ONNX file with one input `image` and one output `logits`.

    Args:
        network: A classification network in eval mode, folded or not; it is not changed.
        path: The file to write, usually NAME.onnx.
        image_size: Height and width of the images, or of the example if `max_size` is given.
        min_size: With `max_size`: least height and width the file takes, 17 or more.
        max_size: Largest height and width; None: `image_size` only.

    Raises:
        ModuleNotFoundError: The packages that write such files are not installed.
        ValueError: The network is in training mode or has deformable convolutions, or the bounds are not in order.
    """
    if missing := [name for name in ("onnx", "onnxscript") if find_spec(name) is None]:
        raise ModuleNotFoundError(f"writing ONNX files needs {' and '.join(missing)}: pip install 'lesa_nb[export]'")
    _check_ready(network)
    if any(isinstance(part, DeformableConv2d) for part in network.modules()):
        raise ValueError("deformable convolutions have no ONNX form in PyTorch: export the network with export_program")
    sizes = None if max_size is None else _open_sizes(min_size, max_size)
    network = fold_norms(network)
    if any(isinstance(part, Context) for part in network.modules()):
        attend_with(network, "explicit")
    torch.onnx.export(
        network, (_example(network, image_size),), fspath(path), dynamo=True, dynamic_shapes=sizes,
        input_names=["image"], output_names=["logits"], external_data=False, verbose=False)
