"""Mutants of exported definitions: are they made, judged and counted as tools/mutants.py says?"""

import json
import textwrap

import mutants
import mutations
import project
import pytest

CELLS = [
    ("code", "#| default_exp made"),
    ("markdown", "# Made"),
    ("code", "#| export\nimport os"),
    ("code", "import tempfile\nhome = tempfile.mkdtemp()\nopen(os.path.join(home, 'a'), 'w').close()"),
    (
        "code",
        """
        #| export
        def area(
            w: int, # one
            h: int = 2, # other
        ):
            "The area, 1 + 1."
            if w < 0: raise ValueError(f"no area for {w + 0}")
            return w*h

        def halve(n, steps=0):
            while n > 1: n, steps = n - 1, steps + 1
            return steps
        """,
    ),
    (
        "code",
        """
        from lesa_nb.made import area
        %matplotlib inline
        assert area(3, 5) == 15 and halve(4) == 3
        assert os.listdir(home) == ["a"]
        os.remove(os.path.join(home, "a"))
        print("noise" * 100)
        """,
    ),
    ("code", "#| eval: false\nraise RuntimeError"),
]


def write_notebook(path, cells):
    cells = [dict(cell_type=kind, metadata={}, source=textwrap.dedent(source).strip()) for kind, source in cells]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5)))
    return path


@pytest.fixture
def made(tmp_path):
    return write_notebook(tmp_path / "nbs" / "01_made.ipynb", CELLS)


def changes(source):
    return {(m.export, m.kind): m.change for m in mutations.mutants(textwrap.dedent(source))}


def test_each_kind_is_made():
    found = changes(
        """
        @decorated(1 + 1)
        def f(x: Tensor[2], n=3, flag=True):
            "Doc + 1."
            for i in range(n):
                if i == 2: continue
                x[i:n - 1] += x.mT@x.detach()
            x[0] = -n
            y = x.softmax(-1) if not flag and n > 2 else [a for a in x if a]
            with torch.no_grad():
                y.copy_(torch.maximum(x, y), size[1])
            if n < 1: raise ValueError(n*77)
            return einsum("ij,jk->ik", x, y).sum(dim=0)*2.5
        """
    )
    kinds = (
        "arithmetic axis branch comparison constant default einsum error filter flag function index logic no_grad not"
    )
    assert {kind for _, kind in found} == {*kinds.split(), "order", "sign", "statement", "step"}
    assert found["f", "einsum"] == "einsum('ij,jk->ik', x, y) -> einsum('ij,jk->ki', x, y)"
    assert found["f", "default"] == "n=3 -> n=4"
    assert found["f", "axis"].endswith(".sum(dim=1)")
    assert not any("Doc" in change or "77" in change or "1 + 1" in change for change in found.values())


def test_classes_and_data_are_definitions_and_figures_are_let_be():
    found = changes(
        """
        from a import b
        SIZES = (1, 2)
        class A:
            def __repr__(self): return f"{1 + 1}" + self.x*2
            def g(self): return self.a - self.b
        def draw(x):
            ax.plot(x, lw=2)
            return show_maps(x + 1, size=2)
        """
    )
    assert found == {
        ("SIZES", "constant"): "(1, 2) -> (1, 3)",
        ("A", "arithmetic"): "self.a - self.b -> self.a + self.b",
        ("draw", "arithmetic"): "show_maps(x + 1, size=2) -> show_maps(x - 1, size=2)",
        ("draw", "constant"): "show_maps(x + 1, size=2) -> show_maps(x + 2, size=2)",
    }


def test_a_sample_is_spread_and_the_same_each_time():
    every = mutations.mutants("def f(a, b):\n" + "    a = a + b - 1\n" * 6 + "    return a < b")
    some = mutations.sample(every, 4)
    assert some == mutations.sample(every[::-1], 4) and len({m.line for m in some}) == 4
    assert len({m.kind for m in some}) == 3
    assert {m.change for m in mutations.sample(every, 100)} == {m.change for m in every}


