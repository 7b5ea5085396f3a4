"""An error in one process ends all, whatever the others wait for; a long validation in the main process ends none."""
import signal
import time

import processes
import pytest
import torch

from lesa_nb.engine import group
from lesa_nb.engine.group import Ranks, _refuse_shared_gpus, pick_device

SCRIPT = """
import os, signal, sys, time
import torch, torch.distributed as dist
from datetime import timedelta
from lesa_nb.engine import _watch, group
what, (_watch._GRACE, group._TO_LEAVE, group._FOR_TENSORS) = sys.argv[1], (2., 1., timedelta(seconds=2))
if what == "destroying hangs":
    dist.destroy_process_group = lambda: time.sleep(300)
with group.process_group(torch.device("cpu")) as ranks:
    if what == "main validates":  # longer than a collective may take
        assert group.from_main_process(lambda: time.sleep(5) or 7) == 7
    elif ranks.rank == 0:
        time.sleep(300)  # as in a collective of a GPU that waits for the others
    elif what == "killed":
        if not os.fork():  # a process that reads ahead, and outlives it
            time.sleep(6)
            os._exit(0)
        os.kill(os.getpid(), signal.SIGKILL)
    else:
        raise ValueError("the picture x.png is torn")
print("fine")
"""


def two(what):
    "Statuses, outputs and seconds of both processes; one that hangs fails the test."
    start = time.monotonic()
    statuses, outputs = processes.ended(processes.several("-c", SCRIPT, what), 60)
    return statuses, outputs, time.monotonic() - start


@pytest.mark.parametrize("what", ["raises", "destroying hangs"])
def test_an_error_in_one_process_ends_all(what):
    statuses, (main, other), seconds = two(what)
    assert statuses == [1, 1] and seconds < 60
    assert "process 0 of 2: another process has ended, so this one ends too" in main
    assert "ValueError: the picture x.png is torn" in other


def test_a_killed_process_ends_all():
    statuses, (main, _), _ = two("killed")
    assert statuses == [1, -signal.SIGKILL] and "another process has ended" in main


def test_the_main_process_may_take_longer_than_a_collective():
    statuses, outputs, _ = two("main validates")
    assert statuses == [0, 0] and all("fine" in output for output in outputs), outputs


def test_the_gpu_of_a_process(monkeypatch):
    "torchrun shows all GPUs to all processes; other launchers show each process its own."
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    for local_rank, visible, count, index in (
            ("3", None, 8, 3), ("3", "5", 1, 0), ("1", "4,5", 2, 1), ("0", None, 1, 0)):
        monkeypatch.setenv("LOCAL_RANK", local_rank)
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=count: count)
        if visible is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert pick_device() == torch.device("cuda", index)
    for name, visible in (("cuda", None), ("cuda:3", "5")):
        monkeypatch.setenv("LOCAL_RANK", "3")
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        with pytest.raises(ValueError, match="device cuda:3: there are 1 GPUs"):
            pick_device(name)


def test_two_processes_on_one_gpu_are_refused(monkeypatch):
    class Gpu:
        uuid = "GPU-12"

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Gpu)
    for everyone, refused in ((["node GPU-11", "node GPU-12"], False), (["node GPU-12"]*2, True), (["", ""], False)):
        monkeypatch.setattr(group.Ranks, "gather", lambda self, mine, everyone=everyone: everyone)
        if refused:
            with pytest.raises(ValueError, match="processes 0 and 1 were given the same GPU .*CUDA_VISIBLE_DEVICES"):
                _refuse_shared_gpus(torch.device("cuda", 0), Ranks(0, 2))
        else:
            _refuse_shared_gpus(torch.device("cuda", 0), Ranks(0, 2))
