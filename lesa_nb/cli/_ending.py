"""How a command ends when it is asked to: by an exception, so that what was half written is taken away."""
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

from lesa_nb.engine.signals import ending_signals


class _Terminated(KeyboardInterrupt):
    "SIGTERM or SIGHUP, taken like Ctrl-C; its argument is the signal's number."


def _terminate(number: int, frame: object) -> None:
    signal.signal(number, signal.SIG_IGN)  # once is enough: what is being tidied up is left in peace
    raise _Terminated(number)


@contextlib.contextmanager
def _hearing() -> Iterator[None]:
    "SIGTERM and SIGHUP raise an exception, as Ctrl-C does; without a handler they end Python wherever it is."
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {n: signal.signal(n, _terminate) for n in ending_signals() if n != signal.SIGINT}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
    """Run a command; asked to end, it says so in one line.

    Returns its exit status: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP (its terminal was closed).
    """
    try:
        with _hearing():
            return _flush(command())
    except _Terminated as asked:
        number = signal.Signals(asked.args[0])
        say_last(f"\nlesa: ended by {number.name}")
        return 128 + number
    except KeyboardInterrupt:
        say_last("\nlesa: interrupted")
        return 128 + signal.SIGINT


def deaf_at_the_end() -> None:
    "The work of this process is done: a signal while Python tidies up would only be a traceback."
    if threading.current_thread() is threading.main_thread():
        for number in ending_signals():
            signal.signal(number, signal.SIG_IGN)
