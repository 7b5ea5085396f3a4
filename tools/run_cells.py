"""Run one notebook with nbdev's own test function, and write down which cells were really executed.

    python tools/run_cells.py nbs/03_local.ipynb report.json      # in the project's folder

A process of its own per notebook: a notebook that ends its process, or never ends, takes nothing else with it.
"""

import json
import sys
import time
import traceback
from pathlib import Path

if sys.path and Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    del sys.path[0]  # a notebook sees the project, not its tools

from execnb.shell import CaptureShell
from nbdev.config import get_config
from nbdev.test import test_nb


def cell_line(error):
    "The line of the notebook at which it happened: the last one before the error went on into a library."
    if isinstance(error, SyntaxError):
        return (error.text or "").strip()
    lines = [frame.line for frame in traceback.extract_tb(error.__traceback__) if "ipython-input" in frame.filename]
    return (lines or [""])[-1]


def count_cells(report):
    "Make nbdev's shell note every cell that it runs: `report['executed']` counts code cells from 0."
    run_all, cell, run = CaptureShell.run_all, CaptureShell.cell, CaptureShell._run
    number_of, now = {}, [None]

    def counting_run_all(self, nb, *args, **kwargs):
        number_of.update((id(c), i) for i, c in enumerate(c for c in nb.cells if c.cell_type == "code"))
        return run_all(self, nb, *args, **kwargs)

    def counting_cell(self, c, *args, **kwargs):
        now[0] = number_of.get(id(c))
        try:
            return cell(self, c, *args, **kwargs)
        finally:
            now[0] = None

    def counting_run(self, *args, **kwargs):
        result = run(self, *args, **kwargs)
        if now[0] is None:  # the shell's own preparations
            return result
        if result.exception is None:
            report["executed"].append(now[0])
        else:
            error = result.exception
            report["error"] = {
                "cell": now[0],
                "type": type(error).__name__,
                "message": str(error),
                "line": cell_line(error),
            }
        return result

    CaptureShell.run_all, CaptureShell.cell, CaptureShell._run = counting_run_all, counting_cell, counting_run


def main(notebook, report_file):
    report = {"executed": [], "error": None}
    count_cells(report)
    config = get_config()
    start = time.perf_counter()
    report["passed"] = bool(
        test_nb(notebook.absolute(), skip_flags=config.tst_flags.split(), basepath=config.config_path)[0]
    )
    report["seconds"] = time.perf_counter() - start
    report_file.write_text(json.dumps(report), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
