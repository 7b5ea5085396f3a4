"""Links: every file that a page or a notebook points to is there, and every heading too."""

import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tools"))

import course  # noqa: E402
import project  # noqa: E402

PAGES = [ROOT / name for name in project.files(ROOT) if name.suffix in (".md", ".ipynb")]
LINK = re.compile(r"\]\(([^)\s]+)[^)]*\)|\b(?:src|href)=[\"']([^\"']+)[\"']")
FENCE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)


def prose(path):
    "The Markdown of a page, without code."
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return FENCE.sub("", text)


def anchors(path):
    "What GitHub calls the headings of a page."
    headings = re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


def broken(path):
    for groups in LINK.findall(prose(path)):
        target = next(filter(None, groups))
        if re.match(r"[a-z][a-z0-9+.-]*:", target):
            continue
        name, _, anchor = target.partition("#")
        file = path.parent / name if name else path
        if not file.exists():
            yield f"{target}: no such file"
        elif anchor and file.suffix in (".md", ".ipynb") and anchor.lower() not in anchors(file):
            yield f"{target}: no such heading"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    assert list(broken(path)) == []


NOTEBOOKS = [path for path in project.notebooks(ROOT) if path.name != "index.ipynb"]
NUMBERED = course.pages(ROOT)


def cells(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    return [(cell["cell_type"], "".join(cell["source"])) for cell in notebook["cells"]]


def notebooks_in(markdown, path):
    "The notebooks that a piece of Markdown links to, as files."
    targets = (next(filter(None, groups)).partition("#")[0] for groups in LINK.findall(FENCE.sub("", markdown)))
    return [(path.parent / target).resolve() for target in targets if target.endswith(".ipynb")]


def test_the_contents_are_every_notebook_in_order():
    "The README's tables of contents name every numbered notebook in the order of their numbers; pages are linked."
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| \d+ \| \[.+?\]\((nbs/[^)]+)\)", readme, re.MULTILINE)
    assert listed == [str(path.relative_to(ROOT)) for path in NUMBERED]
    assert [path.name[:2] for path in NUMBERED] == [f"{number:02}" for number in range(1, len(NUMBERED) + 1)]
    assert all(f"({path.relative_to(ROOT)})" in readme for path in NOTEBOOKS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_last_cell_leads_back_to_the_contents_and_on(path):
    "What `make sync` writes, checked by a reader of its own: previous, contents, next, in this order."
    kind, last = cells(path)[-1]
    assert kind == "markdown" and last == course.links(path, ROOT), "run `make sync`"
    expected = [ROOT / "nbs" / "index.ipynb"]
    if path in NUMBERED:
        place = NUMBERED.index(path)
        expected = NUMBERED[:place][-1:] + expected + NUMBERED[place + 1 : place + 2]
    assert notebooks_in(last, path) == expected


@pytest.mark.parametrize("path", NUMBERED, ids=lambda path: path.stem)
def test_what_a_page_calls_next_is_the_next_one(path):
    "The sentence that ends a page in words of its own names the page that follows; the last page leads to the start."
    sentences = [
        paragraph
        for kind, source in cells(path)[:-1]
        if kind == "markdown"
        for paragraph in source.split("\n\n")
        if re.search(r"(^|[.:] )(Next:|Back to the \[)", paragraph.replace("\n", " "))
    ]
    assert len(sentences) == 1, "a page says once what comes next"
    following = NUMBERED[NUMBERED.index(path) + 1 :][:1] or [ROOT / "nbs" / "index.ipynb"]
    assert notebooks_in(sentences[0], path)[-1:] == following


@pytest.mark.parametrize("path", NUMBERED, ids=lambda path: path.stem)
def test_the_map_says_where_the_reader_is(path):
    "Each page draws the map once, with its own box lit: the one with the page's number and its module's name."
    from lesa_nb.look import figures

    code = "\n".join(source for kind, source in cells(path) if kind == "code")
    lit = re.findall(r"\bdraw_map\((?:lit=)?[\"'](\w+)[\"']\)", code)
    assert len(lit) == 1
    assert figures._BOXES[lit[0]][4] == path.name[:2]
    module = re.search(r"#\| default_exp (?:\w+\.)?(\w+)", code)
    assert not module or module[1] == lit[0]


def write(path, *sources):
    made = [
        {"cell_type": "markdown", "id": f"c{number}", "metadata": {}, "source": [text]}
        for number, text in enumerate(sources)
    ]
    notebook = {"cells": made, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(notebook, sort_keys=True, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def test_the_links_follow_when_a_page_comes_moves_or_goes(tmp_path):
    nbs = tmp_path / "nbs"
    names = ["1_one/01_a.ipynb", "1_one/02_b.ipynb", "2_two/03_c.ipynb", "beside.ipynb", "index.ipynb"]
    for name in names:
        write(nbs / name, "# A page")
    course.main(tmp_path)
    made = {name: (nbs / name).read_text(encoding="utf-8") for name in names}
    assert cells(nbs / names[1])[1][1] == (
        f"{course.MADE}\n\n[← 01_a](01_a.ipynb) · [contents](../index.ipynb) · [03_c →](../2_two/03_c.ipynb)"
    )
    assert cells(nbs / names[0])[1][1].endswith("\n[contents](../index.ipynb) · [02_b →](02_b.ipynb)")
    assert cells(nbs / names[2])[1][1].endswith("[← 02_b](../1_one/02_b.ipynb) · [contents](../index.ipynb)")
    assert cells(nbs / names[3])[1][1].endswith("\n[contents](index.ipynb)")
    assert len(cells(nbs / names[4])) == 1
    course.main(tmp_path)
    assert made == {name: (nbs / name).read_text(encoding="utf-8") for name in names}, "once is enough"

    (nbs / names[1]).unlink()
    page = json.loads(made[names[2]])
    page["cells"].reverse()  # somebody has written below the links
    (nbs / names[2]).write_text(json.dumps(page), encoding="utf-8")
    course.main(tmp_path)
    assert cells(nbs / names[2])[1][1].endswith("[← 01_a](../1_one/01_a.ipynb) · [contents](../index.ipynb)")
    assert [source for _, source in cells(nbs / names[2])][0] == "# A page"
