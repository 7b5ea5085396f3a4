"""One run in a folder at a time."""
from __future__ import annotations

import contextlib
import errno
import os
import socket
import warnings
from collections.abc import Iterator
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from lesa_nb.engine.group import Ranks

__all__ = ["run_lock"]


#: a file system without locks of its own; there a file that exists is the lock, and stays if its process is killed
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)


def _acquired(folder: Path) -> BaseFileLock:
    """The lock of a folder, taken."""
    lock: BaseFileLock = FileLock(folder/"lock", timeout=0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # where there are no locks, it is another kind, which serves as well
            lock.acquire()
    except OSError as error:
        lock.release()
        if error.errno not in _NO_LOCKS:
            raise
        lock = SoftFileLock(folder/"lock.soft", timeout=0)
        lock.acquire()
    return lock


def _held(folder: Path) -> str:
    """What to say where another process has the lock."""
    who = ""
    with contextlib.suppress(OSError):
        who = (folder/"lock.holder").read_text(encoding="utf-8")
    says = (f"{folder}: another run ({who or 'a process'}) is writing there: wait for it, stop it, or choose another "
            "folder")
    for file in (folder/"lock", folder/"lock.soft"):
        with contextlib.suppress(OSError):
            if file.stat().st_size:  # a lock of the file system is an empty file
                says += (f"; if its machine was switched off, delete {file}, since this file system has no locks that "
                         "end with a process")
    return says


def _take(folder: Path) -> tuple[BaseFileLock | None, str]:
    """The lock of a folder, or why there is none."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = _acquired(folder)
        (folder/"lock.holder").write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
    except Timeout:
        return None, _held(folder)
    except NotImplementedError:
        return None, ""  # a system without locks
    except OSError as error:
        return None, f"{folder}: cannot write there ({error.strerror or error}): choose another folder"
    for left in folder.glob("*.part"):  # of a run that was killed while it wrote
        with contextlib.suppress(OSError):
            left.unlink()
    return lock, ""


@contextlib.contextmanager
def run_lock(folder: Path, ranks: Ranks) -> Iterator[None]:
    """Keep every other run out of a folder, which is made if need be; the lock goes with the process, however it ends.

    Args:
        folder: Of the run.
        ranks: The processes of the run; the main one takes the lock for all.

    Raises:
        OSError: In all processes, if another run holds the folder or it cannot be written to.
    """
    made = not folder.exists()
    lock, problem = _take(folder) if ranks.rank == 0 else (None, "")
    try:
        ranks.agree(problem)
        yield
    finally:
        if lock:
            with contextlib.suppress(OSError):
                (folder/"lock.holder").unlink(missing_ok=True)
                left = [*folder.iterdir()] if made else []
                if left and {file.name for file in left} <= {"lock", "lock.soft"}:  # the run never began
                    for file in left:
                        file.unlink()
                    folder.rmdir()
            lock.release()
