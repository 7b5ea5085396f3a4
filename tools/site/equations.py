"""Equation numbers: which page has a formula, which lines of code compute it, and links between the two, both ways.

A formula says `\\tag{4.1}`; a line of code that computes it says `# (4.1)`, a docstring `eq. (4.1)`. Nothing of Sphinx
here: pages are (name, cells), a cell is (kind, source).
"""

import io
import re
import tokenize
from typing import NamedTuple

TAG = re.compile(r"\\tag\{(\d+\.\d+)\}")
CITED = re.compile(r"\(([1-9]\d?\.[1-9]\d?)(?:\s*(?:,|and|to)\s*([1-9]\d?\.[1-9]\d?))*\)")
NUMBER = re.compile(r"[1-9]\d?\.[1-9]\d?")
_COMMENT = re.compile(r'(<span class="c1">)(.*?)(</span>)', re.DOTALL)
_STRING = re.compile(r'(<span class="(?:s2|s1|sd)">)(.*?)(</span>)', re.DOTALL)
_DEFINED = re.compile(
    r'^((?:<span></span>)?(?:<span class="k">(?:def|class)</span>(?:<span class="w"> </span>| )<span class="n[fc]"'
    r'|<span class="n"(?=>\w+</span>(?:<span class="w"> </span>| )?(?:<span class="o">=<|<span class="p">:<))))'
    r">(\w+)</span>",
    re.MULTILINE,
)
_LONGEST_LABEL = 36


class Use(NamedTuple):
    "A place in code that cites a formula."

    tag: str
    page: str
    anchor: str
    label: str  # of the link to it


def anchor_of(tag):
    "The anchor of a formula."
    return f"eq-{tag.replace('.', '-')}"


def formulas(pages):
    "tag -> the page that has the formula."
    return {
        tag: page
        for page, cells in pages
        for kind, source in cells
        if kind == "markdown"
        for tag in TAG.findall(source)
    }


def cited(text):
    "Every (start, end, number) that a text cites: `(4.1)`, `(4.2, 4.3)`, `(4.5) to (4.7)`."
    for group in CITED.finditer(text):
        for number in NUMBER.finditer(group[0]):
            yield group.start() + number.start(), group.start() + number.end(), number[0]


def _owners(lines):
    "For each line of a cell: the definition that it stands in, `Class.method`, or ''."
    open_, owners = [], []  # open_: (indentation, name)
    for line in lines:
        text = line.strip()
        indent = len(line) - len(line.lstrip())
        closes = text[:1] in (")", "]", "}")  # the end of a signature that was broken over lines
        if text and not closes:
            open_ = [(at, name) for at, name in open_ if at < indent]
        if match := re.match(r"\s*(?:async\s+)?(?:def|class)\s+(\w+)", line):
            open_.append((indent, match[1]))
        owners.append(".".join(name for _, name in open_))
    return owners


def _tokens(source):
    try:
        return list(tokenize.generate_tokens(io.StringIO(source).readline))
    except (tokenize.TokenError, SyntaxError):
        return []


def _label(owner, line):
    if owner:
        return owner
    if re.match(r"\s*(assert|test_|with ExceptionExpected|with raises)", line):
        return "a test"
    code = re.sub(r"\s+", " ", line.split("#")[0]).strip() or line.strip(" #")
    return code if len(code) <= _LONGEST_LABEL else code[: _LONGEST_LABEL - 1].rstrip() + "…"


def uses(pages):
    """Every place in the pages' code that cites a formula, in reading order.

    A comment has an anchor of its own, `use-4-1-2`: the second comment of its page that cites (4.1). A docstring is
    found at the definition that it belongs to, `def-name`, and counts where no comment there cites the same number.
    """
    found = []
    for page, cells in pages:
        count = {}
        for kind, source in cells:
            if kind != "code":
                continue
            lines = source.split("\n")
            owners, here, strings = _owners(lines), set(), []
            for token in _tokens(source):
                if token.type not in (tokenize.COMMENT, tokenize.STRING):
                    continue
                owner = owners[token.start[0] - 1]
                if token.type == tokenize.COMMENT:
                    for _, _, tag in cited(token.string):
                        count[tag] = count.get(tag, 0) + 1
                        anchor = f"use-{tag.replace('.', '-')}-{count[tag]}"
                        found.append(Use(tag, page, anchor, _label(owner, lines[token.start[0] - 1])))
                        here.add((tag, owner))
                elif "eq" in token.string and owner:
                    strings += [(tag, owner) for _, _, tag in cited(token.string)]
            for tag, owner in dict.fromkeys(strings):
                if not any(tag == other and name.split(".")[0] == owner.split(".")[0] for other, name in here):
                    found.append(Use(tag, page, f"def-{owner.split('.')[0]}", owner))
    return found


def once(places):
    "Uses without those that look the same: same page and label. The first of each stays."
    return list({(use.page, use.label): use for use in reversed(places)}.values())[::-1]


def link_code(html, address):
    """Highlighted code with its equation numbers as links; comments become places that a formula can link to.

    address(tag): where the formula is, or None where there is none.
    """
    count = {}

    def linked(text, counts):
        parts, end = [], 0
        for start, stop, tag in cited(text):
            place = ""
            if counts:
                count[tag] = count.get(tag, 0) + 1
                place = f' id="use-{tag.replace(".", "-")}-{count[tag]}"'
            to = address(tag)
            if to:
                parts += [text[end:start], f'<a class="eq"{place} href="{to}">{tag}</a>']
                end = stop
        return "".join([*parts, text[end:]])

    def line(match):
        return f"{match[1]}{linked(match[2], True)}{match[3]}"

    def words(match):
        return f"{match[1]}{linked(match[2], False)}{match[3]}" if "eq" in match[2] else match[0]

    return _STRING.sub(words, _COMMENT.sub(line, html))


def link_definitions(html, address, seen):
    """Highlighted code of a cell: what is defined at its left margin gets the place `def-name`, once on a page.

    address(name): its entry among the pages of the package, or None; the name becomes a link to it.
    seen: the places that the page has already, a set that is added to.
    """

    def name(match):
        to = address(match[2])
        inner = f'<a class="api" href="{to}">{match[2]}</a>' if to else match[2]
        place = "" if match[2] in seen else f' id="def-{match[2]}"'
        seen.add(match[2])
        return f"{match[1]}{place}>{inner}</span>"

    return _DEFINED.sub(name, html)
