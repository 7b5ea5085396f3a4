"""The folder that Sphinx reads, made from nbs/: notebooks in reading order without the marks that only nbdev needs."""

import ast
import json
import re
import shutil
import sys
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(Path(__file__).resolve().parent), str(ROOT / "tools")]

import api  # noqa: E402
import cards  # noqa: E402
import course  # noqa: E402
import project  # noqa: E402
import reading  # noqa: E402
import readme  # noqa: E402

DIRECTIVE = re.compile(r"^\s*#\s*\|.*\n?", re.MULTILINE)
_mark = re.compile(r"^\s*#\s*\|\s*(\w+)", re.MULTILINE)
_link = re.compile(r"(\]\(|\b(?:src|href)=[\"'])([^)\"'\s#]+)(#[^)\"'\s]*)?(?=[)\"'])")
_table = re.compile(r"(<!-- contents of (\S+) -->\n).*?(?=<!-- end -->)", re.DOTALL)
_code = re.compile(r"(^```.*?^```[^\n]*$|`[^`\n]*`)", re.DOTALL | re.MULTILINE)

LOOK_UP = {  # pages that are not read from beginning to end: name -> words in the list
    "coming_from": "Coming from elsewhere",
    "pages/symbols": "Symbols and names",
    "pages/differences": "What differs, and why",
    "pages/networks": "Model cards",
    "pages/extending": "Your own table, your own gate",
    "promises": "Promises",
}
PROJECT = {"CHANGELOG": "Changes", "CONTRIBUTING": "Contributing", "SECURITY": "Security"}  # files beside nbs/


def settings(root=ROOT):
    "What settings.ini says about the project."
    config = ConfigParser(delimiters=["="], interpolation=None)
    config.read(root / "settings.ini", encoding="utf-8")
    return config["DEFAULT"]


def name_of(path, root=ROOT):
    "A page's name on the site: its path in nbs/ without the ending."
    nbs = root / "nbs"
    return path.relative_to(nbs if nbs in path.parents else root).with_suffix("").as_posix()


def parts(root=ROOT):
    "The course: [(title of the part, [pages])], the titles as the start page has them."
    index = json.loads((root / "nbs" / "index.ipynb").read_text(encoding="utf-8"))
    text = "\n".join("".join(cell["source"]) for cell in index["cells"])
    found = []
    for folder in dict.fromkeys(path.parent.name for path in course.pages(root)):
        title = re.search(rf"^#+ (.+)\n+<!-- contents of {re.escape(folder)} -->", text, re.MULTILINE)
        pages = [path for path in course.pages(root) if path.parent.name == folder]
        found.append((title[1] if title else folder.replace("_", " "), pages))
    return found


def relink(text, folder, root):
    """Links of a page that lies in `folder` of the project, as the site has them.

    What is no page of the site (code, licences) is linked at the code host.
    """
    git = f"{settings(root)['git_url']}/blob/{settings(root)['branch']}"

    def link(match):
        target = match[2]
        if re.match(r"[a-z][a-z0-9+.-]*:|/", target, re.IGNORECASE):
            return match[0]
        path = (folder / target).resolve()
        try:
            inside = path.relative_to(root)
        except ValueError:
            return match[0]
        anchor = match[3] or ""
        if inside.parts[:1] == ("Images",) or (inside.parts[:1] == ("nbs",) and path.suffix in (".ipynb", ".md")):
            site = path.relative_to(root / "nbs") if inside.parts[0] == "nbs" else inside
        elif inside.as_posix().removesuffix(".md") in PROJECT:
            site = inside
        else:
            return f"{match[1]}{git}/{inside.as_posix()}{anchor}"
        here = folder.relative_to(root / "nbs") if (root / "nbs") in (folder, *folder.parents) else Path()
        return f"{match[1]}{'../' * len(here.parts)}{site.as_posix()}{anchor}"

    pieces = _code.split(text)
    pieces[::2] = [_link.sub(link, piece) for piece in pieces[::2]]
    return "".join(pieces)


