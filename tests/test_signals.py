"""Asked to end: the signal is written down, and the step is finished; workers leave signals to their parent."""
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lesa_nb.cli._ending import ends_in_order
from lesa_nb.engine.signals import Stop, Stopped

ENV = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}


def test_a_signal_is_written_down_and_nothing_else_happens():
    usual = signal.getsignal(signal.SIGTERM)
    with Stop() as stop:
        assert stop.number == 0
        signal.raise_signal(signal.SIGTERM)
        assert stop.number == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == usual


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="a system without terminals")
def test_a_terminal_that_closes_asks_to_end_too(monkeypatch):
    "Unless nohup has seen to it that nobody hears."
    with Stop() as stop:
        signal.raise_signal(signal.SIGHUP)
        assert stop.number == signal.SIGHUP and Stopped("", stop.number).status == 129
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
    assert ends_in_order(lambda: signal.raise_signal(signal.SIGHUP) or 0) == 129
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Stop() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert stop.number == 0
        assert ends_in_order(lambda: signal.raise_signal(signal.SIGHUP) or 0) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_interrupt_means_now():
    with Stop() as stop, pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
        assert stop.number == signal.SIGINT
        signal.raise_signal(signal.SIGINT)


def test_the_status_says_which_signal():
    assert [Stopped("", number).status for number in (signal.SIGINT, signal.SIGTERM)] == [130, 143]


LISTENS = """
import contextlib, sys, time
from lesa_nb.engine.signals import Stop
with Stop() if sys.argv[1] == "listens" else contextlib.nullcontext() as stop:
    print("ready", flush=True)
    for step in range(50):
        if stop and stop.number: break
        time.sleep(.2)
        print("step", flush=True)
sys.exit(128 + stop.number)
"""


def asked_after(kind, seconds):
    with subprocess.Popen([sys.executable, "-c", LISTENS, kind], stdout=subprocess.PIPE, text=True, env=ENV) as process:
        process.stdout.readline()
        time.sleep(seconds)
        process.terminate()
        return process.stdout.read().count("step"), process.wait()


def test_the_one_that_listens_finishes_its_step():
    steps, status = asked_after("listens", .5)
    torn, killed = asked_after("does not", .5)
    assert (status, killed) == (143, -signal.SIGTERM) and steps > torn


WORKER = """
import os, signal, sys, time
from lesa_nb.engine.signals import _ignore_signals
child = os.fork()
if not child:
    _ignore_signals()
    print(os.getpid(), flush=True)
    time.sleep(60)
    os._exit(7)
if sys.stdin.readline() == "end it\\n":
    os.kill(child, signal.SIGTERM)
    print(os.waitpid(child, 0)[1], flush=True)
"""


@pytest.mark.fault("R1")
@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="the system does not say who sent a signal")
def test_a_worker_ends_with_its_parent_and_for_nobody_else():
    with subprocess.Popen([sys.executable, "-c", WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                          env=ENV) as process:
        worker = int(process.stdout.readline())
        time.sleep(.5)
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(worker, number)  # as a scheduler sends it to every process of a job
        time.sleep(.5)
        os.kill(worker, 0)  # it is still there
        process.stdin.write("end it\n")
        process.stdin.flush()
        assert process.stdout.readline() == "0\n"  # its parent asked: it ended, quietly
