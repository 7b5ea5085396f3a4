"""`lesa exercise`: a page without its definitions, judged by the page's own tests."""

import functools
import json
import os
import textwrap
from pathlib import Path

import mutations
import pytest
import torch

from lesa_nb.cli.app import main
from lesa_nb.study import exercise, pages
from lesa_nb.study.blanks import blank_notebook, blank_source, is_blank, page_of_exercise
from lesa_nb.study.pages import course_folder, course_pages, find_page

SIDES = """
#| export
def _square(x): return x*x

def long_side(
    a: float, # one side
    b: float = 4., # the other one
) -> float: # across
    "The long side, eq. (1.1)."
    # a remark that says how
    if a < 0:
        raise ValueError(f"no side of {a}")
    return math.sqrt(_square(a) + _square(b))          # (1.1)
"""
BOX = """
#| export
class Box:
    "Three sides."
    corners = 8 # of any box
    def __init__(self, a, b, c):
        self.sides = a, b, c
    @property
    def diagonal(self): return long_side(long_side(*self.sides[:2]), self.sides[2])
    def __repr__(self): return "Box"
"""
CELLS = [
    ("markdown", "# Sides\n> How long?\n\nSee [the next page](02_other.ipynb)."),
    ("code", "#| default_exp sides"),
    ("code", "#| export\nimport math"),
    ("code", "from fastcore.test import test_fail\n%matplotlib inline"),
    ("markdown", "## How long is the long side?\n\n$$c = \\sqrt{a^2 + b^2}\\tag{1.1}$$\n\nNo side is negative."),
    ("code", SIDES),
    ("markdown", "Oracle: by hand. Limit: a side of nothing."),
    (
        "code",
        """
        assert abs(long_side(3) - 5) < 1e-6                            # oracle: three, four, five
        flat = long_side(0, 7)
        assert flat == 7                                               # limit: no side, no slope
        test_fail(lambda: long_side(-1), contains="no side of -1")
        """,
    ),
    ("markdown", "## And in a box?\n\nTwice the same.\n\n**Meaning**: it is longer than any side."),
    ("code", BOX),
    ("code", "assert Box(1, 2, 2).diagonal == 3 and Box.corners == 8\nprint('noise')"),
    ("code", "#| eval: false\nraise RuntimeError"),
    ("markdown", "<!-- made by `make sync` -->\n\nprevious"),
]


def write_notebook(path, cells):
    cells = [dict(cell_type=kind, metadata={}, source=textwrap.dedent(source).strip()) for kind, source in cells]
    for cell in cells:
        cell.update(dict(outputs=[], execution_count=None) if cell["cell_type"] == "code" else {})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5)))
    return path


@pytest.fixture
def course(tmp_path, monkeypatch):
    "A course of one page, and a folder to work in."
    home = tmp_path / "course"
    write_notebook(home / "nbs" / "index.ipynb", [])
    write_notebook(home / "nbs" / "1_part" / "01_sides.ipynb", CELLS)
    write_notebook(home / "nbs" / "1_part" / "02_other.ipynb", CELLS[:1])
    monkeypatch.setattr(pages, "_PACKAGE", home / "lesa_nb")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return home / "nbs"


def answered(page, file, **answers):
    "Fill in an exercise: what the cell that defines a name holds instead."
    notebook = blank_notebook(page)
    for cell in notebook["cells"]:
        turn = "".join(cell["source"]).splitlines()[0]
        for name, source in answers.items():
            if turn.startswith("# your turn") and name in turn:
                cell["source"] = textwrap.dedent(source)
    file.write_text(json.dumps(notebook))
    return file


def judged(file, **options):
    return {verdict.name: verdict for verdict in exercise.judge_exercise(*exercise.open_exercise(file), **options)}


def states(found):
    return {name: verdict.state for name, verdict in found.items()}


# Made by the marks alone


