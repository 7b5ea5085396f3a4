"""What became faster or leaner between two results of one benchmark?

    python benchmarks/compare.py BEFORE.json AFTER.json [--least 1.05]

Every number of seconds or megabytes that both files have, with the ratio after/before; `--least` leaves out what
changed by less than this factor. What the two were not measured alike in (machine, threads, PyTorch) is said first.
"""

import argparse
import json
from pathlib import Path

ALIKE = ("question", "device", "threads", "python", "torch", "torchvision")
MEASURED = ("seconds", "mb", "step", "operators")  # how keys end whose numbers are times or memory


def measured(thing, way=(), counts=False):
    "Path of keys -> number, of all times and sizes in a row."
    if isinstance(thing, dict):
        return {
            name: value
            for key, part in thing.items()
            for name, value in measured(part, (*way, key), counts or key.lower().endswith(MEASURED)).items()
        }
    return {" ".join(way): thing} if counts and isinstance(thing, (int, float)) else {}


def compare(before, after, least=1.0):
    "Lines that say what differs: conditions first, then the numbers, row by row."
    lines = [
        f"not alike: {key} was {before.get(key)!r}, is {after.get(key)!r}"
        for key in ALIKE
        if before.get(key) != after.get(key)
    ]
    lines.append(f"{'':56}{str(before.get('commit')):>12}{str(after.get('commit')):>12}   after/before")
    old = {row["name"]: measured(row) for row in before["rows"]}
    for row in after["rows"]:
        for name, value in measured(row).items():
            was = old.get(row["name"], {}).get(name)
            if was and value and max(value / was, was / value) >= least:
                lines.append(f"{(row['name'] + ': ' + name):56.56}{was:12.4g}{value:12.4g}{value / was:12.2f}")
    return lines


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="What became faster or leaner between two results of one benchmark?")
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--least", type=float, default=1.0, help="leave out what changed by less than this factor")
    args = parser.parse_args()
    print("\n".join(compare(*(json.loads(path.read_text()) for path in (args.before, args.after)), args.least)))
