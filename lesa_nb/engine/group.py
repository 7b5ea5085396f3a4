"""The processes of a run: which one this is, on which device, and how they agree.

`torchrun` starts a process for each GPU and tells each its number in the environment. This module is the only one that
reads those numbers and speaks to `torch.distributed`; everybody else asks here. It imports PyTorch when it needs it, so
that a command can ask `is_main_process` before PyTorch is loaded.
"""
from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

if TYPE_CHECKING:
    import torch

__all__ = ["Ranks", "is_main_process", "world_size", "local_world_size", "process_name", "process_group",
           "pick_device", "from_main_process", "gather", "shard"]

_Thing = TypeVar("_Thing")

_FOR_TENSORS = timedelta(minutes=10)  # a GPU's collective that takes longer hangs
_FOR_WORDS = timedelta(hours=24)  # what processes tell each other: the main one may validate for hours before it speaks
_TO_LEAVE = 20.  # seconds for PyTorch to close a group, and again to end after that
_talk: Any = None  # the group that words go through, on every process's CPU; None: the only one there is


class Ranks(NamedTuple):
    """Which of the processes this one is: number `rank` of `size`. What all must do, they do in the same order."""

    rank: int = 0
    size: int = 1

    def all_reduce_max(self, number: int) -> int:
        """The largest of all processes' numbers."""
        if self.size == 1:
            return number
        import torch
        import torch.distributed as dist

        largest = torch.tensor(number)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=_talk)
        return int(largest)

    def mean(self, values: list[float]) -> list[float]:
        """The mean over all processes, number by number."""
        if self.size == 1:
            return values
        import torch
        import torch.distributed as dist

        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total, group=_talk)
        return (total/self.size).tolist()

    def gather(self, thing: _Thing) -> list[_Thing]:
        """The things of all processes, in the order of their ranks."""
        if self.size == 1:
            return [thing]
        import torch.distributed as dist

        things: list[Any] = [None]*self.size
        dist.all_gather_object(things, thing, group=_talk)
        return things

    def agree(self, problem: str) -> None:
        """Raise an OSError in all processes if one of them has a problem; an empty string is none."""
        if problem := next(filter(None, self.gather(problem)), ""):
            raise OSError(problem)


def _current() -> Ranks:
    """The process group that is open; without one, a single process."""
    dist = sys.modules.get("torch.distributed")  # who opened a group has imported it
    if dist is not None and dist.is_available() and dist.is_initialized():
        return Ranks(dist.get_rank(), dist.get_world_size())
    return Ranks()


def is_main_process() -> bool:
    """Whether this process is the one that prints and writes: rank 0, also before the process group is open."""
    ranks = _current()
    return ranks.rank == 0 if ranks.size > 1 else int(os.environ.get("RANK", 0)) == 0


def world_size() -> int:
    """How many processes there are, also before the process group is open."""
    return max(_current().size, int(os.environ.get("WORLD_SIZE", 1)))


def local_world_size() -> int:
    """How many of the processes run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def process_name(program: str) -> str:
    """The program's name for a message: with the rank, where another process than the main one speaks."""
    return program if is_main_process() else f"{program} (process {_current().rank or os.environ.get('RANK')})"


def _share(thing: Any) -> Any:
    """What the main process hands in, in all of them."""
    import torch.distributed as dist

    answer = [thing]
    dist.broadcast_object_list(answer, group=_talk)
    return answer[0]


def _refuse_shared_gpus(device: torch.device, ranks: Ranks) -> None:
    """Two processes on one GPU would wait for each other forever, or fail in NCCL's words."""
    import socket

    import torch

    mine = f"{socket.gethostname()} {torch.cuda.get_device_properties(device).uuid}" if device.type == "cuda" else ""
    everyone = ranks.gather(mine)
    for rank, other in enumerate(everyone):
        if other and other in everyone[:rank]:
            raise ValueError(f"processes {everyone.index(other)} and {rank} were given the same GPU ({other}): start "
                             "as many processes as there are GPUs, or show each its own with CUDA_VISIBLE_DEVICES")