def _said(node, known):
    "What an expression says, as far as it can be known without running it; known: name -> words, of the cell."
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(_said(part, known) or "…" for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return _said(node.value, known)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        sides = [_said(side, known) for side in (node.left, node.right)]
        return "".join(side or "…" for side in sides) if any(sides) else ""
    return known.get(node.id, "") if isinstance(node, ast.Name) else ""


def _finding(call, known):
    "The longest text that a call is given in its place, as the helpers of some pages take their title; or nothing."
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    if name.startswith(("test_", "assert")) or name in ("print", "mkdtemp"):
        return ""
    return max((words for arg in call.args if (words := _said(arg, known)).count(" ") > 2), key=len, default="")


def alternative(source, page):
    "Words for the figure of a cell: its title in the code, else what its axis shows, else which page it belongs to."
    try:
        tree = ast.parse(source)
    except SyntaxError:
        tree = ast.Module([], [])
    known = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            known[node.targets[0].id] = _said(node.value, known)
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    if any(getattr(call.func, "id", "") == "draw_map" for call in calls):
        return f"A map of LESA and what is built from it, with the part of this page lit: {page}"
    given = {word: [said for call in calls for keyword in call.keywords
                    if keyword.arg == word and (said := _said(keyword.value, known))] for word in ("title", "ylabel")}
    outer = [node.value for node in tree.body if isinstance(node, (ast.Expr, ast.Assign))]
    found = given["title"] + [_finding(call, known) for call in reversed(outer) if isinstance(call, ast.Call)]
    found += [f"{what}: a figure of “{page}”" for what in given["ylabel"]]
    return next((re.sub(r"\s+", " ", words).strip() for words in found if words), f"A figure of “{page}”")


def cells(path, root=ROOT):
    "The cells of a notebook as the site shows them: (kind, source, marks of nbdev, outputs)."
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        marks = set(_mark.findall(source)) if cell["cell_type"] == "code" else set()
        if cell.get("id") == course.ID or cell["cell_type"] == "raw" or marks & {"hide", "default_exp"}:
            continue
        if cell["cell_type"] == "code":
            source = DIRECTIVE.sub("", source).strip("\n")
            if not source:
                continue
        else:
            source = source.replace(course.MADE, "").strip("\n")
        yield cell["cell_type"], source, marks, cell.get("outputs", [])


def notebook(path, root=ROOT):
    "A notebook for the site, as a dictionary."
    title, _ = readme.title_and_promise(path)
    new = []
    for i, (kind, source, marks, outputs) in enumerate(cells(path, root)):
        metadata = {}
        if kind == "code":
            if marks & {"export", "exports", "exporti"}:
                metadata["tags"] = ["export"]
            said = [words for output in outputs if (words := project.alternative_text(output))]
            metadata["mystnb"] = {"image": {"alt": "; ".join(said) or alternative(source, title)}}
        else:
            source = relink(contents(source, root), path.parent, root)
        cell = {"cell_type": kind, "id": f"site-{i}", "metadata": metadata, "source": source}
        if kind == "code":
            cell |= {"execution_count": None, "outputs": outputs}
        new.append(cell)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": new, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


def contents(source, root=ROOT):
    "A part's table of contents, with how long each page takes."

    def table(match):
        lines = ["", "| chapter | title | promise | to read | to run |", "|--:|---|---|--:|---|"]
        for path in sorted((root / "nbs" / match[2]).glob("*.ipynb")):
            title, promise = readme.title_and_promise(path)
            number = path.stem.split("_")[0].lstrip("0")
            minutes, runs = reading.minutes(path), reading.runs_in(path, root)
            lines.append(f"| {number} | [{title}]({match[2]}/{path.name}) | {promise} | {minutes} min | {runs} |")
        return match[1] + "\n".join(lines) + "\n\n"

    return _table.sub(table, source)


def _toctree(caption, entries):
    lines = ["```{toctree}", f":caption: {caption}", ":hidden:", ""]
    return "\n".join([*lines, *(f"{words} <{name}>" for name, words in entries), "```"])


def start_page(root=ROOT):
    "index.ipynb with the list of all pages, in reading order."
    page = notebook(root / "nbs" / "index.ipynb", root)
    trees = []
    for title, paths in parts(root):
        entries = []
        for path in paths:
            number = path.stem.split("_")[0].lstrip("0")
            entries.append((name_of(path, root), f"{number} {readme.title_and_promise(path)[0]}"))
        trees.append(_toctree(title, entries))
    trees.append(_toctree("Look up", LOOK_UP.items()))
    trees.append(_toctree("The package", [(f"api/{room}", f"lesa_nb.{room}") for room in api.rooms(root)]))
    trees.append(_toctree("The project", PROJECT.items()))
    cell = {"cell_type": "markdown", "id": "site-pages", "metadata": {}, "source": "\n\n".join(trees)}
    page["cells"].append(cell)
    return page


def write(to, root=ROOT):
    "Write all sources of the site into the folder `to`, which is made anew."
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(root / "Images", to / "Images")
    for path in project.notebooks(root):
        page = start_page(root) if path.name == "index.ipynb" else notebook(path, root)
        target = to / path.relative_to(root / "nbs")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(page, indent=1, ensure_ascii=False), encoding="utf-8")
    texts = [*sorted((root / "nbs").rglob("*.md")), *(root / f"{name}.md" for name in PROJECT)]
    for path in texts:
        target = to / f"{name_of(path, root)}.md"
        target.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_text(encoding="utf-8")
        if path.stem == "networks":
            text = cards.fill(text, root)
        target.write_text(relink(text, path.parent, root), encoding="utf-8")
    (to / "api").mkdir()
    for name, text in api.pages(root).items():
        (to / "api" / f"{name}.md").write_text(text, encoding="utf-8")
