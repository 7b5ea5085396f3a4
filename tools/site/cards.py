"""Model cards of the four networks: what was measured is read from benchmarks/results, the rest says `not run`."""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NOT_RUN = "not run"
_place = re.compile(r"<!-- card of (\w+) -->")


def _read(name, root):
    path = root / "benchmarks" / "results" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _row(result, **wanted):
    for row in result.get("rows", ()):
        if all(row.get(key) == value for key, value in wanted.items()):
            return row
    return {}


def _run(name, result):
    "Which run a number is from."
    return f"`{name}.json`: {result['date']}, {result['device']}, {result['threads']} threads, torch {result['torch']}"


def facts(root=ROOT):
    "The networks: names, sizes, what the paper reports."
    return json.loads((root / "nbs" / "pages" / "networks.json").read_text(encoding="utf-8"))


def rows(name, root=ROOT):
    "A card's rows: (what, number or `not run`, where it is from)."
    fact = facts(root)[name]
    found = [("parameters", f"{fact['parameters']:,}", "counted; a test compares"), ("input", fact["input"], "")]
    for score, published in fact["published"].items():
        found.append((f"{score}, as published", published, "the paper"))
        found.append((f"{score}, trained or evaluated here", NOT_RUN, fact["why_not_run"]))
    found.append(("the same recipe with convolution or plain attention instead", NOT_RUN, fact["why_not_run"]))
    result = _read(fact["benchmark"], root)
    row = _row(result, name=fact["row"])
    from_ = _run(fact["benchmark"], result) if row else ""
    if fact["kind"] == "classifier":
        for way in ("train", "inference"):
            speed = row.get(way, {}).get("images_per_second", {})
            words = {"train": "images a second in training", "inference": "images a second in inference"}[way]
            for which, what in (("LESA", words), ("torchvision", f"{words}, torchvision's network of that size")):
                found.append(
                    (what, f"{speed[which]:.1f}" if which in speed else NOT_RUN, from_ if which in speed else "")
                )
    else:
        for what, unit, key, scale in (("one training step", "s", "seconds", 1), ("its memory", "GB", "peak_mb", 1000)):
            for way in ("streaming", "explicit, again"):
                number = row.get(key, {}).get(way)
                words = "" if way == "streaming" else ", with N x N tensors written out"
                shown = NOT_RUN if number is None else f"{number / scale:.1f} {unit}"
                found.append((f"{what}{words}", shown, from_ if number is not None else ""))
        if row.get("explicit"):
            found.append(("all N x N tensors kept at once", NOT_RUN, str(row["explicit"]).removeprefix("not run: ")))
    found.append(
        (
            "on a GPU",
            NOT_RUN,
            "no file of `benchmarks/gpu.py` is in benchmarks/results"
            if not list((root / "benchmarks" / "results").glob("*cuda*"))
            else "see benchmarks/results",
        )
    )
    return found


def fill(text, root=ROOT):
    "A page with its cards drawn where `<!-- card of NAME -->` stands."

    def card(match):
        lines = [
            "| what | value | from |",
            "|---|--:|---|",
            *(f"| {' | '.join(row)} |" for row in rows(match[1], root)),
        ]
        return "\n".join(lines)

    return _place.sub(card, text)


if __name__ == "__main__":
    for name in sys.argv[1:] or facts():
        print(name, *rows(name), sep="\n  ")
