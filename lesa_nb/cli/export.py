"""`lesa export` and `lesa export-testdev`: files for other programs."""
from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, arg

from lesa_nb.cli._common import LARGEST_SIDE, ScoreOptions, UsageError, check_new_file, echo


def _check_sizes(image_size: tuple[int, ...], min_size: int | None, max_size: int | None) -> None:
    "Refuse sizes that no graph can have, by the names of their flags."
    if len(image_size) > 2:
        raise UsageError(f"--image-size is one side, or height and width, got {len(image_size)} numbers")
    for name, side in (*(("image", side) for side in image_size), ("min", min_size), ("max", max_size)):
        if side is not None and not 17 <= side <= LARGEST_SIDE:
            raise UsageError(f"--{name}-size must lie in 17..{LARGEST_SIDE}, got {side}")
    if image_size and (min_size is not None or max_size is not None):
        raise UsageError("--image-size fixes the size of all pictures: give it, or --min-size and --max-size")


def export_network(
    weights: Annotated[Path, arg(metavar="FILE")],
    out: Annotated[Path, arg(metavar="FILE")],
    min_size: int | None = None,
    max_size: int | None = None,
    image_size: Annotated[tuple[int, ...], arg(metavar="N [N]")] = (),
) -> int:
    """Write a classifier or a detector for other runtimes: an ONNX file, or a program of torch.export.

    A classifier takes any number of pictures at once, (b, 3, h, w), standardised, and answers logits. A detector takes
    one picture, (3, h, w), RGB from 0 to 1, which it standardises and resizes itself, and answers boxes, labels, scores
    and masks, in pixels of that picture. Both take every size in a range.

    The file says what it takes: kind, task, classes, color_order, value_range, mean, std, layout, image_size, min_size,
    max_size, resize, outputs. lesa_nb.weights.export.read_export_metadata(FILE) returns that as a dictionary. Without
    this library, onnxruntime's session.get_modelmeta().custom_metadata_map has it (each value is JSON), and
    torch.export.load(FILE, extra_files=files) puts it into files = {"metadata.json": ""}.

    A .pt2 needs PyTorch, and import lesa_nb.layers, torchvision before it is loaded, since their kernels are in it. An
    .onnx needs neither, but its attention takes memory that grows with the square of a map's pixels, and detectors
    need a runtime with DeformConv, NonMaxSuppression and RoiAlign, as ONNX Runtime has them.

    Args:
        weights: Any file of weights: of lesa train, a checkpoint of a run, or a .pth of the authors.
        out: Ends in .onnx (needs the extra: pip install 'lesa_nb[export]') or .pt2. An older file is replaced.
        min_size: Shortest side that it must take. Default: 64 for classifiers, 32 for detectors.
        max_size: Longest side that it must take. Default: 512 for classifiers, 4096 for detectors.
        image_size: Instead of a range, the one size of all pictures: a side, or height and width. Detectors that keep
            the ratio of sides need it.
    """
    if out.suffix not in (".onnx", ".pt2"):
        raise UsageError(f"--out must end in .onnx or .pt2, got {out}")
    _check_sizes(image_size, min_size, max_size)
    check_new_file("--out", out, weights)
    from lesa_nb.weights.export import check_onnx_packages, export_file
    from lesa_nb.weights.load import load

    if out.suffix == ".onnx":
        check_onnx_packages()
    loaded = load(weights)
    least, most = min_size or 64, max_size or 512
    if loaded.kind == "detector":
        least, most = min_size or 32, max_size or LARGEST_SIDE
    if least >= most:
        raise UsageError(f"--min-size must be less than --max-size, got {least} and {most}")
    if getattr(loaded.model, "keep_ratio", False) and not image_size:
        raise UsageError(f"{weights}: this detector keeps the ratio of sides, so its graph is for pictures of one "
                         "size: name it with --image-size HEIGHT WIDTH")
    print(f"{weights}: traced and compared with the network; that takes minutes", flush=True)
    if image_size:
        written = export_file(loaded, out, image_size=(image_size[0], image_size[-1]))
        sides = "{} x {} pixels".format(*written["image_size"])
    else:
        written = export_file(loaded, out, min_size=least, max_size=most)
        sides = f"{least} to {most} pixels a side"
    takes = "one RGB picture from 0 to 1"
    if loaded.kind == "classifier":
        takes = "any number of pictures, standardised with ImageNet's mean and deviation"
    what = f"{written['network']}, {written['task']}, {len(written['classes']):,} classes"
    print(f"{out}: {what}; takes {takes}, of {sides}")
    return 0


def testdev_file(
    data: Annotated[Path, arg(metavar="DIR")],
    weights: Annotated[Path, arg(metavar="FILE")],
    out: Annotated[Path, arg(metavar="FILE.json")] = Path("detections_test-dev2017_lesa_results.json"),
    split: str = "test-dev2017",
    options: Annotated[ScoreOptions, OmitArgPrefixes] = ScoreOptions(),
) -> int:
    """Search COCO's test pictures and write the file that its server wants.

    Args:
        data: Folder in COCO's layout, with test2017 and annotations/image_info_test-dev2017.json.
        weights: A .safetensors of lesa train coco, or a .pth of the authors.
        out: The file; the server wants it zipped.
        split: Which pictures.
        options: How pictures go through the network.
    """
    check_new_file("--out", out, weights, *data.glob("annotations/*.json"), replaces=".json")
    from lesa_nb.tasks.detect_eval import export_testdev

    path = export_testdev(
        data,
        weights,
        out,
        split=split,
        **options.words("image"),
    )
    size = path.stat().st_size / 1e6
    echo(f"{path}: {size:.1f} MB, in the original category numbers, at most 100 detections for each picture")
    return 0
