"""Words that make no sense on a command line, answered in one sentence: what is wrong, what may have been meant."""
import contextlib
import difflib
import io
import itertools
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

from lesa_nb.cli._common import UsageError

_T = TypeVar("_T")
_HELP = ("-h", "--help")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_FRAME = re.compile(r"^[│╭╰]|[│╮╯]?\s*$")
_NO_BREAK = 10_000  # columns of a terminal in which no sentence is broken into lines
_NARROWEST = 20  # columns: in a terminal of fewer than eight the parser writes its help forever
#: what the parser says of a value -> the same in a sentence
_VALUES = (
    (re.compile(r"Error parsing (\S+): invalid literal for int.*: (.*)"), r"\1 wants a whole number, got \2"),
    (re.compile(r"Error parsing (\S+): could not convert string to float: (.*)"), r"\1 wants a number, got \2"),
    (re.compile(r"Error parsing (\S+): .*\bINT .* from \[(.*)\]\.?"), r"\1 wants a whole number, got \2"),
    (re.compile(r"Error parsing (\S+): .*\bFLOAT .* from \[(.*)\]\.?"), r"\1 wants a number, got \2"),
    (
        re.compile(r"invalid choice (.*) for argument '(\S+)'\. Expected one of \((.*?),?\)\."),
        r"\2 must be one of \3, got \1",
    ),
    (re.compile(r"Error parsing (\S+): Exceeds the limit.*"), r"\1 wants a number of fewer digits"),
    (re.compile(r"Error parsing (\S+): Could not find valid parse for arguments: \[(.*)\]"), r"\1 does not take \2"),
    (re.compile(r"Missing value for argument '(\S+)'\..*"), r"\1 wants a value, found none"),
)


def _meant(word: str, known: Sequence[str]) -> str:
    "What may have been meant by a word, as a question; empty if nothing comes near."
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""


def find_command(words: Sequence[str], groups: Mapping[str, Sequence[str]], commands: Sequence[str]) -> str:
    """The command that the first one or two words name, as it is called ("lesa train coco"); "lesa" for help on all.

    groups: the commands of two words, first word -> second words; commands: those of one word.
    """
    known = sorted([*groups, *commands])
    if not words:
        raise UsageError(f"name a command: {', '.join(known)}; lesa --help says what they do")
    if words[0] in _HELP:
        return "lesa"
    if words[0] not in known:
        raise UsageError(f"no command {words[0]!r}{_meant(words[0], known) or '; there are ' + ', '.join(known)}")
    if words[0] not in groups:
        return f"lesa {words[0]}"
    second = list(groups[words[0]])
    if len(words) == 1:
        raise UsageError(f"say which: {' or '.join(f'lesa {words[0]} {name}' for name in second)}")
    if words[1] in _HELP:
        return f"lesa {words[0]}"
    if words[1] not in second:
        there = f"; there is {' and '.join(f'lesa {words[0]} {name}' for name in second)}"
        raise UsageError(f"no command {' '.join(words[:2])!r}{_meant(words[1], second) or there}")
    return f"lesa {words[0]} {words[1]}"


def refuse_empty(words: Sequence[str]) -> None:
    "Refuse words of no letters: an empty path would mean the folder that one happens to be in."
    for place, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if not word.strip():
            before = words[place - 1] if place else ""
            flag, equals, value = before if before.startswith("--") else "a word", "=", ""
        elif not word.startswith("--"):
            continue
        if equals and not value.strip():
            raise UsageError(f"{flag} is empty: expected a name or a number; is a variable of the shell not set?")


@contextlib.contextmanager
def _columns(number: int) -> Iterator[None]:
    "A terminal that is so wide."
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(number)
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


def _answer(read: Callable[[Sequence[str]], object], words: Sequence[str]) -> str:
    "All that the parser says about these words, without colours."
    out, err = io.StringIO(), io.StringIO()
    with _columns(_NO_BREAK), contextlib.redirect_stderr(err), contextlib.redirect_stdout(out):
        with contextlib.suppress(SystemExit):
            read(words)
    return _COLOUR.sub("", err.getvalue() + out.getvalue())


def _is_ruler(row: str) -> bool:
    return set(row.strip()) <= {"─", "-"}


def _unknown(found: Sequence[str], known: Sequence[str], command: str) -> str:
    "Options that are none, and words too many."
    flags = [word for word in found if word.startswith("-")]
    if not flags:
        return f"more words than {command} takes: {', '.join(found)}"
    said = [f"no option {flag}{_meant(flag.partition('=')[0], known)}" for flag in flags]
    return f"{command} has {' and '.join(said)}"


def _in_words(lines: list[str], known: Sequence[str], command: str) -> str:
    "The parser's answer, line by line, as one sentence."
    first = lines[0].strip()
    title, _, rest = first.partition(": ")
    if title == "Unrecognized options":
        return _unknown(rest.split(", "), known, command)
    if title.startswith("Unrecognized or misplaced options"):
        return _unknown([re.sub(r" \(applied to .*", "", line.strip()) for line in lines[1:]], known, command)
    if first.startswith("Missing from "):
        indent = min((len(line) - len(line.lstrip()) for line in lines[1:]), default=0)
        names = [line.strip() for line in lines[1:] if len(line) - len(line.lstrip()) == indent]
        return f"{command} needs {' and '.join(names)}"
    for pattern, sentence in _VALUES:
        if pattern.fullmatch(first):
            return pattern.sub(sentence, first.replace("'None', ", ""))  # what an option is if it is not given
    return first


def read_words(read: Callable[[Sequence[str]], _T], words: Sequence[str], command: str) -> _T:
    """What `read`, a parser that explains itself at length and leaves, makes of words.

    command: the one that they ask for. Raises UsageError with a sentence where the parser would leave with status 2.
    """
    try:
        with contextlib.redirect_stderr(io.StringIO()), _columns(max(_NARROWEST, shutil.get_terminal_size().columns)):
            return read(words)
    except SystemExit as leave:
        if leave.code in (0, None):
            raise
    rows = [_FRAME.sub("", row).rstrip() for row in _answer(read, words).splitlines()]
    rows = [row for row in rows if row.strip()][1:]  # the first one is the title of a box
    parts = [list(part) for is_ruler, part in itertools.groupby(rows, _is_ruler) if not is_ruler]
    known = re.findall(r"--[a-z][a-z0-9-]*", _answer(read, [*command.split()[1:], "--help"]))
    said = _in_words(parts[0] if parts else [f"{command} does not understand this"], sorted(set(known)), command)
    raise UsageError(f"{said.rstrip('.')}{'' if said.endswith('?') else ';'} {command} --help says more")