def test_bodies_go_and_all_else_stays():
    text, names = blank_source(textwrap.dedent(SIDES).strip() + "\n\nLIMIT = 3 # kept\n" + textwrap.dedent(BOX))
    assert names == ["long_side", "Box"]
    assert text.splitlines() == [
        "#| export",
        "def _square(x): return x*x",
        "",
        "def long_side(",
        "    a: float, # one side",
        "    b: float = 4., # the other one",
        ") -> float: # across",
        '    "The long side, eq. (1.1)."',
        '    raise NotImplementedError("your turn: long_side")',
        "",
        "LIMIT = 3 # kept",
        "",
        "#| export",
        "class Box:",
        '    "Three sides."',
        "    corners = 8 # of any box",
        "    def __init__(self, a, b, c):",
        '        raise NotImplementedError("your turn: Box.__init__")',
        "    @property",
        '    def diagonal(self): raise NotImplementedError("your turn: Box.diagonal")',
        '    def __repr__(self): return "Box"',
    ]
    space = {}
    exec(text, space)
    assert is_blank(space["Box"]) and is_blank(space["long_side"]) and not is_blank(exercise.check) and not is_blank(3)


def test_private_helpers_of_a_public_definition_are_given_and_what_stands_alone_is_asked():
    helper = "class _Half:\n    def __call__(self, x): return x/2\n"
    given, names = blank_source(f"{helper}def quarter(x): return _Half()(_Half()(x))")
    assert names == ["quarter"] and given.startswith(helper) and "_Half()(x)" not in given
    for alone in (helper, f"{helper}LIMIT = 3", f"{helper}class Data(NamedTuple):\n    x: int"):
        text, names = blank_source(alone)
        assert names == ["_Half"] and "x/2" not in text


def test_what_is_blank_is_seen_through_decorators():
    space = dict(torch=torch, functools=functools)
    text = "def f(x: torch.Tensor) -> torch.Tensor: return x.clone()"
    for over in ('@torch.library.custom_op("lesa_exercise::f", mutates_args=())', "@functools.cache"):
        for source, is_so in (text, False), (blank_source(text)[0], True):
            exec(f"{over}\n{source}", space)
            assert is_blank(space["f"]) == is_so, over


def test_odd_shapes_of_functions_are_blanked_too():
    text, names = blank_source(
        """
async def a(x): return x
def b(
    x=(1,
       2)):
    # how
    @wraps(x)
    def inner(): return 1
    return inner
def é(x): "Doc é."; return x
class Data(NamedTuple):
    x: int = 1
class Base:
    def asked(self): raise NotImplementedError("by each kind")
    def nothing(self): pass
"""
    )
    assert names == ["a", "b", "é"]
    compile(text, "text", "exec")
    assert (
        "inner" not in text
        and "# how" not in text
        and 'def é(x): "Doc é."; raise NotImpl' in text
        and "by each" in text
    )


@pytest.mark.parametrize("page", course_pages(), ids=lambda page: page.name)
def test_no_body_is_left_on_any_page(page):
    notebook = blank_notebook(page)
    assert page_of_exercise(page) == ""
    sources = ["".join(cell["source"]) for cell in notebook["cells"]]
    text = "\n".join(sources)
    assert f"<!-- exercise {page.name} -->" in text and ".ipynb)" not in text and "made by `make sync`" not in text
    assert not any(line.lstrip().startswith("#|") for line in text.splitlines())
    assert sum(source.startswith("# your turn") for source in sources) == sum(
        "\ncheck(" in source for source in sources
    )
    for name in exercise.to_write(page):
        hint = exercise.describe_hint(page, name)
        assert hint.startswith(f"{name}, of {page.name}: ") and "It calls" in hint
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            compile("".join(cell["source"]), page.name, "exec")
            assert all("image/png" in output["data"] for output in cell["outputs"])
    assert len({cell["id"] for cell in notebook["cells"]}) == len(sources)


# Where the pages lie


def test_pages_are_found_in_a_clone_then_in_the_package(course):
    assert course_folder() == course and [page.name for page in course_pages()] == ["01_sides"]
    assert {find_page(word).name for word in ("1", "01", "01_sides", "sides")} == {"01_sides"}
    assert (find_page("1").title, find_page("1").module) == ("Sides", "lesa_nb.sides")
    course.rename(course.parent / "lesa_nb")  # any name
    with pytest.raises(FileNotFoundError, match="neither in nbs/ beside the package nor in lesa_nb/_course"):
        course_folder()
    (course.parent / "lesa_nb").rename(course.parent / "away")
    (course.parent / "lesa_nb").mkdir()
    (course.parent / "away").rename(course.parent / "lesa_nb" / "_course")
    assert course_folder().name == "_course" and find_page("1").name == "01_sides"


# Judged


