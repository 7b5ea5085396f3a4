"""Errors of a disk or a network that pass: a server that restarts must not end what has run for days."""
from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import TypeVar

__all__ = ["PAUSES", "patiently"]

_Result = TypeVar("_Result")

#: seconds between one attempt and the next; who is asked to end has about thirty
PAUSES = (.5, 2., 8.)
#: what a network's file system says while its server is away; a full disk or a missing file does not pass
_PASSING = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.ENOTCONN, errno.ECONNRESET,
            errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH}


def patiently(function: Callable[[], _Result]) -> _Result:
    """What a function returns that reads or writes files; it is called again, up to three times, where it raises an
    error that may pass. It must do the same again, whatever it had done.

    Raises:
        OSError: One that does not pass, at once, or the last one. Other errors at once.
    """
    for pause in PAUSES:
        try:
            return function()
        except OSError as error:
            if error.errno not in _PASSING:
                raise
        time.sleep(pause)
    return function()
