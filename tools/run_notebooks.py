"""Run notebooks top to bottom in a real kernel and keep their figures.

    python tools/run_notebooks.py                  # all of nbs/
    python tools/run_notebooks.py nbs/1_layer/03_local.ipynb
    python tools/run_notebooks.py --check          # run, write nothing

What stays in the file stands in clean_notebook.py: figures (PNG), and of those that look as they did the bytes that
they had, so that a diff shows what a person changed.
"""

import argparse
import contextlib
import os
import re
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

import clean_notebook
import nbformat
import project
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

ROOT = Path(__file__).resolve().parent.parent
_colours = re.compile(r"\x1b\[[\d;]*m")


class NotebookError(Exception):
    "A notebook that did not run through: the cell, what happened there, and where."


def execute(nb, folder, *, cell_timeout=None, timeout=None, env=None, forked=None):
    """Execute the cells of `nb` in `folder`, in place. Raises NotebookError, which names the cell.

    forked: the module, if its kernel is to start as a copy of a process that has imported PyTorch.
    Neither a notebook that hangs, nor one that ends its process, nor what it started outlives this call.
    """
    # The kernel of this very interpreter, whatever kernels the user has registered.
    client = NotebookClient(
        nb, timeout=cell_timeout, kernel_name="python3", record_timing=False, resources={"metadata": {"path": folder}}
    )
    client.extra_arguments = ["--log-level=40"]  # errors only
    client.create_kernel_manager()
    client.km.kernel_spec.argv[0] = sys.executable
    if forked:
        forked.provision(client.km)
    state = {"cell": 0, "group": None, "late": False}

    def note(cell, cell_index):
        state.update(cell=cell_index + 1, group=client.km.provisioner.pgid)

    def kill(is_late=True):
        state["late"] = is_late
        if state["group"]:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(state["group"], signal.SIGKILL)

    client.on_cell_start = note
    timer = threading.Timer(timeout or threading.TIMEOUT_MAX, kill)
    timer.daemon = True
    timer.start()
    try:
        client.execute(**({"env": env} if env else {}))
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        where = f"cell {state['cell']}"
        if state["late"]:
            raise NotebookError(f"did not end within {timeout:g} s and was stopped, in {where}") from None
        if isinstance(error, CellExecutionError):
            first = (error.evalue.strip().splitlines() or [""])[0]
            what = f"{where}: {error.ename}: {first}".rstrip(": ")
            raise NotebookError(f"{what}\n{_colours.sub('', error.traceback)}") from None
        if isinstance(error, CellTimeoutError):
            raise NotebookError(f"{where} did not end within {cell_timeout:g} s") from None
        raise NotebookError(f"{where}: its process ended, so not every cell was run") from None
    finally:
        late = state["late"]
        timer.cancel()
        kill(late)


def run(path, timeout, write=True):
    "Execute one notebook; returns the seconds it took. Raises NotebookError."
    nb = nbformat.read(path, as_version=4)
    start = time.perf_counter()
    execute(nb, path.parent, cell_timeout=timeout)
    seconds = time.perf_counter() - start
    if write:
        clean_notebook.clean(nb, before=clean_notebook.read(path))
        nbformat.write(nbformat.from_dict(nb), path)
    return seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: every notebook in nbs/")
    parser.add_argument("--timeout", type=int, default=300, help="seconds one cell may take")
    parser.add_argument("--check", action="store_true", help="run, but leave the files as they are")
    args = parser.parse_args()
    for path in args.notebooks:
        if not path.is_file():
            parser.error(f"there is no notebook {path}")
    # The tree in front of us, the inline figures that get saved, and nothing of, or in, the home folder.
    os.environ["PYTHONPATH"] = str(ROOT)
    os.environ.pop("MPLBACKEND", None)
    with tempfile.TemporaryDirectory(prefix="lesa-notebooks-") as scratch:
        for variable in ("JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "MPLCONFIGDIR"):
            os.environ[variable] = os.path.join(scratch, variable)
        return run_all(args)


def run_all(args):
    failed = 0
    for path in args.notebooks or project.notebooks(ROOT):
        try:
            print(f"{run(path.resolve(), args.timeout, write=not args.check):6.1f} s  {path.name}", flush=True)
        except NotebookError as error:
            failed += 1
            print(f"FAILED    {path.name}\n{error}", file=sys.stderr, flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
