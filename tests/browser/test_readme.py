"""README and CONTRIBUTING as a code host shows them, at a desk and on a phone: nothing wider than the page."""

import pytest
from browser_facts import DESK, PHONE, ROOT

# What code hosts do to Markdown: pictures shrink, code scrolls within its block, tables within the page.
STYLE = """
body { margin: 0; padding: 16px; font: 16px/1.5 "DejaVu Sans", sans-serif; overflow-wrap: break-word; }
body { max-width: 980px; }
img { max-width: 100%; } pre { overflow: auto; font-size: 85%; } pre code { white-space: pre; }
table { display: block; width: max-content; max-width: 100%; overflow: auto; border-spacing: 0; }
td, th { padding: 6px 13px; } code { font-size: 85%; white-space: break-spaces; }
"""


def shown(name, copy):
    "A Markdown file of the copy as a page beside it, so that its pictures are found."
    from nbconvert.filters import markdown2html

    text = (copy / name).read_text(encoding="utf-8")
    page = copy / "out" / f"{name}.html"  # git ignores out/
    page.parent.mkdir(exist_ok=True)
    page.write_text(
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{name}</title>'
        f'<base href="{copy.as_uri()}/">'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>'
        f"<body>{markdown2html(text)}</body></html>",
        encoding="utf-8",
    )
    return page.as_uri()


@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["desk", "phone"])
@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_nothing_is_wider_than_the_page(name, viewport, copy, open_page, narrow_enough):
    page = open_page(viewport=viewport)
    page.goto(shown(name, copy))
    assert narrow_enough(page) == []
    pictures = page.evaluate("() => [...document.images].map(i => [i.getAttribute('src'), i.naturalWidth, i.alt])")
    assert [picture for picture in pictures if not picture[1]] == []
    assert page.complaints == []


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_pictures_and_links_have_words(name, copy, open_page, accessible):
    page = open_page()
    page.goto(shown(name, copy))
    rules = ("image-alt", "link-name", "empty-heading")
    assert [found for found in accessible(page) if found.startswith(rules)] == []


def test_the_first_picture_is_above_the_fold(copy, open_page):
    page = open_page(viewport={"width": 1200, "height": 800})
    page.goto(shown("README.md", copy))
    box = page.locator("img").first.bounding_box()
    assert box["y"] < 800 and (ROOT / "README.md").exists()
