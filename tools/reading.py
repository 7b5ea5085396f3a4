"""How long a page of the course takes: minutes to read, counted; seconds to run, measured by the test run.

    python tools/reading.py        # the table

`make test` measures each notebook, and fails where the page and the run are too far apart. What `make test-all`, or
`python tools/test.py --only notebooks --note-times`, measured last is tools/results/times.json; `make sync` writes both
into the table at the top of each page (tools/course.py). Nobody writes either by hand.
"""

import datetime
import json
import math
import os
import platform
import re
import statistics
import sys
from pathlib import Path

import project

TIMES = project.RESULTS / "times.json"
WORDS_A_MINUTE = 180  # of prose and tables; a formula is read like ten words
LINES_A_MINUTE = 18  # of code
FORMULA = 10
ROUNDED = 5  # minutes: so that a changed sentence does not change the page's promise
#: upper end in seconds -> what a page says
CLASSES = ((10, "a few seconds"), (25, "a quarter of a minute"), (45, "half a minute"), (90, "a minute"))
FEWEST = 5  # notebooks that tell how fast a machine is
FURTHEST = 4  # times longer or shorter than the page says, machine's speed taken out: a fault
NEGLIGIBLE = 20  # seconds: shorter than that is no fault

_formula = re.compile(r"\$\$.*?\$\$|\$[^$\n]+\$", re.DOTALL)
#: the table at the top of a page, up to its last column, and that column
OPENING = re.compile(r"^(\| needs \| gives \| runs in \|\n\|[-| ]+\|\n\|.*\|) [^|\n]*\|$", re.MULTILINE)
_not_read = re.compile(r"<!--.*?-->|\]\([^)]*\)|^#\|.*$", re.DOTALL | re.MULTILINE)


def effort(cells):
    "Words, lines of code and formulas of (kind, source) cells."
    words = lines = formulas = 0
    for kind, source in cells:
        if kind == "code":
            lines += sum(bool(line.strip()) and not line.lstrip().startswith("#|") for line in source.split("\n"))
        elif kind == "markdown":
            formulas += len(_formula.findall(source))
            source = OPENING.sub(r"\1", source)  # what is counted does not depend on what was counted before
            words += len(re.findall(r"\w[\w'’-]*", _not_read.sub(" ", _formula.sub(" ", source))))
    return words, lines, formulas


def read(path):
    "The (kind, source) cells of a notebook, without the links that `make sync` writes."
    cells = json.loads(Path(path).read_text(encoding="utf-8"))["cells"]
    return [(cell["cell_type"], "".join(cell["source"])) for cell in cells if cell.get("id") != "course-links"]


def minutes(path):
    "Minutes to read a notebook, code and formulas too, rounded to five."
    words, lines, formulas = effort(read(path))
    exact = (words + FORMULA * formulas) / WORDS_A_MINUTE + lines / LINES_A_MINUTE
    return max(ROUNDED, ROUNDED * math.ceil(exact / ROUNDED - 0.5))


def words_for(seconds):
    "Seconds as a page says them."
    for end, words in CLASSES:
        if seconds < end:
            return words
    return f"{max(2, round(seconds / 60))} minutes"


def times(root=project.ROOT):
    "path of a notebook -> seconds that the last full run of the tests measured."
    path = Path(root) / TIMES
    return json.loads(path.read_text(encoding="utf-8"))["seconds"] if path.exists() else {}


def runs_in(path, root=project.ROOT):
    "How long a notebook runs, in words; `not measured` before its first run."
    seconds = times(root).get(Path(path).relative_to(root).as_posix())
    return "not measured" if seconds is None else words_for(seconds)


def promise(path, root=project.ROOT):
    "What the table at the top of a page says of both times; '' where nothing was measured."
    if not times(root):
        return ""
    return f"{runs_in(path, root)}, CPU; {minutes(path)} minutes to read"


def record(measured, root=project.ROOT):
    "Write down what a run measured, path of a notebook -> seconds. Does nothing in a project without such a file."
    path = Path(root) / TIMES
    if measured and path.exists():
        there = {name: seconds for name, seconds in times(root).items() if (Path(root) / name).exists()}
        told = dict(
            date=f"{datetime.date.today()}",
            python=platform.python_version(),
            cores=os.cpu_count(),
            seconds=dict(sorted({**there, **measured}.items())),
        )
        path.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8", newline="\n")


def far_off(measured, noted):
    """Notebooks whose time is further from the one noted than a factor of four, as sentences.

    A slow machine, or a busy one, is slow for all of them: the middle ratio of measured to noted is its speed.
    """
    both = {name: (measured[name], noted[name]) for name in measured if noted.get(name)}
    if len(both) < FEWEST:
        return []
    speed = statistics.median(now / before for now, before in both.values())
    found = []
    for name, (now, before) in sorted(both.items()):
        own = now / speed
        factor = max(own / before, before / own)
        if factor > FURTHEST and max(own, before) > NEGLIGIBLE:
            found.append(f"{name}: ran {now:.0f} s, noted {before:.0f} s on a machine {speed:.1f} times as fast")
    return found


def main():
    for path in project.notebooks():
        words, lines, formulas = effort(read(path))
        print(
            f"{minutes(path):3} min ({words} words, {lines} lines, {formulas} formulas)  {runs_in(path)}  {path.name}"
        )


if __name__ == "__main__":
    sys.exit(main())
