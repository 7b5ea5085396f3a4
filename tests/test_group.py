"""The processes of a run: who this one is, on which device, and how all agree."""
import subprocess
import sys

import processes
import pytest
import torch

from lesa_nb.engine import group
from lesa_nb.engine.group import Ranks, pick_device, process_group, shard


def test_alone():
    with process_group(torch.device("cpu")) as ranks:
        assert ranks == (0, 1) and ranks.all_reduce_max(2) == 2
        assert ranks.gather("me") == ["me"] and ranks.mean([1., 2.]) == [1., 2.]
        ranks.agree("")
        with pytest.raises(OSError, match="disk full"):
            ranks.agree("disk full")
    assert group.is_main_process() and group.world_size() == 1 and group.gather(3) == [3]
    assert group.from_main_process(lambda: 5) == 5
    with pytest.raises(ImportError, match="missing"):
        group.from_main_process(lambda: (_ for _ in ()).throw(ImportError("missing")))


def test_what_torchrun_says_counts_before_the_group_is_open(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not group.is_main_process() and group.world_size() == 2


def test_asking_who_one_is_does_not_load_torch():
    code = ("import sys\nfrom lesa_nb.engine.group import is_main_process\n"
            "assert is_main_process() and 'torch' not in sys.modules")
    subprocess.run([sys.executable, "-c", code], check=True, env=processes.environment(), timeout=60)


@pytest.mark.parametrize("samples, batch_size, size", [(11, 2, 3), (12, 5, 4), (2, 4, 3), (0, 4, 2)])
def test_each_sample_is_evaluated_once(samples, batch_size, size):
    parts = [shard(samples, batch_size, Ranks(rank, size)) for rank in range(size)]
    assert sorted(i for part in parts for batch in part for i in batch) == list(range(samples))
    assert all(len(batch) <= batch_size for part in parts for batch in part)
    assert len(parts[0]) == max(map(len, parts))  # the first has as many batches as any


@pytest.mark.fault("R6")
@pytest.mark.parametrize("name, says", [
    ("mps", "device mps: expected a CPU or a GPU of CUDA, found 'mps'"), ("xpu", "found 'xpu'"),
    ("meta", "found 'meta'"), ("abacus", "no device 'abacus': choose cpu, cuda or cuda:0")])
def test_other_devices_are_refused_in_a_sentence(name, says):
    with pytest.raises(ValueError, match=says):
        pick_device(name)


def test_a_gpu_that_is_not_there():
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="PyTorch finds no GPU here"):
            pick_device("cuda")
    assert pick_device("cpu") == torch.device("cpu")


TWO = """
import torch
from lesa_nb.engine.group import *
with process_group(torch.device("cpu")) as ranks:
    r = ranks.rank
    assert ranks.size == world_size() == 2 and is_main_process() == (r == 0)
    assert ranks.all_reduce_max(r) == 1 and ranks.gather(r) == gather(r) == [0, 1] and ranks.mean([r, 1.]) == [.5, 1.]
    assert from_main_process(lambda: "from " + str(r)) == "from 0"
    for kind in (ValueError, ImportError):
        def fails(): raise kind("no such file")
        try: from_main_process(fails)
        except (kind if r == 0 else ValueError) as error: assert str(error) == "no such file"
        else: raise AssertionError
    try: ranks.agree("disk full" if r else "")
    except OSError as error: assert str(error) == "disk full"
    else: raise AssertionError
    with process_group(torch.device("cpu")) as inner: assert inner == ranks
print("agreed")
"""


def test_two_processes_agree():
    statuses, outputs = processes.ended(processes.several("-c", TWO), 100)
    assert statuses == [0, 0] and all("agreed" in output for output in outputs), outputs
