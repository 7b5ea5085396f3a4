"""The parts of `make site` that need no Sphinx: numbers of equations, pages of the package, links, times."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT / "tools"), str(ROOT / "tools" / "site")]

import api  # noqa: E402
import check_house  # noqa: E402
import course  # noqa: E402
import equations  # noqa: E402
import links  # noqa: E402
import project  # noqa: E402
import reading  # noqa: E402
import readme  # noqa: E402
import sources  # noqa: E402

CODE = """def double(
    x, # a number, (1.1)
):
    "Twice a number, eq. (1.2)."
    return 2*x  # (1.1) and (1.3)

class Box:
    def open(self):
        return 1  # (1.1)

assert double(1) == 2  # (1.1)
y = double(3)  # (1.1, 1.3)"""
PAGES = [
    ("one", [("markdown", r"$$y=2x\tag{1.1}$$"), ("code", CODE)]),
    ("two", [("markdown", r"$$a\tag{1.2}$$ $$b\tag{1.3}$$ (1.1)"), ("code", "z = 1  # (1.1)")]),
]


# equations


def test_formulas_are_found_where_they_stand():
    assert equations.formulas(PAGES) == {"1.1": "one", "1.2": "two", "1.3": "two"}


def test_uses_have_an_anchor_in_reading_order_and_the_name_of_what_they_stand_in():
    uses = [use for use in equations.uses(PAGES) if use.tag == "1.1"]
    assert [use.anchor for use in uses] == [f"use-1-1-{i}" for i in (1, 2, 3, 4, 5)] + ["use-1-1-1"]
    assert [use.label for use in uses] == ["double", "double", "Box.open", "a test", "y = double(3)", "z = 1"]
    assert [use.page for use in uses] == ["one"] * 5 + ["two"]
    assert [use.label for use in equations.once(uses)] == ["double", "Box.open", "a test", "y = double(3)", "z = 1"]


def test_a_docstring_counts_where_no_comment_does():
    assert [(use.anchor, use.label) for use in equations.uses(PAGES) if use.tag == "1.2"] == [("def-double", "double")]


def test_comments_become_links_and_places_and_strings_become_links():
    comment = '<span class="c1"># (1.1)</span>'
    html = f'{comment} <span class="s2">&quot;eq. (1.1)&quot;</span> {comment}'
    linked = equations.link_code(html, {"1.1": "#eq-1-1"}.get)
    assert linked.count('href="#eq-1-1"') == 3
    assert 'id="use-1-1-1"' in linked and 'id="use-1-1-2"' in linked and 'id="use-1-1-3"' not in linked
    assert equations.link_code('<span class="c1"># (9.9)</span>', {}.get) == '<span class="c1"># (9.9)</span>'


def test_definitions_become_places_once():
    html = '<span class="k">def</span><span class="w"> </span><span class="nf">double</span><span class="p">(</span>'
    seen = set()
    first = equations.link_definitions(html, {"double": "api#double"}.get, seen)
    again = equations.link_definitions(html, lambda name: None, seen)
    assert 'id="def-double"' in first and '<a class="api" href="api#double">double</a>' in first and again == html


def test_all_numbers_of_the_course_lead_both_ways():
    pages = [(sources.name_of(path), [cell[:2] for cell in sources.cells(path)]) for path in course.pages()]
    formulas, uses = equations.formulas(pages), equations.uses(pages)
    assert set(formulas) == {use.tag for use in uses}  # what check_house asks, seen with the site's eyes
    assert not list(check_house.equations())
    places = [(use.page, use.anchor) for use in uses if use.anchor.startswith("use-")]
    assert len(places) == len(set(places)) > 200


# pages of the package


def test_every_public_name_has_its_entry_and_its_address():
    pages, addresses = api.pages(), api.addresses()
    assert list(pages) == api.rooms() == [room for room in check_house.ARROWS if room != "__init__"]
    for module in api.modules():
        if "." not in module.name:
            continue
        room = check_house.room_of(module.name)
        assert f"{{py:module}} {module.name}\n" in pages[room]
        assert addresses[module.name] == f"api/{room}#module-{module.name}"
        for name, _ in api.public(module):
            assert f"}} {name}" in pages[room], f"{module.name}.{name}"
    assert addresses["FactoredTable"] == "api/layers#lesa_nb.layers.position.FactoredTable"


