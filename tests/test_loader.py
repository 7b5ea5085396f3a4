"""Batches read ahead: what cannot be read comes as a reason with the sample's name; no worker outlives its parent."""
import errno
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import forked
import processes
import pytest
import torch

from lesa_nb.engine._errors import left_early
from lesa_nb.engine.loader import BatchReader, Unreadable, checked_batches, loader, worker_died

ROOT = Path(__file__).resolve().parent.parent


class Squares:
    "Numbers and their squares; some raise what they are told to."

    def __init__(self, n=12, **wrong):
        self.n, self.wrong = n, wrong

    def __len__(self):
        return self.n

    def sample_name(self, index):
        return f"squares/{index}.png"

    def __getitem__(self, key):
        index = key[1] if isinstance(key, tuple) else key
        if error := self.wrong.get(f"at_{index}"):
            raise error
        return torch.tensor([index, index**2])


KEYS = [[0, 1, 2], [3, 4], [5, 6, 7]]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_come_in_the_given_order(workers):
    found = [batch[:, 0].tolist() for batch in loader(Squares(), KEYS, torch.stack, workers=workers)]
    assert found == KEYS
    pairs = [[(7, i) for i in keys] for keys in KEYS]
    assert [batch[:, 0].tolist() for batch in loader(Squares(), pairs, torch.stack, workers=workers)] == KEYS


@pytest.mark.fault("R2")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("error, reason", [
    (ValueError("squares/4.png: broken data stream"), "squares/4.png: broken data stream"),
    (OSError("squares/4.png: truncated"), "squares/4.png: truncated"),
    (RuntimeError("odd shape"), "squares/4.png: RuntimeError: odd shape (test_loader.py, line "),
    (KeyError("colour"), "squares/4.png: KeyError: 'colour' (test_loader.py, line ")])
def test_what_goes_wrong_is_told_as_it_is(workers, error, reason):
    first, second, third = loader(Squares(at_4=error), KEYS, torch.stack, workers=workers)
    assert isinstance(second, Unreadable) and second.reason.startswith(reason)
    assert "reads ahead has died" not in second.reason and third[:, 0].tolist() == KEYS[2]  # the others are read
    with pytest.raises(ValueError, match="squares/4.png"):
        list(checked_batches([first, second]))


@pytest.mark.parametrize("workers", [0, 2])
def test_samples_that_do_not_go_together_are_named(workers):
    def collate(samples):
        raise RuntimeError("stack expects each tensor to be equal size")
    batch = next(iter(loader(Squares(), [[0, 1, 2, 3, 4, 5]], collate, workers=workers)))
    assert batch.reason.startswith("a batch of 6 samples (squares/0.png, squares/1.png, squares/2.png, squares/3.png, "
                                   "...): RuntimeError: stack expects")


def test_a_reader_takes_what_a_step_needs():
    reader = BatchReader(Squares(at_4=ValueError("torn")), KEYS, torch.stack)
    taken = reader.take(3)
    assert len(taken) == 2 and taken[1].reason == "torn"  # nothing after what could not be read
    reader.close()
    assert list(reader) == []


START = """
import os, signal, sys, time
import torch
from lesa_nb.engine.loader import loader
sys.path.insert(0, {tests!r})
from test_loader import Squares
class Slow(Squares):
    def __getitem__(self, index):
        time.sleep(.05)
        return super().__getitem__(index)
batches = iter(loader(Slow(4000), [[i] for i in range(4000)], torch.stack, workers=2))
next(batches)
"""


def test_a_worker_that_dies_is_told_as_that():
    code = START.format(tests=str(ROOT/"tests")) + """
import torch
from lesa_nb.engine._errors import explain_errors
from lesa_nb.engine.loader import BatchReader, Unreadable, checked_batches
class Deadly(Squares):
    def __getitem__(self, index):
        if index == 3: os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)
try:
    with explain_errors(torch.device("cpu"), 1, ""):  # PyTorch may hear of it between two batches
        list(checked_batches(BatchReader(Deadly(), [[i] for i in range(12)], torch.stack, workers=1)))
except ValueError as error: print("told:", error)
"""
    done = processes.run("-c", code, timeout=90)
    assert "told: a process that reads ahead has died (" in done.stdout, done.stderr
    assert "free memory" in done.stdout


@pytest.mark.fault("R1")
def test_a_batch_that_has_no_room_on_its_way_is_told():
    "A batch lies in shared memory on its way from a worker. Without room there, PyTorch drops it, and waits for it."
    code = START.format(tests=str(ROOT/"tests")) + """
import resource
from lesa_nb.engine.loader import Unreadable
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # as if the disk were full behind it
class Wide(Squares):
    def __getitem__(self, index):
        return dict(x=torch.full((4000 if index == 1 else 4,), index), name=f"{index}")
for batch in loader(Wide(), [[0], [1], [2]], list, workers=1):
    print("told:", batch.reason if isinstance(batch, Unreadable) else batch[0]["x"].sum().item())
from lesa_nb.data.speed import loader_speed
class Narrow(Wide):
    def __getitem__(self, key): return super().__getitem__(1)
try: loader_speed(Narrow(), batch_size=1, workers=1, collate=list)
except RuntimeError as error: print("told:", str(error).splitlines()[0])
"""
    done = processes.run("-c", code, timeout=60)
    first, second, third, speed = done.stdout.splitlines()
    assert (first, third) == ("told: 0", "told: 8"), done.stderr
    for said in (second, speed):
        assert said.startswith("told: no room in shared memory for a batch on its way from a worker (unable to "), said
    assert "use fewer workers or smaller batches" in second and "--shm-size" in second


