"""Shared by all tests: no display, nothing written to the home folder, GPU tests only where there is a GPU."""

import os
import tempfile
from pathlib import Path

import pytest

os.environ.setdefault("MPLBACKEND", "Agg")
# Side by side (pytest -n 2), workers with more threads than cores wait for each other most of the time.
_workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // _workers)))
if not os.access(Path.home(), os.W_OK):
    os.environ.setdefault("MPLCONFIGDIR", tempfile.mkdtemp(prefix="lesa-matplotlib-"))


def pytest_collection_modifyitems(config, items):
    "Leave GPU tests out, visibly, on a machine without one."
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not on_gpu:
        return
    import torch

    if not torch.cuda.is_available():
        config.hook.pytest_deselected(items=on_gpu)
        items[:] = [item for item in items if item not in on_gpu]


@pytest.fixture(scope="session")
def root():
    "The project's folder."
    return Path(__file__).resolve().parent.parent
