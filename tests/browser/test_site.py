"""The site as `make site` builds it, opened from its folder without a network: read, searched, on a phone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from browser_facts import DESK, PHONE, ROOT

CHAPTER = "1_layer/04_position.html"  # formulas, tables, figures, code that is exported and code that is not
THREE = ["index.html", CHAPTER, "api/layers.html"]
DRAWN = "() => !document.querySelector('.math') || document.documentElement.dataset.formulas === 'drawn'"

IN_SIGHT = """place => { const {y} = document.getElementById(place).getBoundingClientRect();
  return y >= 0 && y < innerHeight; }"""
SEARCHED = "() => /finished/.test(document.querySelector('#search-results')?.textContent)"


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    "The folder of the site, or the one that LESA_SITE names; built without a warning, and no link leads nowhere."
    if "LESA_SITE" in os.environ:
        return Path(os.environ["LESA_SITE"]).resolve()
    folder = tmp_path_factory.mktemp("site") / "a site"
    command = [sys.executable, str(ROOT / "tools" / "make_site.py"), str(folder)]
    built = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


@pytest.fixture
def visit(site, open_page):
    "visit(page, ...): a page of the folder, its formulas drawn, with no network to ask."

    def open_(name, query="", **options):
        page = open_page(offline=True, **options)
        page.goto((site / name).as_uri() + query)
        page.wait_for_function(DRAWN, timeout=60_000)
        return page

    return open_


def pages(site):
    return sorted(path.relative_to(site).as_posix() for path in site.rglob("*.html") if "_static" not in path.parts)


def test_formulas_are_drawn_without_a_network(visit):
    page = visit(CHAPTER)
    written, drawn = page.locator(".math.notranslate").count(), page.locator(".math.notranslate:has(.MathJax)").count()
    assert written == drawn > 40
    assert page.locator(".MathJax_Error, .merror").count() == 0
    assert page.complaints == []


def test_a_search_for_relative_position_finds_chapter_04_first(visit):
    page = visit("index.html")
    page.locator("input[name=q]").first.fill("relative position")
    page.keyboard.press("Enter")
    page.wait_for_function(SEARCHED)
    first = page.locator("#search-results li").first
    assert "Relative position" in first.inner_text() and "Where, not only what" in first.inner_text()
    assert page.complaints == []
    first.locator("a").click()
    assert page.url.split("?")[0].endswith(CHAPTER)


@pytest.mark.parametrize(
    "words, wanted",
    [
        ("FactoredTable", "api/layers.html"),
        ("graft", "2_networks/12_graft.html"),
        ("average precision", "5_detection/28_average_precision.html"),
    ],
)
def test_other_searches_find_their_pages(words, wanted, visit):
    page = visit("search.html", f"?q={words}")
    page.wait_for_function(SEARCHED)
    found = [link.get_attribute("href") for link in page.locator("#search-results li > a").all()]
    assert any(link.split("#")[0].split("?")[0].endswith(wanted) for link in found[:3]), found


def test_a_number_in_code_leads_to_its_formula_and_back(visit):
    page = visit(CHAPTER)
    page.locator(".highlight a.eq", has_text="4.4").first.click()
    assert page.url.endswith("#eq-4-4")
    page.wait_for_function(IN_SIGHT, arg="eq-4-4")  # the page glides there
    below = page.locator("#eq-4-4 + p.used-in, p:has(#eq-4-4) + p.used-in, div.math:has(#eq-4-4) + p.used-in").first
    assert below.inner_text().startswith("(4.4) in code:")
    below.locator("a").first.click()
    place = page.url.split("#")[1]
    assert page.locator(f"#{place}").inner_text() == "4.4"
    page.wait_for_function(IN_SIGHT, arg=place)


def test_a_number_leads_to_another_page(visit):
    page = visit("pages/symbols.html")
    page.locator('a.eq[href*="04_position.html#eq-4-8"]').first.click()
    page.locator("#eq-4-8").wait_for(state="attached")  # the address changes before the page is there
    assert page.url.endswith("1_layer/04_position.html#eq-4-8") and page.locator("#eq-4-8").count() == 1
    page = visit("3_training/17_resume.html")  # its code computes a formula of the chapter before
    page.locator(".highlight a.eq", has_text="16.2").first.click()
    assert page.url.endswith("16_loop.html#eq-16-2")


def test_previous_and_next_go_through_the_course_in_order(site, visit):
    sys.path.append(str(ROOT / "tools"))
    import course

    order = [path.relative_to(ROOT / "nbs").with_suffix(".html").as_posix() for path in course.pages()]
    page, seen = visit(order[0]), [order[0]]
    while len(seen) < len(order):
        page.goto(
            page.locator("a.next-page").get_attribute("href")
            and page.evaluate("() => document.querySelector('a.next-page').href")
        )
        seen.append(page.url.removeprefix(site.as_uri() + "/"))
        back = page.evaluate("() => document.querySelector('a.prev-page').href")
        assert back == (site / seen[-2]).as_uri()
    assert seen == order


@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["desk", "phone"])
def test_nothing_is_wider_than_the_window(viewport, site, visit, narrow_enough):
    wide = {}
    page = visit("index.html", viewport=viewport)
    for name in pages(site):
        page.goto((site / name).as_uri())
        page.wait_for_function(DRAWN, timeout=60_000)
        page.evaluate("() => document.querySelector('.toc-drawer')?.classList.add('unseen')")
        if found := narrow_enough(page):
            wide[name] = found[:3]
    assert wide == {} and page.complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", THREE)
def test_axe_finds_nothing_serious(name, scheme, visit, accessible):
    assert accessible(visit(name, color_scheme=scheme)) == []


def test_every_picture_has_words_and_is_there(site, visit):
    page = visit("index.html")
    for name in pages(site):
        page.goto((site / name).as_uri())
        shown = page.evaluate("() => [...document.querySelectorAll('article img')].map(i => [i.alt, i.naturalWidth])")
        assert all(alt and not alt.startswith("../") and width for alt, width in shown), name


def test_every_notebook_every_room_and_every_page_is_there(site):
    names = set(pages(site))
    for path in (ROOT / "nbs").rglob("*"):
        if path.suffix in (".ipynb", ".md") and ".ipynb_checkpoints" not in path.parts:
            assert path.relative_to(ROOT / "nbs").with_suffix(".html").as_posix() in names
    promises = (site / "_static" / "promises.js").read_text(encoding="utf-8")
    told = json.loads(promises.split("=", 1)[1].strip(" ;\n"))
    assert {f"{name}.html" for name in told} <= names