def _leave_group() -> None:
    """Close the process group; where PyTorch cannot, since it waits for a GPU that waits for others, end all the same.

    An error on its way still gets out, and has some seconds to be said.
    """
    import torch.distributed as dist

    def leave() -> None:
        with contextlib.suppress(RuntimeError, ValueError):  # a group that is broken already
            dist.destroy_process_group()

    leaving = threading.Thread(target=leave, daemon=True)
    leaving.start()
    leaving.join(_TO_LEAVE)
    if leaving.is_alive():
        last = threading.Timer(_TO_LEAVE, os._exit, [1])
        last.daemon = True
        last.start()


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[Ranks]:
    """Join the processes that torchrun started, if it did; yields which of them this one is.

    Inside a group that is open already, that one is used. If a process fails or is killed, the others end within a
    minute, whatever they are waiting for. Validation in the main process may take as long as it likes.

    Args:
        device: What this process works on; its kind decides how tensors travel.

    Raises:
        ConnectionError: Another process has ended.
        ValueError: Two processes have the same GPU.
    """
    global _talk
    import torch.distributed as dist

    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1 or dist.is_initialized():
        yield _current()
        return
    from lesa_nb.engine._watch import Watch

    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")  # a collective that times out ends the process
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=_FOR_TENSORS)
    ranks = Ranks(dist.get_rank(), size)
    gone = (f"process {ranks.rank} of {size}: another process has ended, so this one ends too; what happened stands in "
            "its own output")
    watch = None
    try:
        _talk = dist.new_group(backend="gloo", timeout=_FOR_WORDS)
        watch = Watch(*ranks, host=os.environ.get("MASTER_ADDR", "localhost"), share=_share, sentence=gone)
        _refuse_shared_gpus(device, ranks)
        yield ranks
        dist.barrier(group=_talk)
        watch.close(in_order=True)
    except RuntimeError as error:
        words = ("Connection", "onnection closed", "peer", "gloo", "remote process", "communicator was aborted")
        if not any(word in str(error) for word in words):
            raise
        raise ConnectionError(gone) from None
    finally:
        if watch:
            watch.close()
        _talk = None
        _leave_group()


def pick_device(name: str | None = None) -> torch.device:
    """The device of this process: with torchrun, each takes its own GPU.

    A launcher that shows each process one GPU (CUDA_VISIBLE_DEVICES) has chosen already: that one is taken.

    Args:
        name: "cpu", "cuda" or "cuda:1"; None stands for a GPU if there is one.

    Raises:
        ValueError: There is no such device, or this library does not run on it.
    """
    import torch

    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    choices = "choose cpu, cuda or cuda:0, cuda:1, ..."
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"no device {name!r}: {choices}") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device {name}: expected a CPU or a GPU of CUDA, found {device.type!r}, on which this "
                         f"library has not been tried; {choices}")
    if device.type == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError(f"device {name}: PyTorch finds no GPU here; leave the device out, or choose cpu")
    count = torch.cuda.device_count()
    index = int(os.environ.get("LOCAL_RANK", 0)) if device.index is None else device.index
    if device.index is None and count == 1 and os.environ.get("CUDA_VISIBLE_DEVICES"):
        index = 0
    device = torch.device("cuda", index)
    if index >= count:
        raise ValueError(f"device {device}: there are {count} GPUs, counted from 0; start fewer processes")
    torch.cuda.set_device(device)
    return device


def from_main_process(function: Callable[[], _Thing]) -> _Thing:
    """What a function returns in the main process, where alone it is called: in all of them.

    Raises:
        ValueError, OSError, ImportError: As the function raised it in the main process; the others raise ValueError.
    """
    ranks = _current()
    if ranks.size == 1:
        return function()
    answer: Any = None
    failed: Exception | None = None
    if ranks.rank == 0:
        try:
            answer = function()
        except (ValueError, OSError, ImportError) as error:
            failed = error
    answer, problem = _share((answer, None if failed is None else str(failed)))
    if failed is not None:
        raise failed
    if problem is not None:
        raise ValueError(problem)
    return answer


def gather(thing: _Thing) -> list[_Thing]:
    """The things of all processes of the open group, in the order of their ranks; alone, a list of one."""
    return _current().gather(thing)


def shard(samples: int, batch_size: int, ranks: Ranks) -> list[list[int]]:
    """Samples that one process evaluates, batch by batch: each once over all processes, none to fill a batch."""
    mine = range(ranks.rank, samples, ranks.size)
    return [list(mine[i:i + batch_size]) for i in range(0, len(mine), batch_size)]
