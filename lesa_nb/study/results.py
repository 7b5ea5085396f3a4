"""Files of results of a study: read, and told in words."""
from __future__ import annotations

import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from lesa_nb.study.report import score_table
from lesa_nb.study.seeds import verdicts

__all__ = ["describe_study", "read_study"]


def read_study(path: str | PathLike, command: str) -> dict[str, Any]:
    """A file of results; where nobody has run it, no rows and the command that does."""
    path = Path(path)
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else dict(rows=[], command=command)


def describe_study(found: Mapping[str, Any]) -> str:
    """What a file of results says: when and where, scores, verdicts, limits, and what was not run.

    found: from `read_study`.
    """
    rows = found["rows"]
    if not rows:
        return f"not run: {found['command']}"
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    lines = [found["question"], f"{found['date']}, {found['device']}, torch {found['torch']}, {found['steps']} steps"]
    if "data" in found:
        data = found["data"]
        lines.append(f"{data['train']:,} pictures to train, {data['valid']:,} to validate; split: {data['split']}")
    lines += ["", score_table(rows), "", *(line for variant in variants for line in verdicts(rows, variant))]
    lines += ["\nLimits", *(f"- {limit}" for limit in found["limits"])]
    return "\n".join([*lines, "\nNot run", *(f"- {what}" for what in found["not_run"] or ["nothing is missing"])])