def test_killed_survived_timed_out_and_equivalent(made, tmp_path):
    marked = mutants.Equivalent("01_made", "area", "h=2 -> h=3", "never used without it")
    first, *rows = mutants.examine_apart(made, root=tmp_path, equivalent=[marked], most=20, grace=2)
    assert first["page"] == "01_made" and first["seconds"] < 5
    by = {(row["export"], row["change"]): row for row in rows}
    assert by["area", "w * h -> w / h"]["result"] == "killed"
    assert by["area", "w * h -> w / h"]["by"] == 6 and "AssertionError" in by["area", "w * h -> w / h"]["said"]
    assert by["area", "if w < 0 -> left out"]["result"] == "survived"  # and finds its temporary folder as it was
    assert by["area", "h=2 -> h=3"]["result"] == "equivalent" and "never" in by["area", "h=2 -> h=3"]["said"]
    assert by["halve", "(n - 1, steps + 1) -> (n + 1, steps + 1)"]["result"] == "timed out"
    killed, count, percent = mutants.share(rows)
    assert 0 < killed < count == len(rows) - 1 and percent == 100 * killed / count
    assert "by time; 1 equivalent" in mutants.describe(rows)


def test_a_page_that_fails_by_itself_is_refused(tmp_path):
    page = write_notebook(tmp_path / "nbs" / "02_bad.ipynb", [*CELLS[:-2], ("code", "assert area(1, 1) == 2, 'so'")])
    with pytest.raises(mutants.PageError, match=r"02_bad.ipynb does not run as it is \(cell 6: AssertionError: so"):
        list(mutants.examine_apart(page, root=tmp_path))


def test_marks_have_four_parts_and_go_stale(made, tmp_path):
    marks = tmp_path / "marks.txt"
    marks.write_text("# said\n\n01_made || area || h=2 -> h=3 || why\n01_made || area || h=7 -> h=8 || why\n")
    found = mutants.read_equivalent(marks)
    assert [mark.change for mark in mutants.stale(made, found)] == ["h=7 -> h=8"]
    marks.write_text("01_made || area\n")
    with pytest.raises(ValueError, match="line 1: expected notebook"):
        mutants.read_equivalent(marks)


def test_a_notebook_is_found_by_its_number(root):
    assert mutants.find_notebook("4", root).name == "04_position.ipynb"
    with pytest.raises(ValueError, match="no notebook 77"):
        mutants.find_notebook("77", root)


def test_every_marked_mutant_is_still_one(root):
    paths = {path.stem: path for path in project.notebooks(root)}
    marked = mutants.read_equivalent()
    assert not [mark for mark in marked if mark.notebook not in paths], "there is no such notebook"
    assert not [mark for name in {m.notebook for m in marked} for mark in mutants.stale(paths[name], marked)]


PAGES = [path for path in project.notebooks() if any(cell.exported for cell in mutants.cells_of(path)[1])]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_nine_of_ten_mutants_of_a_page_are_killed(page, root, record_property):
    "By the tests of the page itself; tests/conftest.py prints the shares of all pages that were run, and their sum."
    rows = list(mutants.examine_apart(page, root=root, equivalent=mutants.read_equivalent()))[1:]
    record_property("mutants", mutants.numbers(rows))
    survivors = [f"{row['export']}: {row['change']}" for row in rows if row["result"] == "survived"]
    assert mutants.share(rows)[2] >= 90, "\n".join([f"{page.stem}: {mutants.describe(rows)}. Survived:", *survivors])


def test_shares_of_pages_have_a_sum():
    rows = [dict(result=result) for result in ("killed", "killed", "survived", "timed out", "equivalent")]
    assert mutants.numbers(rows) == dict(killed=3, count=4, late=1, same=1)
    assert mutants.describe(rows) == "killed 3 of 4 (75 %), 1 of them by time; 1 equivalent"
    shares = {"test_x[01_made]": mutants.numbers(rows), "test_x[02_more]": mutants.numbers(rows[:1])}
    assert mutants.summary(shares) == [
        "01_made: killed 3 of 4 (75 %), 1 of them by time; 1 equivalent",
        "02_more: killed 1 of 1 (100 %)",
        "2 notebooks: killed 4 of 5 (80 %), 1 of them by time; 1 equivalent",
    ]
