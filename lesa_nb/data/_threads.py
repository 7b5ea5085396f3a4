"""Threads that read files side by side, and stop when whoever asked for them stops."""
import contextlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

_MOST = 256  # more read no faster, and a slip of the finger must not fill the memory


def check_threads(workers: int | None) -> None:
    """Refuse a number of threads that cannot be; None is one for each core."""
    if workers is not None and not 1 <= workers <= _MOST:
        raise ValueError(f"workers must lie between 1 and {_MOST}, got {workers}")


@contextlib.contextmanager
def thread_pool(workers: int | None) -> Iterator[ThreadPoolExecutor]:
    """Threads to map over files; None: one for each core, 16 at most.

    An error or Ctrl-C inside the block leaves out what was not begun: Python's own pool would first read all files.
    """
    check_threads(workers)
    pool = ThreadPoolExecutor(workers or min(os.cpu_count() or 1, 16))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