def test_what_is_right_holds_in_any_cell(course, tmp_path):
    page = find_page("1")
    file = answered(page, tmp_path / "mine.ipynb", long_side=SIDES, Box=BOX)
    notebook = json.loads(file.read_text())
    for cell in notebook["cells"]:  # split by its author, with a cell of helpers before, and work that is not asked for
        cell["source"] = "".join(cell["source"]).replace("_square(", "second_power(").replace("#| export", "")
    helper = dict(
        cell_type="code", metadata={}, outputs=[], source="raise SystemExit\ndef other(x): return x\nLAST = 2"
    )
    notebook["cells"].insert(2, helper)
    file.write_text(json.dumps(notebook))
    found = judged(file)
    assert states(found) == dict(long_side="holds", Box="holds")
    said = exercise.describe_verdicts(list(found.values()))
    assert "oracle   cell 8" in said and "limit    cell 8" in said and "error    cell 8" in said
    assert "meaning  cell 11" in said


def test_blank_is_told_from_wrong_and_spoils_nothing_that_follows(course, tmp_path):
    page = find_page("1")
    file = answered(page, tmp_path / "mine.ipynb")
    assert {*states(judged(file)).values()} == {"not done"}
    file = answered(page, file, Box=BOX)
    assert states(judged(file)) == dict(long_side="not done", Box="holds")  # on the page's own


def test_a_wrong_sign_is_named_by_its_test_and_not_answered(course, tmp_path):
    wrong = SIDES.replace("_square(a) + _square(b)", "abs(_square(a) - _square(b))")
    found = judged(answered(find_page("1"), tmp_path / "mine.ipynb", long_side=wrong, Box=BOX))
    assert states(found) == dict(long_side="fails", Box="holds")  # on the page's own
    said = exercise.describe_verdicts(list(found.values()))
    assert "fails     oracle   cell 8, How long is the long side? (oracle: three, four, five): does not hold" in said
    assert "holds     limit    cell 8" in said and "_square" not in said and "5" not in said
    wrong = SIDES.replace("if a < 0", "if a > 99").replace("_square(b)", "[][a]")
    said = exercise.describe_verdicts(
        [*judged(answered(find_page("1"), tmp_path / "mine.ipynb", long_side=wrong)).values()]
    )
    assert "IndexError: list index out of range, in your line 13 (long_side): return math.sqrt(" in said


@pytest.mark.parametrize(
    "source, state, words",
    [
        ("def long_side(a, b=4): return (", "fails", "your cell is no Python: line 1"),
        ("def long_side(a, b=4): return 1/0\n1/0", "fails", "your line 2 raises ZeroDivisionError"),
        ("def long_side(a, b=4):\n    while True: pass", "fails", "did not end within 1 s"),
        ("import os\ndef long_side(a, b=4): os._exit(3)", "fails", "ended the process"),
        ("def long_side(a, b=4): raise SystemExit(3)", "fails", "SystemExit: 3, in your line 1"),
        ("def other(): pass", "missing", ""),
    ],
    ids=["syntax", "cell", "hangs", "exits", "leaves", "missing"],
)
def test_whatever_somebody_writes_is_answered(course, tmp_path, source, state, words):
    found = judged(answered(find_page("1"), tmp_path / "mine.ipynb", long_side=source), seconds=1)
    assert found["long_side"].state == state
    assert words in exercise.describe_verdicts(list(found.values()))


def test_a_given_helper_that_is_gone_is_the_pages_own_and_one_that_stands_alone_is_asked_through_its_caller(
    course, tmp_path
):
    made = ["def _half(x): return x/2", "def middle(a, b): return _half(long_side(a, b)) + _square(0)"]
    more = [("code", f"#| export\n{each}") for each in made]
    cells = [*CELLS[:-1], *more, ("code", "assert _square(3) == 9 and abs(middle(3, 4) - 2.5) < 1e-6")]
    write_notebook(course / "1_part" / "01_sides.ipynb", cells)
    found = judged(answered(find_page("1"), tmp_path / "mine.ipynb", long_side="def long_side(a, b=4): return 5"))
    assert states(found) == dict(long_side="fails", Box="not done", _half="not done", middle="not done")
    alone = SIDES.replace("def _square(x): return x*x", "").replace("_square(a) + _square(b)", "a*a + b*b")
    answers = dict(long_side=alone, Box=BOX, _half=made[0], middle=made[1])
    found = judged(answered(find_page("1"), tmp_path / "mine.ipynb", **answers))
    assert {*states(found).values()} == {"holds"}
    answers["_half"] = "def _half(x): return x"
    found = judged(answered(find_page("1"), tmp_path / "mine.ipynb", **answers))
    assert states(found) == dict(long_side="holds", Box="holds", _half="fails", middle="fails")
    assert "asked through middle" in exercise.describe_verdicts([*found.values()])


