"""Processes of this Python for the tests: one or several, forked from one that has imported PyTorch, or by torchrun."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import forked
import torch.multiprocessing

HERE = Path(__file__).resolve().parent


def environment(**more):
    "The project and the modules of the tests are found; one thread each."
    paths = os.pathsep.join([str(HERE.parent), str(HERE)])
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **more}


def patient(seconds):
    "So long on a free core; longer where many wait for one."
    return seconds * max(1, os.getloadavg()[0] / (os.cpu_count() or 1))


def run(*words, env=None, timeout=300, **options):
    "`python WORDS`, to its end: status and what it printed, as text."
    options = dict(capture_output=True, text=True) | options
    return forked.run(words, env=env or environment(), timeout=patient(timeout), **options)


def lesa(*words, **options):
    "A command in a process of its own: status and what it printed."
    return run("-m", "lesa_nb.cli", *words, **options)


def torchrun(*words, ranks=2):
    "The words that run a script, or `-m` and a module, in several processes, as a user starts them."
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    return [*start, *map(str, words)]


def several(*words, ranks=2, env=None, stdout=subprocess.PIPE):
    "Start several processes as torchrun would, without its agent; what they print goes to one file or a pipe each."
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    size = str(ranks)
    env = dict(env or environment(), WORLD_SIZE=size, LOCAL_WORLD_SIZE=size, MASTER_ADDR="127.0.0.1")
    env["MASTER_PORT"] = str(port)
    return [
        forked.Python(
            words,
            env={**env, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=stdout,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(ranks)
    ]


def ended(processes, seconds=120):
    "Exit statuses and outputs; a process that hangs fails the test."
    outputs, seconds = [], patient(seconds)
    for p in processes:
        try:
            outputs.append(p.communicate(timeout=seconds)[0])
        except subprocess.TimeoutExpired:
            for q in processes:
                q.kill()
            raise
    return [p.returncode for p in processes], outputs


def run_ranks(*words, ranks=2, timeout=300, env=None):
    "What several processes print; they must end well, within `timeout` seconds."
    statuses, outputs = ended(several(*words, ranks=ranks, env=env), timeout)
    assert statuses == [0] * ranks, outputs
    return "".join(outputs)


def spawn(function, arguments, *, nprocs, join=True):
    "As torch.multiprocessing.spawn, faster: `function(rank, *arguments)` in several processes."
    forked.context()
    return torch.multiprocessing.start_processes(function, arguments, nprocs, join, start_method="forkserver")
