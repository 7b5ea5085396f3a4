"""What several commands share: who talks, wrong use, workers, weights in a file. Nothing heavy is imported here."""
import json
import os
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import arg

from lesa_nb.engine.group import is_main_process, local_world_size

if TYPE_CHECKING:
    from lesa_nb.data.coco_layout import CocoLayout
    from lesa_nb.weights.load import Loaded


_MOST_WORKERS = 128  # each is a process with a torch of its own: a slip of the finger must not fill the memory

_LARGEST_NUMBER = 10_000_000  # epochs, pictures, classes: more is a slip of the finger

LARGEST_SIDE = 4096  # pixels of a picture: a slip of the finger must not fill the memory


class UsageError(Exception):
    "A command line that makes no sense: exit status 2."


class Work:
    "Whether a command has begun its work: what goes wrong before is a refusal, status 2; after it a failure, 1."

    begun = False


def echo(*words: object) -> None:
    "Print, if this process is the one that talks."
    if is_main_process():
        print(*words, flush=True)


def positive(**numbers: float | None) -> None:
    "Refuse numbers below one, and slips of the finger, by the name of their flag; None is a flag that was not given."
    for name, number in numbers.items():
        flag = f"--{name.replace('_', '-')}"
        if number is not None and number < 1:
            raise UsageError(f"{flag} must be at least 1, got {number}")
        if number is not None and number > _LARGEST_NUMBER:
            raise UsageError(f"{flag} must be at most {_LARGEST_NUMBER:,}, got {number}")


def check_image_size(size: int | None) -> None:
    "Refuse a side of no pixels, or of more than any machine holds the tables and maps for; None was not given."
    positive(image_size=size)
    if size is not None and size > LARGEST_SIDE:
        raise UsageError(f"--image-size must be at most {LARGEST_SIDE}, got {size}")


def check_threshold(threshold: float) -> None:
    "Refuse a least score that no score can be."
    if not 0 <= threshold <= 1:
        raise UsageError(f"--threshold must lie in 0..1, got {threshold}")


def check_seed(seed: int) -> None:
    "Refuse a seed that torch's generators do not take."
    if seed < 0:
        raise UsageError(f"--seed must be at least 0, got {seed}")
    if seed >= 2**63:
        raise UsageError(f"--seed must be at most 2**63 - 1, got {seed}")


def worker_count(asked: int | None) -> int:
    "Processes that read ahead for each process that trains; None shares the cores that there are."
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if asked is not None:
        most = max(_MOST_WORKERS, 4 * cores)
        if not 0 <= asked <= most:
            raise UsageError(f"--workers must lie between 0 and {most}, got {asked}")
        return asked
    return min(8, max(0, cores // local_world_size() - 1))


def progress(items: Iterable, unit: str, total: int | None = None, *, name: str = "", watched: bool = False) -> Any:
    "The items, with a bar in the process that talks; `watched`: only where somebody looks, in a terminal."
    from tqdm import tqdm

    Work.begun = True
    quiet = not is_main_process() or (None if watched else False)  # None: tqdm asks whether there is a terminal
    is_file = sys.stderr is not None and not sys.stderr.isatty()  # a file gets a line now and then instead of a bar
    return tqdm(items, desc=name or None, unit=unit, total=total, disable=quiet, mininterval=20 if is_file else 0.1)


def check_new_file(flag: str, path: Path | None, *inputs: Path, replaces: str | None = None) -> None:
    """Refuse, before any work is done, a file that could not be written, or that would replace an input.

    replaces: of what is there already, only files that end so, such as ".json", are replaced.
    """
    if path is None:
        return
    if path.is_dir():
        raise UsageError(f"{flag} wants the name of a file, {path} is a folder")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"{path}: its folder does not exist")
    if not os.access(path.absolute().parent, os.W_OK):
        raise PermissionError(f"{path}: its folder may not be written to; choose another")
    if Path(os.path.realpath(path)).is_symlink():  # one that could be followed has been
        raise UsageError(f"{flag} {path}: a link that leads to itself; choose another file")
    if path.exists() and any(file.exists() and path.samefile(file) for file in inputs):
        raise UsageError(f"{flag} {path}: this would overwrite what is read; choose another file")
    if replaces and path.exists() and path.suffix.lower() != replaces:
        raise UsageError(f"{flag} {path}: is there already, and no {replaces} file; it stays: choose another name")


def check_new_folder(flag: str, path: Path | None) -> None:
    "Refuse, before any work is done, a folder for answers that could not be made or written to."
    if path is None:
        return
    there = next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())
    if not there.is_dir():
        raise UsageError(f"{flag} wants the name of a folder, {there} is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"{there}: this folder may not be written to; choose another {flag}")


def write_json(path: Path, numbers: dict | list, what: str) -> None:
    "Numbers as JSON, which has no nan: it says null where there was nothing to measure. Errors say `what` they are."
    from lesa_nb.io.atomic import atomic_json

    finite = json.loads(json.dumps(numbers), parse_constant=lambda _: None)
    atomic_json(path, finite, what=what)


@dataclass
class ScoreOptions:
    "How pictures go through a network that only answers."

    batch_size: int = 1
    "Pictures at once."
    workers: int | None = None
    "Processes that read pictures ahead."
    device: str | None = None
    "cpu, cuda or cuda:N. Default: a GPU if there is one."

    def __post_init__(self) -> None:
        positive(batch_size=self.batch_size)
        worker_count(self.workers)  # refuses what cannot be

    def words(self, unit: str) -> dict[str, Any]:
        "The arguments of what scores; `unit` is what its bar counts."
        return dict(
            batch_size=self.batch_size,
            workers=worker_count(self.workers),
            device=self.device,
            watch=lambda items: progress(items, unit),
        )


@dataclass
class CocoPaths:
    "Where a detection set lies, if no folder holds it all, and how it is split, if it is not."

    train_images: Annotated[Path | None, arg(metavar="DIR")] = None
    "Instead of a folder: pictures to train on."
    train_annotations: Annotated[Path | None, arg(metavar="FILE.json")] = None
    "Their annotations, a COCO file."
    val_images: Annotated[Path | None, arg(metavar="DIR")] = None
    "Pictures to validate on."
    val_annotations: Annotated[Path | None, arg(metavar="FILE.json")] = None
    "Their annotations, a COCO file."
    val_fraction: float | None = None
    """Part that validates, where the set has no validation. A hash of each file's name decides, so that pictures that
    you add move no others."""

    def layout(self, data: Path | None) -> "CocoLayout":
        "Where everything lies; what cannot be is refused."
        paths = asdict(self)
        fraction = paths.pop("val_fraction")
        if data is None and not any(paths.values()):
            raise UsageError("name a folder, or --train-images, --train-annotations, --val-images, --val-annotations")
        if data is not None and any(paths.values()):
            raise UsageError("name a folder, or paths by hand (--train-images and so on), not both")
        from lesa_nb.data.coco_layout import find_coco_layout

        return find_coco_layout(data, val_fraction=fraction, **paths)


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
