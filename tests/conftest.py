"""Shared by all tests: no display, nothing written to the home folder, GPU tests only where there is a GPU."""

import importlib
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

# Last, as in tools/test.py: tools/test.py must not hide Python's own `test`. So plain `pytest` works too.
sys.path.append(str(Path(__file__).resolve().parent.parent / "tools"))
collect_ignore = ["browser"]  # needs Chromium: make test-browser
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


_shares = {}  # test -> the numbers of a page's mutants


def pytest_runtest_logreport(report):
    if report.when == "call" and (found := dict(report.user_properties).get("mutants")):
        _shares[report.nodeid] = found


def pytest_unconfigure(config):
    "Say how many mutants were killed, page by page and in all; in the process that hears of every test."
    if _shares and not hasattr(config, "workerinput"):
        import mutants

        print("\n" + "\n".join(mutants.summary(_shares)))


@pytest.fixture(scope="session")
def source(tmp_path_factory):
    "A drawn folder of three classes, to read from; tests of other data have a `source` of their own."
    from lesa_nb.data.drawn import make_image_folder

    return make_image_folder(tmp_path_factory.mktemp("a; ü folder") / "pictures", train=8, val=3, size=74)


@pytest.fixture
def folder(source, tmp_path):
    "A copy of it, to spoil."
    return Path(shutil.copytree(source, tmp_path / "two words; größe"))


@pytest.fixture
def one_thread():
    "Equal to the bit needs an equal number of threads."
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def benchmark(root):
    "Gives benchmarks/NAME.py as a module, for its name."
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(root / "benchmarks"), *sys.path])
        yield importlib.import_module


@pytest.fixture(scope="session")
def root():
    "The project's folder."
    return Path(__file__).resolve().parent.parent
