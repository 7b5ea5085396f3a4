"""One run in a folder at a time."""
from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from lesa_nb.engine.group import Ranks

__all__ = ["run_lock"]


def _take(folder: Path) -> tuple[FileLock | None, str]:
    """The lock of a folder, or why there is none."""
    holder = folder/"lock.holder"
    lock = FileLock(folder/"lock", timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        holder.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
    except Timeout:
        with contextlib.suppress(OSError):
            who = holder.read_text(encoding="utf-8")
            return None, (f"{folder}: another run ({who or 'a process'}) is writing there: wait for it, stop it, or "
                          "choose another folder")
        return None, f"{folder}: another run is writing there: wait for it, stop it, or choose another folder"
    except NotImplementedError:
        return None, ""  # a file system without locks
    except OSError as error:
        lock.release()
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
                if made and [file.name for file in folder.iterdir()] == ["lock"]:  # the run never began
                    (folder/"lock").unlink()
                    folder.rmdir()
            lock.release()
