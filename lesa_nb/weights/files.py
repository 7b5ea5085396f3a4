"""Weights of a network with what is known of them, as one file of safetensors."""
from __future__ import annotations

from os import PathLike
from typing import Any, TypeVar

from torch import nn

from lesa_nb.io.tensors import read_metadata, read_tensors, save_tensors

__all__ = ["save_weights", "load_weights"]

_Module = TypeVar("_Module", bound=nn.Module)


def save_weights(model: nn.Module, path: str | PathLike, **metadata: Any) -> None:
    """Write the weights and the metadata about them; a file of that name is replaced in one go or not at all.

    Args:
        model: Its whole state dict is written.
        path: The file; it ends in .safetensors by custom.
        metadata: Anything that JSON can hold: architecture, score, seed.

    Raises:
        OSError: The file cannot be written; the one before it is intact.
    """
    save_tensors(model.state_dict(), path, metadata, what="the weights")


def load_weights(model: _Module, path: str | PathLike) -> _Module:
    """Read weights back, all of them or none; returns the same model.

    Args:
        model: Of the architecture that the file was written from.
        path: Written by `save_weights`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no such file, or its weights are those of another network; the model is unchanged.
    """
    read_metadata(path)  # speaks up if the file is of another kind
    found, wanted = read_tensors(path), model.state_dict()
    shapes = [{name: tensor.shape for name, tensor in tensors.items()} for tensors in (wanted, found)]
    wrong = sorted({name for name, shape in shapes[0].items() ^ shapes[1].items()})
    if wrong:
        listed = ", ".join(wrong[:5])
        raise ValueError(f"{path}: weights of another network; {len(wrong)} names or shapes differ: {listed}")
    model.load_state_dict(found)
    return model