def test_parameters_are_said_whether_they_stand_behind_or_in_the_docstring():
    pages = api.pages()
    assert ":param n: number of positions on the map" in pages["layers"]  # a comment behind the parameter
    assert ":param path: The file; it ends in .safetensors by custom." in pages["weights"]  # Args:
    assert ":raises OSError: The file cannot be written; the one before it is intact." in pages["weights"]
    assert "<../1_layer/04_position.html#def-fit_offsets>" in pages["layers"]


# sources


def test_the_start_page_lists_all_pages_in_reading_order():
    text = "\n".join(cell["source"] for cell in sources.start_page()["cells"] if cell["cell_type"] == "markdown")
    listed = [line.split("<")[1].rstrip(">") for line in text.splitlines() if line.endswith(">") and " <" in line]
    course_pages = [sources.name_of(path) for path in course.pages()]
    assert [name for name in listed if name in course_pages] == course_pages
    assert set(sources.LOOK_UP) | {f"api/{room}" for room in api.rooms()} <= set(listed)


def test_a_notebook_loses_marks_and_gets_words_for_its_pictures():
    path = ROOT / "nbs" / "1_layer" / "04_position.ipynb"
    page = sources.notebook(path)
    code = [cell for cell in page["cells"] if cell["cell_type"] == "code"]
    assert not any("#|" in cell["source"] for cell in code)
    assert any(cell["metadata"].get("tags") == ["export"] for cell in code)
    for cell in code:
        if cell["outputs"]:
            said = [output["metadata"]["image/png"]["alt"] for output in cell["outputs"]]
            assert cell["metadata"]["mystnb"]["image"]["alt"] == "; ".join(said)
    assert course.MADE not in json.dumps(page)


@pytest.mark.parametrize("source, words", [
    ("show_maps(x, title='four maps')", "four maps"),
    ("show_maps(x,\n  title=f'{n} maps '\n        'and more')", "… maps and more"),
    ("show_bars(x, title='sizes: ' + ', '.join(sizes))", "sizes: …"),
    ("def show(x, title):\n    new_figure(title=title)\nshow([1], 'what four words say')", "what four words say"),
    ("said = f'{n} of them'\nax.set_title(f'{said}, and one more')\nfig", "… of them, and one more"),
    ("show_bars(x, title=said(x), ylabel='seconds')", "seconds: a figure of “Page”"),
    ("test_fail(f, 'not the words of a figure')\nreport.show(x)", "A figure of “Page”"),
    ("draw_map(lit='local')", "A map of LESA and what is built from it, with the part of this page lit: Page"),
    ("not Python at all", "A figure of “Page”")])
def test_words_of_a_picture_are_what_its_code_says(source, words):
    assert sources.alternative(source, "Page") == words


def test_every_saved_figure_has_words_of_its_own():
    without = [
        path.stem
        for path in course.pages()
        for kind, source, _, outputs in sources.cells(path)
        for output in outputs
        if "image/png" in output.get("data", ()) and project.alternative_text(output).count(" ") < 2
    ]
    assert not without


def test_beside_the_notebooks_lie_pages_and_nothing_else():
    "JupyterLab lists every file of the course's folder."
    listed = {path.suffix for path in project.files() if path.parent.as_posix() == "nbs"}
    assert listed == {".ipynb", ".md"}


def test_links_go_to_pages_of_the_site_or_to_the_code_host():
    folder = ROOT / "nbs" / "1_layer"
    text = "[a](02_terms.ipynb#x) [b](../index.ipynb) [c](../../tests/test_io.py) [d](../../SECURITY.md) `[e](f.py)`"
    git = sources.settings()["git_url"]
    linked = sources.relink(text, folder, ROOT)
    assert "[a](../1_layer/02_terms.ipynb#x) [b](../index.ipynb)" in linked and "[d](../SECURITY.md)" in linked
    assert f"[c]({git}/blob/main/tests/test_io.py)" in linked and "`[e](f.py)`" in linked


# links


def test_links_that_lead_nowhere_are_named(tmp_path):
    (tmp_path / "a.html").write_text(
        '<p id="x"></p><p id="x"></p><a href="b.html#y">1</a><a href="#z">2</a><a href="c.html">3</a>'
        '<a href="https://example.org">4</a><script src="https://example.org/a.js"></script><img src="d.png">'
    )
    (tmp_path / "b.html").write_text('<p id="y"></p><a href="a.html#x">1</a>')
    assert links.broken(tmp_path) == [
        "a.html: #z: no such place in a.html",
        "a.html: c.html: no such file",
        "a.html: https://example.org/a.js is fetched from elsewhere",
        "a.html: d.png: no such file",
        "a.html: the place x is there twice",
    ]