def test_a_wrong_class_is_named_though_tests_meet_it_only_through_what_makes_it(course, tmp_path):
    made = ["class Pair:\n    def __init__(self, a): self.a = a\n    def both(self): return 2*self.a"]
    made += ["def pair(a): return Pair(a)"]
    more = [("code", f"#| export\n{each}") for each in made]
    cells = [*CELLS[:-1], *more, ("code", "two = pair(3)\nassert two.both() == 6")]
    write_notebook(course / "1_part" / "01_sides.ipynb", cells)
    answers = dict(long_side=SIDES, Box=BOX, Pair=made[0].replace("2*", "3*"), pair=made[1])
    found = judged(answered(find_page("1"), tmp_path / "mine.ipynb", **answers))
    assert states(found) == dict(long_side="holds", Box="holds", Pair="fails", pair="fails")


def test_nobody_is_blamed_for_what_fails_on_the_page_itself(course, tmp_path):
    cells = [*CELLS[:-1], ("code", "assert open('gone.json').read() + str(Box(1, 2, 2))")]
    write_notebook(course / "1_part" / "01_sides.ipynb", cells)
    wrong = BOX.replace("self.sides[2]", "self.sides[1]").replace("corners = 8", "corners = 7")
    found = judged(answered(find_page("1"), tmp_path / "mine.ipynb", long_side=SIDES, Box=wrong))
    said = exercise.describe_verdicts(list(found.values()))
    assert "meaning  cell 11" in said and "gone.json" not in said and "cell 13" not in said


# The command


