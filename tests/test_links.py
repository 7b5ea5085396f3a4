"""Links: every file that a page or a notebook points to is there, and every heading too."""

import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tools"))

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


def test_the_contents_are_every_notebook_in_order():
    "The README's tables of contents name every numbered notebook in the order of their numbers; pages are linked."
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| \d+ \| \[.+?\]\((nbs/[^)]+)\)", readme, re.MULTILINE)
    notebooks = [path for path in project.notebooks(ROOT) if path.name != "index.ipynb"]
    assert listed == [str(path.relative_to(ROOT)) for path in notebooks if path.name[0].isdigit()]
    assert all(f"({path.relative_to(ROOT)})" in readme for path in notebooks)
