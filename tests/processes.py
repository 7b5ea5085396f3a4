"""Processes of this Python for the tests: several by torchrun, or two as torchrun would start them."""

import os
import socket
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def environment(**more):
    "The project and the modules of the tests are found; one thread each."
    paths = os.pathsep.join([str(HERE.parent), str(HERE)])
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **more}


def torchrun(*words, ranks=2):
    "The words that run a script, or `-m` and a module, in several processes."
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    return [*start, *map(str, words)]


def run_ranks(*words, ranks=2, timeout=300):
    "What several processes print; they must end well, within `timeout` seconds."
    command = torchrun(*words, ranks=ranks)
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr
    return done.stdout


def two(*words):
    "Start two processes as torchrun would, without its agent."
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    env = environment(WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    return [
        subprocess.Popen(
            [sys.executable, *map(str, words)],
            env={**env, "RANK": str(r), "LOCAL_RANK": str(r)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for r in range(2)
    ]


def ended(processes, seconds=120):
    "Exit statuses and outputs; a process that hangs fails the test."
    outputs = []
    for p in processes:
        try:
            outputs.append(p.communicate(timeout=seconds)[0])
        except subprocess.TimeoutExpired:
            for q in processes:
                q.kill()
            raise
    return [p.returncode for p in processes], outputs
