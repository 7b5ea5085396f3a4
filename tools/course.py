"""The way through the course: the last cell of each page of nbs/ leads to the page before, the contents and the next.

The table at its top says how long the page takes, to run and to read (tools/reading.py).

    python tools/course.py            # this project
    python tools/course.py FOLDER     # another one

The pages are the notebooks whose names begin with a number, in the order of their folders and numbers, as in the table
of contents. The cell is known by its id, so it may be moved, and is written anew when a page comes or goes.
"""

import json
import os
import re
import sys
from pathlib import Path

import project
import reading

ID = "course-links"
MADE = "<!-- made by `make sync` -->"


def pages(root=project.ROOT):
    "The numbered notebooks in reading order."
    return [path for path in project.notebooks(root) if re.match(r"\d+_", path.name)]


def links(path, root=project.ROOT):
    "The last cell of a page, as Markdown: `previous · contents · next`."
    order = pages(root)
    place = order.index(path) if path in order else None

    def link(to, words):
        return f"[{words}]({os.path.relpath(to, path.parent).replace(os.sep, '/')})"

    parts = [link(root / "nbs" / "index.ipynb", "contents")]
    if place:
        parts.insert(0, link(order[place - 1], f"← {order[place - 1].stem}"))
    if place is not None and place + 1 < len(order):
        parts.append(link(order[place + 1], f"{order[place + 1].stem} →"))
    return f"{MADE}\n\n{' · '.join(parts)}"


def update(path, root=project.ROOT):
    """Write the last cell of one notebook, and its times; the file as nbdev_clean would leave it.

    Returns whether it has changed.
    """
    text = path.read_text(encoding="utf-8")
    notebook = json.loads(text)
    if promise := reading.promise(path, root):
        for first in notebook["cells"][:1]:
            source = reading.OPENING.sub(lambda match: f"{match[1]} {promise} |", "".join(first["source"]))
            first["source"] = source.splitlines(True)
    cell = {"cell_type": "markdown", "id": ID, "metadata": {}, "source": links(path, root).splitlines(True)}
    notebook["cells"] = [other for other in notebook["cells"] if other.get("id") != ID] + [cell]
    new = json.dumps(notebook, sort_keys=True, indent=1, ensure_ascii=False) + "\n"
    if new != text:
        path.write_text(new, encoding="utf-8", newline="\n")
    return new != text


def main(root):
    index = root / "nbs" / "index.ipynb"
    for path in project.notebooks(root) if index.exists() else ():
        if path != index:
            update(path, root)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else project.ROOT).resolve())