def test_the_command_from_a_blank_page_to_all_that_holds(course, capsys):
    assert main(["exercise"]) == 0 and "01  Sides  (2 to write)" in capsys.readouterr().out
    assert main(["exercise", "01"]) == 0 and "2 definitions to write" in capsys.readouterr().out
    before = Path("01_sides_exercise.ipynb").read_text()
    assert main(["exercise", "1"]) == 2 and "stays as it is; --out FILE" in capsys.readouterr().err
    assert Path("01_sides_exercise.ipynb").read_text() == before
    assert main(["exercise", "sides", "--check", "01_sides_exercise.ipynb"]) == 1
    assert "01_sides: 0 of 2 hold" in capsys.readouterr().out
    assert main(["exercise", "1", "--hint", "long_side"]) == 0
    said = capsys.readouterr().out
    assert r"(1.1)  c = \sqrt{a^2 + b^2}" in said and "It calls: math.sqrt, _square" in said
    assert main(["exercise", "1", "--solution", "_square"]) == 0
    assert capsys.readouterr().out == "def _square(x): return x*x\n"
    answered(find_page("1"), Path("01_sides_exercise.ipynb"), long_side=SIDES, Box=BOX)
    assert main(["exercise", "--check", "01_sides_exercise.ipynb"]) == 0
    assert "01_sides: 2 of 2 hold" in capsys.readouterr().out
    kept = exercise.progress_of("01_sides_exercise.ipynb")
    assert (
        kept["hints"] == ["long_side"] and kept["solutions"] == ["_square"] and {*kept["states"].values()} == {"holds"}
    )
    assert main(["exercise"]) == 0 and "01  Sides  (2 of 2 hold)" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, said",
    [
        ("7", "no notebook '7'; there are 01 to 01"),
        ("side", "no notebook 'side'; did you mean sides?"),
        ("2", "notebook 2 defines nothing"),
        ("1 --hint long_sid", "defines no long_sid; did you mean long_side?"),
        ("1 --solution x", "01_sides defines no x; it has _square, long_side, Box"),
        ("--hint long_side", "--hint needs the number of a page"),
        ("1 --hint a --solution b", "one at a time: --hint or --solution"),
        ("1 --hint a --out b", "--out names a new exercise"),
        ("1 --out gone/x.ipynb", "its folder does not exist"),
        ("--check gone.ipynb", "gone.ipynb: No such file"),
        ("--check letter.txt", "letter.txt: is no notebook"),
        ("--check other.ipynb", "is no exercise of the course"),
        ("--check bare.ipynb", "the cells '# your turn' are gone"),
        ("2 --check mine.ipynb", "notebook 2 defines nothing"),
        ("--check mine.ipynb --seconds 0", "--seconds must lie between"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_sentence(course, tmp_path, capsys, words, said):
    (tmp_path / "work" / "letter.txt").write_text("dear")
    write_notebook(tmp_path / "work" / "other.ipynb", CELLS)
    write_notebook(tmp_path / "work" / "bare.ipynb", [("markdown", "<!-- exercise 01_sides -->")])
    answered(find_page("1"), tmp_path / "work" / "mine.ipynb")
    there = sorted(os.listdir())
    assert main(["exercise", *words.split()]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1 and sorted(os.listdir()) == there


def test_a_page_that_needs_what_is_not_there_says_so(course, tmp_path, capsys):
    cells = [*CELLS, ("code", "import no_such_thing")]
    write_notebook(course / "1_part" / "01_sides.ipynb", cells)
    answered(find_page("1"), tmp_path / "work" / "mine.ipynb")
    assert main(["exercise", "--check", "mine.ipynb"]) == 2
    assert "need no_such_thing, which is not installed" in capsys.readouterr().err


# In the exercise itself


def test_a_cell_of_the_exercise_asks_about_what_is_there(course, tmp_path, capsys):
    notebook = blank_notebook(find_page("1"))
    space, said = {"__name__": "__main__"}, []
    folder, state = os.getcwd(), torch.get_rng_state()
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] != "code" or "assert" in source or "RuntimeError" in source or "%" in source:
            continue
        if "def long_side" in source:
            source = textwrap.dedent(SIDES).replace("+ _square(b)", "+ _square(b)/0")
        capsys.readouterr()
        exec(compile(source, "cell", "exec"), space)
        said.append(capsys.readouterr().out)
    first, second = (each for each in said if each)
    assert "long_side  fails" in first and "your line 13 (long_side)" in first and "Box" not in first
    assert second == "Box  not done\n"
    assert os.getcwd() == folder and torch.equal(torch.get_rng_state(), state)


@pytest.mark.slow
def test_a_cell_of_the_exercise_works_on_a_page_of_the_course(capsys):
    page = find_page("08")
    space = {"__name__": "__main__"}
    for cell in page.cells:
        if cell.exported:
            exec(cell.source, space)
    names = exercise.to_write(page)
    exec(f"from lesa_nb.study.exercise import check\ncheck('08', {', '.join(map(repr, names))})", space)
    said = capsys.readouterr().out
    assert all(f"{name} " in said for name in names) and said.count("holds  ") >= len(names) and "fails" not in said


# Every page of the course


def with_solutions(page, file, change=lambda source: source):
    "The exercise of a page with the library's own definitions as the answers."
    notebook, solutions = blank_notebook(page), [c for c in page.cells if c.exported and blank_source(c.source)[1]]
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if source.startswith("# your turn"):
            cell["source"] = source.splitlines()[0] + "\n" + change(solutions.pop(0).source)
    assert not solutions
    file.write_text(json.dumps(notebook))
    return file


@pytest.mark.slow
@pytest.mark.parametrize("page", course_pages(), ids=lambda page: page.name)
def test_the_whole_loop(page, tmp_path):
    "Blank: not done. The library's own: holds. A wrong sign, or another slip: noticed."
    file = tmp_path / "mine.ipynb"
    file.write_text(json.dumps(blank_notebook(page)))
    assert {*states(judged(file)).values()} == {"not done"}
    own = judged(with_solutions(page, file), seconds=600)
    assert all(verdict.is_done for verdict in own.values()), exercise.describe_verdicts([*own.values()])
    slips = [
        (cell.source, mutant)
        for cell in page.cells
        if cell.exported
        for mutant in mutations.mutants(cell.source)
        if mutant.export in own and mutant.kind not in ("error", "default", "flag", "no_grad")
    ]
    signs = [slip for slip in slips if slip[1].kind in ("arithmetic", "sign", "index", "axis")]
    some = [*signs[:: max(1, len(signs) // 3)], *slips[:: max(1, len(slips) // 3)]][:5]
    for old, mutant in some:
        new = mutations.ast.unparse(mutant.tree)
        file = with_solutions(page, file, lambda source: new if source == old else source)
        if "fails" in states(judged(file, seconds=600)).values():
            return
    pytest.fail(f"not noticed: {[mutant.change for _, mutant in some]}")
