"""Networks as folders and repositories of the Hugging Face Hub: weights with their metadata, a config, and a card.

`load` opens such a folder as well, without huggingface_hub; these functions need it (extra `[hub]`).
"""
from __future__ import annotations

import os
import re
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Any

from torch import nn

from lesa_nb.weights.load import Loaded, as_loaded, load

__all__ = ["save_pretrained", "from_pretrained", "push_to_hub"]

_Source = str | PathLike | Loaded | nn.Module


def _hub() -> Any:
    """The module that talks to the hub."""
    try:
        import huggingface_hub  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("folders and repositories of the Hugging Face Hub need its package: "
                                  "pip install 'lesa_nb[hub]'") from error
    from lesa_nb.weights import _hub_mixin

    return _hub_mixin


def _told(source: _Source, classes: Iterable[str] | None, metadata: dict[str, Any]) -> Loaded:
    """The network with all that is known of it."""
    if isinstance(source, nn.Module):
        return as_loaded(source, classes=classes, **metadata)
    loaded = source if isinstance(source, Loaded) else load(source)
    known = {key: value for key, value in loaded.metadata.items() if key not in ("stripped", "classes")}
    return as_loaded(loaded.model, classes=loaded.classes if classes is None else classes, **known | metadata)


def save_pretrained(
    source: _Source, folder: str | PathLike, *, classes: Iterable[str] | None = None, **metadata: Any
) -> None:
    """Write a network as a folder: model.safetensors, config.json, and README.md, the card.

    `load` and `from_pretrained` open the folder again, equal to the bit; so does timm, `local-dir:FOLDER`, if it is one
    of the published classifiers. A card that somebody else wrote stays.

    Args:
        source: What `load` returned, a network of this library (built by name), or a file of weights.
        folder: Is made if it is not there.
        classes: Names of the classes, if others than the source knows.
        metadata: More about the network, for file and card: scores=dict(top1=79.5), license="apache-2.0", ...; of a
            control also what its tensors do not tell, network="resnet50", term="conv", ...

    Raises:
        ModuleNotFoundError: huggingface_hub is missing.
        ValueError: The network is none that `load` could build again; nothing is written.
        OSError: The folder cannot be written.
    """
    network, path = _hub().HubNetwork(_told(source, classes, metadata)), Path(folder)
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"{path}: expected a folder to write the network into, found a file")
    network.save_pretrained(path)


def push_to_hub(
    source: _Source, repo_id: str, *, classes: Iterable[str] | None = None, private: bool | None = None,
    token: str | None = None, branch: str | None = None, create_pr: bool | None = None,
    commit_message: str = "A LESA network", **metadata: Any,
) -> str:
    """Upload what `save_pretrained` writes to a repository of the hub, which is made if it is not there.

    Args:
        source: As in `save_pretrained`, and so are `classes` and `metadata`.
        repo_id: "user/name".
        private: Whether a new repository is private; None: as the account has it.
        token: Of the account; None: the one that `hf auth login` stored.
        branch: None for the main one.
        create_pr: Propose the change instead of making it.
        commit_message: What the history says.

    Returns:
        The address of the commit.

    Raises:
        ModuleNotFoundError: huggingface_hub is missing.
        ValueError: The network is none that `load` could build again; nothing is sent.
    """
    network = _hub().HubNetwork(_told(source, classes, metadata))
    return network.push_to_hub(repo_id, private=private, token=token, branch=branch, create_pr=create_pr,
                               commit_message=commit_message)


def from_pretrained(
    name: str | PathLike, *, revision: str | None = None, token: str | bool | None = None,
    cache_dir: str | PathLike | None = None, force_download: bool = False, local_files_only: bool = False,
) -> Loaded:
    """The network in a folder, or in a repository of the hub, as `load` returns it.

    Args:
        name: A folder that `save_pretrained` wrote, or "user/name".
        revision: A branch, tag or commit of the repository.
        token: Of an account that may read it; None: the one that `hf auth login` stored.
        cache_dir: Where downloads are kept; None for huggingface_hub's own place.
        force_download: Fetch it again.
        local_files_only: Take only what has been fetched before.

    Raises:
        ModuleNotFoundError: huggingface_hub is missing, and `name` is no folder.
        FileNotFoundError: There is no such folder, and no repository could have this name.
        ConnectionError: The repository cannot be reached, or holds no such network.
        ValueError: What it holds is no network of this library.
    """
    if os.path.exists(name):
        return load(name)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", os.fspath(name)):
        raise FileNotFoundError(f"{os.fspath(name)}: no such folder, and no name of a repository (user/name)")
    return _hub().fetch(os.fspath(name), revision=revision, token=token, cache_dir=cache_dir,
                        force_download=force_download, local_files_only=local_files_only)
