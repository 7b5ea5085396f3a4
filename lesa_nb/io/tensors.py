"""Files of tensors: safetensors with metadata, and files of torch.save, read without running code in them."""
from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lesa_nb.io.atomic import atomic_path, atomic_write, errors_at_the_end

__all__ = ["save_tensors", "read_metadata", "read_tensors", "save_pth", "read_pth", "identical"]

#: the disk or the network failed, whatever the file holds
_OF_THE_DISK = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOMEM, errno.EMFILE, errno.ENFILE)

def _checksum(tensors: Mapping[str, Tensor], metadata: str) -> str:
    """SHA-256 of what a file holds: metadata, names, types, shapes and numbers."""
    found = hashlib.sha256(metadata.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def save_tensors(
    tensors: Mapping[str, Tensor], path: str | PathLike, metadata: Mapping[str, Any], *, what: str = "the tensors"
) -> None:
    """Write tensors and what is known of them as one .safetensors file, in one go or not at all.

    Args:
        tensors: Names and tensors, on any device.
        path: The file; it ends in .safetensors by custom.
        metadata: Anything that JSON can hold.
        what: What the file is, for the error's sentence.

    Raises:
        OSError: The file cannot be written; the one before it is intact.
    """
    content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    words = dict(metadata=json.dumps(dict(metadata)))
    words["sha256"] = _checksum(content, words["metadata"])
    with atomic_path(path, what=what) as beside:
        try:
            save_file(content, beside, metadata=words)
        except SafetensorError as error:
            system = re.search(r"os error (\d+)", str(error))  # it keeps the system's number in its words only
            raise OSError(int(system[1]) if system else errno.EIO, str(error)) from None


@contextlib.contextmanager
def _opened(path: str | PathLike) -> Iterator[Any]:
    """An open .safetensors file; whatever keeps it from being read is a sentence that names it."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: no such file")
    if not os.access(path, os.R_OK):  # safetensors would say that there is none
        raise PermissionError(f"{path}: may not be read; ask its owner, or chmod +r")
    try:
        with safe_open(path, "pt") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file ({error})") from None


def read_metadata(path: str | PathLike, *, required: bool = True) -> dict[str, Any]:
    """What `save_tensors` was told about the tensors.

    Args:
        path: A .safetensors file.
        required: Refuse a file that says nothing about its tensors; otherwise it has no metadata.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no safetensors file, or it says nothing about its tensors.
    """
    with _opened(path) as file:
        found = file.metadata() or {}
    if "metadata" not in found and not required:
        return {}
    if "metadata" not in found:
        raise ValueError(f"{path}: the file says nothing about its network; was it written by save_weights?")
    try:
        metadata = json.loads(found["metadata"])
    except ValueError:
        metadata = None
    if not isinstance(metadata, dict):
        raise ValueError(f"{path}: expected its metadata to be a JSON object, found {found['metadata'][:80]!r}")
    return metadata


def read_tensors(path: str | PathLike) -> dict[str, Tensor]:
    """All tensors of a .safetensors file, on the CPU.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no safetensors file, or it holds something else than `save_tensors` wrote.
    """
    with _opened(path) as file:
        tensors, words = {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
    if "sha256" in words and words["sha256"] != _checksum(tensors, words.get("metadata", "")):
        raise ValueError(f"{path}: damaged, its content has another checksum than was written into it; copy or "
                         "download it again")
    return tensors


def save_pth(content: Any, path: str | PathLike, *, what: str = "the file", advice: str = "") -> None:
    """Write tensors, numbers, strings, lists and dictionaries with torch.save, in one go or not at all.

    Raises:
        OSError: The file cannot be written; the one before it is intact.
    """
    with atomic_write(path, what=what, advice=advice) as file:
        with errors_at_the_end(file) as writer:
            torch.save(content, writer)


def read_pth(path: str | PathLike) -> Any:
    """Whatever a file of torch.save holds, on the CPU; nothing in it is executed.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no file of torch.save, or reading it would run code; the sentence says which.
        OSError, MemoryError: The disk, the network or the memory failed: nothing is known of the file.
    """
    path = Path(path)
    kind = f"a {path.suffix if path.suffix in ('.pt', '.pth') else '.pth'} file"
    if not path.exists():
        raise FileNotFoundError(f"no checkpoint at {path}: expected {kind}")
    if path.is_dir():
        raise ValueError(f"cannot read {path}: expected {kind}, found a folder; name the file inside it")
    if path.stat().st_size == 0:
        raise ValueError(f"cannot read {path}: expected {kind}, found an empty one; copy or download it again")
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if damaged := archive.testzip():  # torch.load looks at no checksum
                    raise ValueError(f"{damaged} has another checksum than was written")
        return torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError:
        raise  # the system's own message says it all
    except Exception as error:  # foreign bytes make the reader stumble in a dozen ways
        if isinstance(error, OSError) and error.errno in _OF_THE_DISK:
            raise OSError(error.errno, f"could not be read ({error.strerror}); the file may be whole: try again when "
                                       "its disk or network answers", str(path)) from None
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            raise MemoryError(f"{path}: not enough memory to read its {path.stat().st_size/2**20:,.0f} MiB") from None
        called = re.search(r"GLOBAL ([\w.]+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if called:
            raise ValueError(
                f"refused {path}: unpickling it would run code, it asks for {called[1]}; expected only tensors and "
                "plain containers. If you trust its author, save the tensors alone there: "
                "torch.save(model.state_dict(), path)") from error
        reason = (str(error).splitlines() or [""])[0].split(". ")[0]
        raise ValueError(
            f"cannot read {path}: expected a checkpoint written by torch.save, found something else or a damaged one; "
            f"copy or download it again ({type(error).__name__}: {reason})") from error


def identical(one: Any, other: Any) -> bool:
    """Whether two things are equal to the bit; tensors by type and numbers, in dicts, lists and tuples too."""
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        both = isinstance(one, Tensor) and isinstance(other, Tensor)
        return both and one.dtype == other.dtype and one.equal(other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(identical(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return type(one) is type(other) and len(one) == len(other) and all(map(identical, one, other))
    return one == other
