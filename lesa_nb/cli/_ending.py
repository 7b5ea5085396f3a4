"""How a command ends when it is asked to: by an exception, so that what was half written is taken away."""
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator


class _Terminated(KeyboardInterrupt):
    "SIGTERM, taken like Ctrl-C."


def _terminate(number: int, frame: object) -> None:
    signal.signal(number, signal.SIG_IGN)  # once is enough: what is being tidied up is left in peace
    raise _Terminated


@contextlib.contextmanager
def _hearing() -> Iterator[None]:
    "SIGTERM raises an exception, as Ctrl-C does; without a handler it would end Python wherever it is."
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def say_last(sentence: str) -> None:
    "Print to stderr, if there is anybody who listens."
    with contextlib.suppress(OSError):
        print(sentence, file=sys.stderr, flush=True)


def _flush(status: int) -> int:
    """Write out what was printed; returns the exit status, which is not 0 if nobody could take it.

    Python would try once more at its end and complain: a full disk behind `>`, or a reader who has gone, gets nothing.
    """
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not (status or isinstance(error, BrokenPipeError)):
            say_last(f"lesa: the answer could not be written: {error.strerror}")
        return status or 1
    return status


def ends_in_order(command: Callable[[], int]) -> int:
    "Run a command; asked to end, it says so in one line. Returns its exit status: 130 for Ctrl-C, 143 for SIGTERM."
    try:
        with _hearing():
            return _flush(command())
    except _Terminated:
        say_last("\nlesa: ended by SIGTERM")
        return 128 + signal.SIGTERM
    except KeyboardInterrupt:
        say_last("\nlesa: interrupted")
        return 128 + signal.SIGINT


def deaf_at_the_end() -> None:
    "The work of this process is done: a signal while Python tidies up would only be a traceback."
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
