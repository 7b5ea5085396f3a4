"""`lesa exercise`: a page of the course to write again, judged by its own tests."""
from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from lesa_nb.cli._common import UsageError, check_new_file, echo, progress

if TYPE_CHECKING:
    from lesa_nb.study.pages import CoursePage


def _default_name(page: CoursePage) -> Path:
    return Path(f"{page.name}_exercise.ipynb")


def _list_pages() -> None:
    "Every page with what it defines, and how far its exercise in this folder is."
    from lesa_nb.study.exercise import progress_of, to_write
    from lesa_nb.study.pages import course_pages

    for page in course_pages():
        names, path = to_write(page), _default_name(page)
        if not names:
            continue
        states = progress_of(path).get("states", {})
        hold = sum(states.get(name) in ("holds", "written") for name in names)
        done = f"{hold} of {len(names)} hold" if path.is_file() else f"{len(names)} to write"
        echo(f"{page.number}  {page.title}  ({done})\n    {', '.join(names)}")
    echo("\nlesa exercise NN writes one into this folder; lesa exercise --help says more")


def _write(page: CoursePage, out: Path | None) -> None:
    "A new exercise; nothing is replaced."
    from lesa_nb.io.atomic import atomic_text
    from lesa_nb.study.blanks import blank_notebook
    from lesa_nb.study.exercise import to_write

    path = out or _default_name(page)
    names = to_write(page)
    if not names:
        raise UsageError(f"{page.name} defines nothing that could be written again")
    check_new_file("--out", path)
    if path.exists() or path.is_symlink():
        raise UsageError(f"{path} is there already and stays as it is; --out FILE writes another one")
    text = json.dumps(blank_notebook(page), sort_keys=True, indent=1, ensure_ascii=False) + "\n"
    atomic_text(path, text, what="the exercise")
    echo(f"{path}: {len(names)} definitions to write ({', '.join(names)})")
    echo(f"open it in JupyterLab, or any editor of notebooks; then: lesa exercise --check {path}")


def _check(path: Path, page: str | None, seconds: float) -> int:
    "What holds of a file."
    from lesa_nb.study.exercise import describe_verdicts, judge_exercise, keep_progress, open_exercise
    from lesa_nb.study.pages import find_page

    of, theirs = open_exercise(path)
    if page is not None and find_page(page).name != of.name:
        raise UsageError(f"{path} is the exercise of {of.name}, not of {page}")
    cells = sum(cell.executed for cell in of.cells) + 1  # and what is said at the end
    verdicts = judge_exercise(
        of, theirs, seconds=seconds, watch=lambda found: progress(found, "cell", cells, watched=True)
    )
    echo(describe_verdicts(verdicts))
    keep_progress(path, of, states={verdict.name: verdict.state for verdict in verdicts})
    hold = sum(verdict.is_done for verdict in verdicts)
    echo(f"\n{of.name}: {hold} of {len(verdicts)} hold")
    return 0 if hold == len(verdicts) else 1


def _note(page: CoursePage, **taken: str) -> None:
    "Remember, beside an exercise in this folder, what was taken."
    from lesa_nb.study.exercise import keep_progress

    path = _default_name(page)
    if path.is_file():
        keep_progress(path, page, **taken)


def write_again(
    page: Annotated[Positional[str | None], arg(metavar="NN")] = None,
    out: Annotated[Path | None, arg(metavar="FILE")] = None,
    check: Annotated[Path | None, arg(metavar="FILE")] = None,
    hint: Annotated[str | None, arg(metavar="NAME")] = None,
    solution: Annotated[str | None, arg(metavar="NAME")] = None,
    seconds: float = 300.0,
) -> int:
    """Write a page of the course yourself, judged by its own tests. Without words: the pages, and how far you are.

    `lesa exercise 04` writes 04_position_exercise.ipynb: the page without the bodies of its definitions. Signatures,
    derivations, pictures and tests are there, and a cell after each blank that says what holds. `lesa exercise --check
    04_position_exercise.ipynb` asks everything, and names what fails (oracle, limit, meaning, error), never the answer.
    What holds is kept beside the file, in 04_position_exercise.progress.json.
    Ends with status 0 if all definitions hold, with 1 if one does not.

    Args:
        page: Number or name of a notebook, as in 04 or position.
        out: The exercise's file. Default: 04_position_exercise.ipynb in this folder. Nothing is replaced.
        check: An exercise that you wrote in: what holds, and what does not.
        hint: Where this definition of the page is derived, by which formulas, and what it calls.
        solution: The definition itself.
        seconds: With --check: time that one cell may take.
    """
    given = dict(check=check, hint=hint, solution=solution)
    asked = [f"--{name}" for name, value in given.items() if value is not None]
    if len(asked) > 1:
        raise UsageError(f"one at a time: {' or '.join(asked)}")
    if out is not None and (asked or page is None):
        raise UsageError("--out names a new exercise: give the number of a page, and nothing else")
    if not 1 <= seconds <= 86_400:
        raise UsageError(f"--seconds must lie between 1 and 86400, got {seconds}")
    if check is not None:
        return _check(check, page, seconds)
    if page is None:
        if asked:
            raise UsageError(f"{asked[0]} needs the number of a page, as in lesa exercise 04 {asked[0]} NAME")
        _list_pages()
        return 0
    from lesa_nb.study.exercise import describe_hint
    from lesa_nb.study.pages import find_page

    of = find_page(page)
    if hint is not None:
        echo(describe_hint(of, hint))
        _note(of, hint=hint)
    elif solution is not None:
        echo(of.definition(solution).source)
        _note(of, solution=solution)
    else:
        _write(of, out)
    return 0