# times


def test_minutes_are_counted_from_words_lines_and_formulas():
    cells = [
        ("markdown", "# Two words\n\n$a+b$ and $$c\\tag{1.1}$$ [more](x.ipynb)"),
        ("code", "#| export\na = 1\n\nb = 2"),
    ]
    assert reading.effort(cells) == (4, 2, 2)
    assert reading.effort([("markdown", "<!-- not read -->")]) == (0, 0, 0)


def test_minutes_grow_with_the_page_and_are_rounded(tmp_path):
    path = tmp_path / "a.ipynb"
    found = []
    for words in (10, 1800, 3600):
        cells = [{"cell_type": "markdown", "id": "a", "source": ["word " * words]}]
        path.write_text(json.dumps({"cells": cells}))
        found.append(reading.minutes(path))
    assert found == [5, 10, 20]


@pytest.mark.parametrize(
    "seconds, words",
    [(0.2, "a few seconds"), (12, "a quarter of a minute"), (30, "half a minute"), (60, "a minute"), (95, "2 minutes")],
)
def test_seconds_are_said_in_classes(seconds, words):
    assert reading.words_for(seconds) == words


def test_a_page_whose_time_is_untrue_is_found_on_slow_machines_too():
    noted = {f"{i}.ipynb": float(i) for i in range(2, 12)}
    slow = {name: 3 * seconds for name, seconds in noted.items()}
    assert reading.far_off(noted, noted) == reading.far_off(slow, noted) == []
    (fault,) = reading.far_off({**slow, "5.ipynb": 90.0}, noted)
    assert fault.startswith("5.ipynb: ran 90 s, noted 5 s")
    assert reading.far_off({"5.ipynb": 90.0}, noted) == []  # one alone says nothing of the machine


def test_every_page_of_the_course_has_minutes():
    for path in course.pages():
        assert 5 <= reading.minutes(path) <= 60, path.name
        assert readme.title_and_promise(path)
    assert project.notebooks()


def project_of_two(tmp_path, times):
    "A project of a start page and one page, with times or without."
    (tmp_path / "nbs" / "1_a").mkdir(parents=True)
    table = "| needs | gives | runs in |\n|---|---|---|\n| `torch` | `x` | by hand |"
    cells = [
        {
            "cell_type": "markdown",
            "id": "a",
            "metadata": {},
            "source": f"# A page\n> Short.\n\n{table}".splitlines(True),
        }
    ]
    for name in ("index.ipynb", "1_a/01_page.ipynb"):
        (tmp_path / "nbs" / name).write_text(json.dumps({"cells": cells, "metadata": {}}))
    if times is not None:
        (tmp_path / reading.TIMES).parent.mkdir(parents=True)
        (tmp_path / reading.TIMES).write_text(json.dumps({"seconds": times}))
    return tmp_path / "nbs" / "1_a" / "01_page.ipynb"


def test_a_page_says_what_was_measured_and_counted(tmp_path):
    path = project_of_two(tmp_path, {"nbs/1_a/01_page.ipynb": 30.0})
    course.main(tmp_path)
    first = "".join(json.loads(path.read_text())["cells"][0]["source"])
    assert first.endswith("| `torch` | `x` | half a minute, CPU; 5 minutes to read |")
    assert not course.update(path, tmp_path)  # and again, and nothing changes
    reading.record({"nbs/1_a/01_page.ipynb": 70.0, "nbs/1_a/01_gone.ipynb": 1.0}, tmp_path)
    assert reading.runs_in(path, tmp_path) == "a minute"


def test_a_project_without_times_keeps_its_words(tmp_path):
    path = project_of_two(tmp_path, None)
    course.main(tmp_path)
    reading.record({"nbs/1_a/01_page.ipynb": 70.0}, tmp_path)
    assert "| by hand |" in "".join(json.loads(path.read_text())["cells"][0]["source"])
    assert not (tmp_path / reading.TIMES).exists()


def test_all_pages_of_the_course_were_measured():
    noted = reading.times()
    for path in course.pages():
        assert noted.get(path.relative_to(ROOT).as_posix()), path.name
