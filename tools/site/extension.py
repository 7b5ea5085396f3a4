"""What the site adds to Sphinx: local formulas, links between equation numbers and code, names that lead to the API."""

import json
import re
from pathlib import Path

import api
import course
import equations
import jupyter_server_mathjax
import readme
import sources
from docutils import nodes
from sphinx.util.fileutil import copy_asset

_INPUT = re.compile(
    r'(<div class="cell (?:tag_(\w+) )?docutils container">\s*<div class="cell_input docutils container">.*?<pre>)'
    r"(.*?)(</pre>)",
    re.DOTALL,
)
# Fonts that the package leaves out, and one that is none: a browser would complain of each.
_OTHER_FONTS = re.compile(r'"@font-face[^"]*":\{"font-family":"MathJax_\w+(?:-WEB)?"[^}]*\}')
_SIGNATURE = re.compile(r"<dl>\s*(<dd>.*?</dd>)\s*</dl>", re.DOTALL)
_MODULE = re.compile(r'(<span class="nn">)(lesa_nb(?:\.\w+)*)(</span>)')
_NAME = re.compile(r"[A-Za-z][\w.]*(?:\(\))?$")
_NO_PROSE = (
    nodes.literal,
    nodes.literal_block,
    nodes.math,
    nodes.math_block,
    nodes.reference,
    nodes.title,
    nodes.raw,
    nodes.caption,
    nodes.comment,
)


def read_equations(app):
    "Which formulas and which citations there are, before any page is read."
    pages = []
    for path in course.pages(sources.ROOT):
        cells = [(kind, source) for kind, source, _, _ in sources.cells(path)]
        pages.append((sources.name_of(path), cells))
    app.lesa_formulas, app.lesa_uses = equations.formulas(pages), equations.uses(pages)
    app.lesa_names = api.addresses()


def _to(app, docname, page, anchor):
    if page == docname:
        return f"#{anchor}"
    return f"{app.builder.get_relative_uri(docname, page)}#{anchor}"


def _formula_address(app, docname, tag):
    page = app.lesa_formulas.get(tag)
    return page and _to(app, docname, page, equations.anchor_of(tag))


def _name_address(app, docname, name):
    to = app.lesa_names.get(name)
    return to and _to(app, docname, *to.split("#"))


def anchor_formulas(app, doctree, docname):
    "Each numbered formula becomes a place, with a line below it that leads to the code that computes it."
    for formula in list(doctree.findall(nodes.math_block)):
        tags = equations.TAG.findall(formula.astext())
        if not tags:
            continue
        formula["ids"] = [equations.anchor_of(tag) for tag in tags] + formula["ids"]
        line = nodes.paragraph(classes=["used-in"])
        for tag in tags:
            places = equations.once([use for use in app.lesa_uses if use.tag == tag])
            if not places:
                continue
            line += nodes.Text(f"({tag}) in code: " if not line.children else f"; ({tag}): ")
            for i, use in enumerate(places):
                if i:
                    line += nodes.Text(", ")
                far = "" if use.page == docname else f" (chapter {Path(use.page).name.split('_')[0].lstrip('0')})"
                to = _to(app, docname, use.page, use.anchor)
                line += nodes.reference("", "", nodes.literal("", use.label), nodes.Text(far), internal=True, refuri=to)
        if line.children:
            parent = formula.parent
            after = formula if not isinstance(parent, nodes.paragraph) else parent
            after.parent.insert(after.parent.index(after) + 1, line)


def link_prose(app, doctree, docname):
    "`(4.1)` in a sentence leads to the formula, and a public name between backticks to the package."
    for text in list(doctree.findall(nodes.Text)):
        parent, above = text.parent, text.parent
        while above is not None and not isinstance(above, _NO_PROSE):
            above = above.parent
        if above is not None or "used-in" in parent.get("classes", ()):
            continue
        words, new, end = text.astext(), [], 0
        for start, stop, tag in equations.cited(words):
            if to := _formula_address(app, docname, tag):
                new += [
                    nodes.Text(words[end:start]),
                    nodes.reference("", tag, internal=True, refuri=to, classes=["eq"]),
                ]
                end = stop
        if new:
            parent.replace(text, [*new, nodes.Text(words[end:])])
    for literal in list(doctree.findall(nodes.literal)):
        name = literal.astext()
        if not _NAME.match(name) or isinstance(literal.parent, (nodes.reference, nodes.title)):
            continue
        to = _name_address(
            app,
            docname,
            name.removesuffix("()").removeprefix("lesa_nb.")
            if name.count(".") == 1 and name.startswith("lesa_nb.")
            else name.removesuffix("()"),
        )
        if to:
            link = nodes.reference("", "", internal=True, refuri=to, classes=["api"])
            literal.replace_self(link)
            link += literal


def resolve(app, doctree, docname):
    anchor_formulas(app, doctree, docname)
    link_prose(app, doctree, docname)


