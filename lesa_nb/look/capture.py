"""What an attention layer did while its network ran: one capture for the maps, the explorer and the gallery."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lesa_nb.layers.context import Context

__all__ = ["Captured", "attention_layers", "capture", "capture_layer"]


def attention_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers of a network that attend, by name, in the order of the network.

    A layer attends if its `.context` is a `lesa_nb.layers.context.Context`: LESA, plain attention, or a layer of
    yours. It may have a `.local` and a `.gate` too, as LESA has.
    """
    return {name: part for name, part in model.named_modules() if isinstance(getattr(part, "context", None), Context)}


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; then every part is in its own mode again."""
    modes = {part: part.training for part in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training


@dataclass(frozen=True, eq=False)
class Captured:
    """What one attention layer got and gave while the network ran on B images.

    layer: its name in the network. module: the layer itself. x: its input, (B, C, h, w).
    context: the context term, (B, D, h, w). local, gate: the same of a LESA layer; None where there are none.
    """

    layer: str
    module: nn.Module
    x: Tensor
    context: Tensor
    local: Tensor | None = None
    gate: Tensor | None = None

    @property
    def kind(self) -> str:
        """What a person calls such a layer."""
        return "plain attention" if self.gate is None else "LESA"

    @property
    def heads(self) -> int:
        """How many heads the layer has."""
        context = self.module.context
        assert isinstance(context, Context)
        return context.heads

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the layer's map: before it is averaged down, in a layer with a stride."""
        return self.x.shape[-2], self.x.shape[-1]

    @property
    def let_through(self) -> Tensor:
        """The context that reaches the layer's output, (B, D, h, w): what the gate lets through, or all of it."""
        return self.context if self.gate is None else self.gate*self.context

    @cached_property
    def weights(self) -> Tensor:
        """What each of the N = h*w positions attends to, (B, G, N, N): every row sums to 1.

        Computed when first asked for, on the captured input, in evaluation mode: N x N numbers for each head.
        """
        context = self.module.context
        assert isinstance(context, Context)
        with torch.no_grad(), _eval_mode(context):
            return context.weights(self.x)

    def attention(self, row: int, column: int) -> Tensor:
        """What one position of the layer's map attends to, as one map for each head, (B, G, h, w).

        ValueError: a position outside the map.
        """
        h, w = self.size
        if not (0 <= row < h and 0 <= column < w):
            raise ValueError(f"position ({row}, {column}) lies outside the map of {h} rows and {w} columns")
        return self.weights[:, :, row*w + column].unflatten(-1, (h, w))


@torch.no_grad()
def capture(model: nn.Module, images: Any, layers: Sequence[str] | None = None) -> dict[str, Captured]:
    """Run a network once, in evaluation mode, and keep what goes through its attention layers.

    model: any network. images: whatever it takes, as it wants them. layers: names from `attention_layers`;
    None: all of them. Returns name -> what the layer got and gave; the network is left as it was.
    ValueError: a name that is no attention layer, a layer that the network does not use.
    """
    found = attention_layers(model)
    for name in layers or ():
        if name not in found:
            raise ValueError(f"no attention layer {name!r} in the network; there are {', '.join(found)}")
    chosen = {name: part for name, part in found.items() if layers is None or name in layers}
    notes: dict[str, dict[str, Tensor]] = {name: {} for name in chosen}

    def note_input(name: str) -> Callable:
        def hook(module: nn.Module, args: tuple) -> None:
            notes[name]["x"] = args[0]
        return hook

    def note_output(name: str, part: str) -> Callable:
        def hook(module: nn.Module, args: tuple, out: Tensor) -> None:
            notes[name][part] = out
        return hook

    handles = []
    for name, layer in chosen.items():
        handles.append(layer.register_forward_pre_hook(note_input(name)))
        for part in ("context", "local", "gate"):
            child = getattr(layer, part, None)
            if isinstance(child, nn.Module):
                handles.append(child.register_forward_hook(note_output(name, part)))
    try:
        with _eval_mode(model):
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    for name, parts in notes.items():
        if not parts:
            raise ValueError(f"layer {name} did not run: expected a network that uses it")
    return {name: Captured(name, chosen[name], **parts) for name, parts in notes.items()}


def capture_layer(model: nn.Module, images: Any, layer: str | None = None) -> Captured:
    """The capture of one layer, a name from `attention_layers`; None: the last one, the nearest to the answer.

    ValueError: a network without attention layers, a name that is none of them.
    """
    found = attention_layers(model)
    if not found: raise ValueError("the network has no attention layer to look into: expected LESA or plain attention")
    name = list(found)[-1] if layer is None else layer
    return capture(model, images, [name])[name]
