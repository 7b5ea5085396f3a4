"""The explorer's page, clicked, typed into, on a phone, in the dark, on paper, by keyboard alone, and by ear."""

import re

import numpy as np
import pytest
from browser_facts import PHONE
from PIL import Image

COLOUR = """([what, property]) =>
  getComputedStyle(document.querySelector(what))[property].match(/\\d+/g).slice(0, 3).map(Number)"""
MAPS = "() => [...document.querySelectorAll('canvas.map')].map(canvas => canvas.toDataURL())"
CONTROLS = """() => [...document.querySelectorAll("button, select, summary, input")].map(e => {
  if (!e.checkVisibility()) return ["", 99, 99];
  const box = (e.closest("label") || e).getBoundingClientRect();
  return [e.id || e.textContent.trim() || e.tagName, box.width, box.height]; })"""


@pytest.fixture(scope="session")
def address(tmp_path_factory):
    "A page of three untrained networks and a picture of stripes and noise."
    import torch

    from lesa_nb.look.explorer import explorer
    from lesa_nb.study.small import SmallNet

    torch.manual_seed(0)
    networks = {term: SmallNet(term).eval() for term in ("lesa", "attention", "conv")}
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    noise[:, ::10] = 255
    path = tmp_path_factory.mktemp("explorer") / "page.html"
    page = explorer(Image.fromarray(noise), networks, torch.rand(1, 3, 60, 80), title="Three networks, one picture")
    path.write_text(page.html, encoding="utf-8")
    return path.as_uri()


@pytest.fixture
def explorer_page(open_page, address):
    def open_(**options):
        page = open_page(**options)
        page.goto(address)
        page.wait_for_function("() => document.documentElement.dataset.ready === 'yes'", timeout=30_000)
        return page

    return open_


def spot(box, x, y):
    "The middle of a pixel of the picture, on the screen."
    return box["x"] + box["width"] * (x + 0.5) / 80, box["y"] + box["height"] * (y + 0.5) / 60


def where(page):
    "x, y of the pixel that is shown."
    page.wait_for_timeout(150)
    return tuple(map(int, re.match(r"pixel (\d+), (\d+)", page.locator("#where").inner_text()).groups()))


def test_a_click_moves_every_map_and_is_said(explorer_page):
    page = explorer_page()
    before = page.evaluate(MAPS)
    box = page.locator("#photo").bounding_box()
    page.mouse.click(*spot(box, 20, 45))
    assert where(page) == (20, 45)
    assert all(a != b for a, b in zip(before, page.evaluate(MAPS)))
    assert page.locator("#said").inner_text().startswith("Pixel 20, 45.")
    assert (page.locator("#x").input_value(), page.locator("#y").input_value()) == ("20", "45")
    page.mouse.move(*spot(box, 40, 30))
    assert where(page) == (40, 30)
    page.mouse.move(1, 1)
    assert where(page) == (20, 45), "the pinned pixel comes back"
    assert page.complaints == []


def test_numbers_can_be_typed_and_what_is_outside_is_moved_inside(explorer_page):
    page = explorer_page()
    page.locator("#x").fill("7")
    page.locator("#y").fill("11")
    page.keyboard.press("Enter")
    assert where(page) == (7, 11)
    page.locator("#x").fill("9999")
    page.locator("#y").fill("-3")
    page.keyboard.press("Enter")
    assert where(page) == (79, 0)
    assert page.complaints == []


def test_layer_head_and_scale_change_what_is_drawn(explorer_page):
    page = explorer_page()
    page.locator("#x").fill("30")
    page.keyboard.press("Enter")
    where(page)
    seen = [page.evaluate(MAPS)[0]]
    page.locator(".heads").first.get_by_role("button").nth(2).click()
    page.wait_for_timeout(150)
    seen.append(page.evaluate(MAPS)[0])
    page.locator("#own").check()
    page.wait_for_timeout(150)
    seen.append(page.evaluate(MAPS)[0])
    page.locator("select").first.select_option(index=0)
    page.wait_for_timeout(300)
    seen.append(page.evaluate(MAPS)[0])
    assert len(set(seen)) == len(seen)
    assert page.complaints == []


