"""Batches in a given order, read ahead by processes; what cannot be read comes as a reason that names the sample."""
from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset

from lesa_nb.engine.signals import _ignore_signals
from lesa_nb.io.shared import FEWER_WORKERS, CannotShare, ready_to_send, what_helps

try:
    import resource
except ImportError:  # Windows has no such limits
    resource = None  # type: ignore[assignment]

__all__ = ["Unreadable", "loader", "checked_batches", "BatchReader", "worker_died"]

_DIED = f"a process that reads ahead has died ({{}}): {FEWER_WORKERS}, or free memory"
_MOST_FILES = 65_536


class Unreadable(NamedTuple):
    """Stands where a batch could not be made: an exception would lose its words on the way out of a worker."""

    reason: str


def _allow_open_files() -> None:
    """Let this process and those that it starts open as many files as the system allows them, not 1,024: a batch of
    detections that is read ahead holds some hundred."""
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        with contextlib.suppress(ValueError, OSError):  # a system that allows less than it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _told(error: Exception, where: str) -> Unreadable:
    """An error with the sample's name. Errors of reading are sentences; others say where in the code they arose."""
    if isinstance(error, CannotShare):
        return Unreadable(str(error))
    if isinstance(error, OSError) and (helps := what_helps(error)):
        return Unreadable(helps)  # not a fault of the file that was to be opened
    if isinstance(error, (OSError, ValueError)):
        return Unreadable(str(error) or f"{where}: {type(error).__name__}")
    last = traceback.extract_tb(error.__traceback__)[-1]
    words = " ".join(str(error).split())
    place = f"{Path(last.filename).name}, line {last.lineno}, in {last.name}"
    return Unreadable(f"{where}: {type(error).__name__}: {words} ({place})")


class _Batches(Dataset):
    """Makes whole batches, or says why it cannot. Torch hands `__getitems__` the keys of a batch."""

    def __init__(self, dataset: Any, collate: Callable[[list], Any]):
        self.dataset, self.collate = dataset, collate

    def __len__(self) -> int:
        return len(self.dataset)

    def _name(self, key: Any) -> str:
        index = key[1] if isinstance(key, tuple) else key
        name = getattr(self.dataset, "sample_name", None)
        return str(name(index)) if name else f"sample {index}"

    def __getitems__(self, keys: Sequence[Any]) -> Any:
        samples = []
        for key in keys:
            try:
                samples.append(self.dataset[key])
            except Exception as error:
                return _told(error, self._name(key))
        try:
            return ready_to_send(self.collate(samples))
        except Exception as error:
            names = ", ".join(map(self._name, keys[:4])) + ", ..."*(len(keys) > 4)
            return _told(error, f"a batch of {len(keys)} samples ({names})")


def _as_it_is(batch: Any) -> Any:
    return batch


def loader(
    dataset: Any, keys: list[list], collate: Callable[[list], Any], *, workers: int = 0, pin: bool = False
) -> DataLoader:
    """Batches in a given order; one that cannot be made comes as `Unreadable`.

    Args:
        dataset: `dataset[key]` is a sample; if it has `sample_name(index)`, messages name samples by it.
        keys: Of each batch: indices, or pairs of epoch and index.
        collate: Samples -> a batch.
        workers: Processes that read ahead.
        pin: Into memory that a GPU can fetch from.
    """
    if workers:
        _allow_open_files()
    return DataLoader(
        _Batches(dataset, collate), batch_sampler=keys, collate_fn=_as_it_is, num_workers=workers, pin_memory=pin,
        worker_init_fn=_ignore_signals, generator=torch.Generator())  # its own: the run's random state is not touched


def checked_batches(batches: Iterable[Any]) -> Iterator[Any]:
    """Batches that could be made; the first one that could not raises a ValueError with its reason, and so does a
    worker that died."""
    left: Any = iter(batches)
    with contextlib.closing(left) if hasattr(left, "close") else contextlib.nullcontext():  # a bar ends its line
        while True:
            try:
                batch = next(left)
            except StopIteration:
                return
            except (RuntimeError, EOFError, OSError) as error:
                if reason := _lost(error):
                    raise ValueError(reason) from None
                raise
            if isinstance(batch, Unreadable):
                raise ValueError(batch.reason)
            yield batch


def worker_died(error: RuntimeError) -> str:
    """What to say where PyTorch says that a worker has died; empty if its error is about something else."""
    return _DIED.format(str(error).splitlines()[0]) if "DataLoader worker (pid" in str(error) else ""


def _lost(error: Exception) -> str:
    """Why a batch did not come from its worker; empty if an error is about something else."""
    if isinstance(error, RuntimeError):
        return what_helps(error) or worker_died(error)
    return what_helps(error) or _DIED.format(str(error) or type(error).__name__)  # on its way when the worker died


class BatchReader:
    """Reads from a `loader` until it is closed, also if a worker dies: then the last batch is `Unreadable`."""

    def __init__(self, *args: Any, **options: Any):
        self._batches: Iterator[Any] | None = iter(loader(*args, **options))

    def __iter__(self) -> BatchReader:
        return self

    def __next__(self) -> Any:
        if self._batches is None:
            raise StopIteration
        try:
            return next(self._batches)
        except (RuntimeError, EOFError, OSError) as error:  # samples raise none: theirs come as `Unreadable`
            reason = _lost(error)
            if not reason:
                raise
        self.close()  # or PyTorch's signal handler would go on about the same worker, wherever the process is by then
        return Unreadable(reason)

    def take(self, number: int) -> list[Any]:
        """So many batches; fewer if one could not be made, which is then the last."""
        taken: list[Any] = []
        while len(taken) < number and not (taken and isinstance(taken[-1], Unreadable)):
            taken.append(next(self))
        return taken

    def close(self) -> None:
        """Let go of the workers."""
        self._batches = None
