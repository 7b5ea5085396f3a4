"""Files of weights: written with their metadata, and read whoever wrote them, in our names."""
from __future__ import annotations

import json
import os
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from torch import Tensor, nn

from lesa_nb.io.tensors import read_metadata, read_pth, read_tensors, save_tensors
from lesa_nb.weights._names import in_our_names, is_published, unwrap
from lesa_nb.weights.published import misfits, tensors_in

__all__ = ["save_weights", "load_weights"]

#: the file of weights in a folder that `save_pretrained` wrote, as the Hugging Face Hub calls it
_MODEL_FILE = "model.safetensors"

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


def _load_tensors(model: _Module, tensors: Mapping[str, Tensor], what: str | PathLike) -> _Module:
    """Fill a model with tensors in our names, all of them or none; returns the same model.

    Args:
        model: Of the architecture that the tensors are from.
        tensors: Its whole state dict.
        what: What the tensors are, for the error's sentence: the path of their file.

    Raises:
        ValueError: They are those of another network; the message lists what differs, and the model is unchanged.
    """
    wanted = model.state_dict()
    if problem := misfits(wanted, tensors):
        shapes = [{name: tensor.shape for name, tensor in state.items()} for state in (wanted, tensors)]
        wrong = sorted({name for name, _ in shapes[0].items() ^ shapes[1].items()})
        raise ValueError(
            f"{what}: weights of another network; {len(wrong)} names or shapes differ: {', '.join(wrong[:5])}\n"
            f"It does not fit this {type(model).__name__}, which is unchanged:\n{problem}")
    model.load_state_dict(dict(tensors))
    return model


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
    return _load_tensors(model, read_tensors(path), path)


class _Stored(NamedTuple):
    """What a file of weights holds.

    Attributes:
        tensors: In our names, without what wrappers put in front of them.
        metadata: What the file says about itself; nothing if it is silent.
        stripped: What wrappers had put into the names and was taken out: `module.`, `_orig_mod.`.
        published: Whether the names were the authors'.
    """

    tensors: dict[str, Tensor]
    metadata: dict[str, Any]
    stripped: tuple[str, ...]
    published: bool


def _is_safetensors(path: Path) -> bool:
    """By its name, or by its start: eight bytes of length, then JSON."""
    if path.suffix == ".safetensors":
        return True
    with open(path, "rb") as file:
        return file.read(9)[8:] == b"{"


def _averaged(tensors: Mapping[str, Any]) -> Mapping[str, Any]:
    """The network inside the state dict of an AveragedModel, which counts its updates; others stay as they are."""
    if "n_averaged" not in tensors:
        return tensors
    return {key.removeprefix("module."): tensor for key, tensor in tensors.items() if key != "n_averaged"}


def _of_a_run(content: Any, what: str) -> tuple[Mapping[str, Tensor], dict[str, Any]] | None:
    """Weights and metadata of a run's checkpoint, the averaged weights if it has them; None if it is no such thing."""
    if not isinstance(content, Mapping) or not isinstance(content.get("metadata"), Mapping):
        return None
    if not isinstance(content.get("model"), Mapping):
        return None
    average = content.get("average")
    told = {key: content[key] for key in ("recipe", "seed", "epoch", "step", "scores") if key in content}
    metadata = dict(content["metadata"]) | told | dict(averaged=average is not None)
    try:
        metadata = json.loads(json.dumps(metadata))  # as a file of weights has it: lists where there were tuples
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what}: its metadata are nothing that JSON can hold ({error})") from None
    if average is None:
        return content["model"], metadata
    if not isinstance(average, Mapping):
        raise ValueError(f"{what}: expected averaged weights as names and tensors, found a {type(average).__name__}")
    return _averaged(average), metadata


def _weights_file(path: str | PathLike) -> Path:
    """The file of weights: the path itself, or what is inside a folder that `save_pretrained` wrote.

    Raises:
        ValueError: A folder that holds no `_MODEL_FILE`.
    """
    inside = Path(path)/_MODEL_FILE
    if not Path(path).is_dir():
        return Path(path)
    if not inside.is_file():
        of_a_run = Path(path)/"best.safetensors"
        inside_it = str(of_a_run) if of_a_run.is_file() else "the file inside it"
        raise ValueError(f"{os.fspath(path)}: a folder without {_MODEL_FILE}, not a file of weights; name {inside_it}")
    return inside


def _read(source: str | PathLike | Mapping[str, Any], what: str) -> tuple[Any, dict[str, Any]]:
    """Names and tensors as they are stored, and the metadata beside them."""
    content: Any = source
    if not isinstance(source, Mapping):
        path = Path(source)
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file of weights")
        if path.is_dir():
            path = _weights_file(path)
        if _is_safetensors(path):
            return read_tensors(path), read_metadata(path, required=False)
        content = read_pth(path)
    if (found := _of_a_run(content, what)) is not None:
        return found
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        content = content["model"]
    return _averaged(content) if isinstance(content, Mapping) else content, {}


def _read_weights(source: str | PathLike | Mapping[str, Any]) -> _Stored:
    """Whatever holds weights, in our names; no code in it is executed.

    Args:
        source: Path of a file of this library (.safetensors), of a run's checkpoint (last.pt), of the authors (.pth),
            of `torch.save(model.state_dict(), path)`; or what such a file holds.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It holds no weights, is damaged, or would run code; the sentence names the file.
    """
    what = "the given dictionary" if isinstance(source, Mapping) else os.fspath(source)
    raw, metadata = _read(source, what)
    tensors, stripped = unwrap(tensors_in(raw, what), what)
    published = is_published(tensors)
    return _Stored(in_our_names(tensors) if published else tensors, metadata, stripped, published)