def test_the_keyboard_reaches_everything_and_keeps_its_focus(explorer_page):
    page = explorer_page()
    focus = """() => { const e = document.activeElement;
      return e.id || e.getAttribute("aria-label") || e.textContent.trim() || e.tagName; }"""
    reached = []
    for _ in range(60):
        page.keyboard.press("Tab")
        name = page.evaluate(focus)
        if name == "BODY" or (reached and name == reached[0]):
            break
        reached.append(name)
    assert {"photo", "x", "y", "follow", "cover", "smooth", "own", "go there"} <= set(reached)
    assert "What do the numbers say?" in reached and len(reached) > 15

    page.locator("#photo").focus()
    at = where(page)
    page.keyboard.press("Shift+ArrowRight")
    assert where(page) == (at[0] + 1, at[1])
    page.keyboard.press("ArrowDown")
    assert where(page)[1] > at[1] and page.evaluate(focus) == "photo"
    outline = "() => getComputedStyle(document.activeElement).outlineWidth"
    assert page.evaluate(outline) == "3px"

    head = page.locator(".heads").first.get_by_role("button").nth(1)
    head.focus()
    page.keyboard.press("Enter")
    page.wait_for_timeout(150)
    assert head.get_attribute("aria-pressed") == "true"
    assert page.evaluate("() => document.activeElement.getAttribute('aria-pressed')") == "true"
    assert page.complaints == []


def test_on_a_phone_it_fits_and_a_finger_hits_the_controls(explorer_page, narrow_enough, accessible):
    page = explorer_page(viewport=PHONE, has_touch=True, is_mobile=True, device_scale_factor=2)
    assert narrow_enough(page) == []
    assert [found for found in page.evaluate(CONTROLS) if found[1] < 24 or found[2] < 24] == []
    box = page.locator("#photo").bounding_box()
    page.touchscreen.tap(*spot(box, 20, 30))
    assert where(page) == (20, 30)
    assert accessible(page) == [] and page.complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_serious_for_those_who_see_or_use_it_differently(explorer_page, accessible, scheme):
    page = explorer_page(color_scheme=scheme)
    page.locator("summary").click()
    ground = page.evaluate(COLOUR, ["body", "backgroundColor"])
    assert (max(ground) < 60) == (scheme == "dark") and (min(ground) > 200) == (scheme == "light")
    assert accessible(page) == [] and page.complaints == []


def test_forced_colours_show_which_head_is_chosen(explorer_page):
    page = explorer_page(forced_colors="active")
    chosen = page.locator('.heads button[aria-pressed="true"]').first
    assert chosen.evaluate("e => getComputedStyle(e).outlineStyle") == "solid"
    assert page.complaints == []


def test_on_paper_the_pictures_stay_and_the_controls_go(explorer_page):
    page = explorer_page(color_scheme="dark")
    page.emulate_media(media="print")
    assert not page.locator("#x").is_visible() and not page.locator("summary").is_visible()
    assert page.locator("#photo").is_visible() and page.locator("canvas.map").first.is_visible()
    assert page.evaluate(COLOUR, ["body", "backgroundColor"]) == [255, 255, 255]
    ink = page.evaluate(COLOUR, ["h2", "color"])
    assert max(ink) < 120, "light letters on white paper"
    assert len(page.pdf()) > 10_000


WRITTEN = """() => { window.written = []; const fill = CanvasRenderingContext2D.prototype.fillText;
  CanvasRenderingContext2D.prototype.fillText = function (text, x, y) {
    const {width, actualBoundingBoxDescent} = this.measureText(text);
    window.written.push([text, x, y, width, actualBoundingBoxDescent, this.canvas.width, this.canvas.height]);
    fill.call(this, text, x, y); }; }"""


def test_names_of_boxes_stay_inside_the_picture(open_page, tmp_path):
    import torch

    from lesa_nb.look.explorer import explorer
    from lesa_nb.study.small import SmallNet

    edges = [[-3, -2, 9, 7], [70, 0, 80, 9], [74, 50, 90, 59], [0, 52, 6, 80], [60, 70, 75, 90]]
    objects = [dict(name="a triangle", score=.9, box=box) for box in edges]
    page = explorer(Image.new("RGB", (80, 60), "grey"), {"LESA": SmallNet("lesa").eval()}, torch.rand(1, 3, 60, 80),
                    answers={"LESA": dict(objects=objects)})
    shown = open_page()
    shown.add_init_script(f"({WRITTEN})()")
    shown.goto(page.save(tmp_path / "boxes.html").as_uri())
    shown.wait_for_function("() => document.documentElement.dataset.ready === 'yes'", timeout=30_000)
    shown.wait_for_timeout(300)
    written = shown.evaluate("() => window.written")
    assert {row[0] for row in written} == {"a triangle 0.90"} and len(written) >= 5
    for _, x, y, width, below, wide, high in written:
        assert 0 <= x and x + width <= wide and 0 <= y and y + below <= high