def link_page(app, pagename, templatename, context, doctree):
    "Equation numbers and names in the code of a notebook's cells."
    if "body" not in context:
        return

    cells, seen = [], set()

    def cell(match):
        cells.append(match[3])
        return f"{match[1]}\0{len(cells) - 1}\0{match[4]}"

    body = _INPUT.sub(cell, context["body"])
    exported = [tag == "export" for _, tag, _, _ in _INPUT.findall(context["body"])]
    code = equations.link_code("\1".join(cells), lambda tag: _formula_address(app, pagename, tag)).split("\1")
    for i, html in enumerate(code if cells else ()):
        known = app.lesa_names if exported[i] else {}
        html = equations.link_definitions(html, lambda name: name in known and _name_address(app, pagename, name), seen)
        html = _MODULE.sub(lambda m: _module(app, pagename, m), html)
        body = body.replace(f"\0{i}\0", html)
    context["body"] = _SIGNATURE.sub(_lines, body)


def _lines(match):
    "Lines of a long signature; Sphinx makes them a list of definitions without anything that is defined."
    return match[1].replace("<dd>", '<span class="sig-line">').replace("</dd>", "</span>")


def _module(app, pagename, match):
    to = _name_address(app, pagename, match[2])
    return f'{match[1]}<a class="api" href="{to}">{match[2]}</a>{match[3]}' if to else match[0]


def _inline(self, node):
    self.body.append(f'<span class="math notranslate nohighlight">\\({self.encode(node.astext())}\\)</span>')
    raise nodes.SkipNode


def _block(self, node):
    text, ids = node.astext(), node["ids"]
    tags = equations.TAG.findall(text)
    if len(tags) == 1:  # its number stands beside it, in sight however wide the formula is
        place = equations.anchor_of(tags[0])
        number = f'<a class="number" href="#{place}">({tags[0]})</a>'
        text, ids, name = equations.TAG.sub("", text).rstrip(), [i for i in ids if i != place], f' id="{place}"'
    else:
        number = name = ""
    places = "".join(f'<span id="{other}"></span>' for other in ids)
    math = f'<div class="math notranslate nohighlight">\\[{self.encode(text)}\\]</div>'
    self.body.append(f'<div class="formula"{name}>{places}{math}{number}</div>\n')
    raise nodes.SkipNode


def copy_assets(app, exception):
    "MathJax, from the package that ships it, and the promise of each page, for the list of what a search found."
    if exception is not None:
        return
    static = Path(app.outdir) / "_static"
    copy_asset(str(Path(jupyter_server_mathjax.__file__).parent / "static"), str(static / "mathjax"))
    combined = static / "mathjax" / "config" / "TeX-AMS-MML_HTMLorMML-full.js"
    combined.write_text(_OTHER_FONTS.sub('"unused":{}', combined.read_text(encoding="utf-8")), encoding="utf-8")
    text = json.dumps(promises(), ensure_ascii=False, indent=0)
    (static / "promises.js").write_text(f"window.LESA_PROMISES = {text};\n", encoding="utf-8")


def promises():
    "page -> its chapter and its promise."
    found = {"index": ["", readme.title_and_promise(sources.ROOT / "nbs" / "index.ipynb")[1].replace("*", "")]}
    for path in course.pages(sources.ROOT):
        chapter = path.stem.split("_")[0].lstrip("0")
        found[sources.name_of(path)] = [chapter, readme.title_and_promise(path)[1].replace("`", "")]
    for path in [*sources.ROOT.glob("nbs/*.md"), *sources.ROOT.glob("nbs/pages/*.md")]:
        if match := re.match(r"# .+\n> (.+)", path.read_text(encoding="utf-8")):
            found[sources.name_of(path)] = ["", match[1]]
    for room, module in ((room, f"lesa_nb.{room}") for room in api.rooms()):
        found[f"api/{room}"] = ["", f"The package: modules, functions and classes of {module}"]
    return found


def scripts(app, pagename, templatename, context, doctree):
    "Scripts where they are needed: formulas are drawn on pages that have any, promises stand where results are listed."
    if "furo_navigation_tree" in context:  # a heading has a level
        tree = context["furo_navigation_tree"]
        context["furo_navigation_tree"] = tree.replace('role="heading"', 'role="heading" aria-level="2"')
    if pagename == "search":
        app.add_js_file("promises.js")
    if 'class="math ' in context.get("body", ""):
        app.add_js_file("mathjax-settings.js")
        app.add_js_file("mathjax/MathJax.js?config=TeX-AMS-MML_HTMLorMML-full", priority=900)


def _derived(name, rawtext, text, lineno, inliner, options=None, content=None):
    "A role: words and an address as it is, `words <address>`; Sphinx does not know the places in a cell's code."
    words, address = re.fullmatch(r"(.*) <(.*)>", text).groups()
    return [nodes.reference(rawtext, words, internal=True, refuri=address)], []


def setup(app):
    app.add_role("derived", _derived)
    app.add_html_math_renderer("local", inline_renderers=(_inline, None), block_renderers=(_block, None))
    app.connect("builder-inited", read_equations)
    app.connect("doctree-resolved", resolve)
    app.connect("html-page-context", link_page)
    app.connect("html-page-context", scripts, priority=900)  # after the theme
    app.connect("build-finished", copy_assets)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
