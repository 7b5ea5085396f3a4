"""Every option of every command, found out from the commands themselves, and odd values for each of its kind."""

import dataclasses
import typing
from pathlib import Path
from types import UnionType

from tyro.conf import Positional

from lesa_nb.cli import app

_POSITIONAL = typing.get_args(Positional[int])[1]


class Option(typing.NamedTuple):
    "An option of a command: its flag, empty for a word without one, and the type of its value."

    flag: str
    type: typing.Any


def commands():
    "Words of a command -> its function."
    found = {(name,): function for name, function in app._COMMANDS.items()}
    for first, (_, functions) in app._GROUPS.items():
        found |= {(first, second): function for second, function in functions.items()}
    return found


def _plain(hint):
    "A type without None and without notes for the parser."
    if typing.get_origin(hint) is typing.Annotated:
        return _plain(typing.get_args(hint)[0])
    if typing.get_origin(hint) in (typing.Union, UnionType):
        (hint,) = (part for part in typing.get_args(hint) if part is not type(None))
        return _plain(hint)
    return hint


def _is_positional(hint):
    return _POSITIONAL in getattr(hint, "__metadata__", ())


def options(function):
    "The options of a command."
    found = []
    for name, hint in typing.get_type_hints(function, include_extras=True).items():
        if name == "return":
            continue
        kind = _plain(hint)
        if dataclasses.is_dataclass(kind):
            found += options(kind)
        else:
            found.append(Option("" if _is_positional(hint) else f"--{name.replace('_', '-')}", kind))
    return found


#: what is a number, and is too small, too large or none; small enough that what is taken for one costs no time
_WHOLE = ["-1", "0", "1", "2", "3", "7", "17", "33", "-9223372036854775809", "18446744073709551616", "10000001"]
_REAL = ["-1", "0", "-0.0", "1", "0.5", "0.999999", "1e-9", "1e-320", "1e308", "inf", "-inf", "nan", "2", "1e400"]
#: what no whole number, no number and no name should be
_NUMBERS = ["", " ", "nan", "inf", "-inf", "-1", "0", "-0.0", "1.5", "1e3", "1e400", "1e-320", "1" * 40, "2" * 5000]
_NUMBERS += ["0x10", "½", "７", "1,5", "3 ", "2\n", "$HOME", "'", '"']
_NUMBERS += ["--", "-", "-h", "a b", "None", "True", "é", "\udcff", "1;2", "2"]
_WORDS = ["", "\t", "a b", "'", '"', "$HOME", "$(id)", "a\nb", "é写真", "\udcff", "x" * 5000, "--", "-", "..", "../x"]
_WORDS += ["%s", "{}", "[", "*", "nan", "-1", "None", "cpu", "CPU", "cpu:0", "cpu:7", "cuda:99", "meta", "gpu:", "val"]
_WORDS += ["train", "train2017", "1,2", "1", "1,2,3", "-1,-1", "1e3,2", "nan,nan", f"{10**30},1", "blocks", ",", "٣,٣"]


def odd_values(kind, places, chance):
    "Some odd value of a type, as words; `places` are paths to choose from."
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if kind is bool:
        return chance.choice([[], ["maybe"], [""]])
    if origin is typing.Literal:
        return [chance.choice(["", "nonsense", parts[0].upper(), parts[0] + " ", f"{parts[-1]},{parts[0]}", *parts])]
    if origin is tuple:
        inner = [part for part in parts if part is not Ellipsis][0]
        return [word for _ in range(chance.choice([0, 1, 1, 2, 3])) for word in odd_values(inner, places, chance)]
    if kind in (int, float):
        return [chance.choice(chance.choice([_WHOLE if kind is int else _REAL, _NUMBERS]))]
    if kind is Path:
        return [chance.choice([*places, *places, *_WORDS[:20]])]
    assert kind is str, kind
    return [chance.choice([*_WORDS, *places[:4]])]


def random_line(base, function, places, chance):
    """A command line with one to three odd options.

    base: flag -> words of a line that makes sense and ends soon; "" -> the words without a flag.
    """
    line = {flag: list(words) for flag, words in base.items()}
    known = options(function)
    if any(option.flag.startswith("--train-") for option in known) and chance.random() < 0.5:
        line.pop("--data", None)
    for option in chance.sample(known, min(len(known), chance.choice([1, 1, 2, 3]))):
        values = odd_values(option.type, places, chance)
        if chance.random() < 0.04:
            line.pop(option.flag, None)  # left out
        elif chance.random() < 0.04 and option.flag:
            line[f"{option.flag}s"] = values  # misspelt
        else:
            line[option.flag] = values
    if "--workers" in line:  # each is a process
        line["--workers"] = ["2" if word in ("3", "7", "17", "33") else word for word in line["--workers"]]
    flags = [flag for flag in line if flag]
    chance.shuffle(flags)
    words = list(line.get("", []))
    for flag in flags:
        values = line[flag]
        words += [f"{flag}={values[0]}"] if len(values) == 1 and chance.random() < 0.3 else [flag, *values]
    return words


