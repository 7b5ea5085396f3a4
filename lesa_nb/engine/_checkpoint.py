"""A checkpoint on disk, what it says about the run that wrote it, and whether another run may go on from it."""
from __future__ import annotations

import hashlib
import json
import random
import socket
import subprocess
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from lesa_nb.engine.group import Ranks
from lesa_nb.io.tensors import read_pth, save_pth

__all__ = ["save_checkpoint", "read_checkpoint", "random_state", "set_random_state", "fingerprint",
           "fingerprints", "restore", "check_same_run", "commit"]


def save_checkpoint(content: dict[str, Any], path: str | PathLike) -> None:
    """Write a checkpoint in one go or not at all.

    Args:
        content: Tensors, numbers, strings, and lists and dictionaries of them.
        path: The file.

    Raises:
        OSError: It cannot be written; the one before it is intact.
    """
    save_pth(content, path, what="the checkpoint", advice="Make room, or choose another folder, and resume")


def read_checkpoint(path: str | PathLike) -> dict[str, Any]:
    """Read a checkpoint; nothing in it is executed.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no checkpoint of a run, or reading it would run code.
    """
    content = read_pth(path)
    if not isinstance(content, dict) or "metadata" not in content:
        raise ValueError(f"{path}: no checkpoint of a run; it says nothing about its network")
    return content


def random_state(device: torch.device) -> dict[str, Any]:
    """All random states of this process, in types that a safe reader reads."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    return dict(python=random.getstate(), numpy=[kind, np.asarray(keys).tolist(), *rest], torch=torch.get_rng_state(),
                cuda=torch.cuda.get_rng_state(device) if device.type == "cuda" else None)


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Go on from random states of `random_state`."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)


def fingerprint(dataset: Any) -> dict[str, Any]:
    """What tells a data set from another: how many samples, the first names, and a hash of the list of names.

    Names are asked of the data set's `sample_name(index)`; without that only the number is known. A data set that has
    `content`, a hash of what is known of its samples, is told by that, too.
    """
    name = getattr(dataset, "sample_name", None)
    content = dict(content=dataset.content) if hasattr(dataset, "content") else {}
    if name is None:
        return dict(samples=len(dataset), first=[], names="", **content)
    digest = hashlib.sha256()
    for index in range(len(dataset)):
        digest.update(str(name(index)).encode("utf-8", "surrogateescape") + b"\0")
    first = [str(name(index)).encode("utf-8", "backslashreplace").decode() for index in range(min(3, len(dataset)))]
    return dict(samples=len(dataset), first=first, names=digest.hexdigest()[:16], **content)


#: numbers of a recipe that a run cannot change on its way: they lie in the checkpoint, or its step is counted in them
_FIXED = {"batch_size", "optimizer", "momentum", "nesterov", "weight_decay", "decay_all", "ema"}
_UNSCALED = ("float32", "bfloat16")  # precisions that a run may change between


def _differences(theirs: dict[str, Any], mine: dict[str, Any]) -> dict[str, str]:
    """What differs between two runs' metadata, recipe and seed: a sentence for each entry; numbers of the recipe are
    called "recipe NAME"."""
    theirs, mine = (json.loads(json.dumps(dict(state["metadata"], seed=state["seed"])
                                          | {f"recipe {key}": value for key, value in (state["recipe"] or {}).items()}))
                    for state in (theirs, mine))
    return {key: f"{key}: {theirs.get(key)!r} there, {mine.get(key)!r} now" for key in sorted({*theirs, *mine})
            if theirs.get(key) != mine.get(key)}


def _may_change(key: str, then: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether a run can go on with this difference of `_differences`."""
    kind, _, name = key.rpartition(" ")
    if name == "precision":
        return then.get(name) in _UNSCALED and now.get(name) in _UNSCALED
    return kind == "recipe" and name in then and name not in _FIXED


