"""`lesa export` and `lesa export-testdev`: files for other programs."""
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from lesa_nb.cli._common import UsageError, open_classifier, positive, progress, worker_count


def export_classifier(
    weights: Annotated[Path, arg(metavar="FILE")],
    out: Annotated[Path, arg(metavar="FILE")],
    min_size: int = 64,
    max_size: int = 512,
) -> int:
    """Write a classifier for other runtimes: an ONNX file, or a program of torch.export.

    It takes one picture at a time, of any size in a range.

    Args:
        weights: A .safetensors of `lesa train`, or a .pth of the authors.
        out: Ends in .onnx or .pt2.
        min_size: Shortest side that the file must take.
        max_size: Longest side that the file must take.
    """
    if out.suffix not in (".onnx", ".pt2"):
        raise UsageError(f"--out must end in .onnx or .pt2, got {out}")
    if not 17 <= min_size < max_size:
        raise UsageError(
            f"--min-size must be at least 17 and less than --max-size, got {min_size} and {max_size}"
        )
    from lesa_nb.io.atomic import atomic_path

    classifier = open_classifier(weights)
    made_for = classifier.metadata["image_size"]
    size = max(made_for) if isinstance(made_for, list) else made_for
    sizes = dict(image_size=min(max(size, min_size), max_size), min_size=min_size, max_size=max_size)
    if out.suffix == ".onnx":
        from lesa_nb.weights.export import export_onnx

        with atomic_path(out, what="the network") as beside:
            export_onnx(classifier.model, beside, **sizes)
    else:
        import torch

        from lesa_nb.weights.export import export_program

        with atomic_path(out, what="the network") as beside:
            torch.export.save(export_program(classifier.model, **sizes), beside)
    sides = f"{min_size} to {max_size} pixels a side"
    takes = f"one picture at a time, of {sides}, normalised with ImageNet's mean and deviation"
    print(f"{out}: {classifier.metadata['network']} for {takes}")
    return 0


def testdev_file(
    data: Annotated[Path, arg(metavar="DIR")],
    weights: Annotated[Path, arg(metavar="FILE")],
    out: Annotated[Path, arg(metavar="FILE.json")] = Path("detections_test-dev2017_lesa_results.json"),
    split: str = "test-dev2017",
    batch_size: int = 1,
    workers: int | None = None,
    device: str | None = None,
) -> int:
    """Search COCO's test pictures and write the file that its server wants.

    Args:
        data: Folder in COCO's layout, with test2017 and annotations/image_info_test-dev2017.json.
        weights: A .safetensors of lesa train coco, or a .pth of the authors.
        out: The file; the server wants it zipped.
        split: Which pictures.
        batch_size: Pictures at once.
        workers: Processes that read pictures ahead.
        device: cpu, cuda or cuda:N. Default: a GPU if there is one.
    """
    positive(batch_size=batch_size)
    from lesa_nb.tasks.detect_eval import export_testdev

    path = export_testdev(
        data,
        weights,
        out,
        split=split,
        device=device,
        batch_size=batch_size,
        workers=worker_count(workers),
        watch=lambda images: progress(images, "image"),
    )
    size = path.stat().st_size / 1e6
    print(f"{path}: {size:.1f} MB, in the original category numbers, at most 100 detections for each picture")
    return 0
