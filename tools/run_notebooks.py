"""Run notebooks top to bottom in a real kernel and keep their figures.

    python tools/run_notebooks.py                  # all of nbs/
    python tools/run_notebooks.py nbs/03_local.ipynb
    python tools/run_notebooks.py --check          # run, write nothing

Figures (PNG) stay in the committed notebook; every other output goes, so that a diff shows what a person changed.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

ROOT = Path(__file__).resolve().parent.parent


def keep_figures(nb):
    "Drop every output but PNG figures, and the execution counts."
    for cell in nb.cells:
        if cell.cell_type != "code":
            continue
        cell.execution_count = None
        figures = [o for o in cell.outputs if "image/png" in o.get("data", {})]
        cell.outputs = [
            nbformat.v4.new_output("display_data", data={"image/png": o["data"]["image/png"]}) for o in figures
        ]


def run(path, timeout, write=True):
    "Execute one notebook; returns the seconds it took. Raises what its kernel raised."
    nb = nbformat.read(path, as_version=4)
    start = time.perf_counter()
    # The kernel of this very interpreter, whatever kernels the user has registered.
    client = NotebookClient(
        nb, timeout=timeout, kernel_name="python3", record_timing=False, resources={"metadata": {"path": path.parent}}
    )
    client.create_kernel_manager()
    client.km.kernel_spec.argv[0] = sys.executable
    client.execute()
    seconds = time.perf_counter() - start
    if write:
        keep_figures(nb)
        nbformat.write(nb, path)
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
    for path in args.notebooks or sorted(ROOT.glob("nbs/**/*.ipynb")):
        try:
            print(f"{run(path.resolve(), args.timeout, write=not args.check):6.1f} s  {path.name}", flush=True)
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            failed += 1
            print(f"FAILED    {path.name}\n{error}", file=sys.stderr, flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