def _changed_data(theirs: dict[str, dict[str, Any]], mine: dict[str, dict[str, Any]]) -> list[str]:
    """What differs between two runs' data, `fingerprint` by `fingerprint`, one sentence for each half."""
    found = []
    for half, now in mine.items():
        then = theirs.get(half) or {}
        if then | dict(content=None) == now | dict(content=None):
            if "content" in then and then["content"] != now.get("content"):
                found.append(f"{half}: the same samples, but what is known of them, as their boxes, has changed")
            continue
        if then.get("samples") != now["samples"]:
            found.append(f"{half}: {then.get('samples')} samples there, {now['samples']} now")
        elif then.get("first") != now["first"]:
            there, here = next((a, b) for a, b in zip([*then.get("first", []), None], [*now["first"], None]) if a != b)
            found.append(f"{half}: as many samples, but {there!r} there where {here!r} is now")
        else:
            found.append(f"{half}: as many samples, and the first names agree, but later ones differ")
    return found


def fingerprints(train: Any, valid: Any, ranks: Ranks) -> dict[str, dict[str, Any]]:
    """`fingerprint` of both halves of a run's data, which must be the same in all processes: each draws its share of
    every step from the same order. Machines with copies of their own may have others.

    Raises:
        ValueError: In all processes, with what differs.
    """
    mine = dict(train=fingerprint(train), valid=fingerprint(valid))
    everyone = ranks.gather((socket.gethostname(), mine))
    host, first = everyone[0]
    for rank, (other, data) in enumerate(everyone):
        if changed := [says.replace(" there, ", f" in process 0 on {host}, ").replace(" now", " here")
                       for says in _changed_data(first, data)]:
            raise ValueError(f"process {rank} on {other} finds other data than process 0 ({'; '.join(changed)}): give "
                             "all machines the same files")
    return mine


def check_same_run(
    saved: dict[str, Any], told: dict[str, Any], path: str | PathLike, *, data: bool = False, recipe: bool = False
) -> None:
    """Refuse to go on from a checkpoint of another run.

    Args:
        saved: What the checkpoint holds.
        told: What this run was told: its "metadata", "recipe", "seed" and "data", the fingerprints of both halves.
        path: Of the checkpoint, for the sentence.
        data: Go on although samples were added, removed or renamed, or their annotations have changed.
        recipe: Go on with other numbers of the recipe, but for those that the checkpoint itself holds.

    Raises:
        ValueError: What differs, and what to do.
    """
    if "start" not in told["metadata"]:  # what it began with has been learned on
        saved = saved | dict(metadata={key: value for key, value in saved["metadata"].items() if key != "start"})
    differ = _differences(saved, told)
    may = [key for key in differ if _may_change(key, saved["recipe"] or {}, told["recipe"])]
    if wrong := [sentence for key, sentence in differ.items() if not (recipe and key in may)]:
        accept = ""
        if len(may) == len(differ):
            accept = (", or go on with these numbers from here, with accept_changed_recipe=True "
                      "(--accept-changed-recipe)")
        raise ValueError(f"{path}: a checkpoint of another run ({'; '.join(wrong)}): ask for the same, or choose "
                         f"another folder{accept}; nothing was changed")
    changed = _changed_data(saved.get("data") or {}, told["data"])
    if changed and not data:
        raise ValueError(
            f"{path}: a run on other data ({'; '.join(changed)}), so it would be another from here: bring the data "
            "back, choose another folder, or accept it with accept_changed_data=True (--accept-changed-data); nothing "
            "was changed")


class _Restored(Protocol):
    """What goes on from a checkpoint."""

    def load_state_dict(self, saved: dict[str, Any], /) -> None:
        """Go on from there."""


def restore(training: _Restored, saved: dict[str, Any], path: str | PathLike) -> None:
    """Let a training go on from a checkpoint of its run, by its `load_state_dict`.

    Raises:
        ValueError: It does not hold what this version of the library asks for.
    """
    try:
        training.load_state_dict(saved)
    except (KeyError, RuntimeError, ValueError, TypeError) as error:  # as PyTorch's parts raise for other contents
        what = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise ValueError(f"{path}: this version of lesa_nb cannot go on from it ({what[:300]}): resume with the "
                         "version that the run was begun with, or choose another folder; nothing was changed") from None


def commit() -> str | None:
    """The last commit that changed this package, if it lies in a repository."""
    try:
        done = subprocess.run(["git", "log", "-1", "--format=%h", "--", "."], cwd=Path(__file__).parent.parent,
                              capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None  # no git, no repository
    return done.stdout.strip() or None
