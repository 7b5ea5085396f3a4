"""Score the detector in a file of weights on a COCO folder, or write what it finds for COCO's test server."""
from collections.abc import Callable, Iterable, Iterator
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..data.coco import Categories, CocoFolder, collate_detection
from ..data.coco_file import coco_tools
from ..data.coco_index import require_scorable
from ..data.coco_layout import CocoLayout, require_splits
from ..data.listing import require_held_out
from ..engine.group import Ranks, from_main_process, pick_device, process_group, shard
from ..engine.loader import checked_batches, loader
from ..weights.load import Loaded, load
from .coco_eval import Scores, score_results
from .coco_results import _gather_results, _predict_results, write_testdev

_Found = tuple[int, list[dict]]
_Watch = Callable[[Iterator[_Found]], Iterable[_Found]]
_Say = Callable[[str], None]


class _ValidSamples(Dataset):
    """Images to be searched: nothing is known of them but their id and file."""

    def __init__(self, folder: CocoFolder):
        self.folder, self.content = folder, folder.content

    def __len__(self) -> int:
        return len(self.folder)

    def sample_name(self, index: int) -> str:
        """The file's name: runs tell by it whether their data have changed."""
        return self.folder.file(self.folder.image_ids[index]).name

    def __getitem__(self, index: int) -> tuple[Tensor, dict]:
        image_id = self.folder.image_ids[index]
        return self.folder.picture(image_id), dict(image_id=image_id, file=str(self.folder.file(image_id)))


def _percent_scores(scores: Scores) -> dict[str, float]:
    """The numbers to watch in training, "box AP" and so on, in percent; 0 where there was nothing to find."""
    kinds = dict(box=scores.box, mask=scores.mask or {})
    return {f"{kind} {name}": 100*np.nan_to_num(numbers[name]).item()
            for kind, numbers in kinds.items() for name in ("AP", "AP50", "AP75") if numbers}


def _trained_categories(loaded: Loaded, source: str | PathLike) -> Categories | None:
    """The categories that a detector was trained on, as far as its file says them."""
    if loaded.metadata.get("classes_guessed") or not loaded.metadata.get("classes"):
        return None
    ids = loaded.metadata.get("category_ids") or range(1, 1 + len(loaded.classes))
    named = [dict(id=category_id, name=name) for category_id, name in zip(ids, loaded.classes)]
    return Categories(named, str(source))


def _search(folder: str | PathLike | CocoLayout, weights: str | PathLike, split: str, on: torch.device, ranks: Ranks,
            batch_size: int, workers: int, watch: _Watch, say: _Say | None = None,
            ) -> tuple[CocoFolder, Iterable[_Found]]:
    """The folder's split and, image by image, what the detector in a file finds in this process's share of it."""
    coco_tools("faster_coco_eval")  # speaks up before anything is read, and not after hours
    folder = require_splits(folder, split)  # speaks up before weights are read
    loaded = load(weights, kind="detector")
    dataset = CocoFolder(folder, split, categories=_trained_categories(loaded, weights))
    if len(loaded.classes) != len(dataset.categories):
        raise ValueError(f"{weights}: the detector knows {len(loaded.classes)} classes; {dataset.path} has "
                         f"{len(dataset.categories)}, {dataset.categories.ids}: choose the folder it was trained on")
    if dataset.files.validates:
        require_held_out(folder.folder, dataset.files.val_fraction, loaded.metadata.get("val_fraction"))
    if say and not loaded.metadata["net"].get("masks", True):
        say(f"boxes only: {weights} was trained without masks")
    elif say and not dataset.has_masks:
        say(f"boxes only: no object in {dataset.path} has a mask")
    batches = checked_batches(loader(_ValidSamples(dataset), shard(len(dataset), batch_size, ranks), collate_detection,
                                     workers=workers, pin=on.type == "cuda"))
    return dataset, watch(_predict_results(loaded.model.to(on), batches, dataset))


def evaluate_detector(
    folder: str | PathLike | CocoLayout, weights: str | PathLike, *, split: str = "val", device: str | None = None,
    batch_size: int = 1, workers: int = 0, watch: _Watch = iter, say: _Say | None = None,
) -> Scores:
    """COCO's scores of a detector on a split; under torchrun the processes share the images, and all get the scores.

    `weights`: any file that `weights.load` reads. `device`: None for a GPU if there is one. `watch`: gets the results
    as they come, a progress bar for instance. `say`: gets a sentence where only boxes are scored. Classes are matched
    by name; a ValueError names what does not match.
    """
    on = pick_device(device)
    with process_group(on) as ranks:
        dataset, found = _search(folder, weights, split, on, ranks, batch_size, workers, watch, say)
        require_scorable(dataset)  # speaks up before the images are searched
        results = _gather_results(dict(found))
        return from_main_process(lambda: score_results(dataset, results))


def export_testdev(
    folder: str | PathLike | CocoLayout, weights: str | PathLike, out: str | PathLike, *, split: str = "test-dev2017",
    device: str | None = None, batch_size: int = 1, workers: int = 0, watch: _Watch = iter,
) -> Path:
    """Search the test images and write what COCO's server wants to the JSON file `out`; see `evaluate_detector`.

    Under torchrun the main process writes what all have found.
    """
    if not Path(out).absolute().parent.is_dir():
        raise FileNotFoundError(f"{out}: its folder does not exist")
    on = pick_device(device)
    with process_group(on) as ranks:
        dataset, found = _search(folder, weights, split, on, ranks, batch_size, workers, watch)
        if ranks.size > 1:
            found = _gather_results(dict(found)).items()
        return from_main_process(lambda: write_testdev(out, dataset, found))
