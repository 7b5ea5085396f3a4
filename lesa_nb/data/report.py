"""What is wrong with a data set: one fault, and one report of all of them, for class folders and for COCO folders."""
from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

FATAL = "fatal"
_KEPT = 20  # of each kind that is not fatal, and fatal ones printed


def printable(path: str | os.PathLike) -> str:
    """A path as it can always be printed on one line: bytes that are no text, and signs that do not print, as
    escapes."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


class Fault(NamedTuple):
    """One thing that is wrong, and where.

    kind: a name from the table of its verifier; path: printable; found: what is there; outcome: "fatal", or what
    becomes of it in training; image_id, annotation_id: where a file describes several.
    """

    kind: str
    path: str
    found: str = ""
    outcome: str = FATAL
    image_id: int | str | None = None
    annotation_id: int | str | None = None

    @property
    def fatal(self) -> bool:
        """Whether it stops training."""
        return self.outcome == FATAL

    @property
    def place(self) -> str:
        """The path and the numbers, without what is wrong there."""
        ids = (("image", self.image_id), ("annotation", self.annotation_id))
        return ", ".join([self.path, *(f"{name} {value}" for name, value in ids if value is not None)])

    def __str__(self) -> str:
        return f"{self.place}: {self.kind}" + (f" ({self.found})" if self.found else "")


class FaultKinds(dict[str, str]):
    """A table of what can be wrong: kind -> "fatal", or what becomes of it."""

    def fault(self, kind: str, path: str | os.PathLike, found: str = "", *, image_id: int | str | None = None,
              annotation_id: int | str | None = None) -> Fault:
        """A fault of a kind in the table (KeyError otherwise), with its outcome; the path is made printable."""
        return Fault(kind, printable(path), found, self[kind], image_id, annotation_id)


class Report:
    """What a verifier found in a data set.

    title: the first line; kinds: the table of what can be wrong; mend: what to do when something is fatal.

    counts: kind -> how often; faults: all fatal ones, and the first 20 of every other kind; splits: split -> its
    numbers, as the verifier counts them; ok: whether training can start. `str(report)` is for people.
    """

    def __init__(self, title: str, kinds: Mapping[str, str], mend: str = "mend what is fatal") -> None:
        self.title = title
        self.kinds = kinds
        self.mend = mend
        self.counts: Counter[str] = Counter()
        self.faults: list[Fault] = []
        self.splits: dict[str, Any] = {}
        self._lines: list[tuple[str, str]] = []

    def add(self, fault: Fault) -> None:
        """Count a fault, and keep it if it is fatal or among the first 20 of its kind."""
        self.counts[fault.kind] += 1
        if fault.fatal or self.counts[fault.kind] <= _KEPT:
            self.faults.append(fault)

    def add_fault(self, kind: str, path: str | os.PathLike, found: str = "", *, image_id: int | str | None = None,
                  annotation_id: int | str | None = None) -> None:
        """Count a fault of a kind in the table."""
        outcome = self.kinds[kind]
        self.add(Fault(kind, printable(path), found, outcome, image_id, annotation_id))

    def add_split(self, split: str, numbers: Any, line: str) -> None:
        """Keep the numbers of a split, and the line that says them."""
        self.splits[split] = numbers
        self._lines.append((split, line))

    def add_line(self, line: str) -> None:
        """One more line under the title."""
        self._lines.append(("", line))

    @property
    def fatal(self) -> list[Fault]:
        """What has to be mended before training."""
        return [fault for fault in self.faults if fault.fatal]

    @property
    def ok(self) -> bool:
        """Whether training can start."""
        return not self.fatal

    def format(self) -> str:
        """The report for people: the splits, each kind once with its first place, fatal faults, the verdict."""
        width = max((len(split) for split, _ in self._lines), default=0)
        lines = [self.title, *(f"  {split:<{width}}  {line}" if split else f"  {line}" for split, line in self._lines)]
        for kind in sorted(self.counts, key=lambda kind: (self.kinds[kind] != FATAL, kind)):
            first = next(fault for fault in self.faults if fault.kind == kind)
            found = f" ({first.found})" if first.found and not first.fatal else ""
            lines.append(f"  {self.counts[kind]:>7,} x {kind}: {first.outcome}; first: {first.place}{found}")
        fatal = self.fatal
        lines += [f"  fatal: {fault}" for fault in fatal[:_KEPT]]
        if len(fatal) > _KEPT:
            lines.append(f"  ... and {len(fatal) - _KEPT:,} more fatal ones")
        lines.append("  ready to train" if self.ok else f"  not ready: {self.mend}")
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.format()
