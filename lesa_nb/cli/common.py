"""What several commands share: who talks, wrong use, workers, weights in a file. Nothing heavy is imported here."""
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lesa_nb.engine.group import is_main_process, local_world_size

if TYPE_CHECKING:
    from lesa_nb.weights.load import Loaded


class UsageError(Exception):
    "A command line that makes no sense: exit status 2."


def echo(*words: object) -> None:
    "Print, if this process is the one that talks."
    if is_main_process():
        print(*words, flush=True)


def positive(**numbers: float | None) -> None:
    "Refuse numbers below one, by the name of their flag; None is a flag that was not given."
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise UsageError(f"--{name.replace('_', '-')} must be at least 1, got {number}")


def worker_count(asked: int | None) -> int:
    "Processes that read ahead for each process that trains; None shares the cores that there are."
    if asked is not None:
        return asked
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, max(0, cores // local_world_size() - 1))


def progress(items: Iterable, unit: str, total: int | None = None) -> Any:
    "The items, with a bar in the process that talks."
    from tqdm import tqdm

    return tqdm(items, unit=unit, total=total, disable=not is_main_process())


def write_json(path: Path, numbers: dict | list, what: str) -> None:
    "Numbers as JSON, which has no nan: it says null where there was nothing to measure. Errors say `what` they are."
    from lesa_nb.io.atomic import atomic_json

    finite = json.loads(json.dumps(numbers), parse_constant=lambda _: None)
    atomic_json(path, finite, what=what)


def open_classifier(path: Path) -> "Loaded":
    "A classifier of `lesa train` or of the authors; the networks of `lesa demo` take no folders of pictures."
    from lesa_nb.weights.load import load

    loaded = load(path, kind="classifier")
    arch = loaded.metadata.get("arch")
    if arch != "classifier":
        raise ValueError(
            f"{path}: holds no classifier of lesa train (its metadata say arch = {arch!r}): "
            "lesa explain and lesa explore open it"
        )
    return loaded
