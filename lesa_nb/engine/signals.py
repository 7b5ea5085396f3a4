"""Hear SIGTERM, Ctrl-C and the end of the terminal, and end between two steps instead of in the middle of one.

A machine that is taken away says so first: the signal SIGTERM, then about half a minute of grace, then the end. `Stop`
writes the wish down instead of ending Python wherever it is, and whoever is at a good place to end looks at it. This
module imports almost nothing, so that a command can listen while it still imports PyTorch.
"""
from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

__all__ = ["Stopped", "ending_signals", "Stop"]


class Stopped(Exception):
    """A run that ended because it was asked to; everything is saved.

    `status` is the exit status that says so by the shell's convention, 128 + the signal's number: 130 after Ctrl-C,
    143 after SIGTERM, 129 after SIGHUP.
    """

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.status = 128 + number


def ending_signals() -> list[int]:
    """What asks this process to end: Ctrl-C, SIGTERM, and SIGHUP where its terminal may close (nohup ignores it)."""
    hangup = getattr(signal, "SIGHUP", None)
    heard = hangup is not None and signal.getsignal(hangup) != signal.SIG_IGN
    return [signal.SIGTERM, signal.SIGINT, *([hangup] if hangup is not None and heard else [])]


class Stop:
    """Remember that the process was asked to end (see `ending_signals`), for whoever looks at `number`; 0 is: go on.

    It listens inside `with`, and in the main thread only, since Python lets no other one. A second Ctrl-C means now.
    """

    def __init__(self) -> None:
        self.number = 0
        self._before: dict[int, Any] = {}

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if number == self.number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = number

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            self._before = {n: signal.signal(n, self._hear) for n in ending_signals()}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def _end_with(parent: int) -> None:
    """Wait for SIGTERM, and end if it comes from the parent or the parent has gone."""
    while True:
        heard = signal.sigwaitinfo({signal.SIGTERM})
        if heard.si_pid == parent or os.getppid() != parent:
            os._exit(0)


def _ignore_signals(worker: int = 0) -> None:
    """Called in a process that reads ahead: leave signals to the process that it works for, but die with it.

    All three often go to all processes of a group, and the one that trains still needs its workers to finish a step.
    So they ignore them, except a SIGTERM that the parent itself sends: that is how Python ends its children.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):
        return  # a system that does not say who sent a signal: SIGTERM ends the worker
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
