"""The course in JupyterLab: where it opens, what it asks, and that running and saving a notebook leaves git clean."""

import json
import re
import time

import pytest
from browser_facts import ROOT, TOKEN
from processes import patient

PARTS = ["1_layer", "2_networks", "3_training", "4_seeing", "5_detection", "6_evidence"]
ONE_OF_EACH = ["03_local", "13_folding", "14_pictures", "21_explorer", "24_proposals", "31_benchmarks"]
NOTEBOOKS = sorted((ROOT / "nbs").glob("[0-9]_*/*.ipynb"))
CHOSEN = [path for path in NOTEBOOKS if path.stem in ONE_OF_EACH]

SHOWN = ".jp-NotebookPanel:not(.lm-mod-hidden)"
READY = f"{SHOWN} .jp-RenderedMarkdown h1"
IDLE = f'{SHOWN} .jp-Notebook-ExecutionIndicator[data-status="idle"]'
DIRTY = ".lm-DockPanel-tabBar .lm-TabBar-tab.jp-mod-dirty"
PROMPTS = f"() => [...document.querySelectorAll('{SHOWN} .jp-CodeCell .jp-InputPrompt')].map(e => e.textContent.trim())"
WIDER = "e => e.scrollWidth > e.clientWidth + 1"
WORDS = "() => [...document.querySelectorAll('.jp-OutputArea-output img')].map(i => i.alt)"
PICTURES = "() => [...document.querySelectorAll('.jp-OutputArea-output img')].map(i => i.complete && i.naturalWidth)"


def go(page, lab, path=""):
    "Open an address of the lab and wait until its notebook is drawn and its kernel has answered."
    page.goto(f"{lab.url}/{path}?token={TOKEN}")
    page.wait_for_selector(READY, timeout=90_000)
    page.wait_for_selector(IDLE, timeout=90_000)
    page.wait_for_timeout(1500)  # what the kernel says of itself is noted down now


def names(page):
    "What the file browser lists, from top to bottom, and which of it is cut."
    items = page.evaluate(
        """() => [...document.querySelectorAll(".jp-DirListing-itemText")].map(
          e => [e.textContent, e.scrollWidth > e.clientWidth])"""
    )
    return [name for name, _ in items], [name for name, cut in items if cut]


def menu(page, name, item):
    page.locator(".lm-MenuBar-item", has_text=re.compile(rf"^{name}$")).click()
    page.locator(".lm-Menu-item", has=page.locator(".lm-Menu-itemLabel", has_text=re.compile(rf"^{item}$"))).click()


def test_each_part_of_the_course_is_tried():
    assert [path.parent.name for path in CHOSEN] == PARTS


def test_it_starts_without_a_warning(lab):
    assert not re.search(r"warning|deprecat|traceback|\[E ", lab.log, re.IGNORECASE), lab.log


def test_it_opens_at_the_start_of_the_course(lab, open_page, unclean):
    page = open_page()
    go(page, lab)
    assert page.url.split("?")[0] == f"{lab.url}/lab/tree/nbs/index.ipynb"
    listed, cut = names(page)
    assert listed[: len(PARTS)] == PARTS and "index.ipynb" in listed and not cut
    assert not [name for name in listed if name.endswith(".json")]
    assert page.locator(".jp-Dialog").count() == 0 and page.locator(".Toastify__toast").count() == 0
    assert page.locator(f"{READY} >> nth=0").bounding_box()["y"] < 200
    assert page.evaluate("() => [...document.querySelectorAll('.jp-MarkdownOutput img')].every(i => i.naturalWidth)")
    assert not unclean()
    assert not re.search("warning|deprecat|ping_timeout", lab.log, re.IGNORECASE), lab.log  # now that a kernel runs


def test_a_saved_figure_says_what_it_shows(lab, open_page):
    "JupyterLab leaves alternative text away: an extension of `make lab` puts it there."
    page = open_page()
    go(page, lab, f"lab/tree/{CHOSEN[0].relative_to(ROOT)}")
    words = page.evaluate(WORDS)
    assert words and all(len(said) > 10 for said in words)
    assert words[0].startswith("You are here: ")


@pytest.mark.parametrize("path", [CHOSEN[0], CHOSEN[4], ROOT / "nbs" / "index.ipynb"], ids=lambda path: path.stem)
def test_opening_and_closing_asks_nothing(path, lab, open_page, unclean):
    page = open_page()
    go(page, lab, f"lab/tree/{path.relative_to(ROOT)}")
    assert page.locator(DIRTY).count() == 0, "JupyterLab has noted something down"
    tab = page.locator(".lm-DockPanel-tabBar .lm-TabBar-tab.jp-mod-current")
    assert tab.inner_text().strip() == path.name
    tab.locator(".lm-TabBar-tabCloseIcon").click()
    page.wait_for_timeout(700)
    assert page.locator(".jp-Dialog").count() == 0
    assert page.locator(".lm-TabBar-tabLabel", has_text=path.name).count() == 0
    assert not unclean()


