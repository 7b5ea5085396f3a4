"""Every link of the built site leads to a file that is there, and to a place in it."""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ELSEWHERE = ("http", "https", "mailto", "data", "javascript")
_FILES = {"a": "href", "link": "href", "img": "src", "script": "src", "source": "src"}


class _Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.places, self.links, self.fetched, self.twice = set(), [], [], []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        for name in {attributes.get("id"), attributes.get("name") if tag == "a" else None} - {None}:
            if name in self.places:
                self.twice.append(name)
            self.places.add(name)
        target = attributes.get(_FILES.get(tag, ""))
        if target is not None:
            self.links.append(target)
            if tag != "a" and attributes.get("rel") not in ("canonical", "index", "search", "next", "prev"):
                self.fetched.append(target)  # by the browser itself


def read(path):
    page = _Page()
    page.feed(path.read_text(encoding="utf-8"))
    return page


def broken(folder):
    "What is wrong, a sentence each: dead links, places that are there twice, what comes from elsewhere."
    folder = Path(folder).resolve()
    pages = {path: read(path) for path in sorted(folder.rglob("*.html")) if "_static" not in path.parts}
    found = []
    for path, page in pages.items():
        where = path.relative_to(folder)
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme in ELSEWHERE:
                if parts.scheme in ("http", "https") and link in page.fetched:
                    found.append(f"{where}: {link} is fetched from elsewhere")
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if target.is_dir():
                target /= "index.html"
            if not target.exists():
                found.append(f"{where}: {link}: no such file")
            elif parts.fragment and target.suffix == ".html":
                places = pages[target].places if target in pages else read(target).places
                if unquote(parts.fragment) not in places:
                    found.append(f"{where}: {link}: no such place in {target.name}")
        found += [f"{where}: the place {name} is there twice" for name in page.twice]
    return found


if __name__ == "__main__":
    problems = broken(sys.argv[1])
    print("\n".join(problems) or "every link leads somewhere")
    sys.exit(bool(problems))