DETECTIONS = """
import resource, sys, time
limits = int(sys.argv[1]), int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_NOFILE, limits)
from lesa_nb.data.coco import collate_detection
from lesa_nb.engine.loader import BatchReader, Unreadable
class Detections:
    def __len__(self): return 4000
    def __getitem__(self, i):
        if i == 0: time.sleep(1)  # the others wait, open
        return torch.zeros(3), dict.fromkeys("abcdef") | {name: torch.zeros(2) for name in "abcdef"}
if __name__ == "__main__":
    reader = BatchReader(Detections(), [[*range(16*b, 16*b + 16)] for b in range(16)], collate_detection, workers=4)
    batches = list(reader)
    print(len(batches), batches[-1].reason if isinstance(batches[-1], Unreadable) else "read")
"""


@pytest.mark.parametrize("most, said", [(4096, "16 read"), (200, "too many open files: .*use fewer workers, or allow")])
def test_many_small_tensors_are_many_open_files(most, said):
    "112 files a batch, where the usual limit is 1,024 for a process, or fewer here; the system may allow more."
    done = processes.run("-c", "import torch" + DETECTIONS, "128", str(most), timeout=60)
    assert re.search(said, done.stdout), done.stdout + done.stderr


TOO_LONG = START + """
import multiprocessing, tempfile
tempfile.tempdir = {folder!r}  # as TMPDIR sets it
multiprocessing.current_process()._config.pop("tempdir", None)  # of the process that this one was forked from
print("told:", next(iter(loader(Squares(), [[1]], torch.stack, workers=1))))
"""


def test_a_long_path_of_temporary_files_does_not_stop_a_run_forever(tmp_path):
    "Workers open sockets there, whose path may have some hundred letters; PyTorch drops the batch, and waits for it."
    folder = tmp_path/("a folder for each job " + "x"*90)
    folder.mkdir()
    done = processes.run("-c", TOO_LONG.format(tests=str(ROOT/"tests"), folder=str(folder)), timeout=60)
    assert re.search("told: .*the path of temporary files is too long .*set TMPDIR to a shorter one", done.stdout), done


def test_what_cannot_be_pickled_is_told_too():
    class Local:
        pass

    (batch,) = loader(Squares(), [[1]], lambda samples: [Local()], workers=1)
    assert "a batch of 1 samples (squares/1.png)" in batch.reason and "Local" in batch.reason


@pytest.mark.parametrize("error", [RuntimeError("received 0 items of ancdata"), OSError(errno.EMFILE, "Too many")])
def test_too_many_open_files_are_told_as_that(error):
    def batches():
        yield torch.ones(2)
        raise error

    reader = BatchReader(Squares(), KEYS, torch.stack)
    reader._batches = batches()
    found = reader.take(3)
    assert len(found) == 2 and re.search("too many open files: .*use fewer workers, or allow more", found[1].reason)
    opening = OSError(f"cat.jpg: unreadable file ({os.strerror(errno.EMFILE)})")
    (batch,) = loader(Squares(at_1=opening), [[1]], torch.stack)
    assert batch.reason == found[1].reason  # not a fault of the file that was to be opened


@pytest.mark.parametrize("error", [RuntimeError("DataLoader worker (pid 3) is killed by signal: Killed."), EOFError()])
def test_a_worker_that_dies_while_scores_are_counted_is_told_too(error):
    def batches():
        yield torch.ones(2)
        raise error

    found = checked_batches(batches())
    assert next(found).equal(torch.ones(2))
    with pytest.raises(ValueError, match="a process that reads ahead has died .*use fewer workers, or free memory"):
        next(found)
    with pytest.raises(RuntimeError, match="odd shape"):
        [*checked_batches(_raising(RuntimeError("odd shape")))]


def _raising(error):
    raise error
    yield


def test_the_data_are_not_blamed_for_the_machine():
    at = SimpleNamespace(epoch=0, step=3, per_epoch=9)
    blamed = str(left_early(at, Path("run"), True, 0, ["a.jpg: broken picture"]))
    assert blamed.endswith("mend it and resume; lesa verify-data names every such file")
    assert str(left_early(at, Path("run"), True, 0, ["", worker_died(RuntimeError("DataLoader worker (pid 3) was "
                          "killed"))])).endswith("mend it and resume")


@pytest.mark.fault("R1")
@pytest.mark.parametrize("then, status", [
    ("raise KeyError('in the middle of the loop')", 1), ("sys.exit(0)", 0),
    ("def f():\n    for batch in batches: raise ValueError('held by a traceback')\nf()", 1)])
def test_a_script_that_leaves_a_loader_ends_within_seconds(then, status):
    began = time.monotonic()
    code = START.format(tests=str(ROOT/"tests")) + then
    done = processes.run("-c", code, timeout=90)
    assert done.returncode == status and time.monotonic() - began < 60, done.stderr
    if status:
        assert ("in the middle" in done.stderr or "held by a traceback" in done.stderr) and "died" not in done.stderr


def test_a_signal_to_the_whole_group_leaves_the_workers_to_their_parent():
    code = START.format(tests=str(ROOT/"tests")) + """
signal.signal(signal.SIGTERM, lambda *_: print("heard", flush=True))
print("ready", flush=True)
sys.stdin.readline()
print(sum(len(next(batches)) for _ in range(40)), flush=True)
"""
    with forked.Python(["-c", code], env=processes.environment(), text=True,
                       stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout.readline() == "ready\n"
        time.sleep(.5)
        os.killpg(process.pid, signal.SIGTERM)
        assert process.stdout.readline() == "heard\n"
        process.stdin.write("\n")
        process.stdin.close()
        assert process.stdout.readline() == "40\n"  # the workers went on