def test_a_newcomer_sees_a_figure_within_a_minute(new_lab, open_page, unclean, record_property):
    "From `make lab` over the start page and the link to chapter 01 to the first figure that a run draws."
    begin, page = time.monotonic(), open_page()
    lab = new_lab()
    page.goto(f"{lab.url}/?token={TOKEN}")
    page.wait_for_selector(READY, timeout=90_000)
    page.locator(".jp-RenderedMarkdown a", has_text=re.compile("^Self-attention$")).first.click()
    page.wait_for_selector(f"{READY}:has-text('Self-attention')", timeout=90_000)
    page.wait_for_selector(IDLE, timeout=90_000)
    saved = time.monotonic() - begin
    page.evaluate("() => document.querySelectorAll('.jp-OutputArea-output img').forEach(i => i.dataset.saved = 1)")
    menu(page, "Run", "Run All Cells")
    page.wait_for_function(
        f"""() => [...document.querySelectorAll('{SHOWN} .jp-CodeCell')].some(cell =>
          /[0-9]/.test(cell.querySelector(".jp-InputPrompt").textContent)
          && [...cell.querySelectorAll(".jp-OutputArea-output img")].some(i => !i.dataset.saved && i.naturalWidth))""",
        timeout=90_000,
    )
    drawn = time.monotonic() - begin
    record_property("seconds to the first figure that is drawn:", round(drawn, 1))
    print(f"the start of chapter 01 after {saved:.1f} s, its first figure drawn after {drawn:.1f} s")
    assert drawn < patient(60)
    page.wait_for_function(f"() => ({PROMPTS})().every(prompt => prompt !== '[*]:')", timeout=500_000)


EVERY = [pytest.param(path, id=path.stem, marks=[] if path in CHOSEN else pytest.mark.slow) for path in NOTEBOOKS]


@pytest.mark.parametrize("path", EVERY)
def test_running_to_the_end_and_saving_leaves_git_clean(path, lab, open_page, unclean):
    page = open_page()
    go(page, lab, f"lab/tree/{path.relative_to(ROOT)}")
    listed, cut = names(page)
    assert listed == sorted(other.name for other in path.parent.glob("*.ipynb")) and not cut
    drawn = page.locator(".jp-OutputArea-output img").count()
    menu(page, "Run", "Run All Cells")
    page.wait_for_function(f"() => ({PROMPTS})().some(prompt => prompt !== '[ ]:')")
    page.wait_for_function(f"() => ({PROMPTS})().every(prompt => prompt !== '[*]:')", timeout=500_000)
    assert [prompt for prompt in page.evaluate(PROMPTS) if not re.search(r"\d", prompt)] == [], "a cell was not run"

    trouble = '[data-mime-type="application/vnd.jupyter.error"], [data-mime-type="application/vnd.jupyter.stderr"]'
    assert page.locator(trouble).all_text_contents() == []
    pictures = page.evaluate(PICTURES)
    assert len(pictures) >= drawn and all(pictures)
    assert all(len(words) > 10 for words in page.evaluate(WORDS)), "a figure is silent"
    prose = page.evaluate(
        """() => [...document.querySelectorAll(".jp-MarkdownOutput")].map(e => {
          const copy = e.cloneNode(true);
          copy.querySelectorAll("code, pre, mjx-container").forEach(part => part.remove());
          return copy.textContent; })"""
    )
    left = [text for text in prose if re.search(r"\$\$|\\(tag|frac|sum|text|odot)\b", text)]
    assert left == [], "a formula is not drawn"
    assert page.locator("mjx-merror, [data-mjx-error]").count() == 0
    if any("$" in text for text in sources(path)):
        assert page.locator("mjx-container").count() > 0

    wide = page.evaluate(f"() => [...document.querySelectorAll('{SHOWN} .jp-CodeCell .cm-scroller')].map({WIDER})")
    assert not any(wide), "code is wider than the page"

    page.keyboard.press("Control+s")
    page.wait_for_selector(DIRTY, state="detached", timeout=30_000)
    page.wait_for_timeout(500)
    assert page.locator(".jp-Dialog").count() == 0
    assert unclean() == []


def sources(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]


def test_the_links_of_the_last_cell_lead_through_the_course(lab, open_page, unclean):
    page = open_page()
    go(page, lab, f"lab/tree/{CHOSEN[0].relative_to(ROOT)}")
    page.locator(".jp-RenderedMarkdown a", has_text="04_position →").click()
    page.locator(".lm-TabBar-tab.jp-mod-current", has_text="04_position.ipynb").wait_for(timeout=30_000)
    assert not unclean()
