"""`lesa predict`: what a trained network says of pictures."""
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from lesa_nb.cli._common import (
    UsageError,
    check_new_file,
    check_new_folder,
    check_threshold,
    positive,
    progress,
    write_json,
)

if TYPE_CHECKING:
    import torch

    from lesa_nb.weights.load import Loaded


def _figure_name(path: Path, taken: set[str]) -> str:
    "Name of the drawn picture: the file's own with _lesa.png, numbered where two folders hold the same name."
    number, name = 2, f"{path.stem}_lesa.png"
    while name.casefold() in taken:  # one file on systems that ignore case
        number, name = number + 1, f"{path.stem}_{number}_lesa.png"
    taken.add(name.casefold())
    return name


class _PackedMasks:
    "Masks as run lengths, drawn one by one: all of them would fill the memory on a large picture."

    def __init__(self, packed: list[dict]):
        self.packed = packed

    def __getitem__(self, i: int) -> "torch.Tensor":
        import torch

        from lesa_nb.data.coco_file import coco_tools

        return torch.from_numpy(coco_tools("faster_coco_eval.core.mask").decode(self.packed[i]))


def _draw(answer: dict, classes: list[str], out: Path) -> None:
    "Write a picture with its boxes, masks, names and scores, as large as the picture itself."
    import torch

    from lesa_nb.data.photos import open_image, photo_tensor
    from lesa_nb.io.atomic import atomic_path
    from lesa_nb.look.annotate import annotate

    objects, masks = answer["objects"], None
    if objects and all("mask" in thing for thing in objects):
        masks = _PackedMasks([thing["mask"] for thing in objects])
    boxes = torch.tensor([thing["box"] for thing in objects]).reshape(-1, 4)
    labels = [classes.index(thing["name"]) for thing in objects]
    texts = [f"{thing['name']} {thing['score']:.2f}" for thing in objects]
    picture = annotate(photo_tensor(open_image(answer["file"])), boxes, labels, texts, masks)
    with atomic_path(out, what="the picture") as beside:
        picture.save(beside, "png")


def _sentence(answer: dict) -> str:
    "An answer on one line."
    from lesa_nb.data.report import printable
    from lesa_nb.look.answers import format_answer

    name = printable(answer["file"])
    if "error" in answer:
        return answer["error"] if name in answer["error"] else f"{name}: {answer['error']}"
    return f"{name}: {printable(format_answer(answer))}"


def _describe(loaded: "Loaded", weights: Path) -> str:
    "What answers: kind, classes and where it comes from."
    trained = loaded.metadata.get("network") or loaded.metadata.get("model") or loaded.kind
    boxes_only = loaded.kind == "detector" and not loaded.metadata["net"].get("masks", True)
    return f"{trained} from {weights}, {len(loaded.classes):,} classes" + ", boxes only"*boxes_only


def predict_images(
    paths: Annotated[Positional[tuple[str, ...]], arg(metavar="PATH")],
    weights: Annotated[Path, arg(metavar="FILE")],
    out: Annotated[Path | None, arg(metavar="DIR")] = None,
    json: Annotated[Path | None, arg(metavar="FILE")] = None,
    top: int = 5,
    threshold: float = 0.5,
    batch_size: int | None = None,
    device: str | None = None,
) -> int:
    """Say what is on pictures: names and probabilities (classifiers), or boxes, masks and names (detectors).

    A picture that cannot be read is named and the others go on; the exit status is then 1.

    Args:
        paths: Pictures, folders of pictures, or patterns in quotes ("photos/*.jpg"). Folders are searched below.
        weights: Any file of weights: of lesa train or lesa demo, a checkpoint of a run, or a .pth of the authors.
        out: Folder for the pictures with boxes and names drawn in (detectors). Default: lesa_predictions.
        json: Also write all answers there, as lesa_nb.predict returns them; those found so far, if it is ended early.
        top: Classes that a classifier names, best first.
        threshold: Least score of an object that a detector names.
        batch_size: Pictures at once. Default: 16 for classifiers, 1 for detectors.
        device: cpu, cuda or cuda:N. Default: a GPU if there is one.
    """
    positive(top=top, batch_size=batch_size)
    if not paths:
        raise UsageError("name at least one picture, folder or pattern")
    check_threshold(threshold)
    from lesa_nb.data.coco_file import coco_tools
    from lesa_nb.engine.group import pick_device
    from lesa_nb.tasks.predict import find_images, iter_predictions
    from lesa_nb.weights.load import load

    files = find_images(paths)
    check_new_file("--json", json, weights, *map(Path, files), replaces=".json")
    loaded = load(weights)
    if out is not None and loaded.kind == "classifier":
        raise UsageError("--out is for detectors, which draw boxes; a classifier's answers can be written with --json")
    where, folder = pick_device(device), out or Path("lesa_predictions")
    if loaded.kind == "detector":
        coco_tools("faster_coco_eval.core.mask")  # speaks up before there is a folder
        check_new_folder("--out", folder)
        folder.mkdir(parents=True, exist_ok=True)
    print(_describe(loaded, weights), flush=True)

    answers: list[dict] = []
    taken: set[str] = set()
    found = iter_predictions(loaded, files, top=top, threshold=threshold, batch_size=batch_size, device=where)
    bar = progress(found, unit="picture", total=len(files), watched=True)  # the answers tell how far it is
    try:
        for answer in bar:
            answers.append(answer)
            with bar.external_write_mode(file=sys.stdout):
                print(_sentence(answer), file=sys.stderr if "error" in answer else sys.stdout)
            if answer.get("objects") is not None:
                _draw(answer, loaded.classes, folder / _figure_name(Path(answer["file"]), taken))
    finally:  # whatever ended it: hours of answers are kept
        bar.close()
        if json is not None and answers:
            write_json(json, answers, "the answers")
            only = f", of {len(answers):,} of {len(files):,} pictures" * (len(answers) < len(files))
            print(f"answers  {json}{only}")
    if loaded.kind == "detector":
        print(f"pictures {folder}{os.sep}")
    broken = sum("error" in answer for answer in answers)
    if broken:
        print(f"lesa: {broken} of {len(answers)} pictures could not be read; they are named above", file=sys.stderr)
    return 1 if broken else 0
