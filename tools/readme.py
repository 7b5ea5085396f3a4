"""Make README.md from nbs/index.ipynb, and in it the table of contents from the notebooks.

    python tools/readme.py            # this project
    python tools/readme.py FOLDER     # another one

Between `<!-- contents of FOLDER -->` and `<!-- end -->` stand the titles and promises of the notebooks in that folder
of nbs/, in index.ipynb too.
Cells marked `#| hide` are left out, the directives of the others too. Pictures that cells draw become files in Images/;
links written for the notebook's folder are rewritten for the project's.
The same notebook gives the same bytes: text output is dropped, only pictures are kept.
"""

import base64
import json
import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

NOTICE = "<!-- Made from nbs/index.ipynb by `make sync`: edit the notebook, not this file. -->"
_directive = re.compile(r"^\s*#\s*\|.*\n?", re.MULTILINE)
_hidden = re.compile(r"^\s*#\s*\|\s*(hide|exports?|exporti|default_exp)\b", re.MULTILINE)
_code_hidden = re.compile(r"^\s*#\s*\|\s*(echo\s*:\s*false|hide_input)\b", re.MULTILINE)
_link = re.compile(r"(\]\(|\b(?:src|href)=[\"'])([^)\"'\s]+)")
_contents = re.compile(r"(<!-- contents of (\S+) -->\n).*?(?=<!-- end -->)", re.DOTALL)
_fence = re.compile(r"(^```.*?^```[^\n]*$)", re.DOTALL | re.MULTILINE)


def _from_root(target, folder):
    "A link written in the notebook's folder, as the project's folder sees it."
    if re.match(r"[a-z][a-z0-9+.-]*:|#|/", target, re.IGNORECASE):
        return target
    parts = []
    for part in (f"{folder}/{target}").split("/"):
        if part == ".." and parts:
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


def _relink(markdown, folder):
    pieces = _fence.split(markdown)  # code between fences stays as it is
    pieces[::2] = [_link.sub(lambda m: m[1] + _from_root(m[2], folder), piece) for piece in pieces[::2]]
    return "".join(pieces)


def readme(notebook, folder="nbs"):
    "The README's text and its pictures (file name -> bytes) for a notebook that lies in `folder`."
    cells, number = [], 0
    pictures = {}
    for cell in notebook.cells:
        if cell.cell_type == "raw" or (cell.cell_type == "code" and _hidden.search(cell.source)):
            continue
        if cell.cell_type == "markdown":
            if cell.get("attachments"):
                raise ValueError("index.ipynb has a picture pasted into a text cell: save it in Images/ and link to it")
            cells.append(nbformat.v4.new_markdown_cell(_relink(cell.source, folder)))
            continue
        source = _directive.sub("", cell.source).strip()
        if source and not _code_hidden.search(cell.source):
            cells.append(nbformat.v4.new_code_cell(source))
        for output in cell.outputs:
            data = output.get("data", {}).get("image/png")
            if data:
                number += 1
                name = f"readme-{number}.png"
                pictures[name] = base64.b64decode(data)
                cells.append(nbformat.v4.new_markdown_cell(f"![](Images/{name})"))
    bare = nbformat.v4.new_notebook(cells=cells, metadata={"language_info": {"name": "python"}})
    text, _ = MarkdownExporter().from_notebook_node(bare)
    if "data:image" in text:
        raise ValueError("index.ipynb holds a picture as a data: link: save it in Images/ and link to it")
    text = re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)
    text = re.sub(r"\n{3,}", "\n\n", text).strip()
    return f"{NOTICE}\n\n{text}\n", pictures


def title_and_promise(path):
    "The heading of a notebook, and the line of quotation below it."
    first = "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"])
    match = re.match(r"# (.+)\n+> (.+)", first)
    if not match:
        raise ValueError(f"{path.name}: expected '# title' and '> promise' at its top")
    return match[1].strip(), match[2].strip()


def contents(folder, nbs):
    "The table of the notebooks in a folder of nbs/."
    paths = sorted((nbs / folder).glob("*.ipynb"))
    if not paths:
        raise ValueError(f"index.ipynb wants the contents of nbs/{folder}, where there is no notebook")
    lines = ["| | | |", "|--:|---|---|"]
    for path in paths:
        title, promise = title_and_promise(path)
        number = path.stem.split("_")[0].lstrip("0")
        lines.append(f"| {number} | [{title}]({folder}/{path.name}) | {promise} |")
    return "\n" + "\n".join(lines) + "\n\n"


def update_contents(index):
    "Write the tables of contents into index.ipynb, as nbdev_clean would leave the file."
    notebook = json.loads(index.read_text(encoding="utf-8"))
    before = json.dumps(notebook)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            source = _contents.sub(lambda m: m[1] + contents(m[2], index.parent), "".join(cell["source"]))
            cell["source"] = source.splitlines(True)
    if json.dumps(notebook) != before:
        text = json.dumps(notebook, sort_keys=True, indent=1, ensure_ascii=False)
        index.write_text(text + "\n", encoding="utf-8", newline="\n")


def main(root):
    source = root / "nbs" / "index.ipynb"
    if not source.exists():
        sys.exit(f"error: {source} is missing: README.md is made from it")
    try:
        update_contents(source)
        text, pictures = readme(nbformat.read(source, as_version=4))
    except ValueError as error:
        sys.exit(f"error: {error}")
    images = root / "Images"
    for old in images.glob("readme-*.png"):
        if old.name not in pictures:
            old.unlink()
    for name, data in pictures.items():
        images.mkdir(exist_ok=True)
        (images / name).write_bytes(data)
    (root / "README.md").write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent))
