"""Networks that leave Python: programs of torch.export and ONNX files, which say themselves what they take.

A file holds JSON beside its graph, and so it is read back, here with `read_export_metadata`, or without this library:

    session = onnxruntime.InferenceSession("net.onnx")
    metadata = {key: json.loads(text) for key, text in session.get_modelmeta().custom_metadata_map.items()}

    import torchvision, lesa_nb.layers  # their kernels are in the graph
    files = {"metadata.json": ""}
    program = torch.export.load("net.pt2", extra_files=files).module()
    metadata = json.loads(files["metadata.json"])
"""
from __future__ import annotations

import json
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from operator import floordiv
from os import PathLike, fspath
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from lesa_nb.data.transforms import resized_side
from lesa_nb.io.atomic import atomic_path, atomic_write, errors_at_the_end
from lesa_nb.layers.context import Context
from lesa_nb.layers.inputs import IMAGENET_MEAN, IMAGENET_STD, normalize
from lesa_nb.layers.lesa import attend_with
from lesa_nb.models.mask_rcnn import MaskRCNN
from lesa_nb.weights.folding import fold_norms
from lesa_nb.weights.load import Loaded

__all__ = ["export_program", "export_onnx", "export_metadata", "export_file", "read_export_metadata",
           "check_onnx_packages"]

_BESIDE = "metadata.json"  # its name among the extra files of a program
_OPSET = 20  # the first with deformable convolutions is 19

_Size = int | tuple[int, int]


class _OnePicture(nn.Module):
    """A detector as a function of one picture: what its `forward` does without the checks, which ask for numbers."""

    def __init__(self, detector: MaskRCNN, size: tuple[int, int], fixed: bool) -> None:
        super().__init__()
        side = detector.image_size
        height, width = size
        inner = (side, side)
        if detector.keep_ratio:
            inner = max(1, round(height*side/max(size))), max(1, round(width*side/max(size)))
        self.detector, self.inner, self.resize = detector, inner, not fixed or inner != size

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """From RGB (3, H, W) in [0, 1] to boxes (d, 4), labels (d,), scores (d,) and masks (d, 1, H, W), if any."""
        x = normalize(image)[None]
        if self.resize:
            x = F.interpolate(x, self.inner, mode="bilinear", align_corners=False)
        (features,) = self.detector.extract(x)
        return self.detector.predict(features, (image.shape[1], image.shape[2]))


class _Call(NamedTuple):
    """How a network is followed: what is called, with which example, what of its shape is open."""

    module: nn.Module
    example: Tensor
    open: dict[int, Any]


def _outputs(network: nn.Module) -> list[str]:
    """Names of what comes out of the graph."""
    return ["boxes", "labels", "scores"] + ["masks"]*network.masks if isinstance(network, MaskRCNN) else ["logits"]


def _pair(size: _Size) -> tuple[int, int]:
    """One side, or height and width, as a pair."""
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 1:
        raise ValueError(f"expected an image size of at least one pixel, found {height} x {width}")
    return height, width


def _open_sides(first: int, min_size: int, max_size: int | None) -> dict[int, Any]:
    """Both sides of an image, the axes `first` and `first + 1`, as unknowns between two bounds; none if they are fixed.

    Below 17 the last map is a single row, which torch.export treats as a case of its own.
    """
    if max_size is None:
        return {}
    if not 17 <= min_size < max_size:
        raise ValueError(f"expected 17 <= min_size < max_size, found {min_size} and {max_size}")
    return {first + i: Dim(name, min=min_size, max=max_size) for i, name in enumerate(("height", "width"))}


def _call(network: nn.Module, image_size: _Size | None, min_size: int, max_size: int | None) -> _Call:
    """The network, its example and what is open: the one place that knows how kinds of networks differ."""
    if network.training:
        raise ValueError("expected a network in eval mode: call .eval() before exporting it")
    weight = next(network.parameters())
    like = dict(dtype=weight.dtype, device=weight.device)
    if not isinstance(network, MaskRCNN):
        size, sides = _pair(image_size or 224), _open_sides(2, min_size, max_size)
        example = torch.zeros(2, 3, *_within(size, min_size, max_size), **like)  # type: ignore[call-overload] # a dict
        return _Call(network, example, {0: Dim("batch")} | sides)
    if network.keep_ratio and max_size is not None:
        raise ValueError("a detector that keeps the ratio of sides is exported for pictures of one size: "
                         "name it with image_size=(height, width) and max_size=None")
    sides = _open_sides(1, min_size, max_size)
    size = _within(_pair(image_size or network.image_size), min_size, max_size)
    example = torch.rand(3, *size, **like)  # type: ignore[call-overload] # a dict
    return _Call(_OnePicture(network, size, not sides).eval(), example, sides)


def _within(size: tuple[int, int], min_size: int, max_size: int | None) -> tuple[int, int]:
    """The size, or the nearest one between the bounds; with two different sides, so that nothing is taken for equal."""
    if max_size is None:
        return size
    height, width = (min(max(n, min_size), max_size) for n in size)
    if height == width:
        width += 1 if width < max_size else -1
    return height, width


@contextmanager
def _any_side_pooled() -> Iterator[None]:
    """PyTorch 2.11 asks whether a side is even where it pools, so that a graph held for such sides only.

    A floor needs no such question, which is how later versions write it.
    """
    metas = torch._meta_registrations
    asks, metas.div_rtn = metas.div_rtn, floordiv
    try:
        yield
    finally:
        metas.div_rtn = asks


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torchvision and the exporter say to each other, and without gradients."""
    with warnings.catch_warnings(), torch.no_grad(), _any_side_pooled():
        warnings.filterwarnings("ignore", message=".*create_unbacked_symint")
        warnings.filterwarnings("ignore", message=".*sampling_ratio")  # -1 is written as 0: the same adaptive number
        yield


def export_program(
    network: nn.Module,
    *,
    image_size: _Size | None = None,
    min_size: int = 32,
    max_size: int | None = 1024,
) -> ExportedProgram:
    """The network as one graph for all image sizes in a range.

    Of a classifier the graph takes x of shape (b, 3, h, w), standardised, for any b. Of a detector it takes one picture
    (3, h, w), RGB from 0 to 1, and returns its dictionary of boxes, labels, scores and masks. `torch.export.save`
    writes it to a file. It calls this library's attention kernels, a detector's also torchvision's: a program that
    loads it imports `lesa_nb.layers` and `torchvision` first.

    Args:
        network: A classification network or a detector, in eval mode, folded or not.
        image_size: Side, or height and width, of the image it is followed with, or of all images if `max_size` is None.
            None: 224, or the detector's own size.
        min_size: Least height and width the graph takes, 17 or more.
        max_size: Largest height and width; None: images of `image_size` only.

    Raises:
        ValueError: The network is in training mode, the bounds are not in order, or a detector that keeps the ratio of
            sides is asked for more than one size.
    """
    call = _call(network, image_size, min_size, max_size)
    with _quiet():
        return torch.export.export(call.module, (call.example,), dynamic_shapes=(call.open,))


def check_onnx_packages() -> None:
    """Say what to install if the packages that write ONNX files are missing (ModuleNotFoundError)."""
    if missing := [name for name in ("onnx", "onnxscript") if find_spec(name) is None]:
        raise ModuleNotFoundError(f"writing ONNX files needs {' and '.join(missing)}: pip install 'lesa_nb[export]'")


def _operator_in(error: BaseException | None) -> str | None:
    """The operator for which PyTorch's exporter says that it has no ONNX form, if that is what the error is about."""
    while error is not None:
        if found := re.search(r"[Nn]o .{1,60} for .{0,20}<OpOverload\(op='([\w.:]+)'", str(error)):
            return found[1]
        error = error.__cause__ or error.__context__
    return None


def export_onnx(
    network: nn.Module,
    path: str | PathLike,
    *,
    image_size: _Size | None = None,
    min_size: int = 32,
    max_size: int | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write the inference form as an ONNX file of standard operators.

    Of a classifier: one input `image` (b, 3, h, w), standardised, for any b, and one output `logits`. Of a detector:
    one input `image` (3, h, w), one picture, RGB from 0 to 1, and outputs `boxes`, `labels`, `scores` and `masks`.
    Attention writes its scores out, so memory grows with the square of the number of pixels of a map. The file is of
    opset 20; deformable convolutions need a runtime that has DeformConv.

    Args:
        network: A classification network or a detector, in eval mode, folded or not; it is not changed.
        path: The file to write, usually NAME.onnx; it appears when it is complete.
        image_size: Side, or height and width, of all images, or of the example if `max_size` is given. None: 224, or
            the detector's own size.
        min_size: With `max_size`: least height and width the file takes, 17 or more.
        max_size: Largest height and width; None: images of `image_size` only.
        metadata: Written as metadata_props of the file, each value as JSON.

    Raises:
        ModuleNotFoundError: The packages that write such files are not installed.
        ValueError: As `export_program`; or an operator has no ONNX form in the installed packages: it is named.
    """
    check_onnx_packages()
    _call(network, image_size, min_size, max_size)  # speaks up before the work begins
    network = fold_norms(network)
    if any(isinstance(part, Context) for part in network.modules()):
        attend_with(network, "explicit")
    call, outputs = _call(network, image_size, min_size, max_size), _outputs(network)
    try:
        with _quiet():
            program = torch.onnx.export(
                call.module, (call.example,), dynamo=True, dynamic_shapes=(call.open,), input_names=["image"],
                output_names=outputs, opset_version=_OPSET, verbose=False)
    except torch.onnx.OnnxExporterError as error:
        if (operator := _operator_in(error)) is None:
            raise
        raise ValueError(f"the installed PyTorch and onnxscript have no ONNX form of {operator}, which this network "
                         "computes with: write a program instead (export_program, or a name that ends in .pt2)"
                         ) from error
    assert program is not None
    for value in program.model.graph.outputs if isinstance(network, MaskRCNN) else ():
        if value.shape is not None:
            value.shape[0] = "objects"  # in place of the formula by which the exporter calls it
    program.model.metadata_props.update({key: json.dumps(value) for key, value in (metadata or {}).items()})
    with atomic_path(path, what="the network") as beside:
        program.save(fspath(beside), external_data=False)


# ---- files that say what they are


def export_metadata(
    source: Loaded, *, image_size: _Size | None = None, min_size: int = 32, max_size: int | None = None
) -> dict[str, Any]:
    """What a program must know to use an exported network; everything in it is JSON.

    kind and task; classes (names, in order) and first_label (a detector's labels count from 1); color_order and
    value_range of a picture, and mean and std to standardise it with: (x - mean)/std by channel, zeros and ones if the
    graph does that itself; layout; image_size ([height, width] it was made for), min_size and max_size (sides it takes;
    null: image_size only); batch ("any", or 1 picture without a batch axis); resize, what to do with a picture first;
    outputs, their names.

    Args:
        source: What `load` returned.
        image_size, min_size, max_size: As for `export_program`.
    """
    detects = source.kind == "detector"
    model: Any = source.model
    size = _pair(image_size or _made_for(source))
    sides = dict(image_size=list(size), min_size=None if max_size is None else min_size, max_size=max_size)
    about = dict(made_by="lesa_nb", kind=source.kind, network=source.metadata.get("network") or
                 source.metadata.get("net", {}).get("model"), classes=source.classes, color_order="RGB",
                 value_range=[0, 1], **sides)
    if detects:
        task = "instance segmentation" if model.masks else "object detection"
        resize = "none: boxes and masks are in pixels of the picture"
        if max_size is None:
            resize = "to image_size: boxes and masks are in its pixels"
        return about | dict(task=task, first_label=1, mean=[0, 0, 0], std=[1, 1, 1], layout="CHW", batch=1,
                            resize=resize, outputs=_outputs(model))
    short = resized_side(max(size))  # as `load` has it: both sides of the middle fit
    return about | dict(task="classification", first_label=0, mean=list(IMAGENET_MEAN), std=list(IMAGENET_STD),
                        layout="NCHW", batch="any", outputs=_outputs(model),
                        resize=f"shorter side to {short} pixels, then the middle of image_size")


def _made_for(source: Loaded) -> _Size:
    """The image size that a network's tables are made for, or that a detector brings pictures to."""
    if source.kind == "detector":
        detector: Any = source.model
        return detector.image_size
    size = source.metadata["image_size"]
    return size if isinstance(size, int) else (size[0], size[1])


def export_file(
    source: Loaded,
    path: str | PathLike,
    *,
    image_size: _Size | None = None,
    min_size: int = 32,
    max_size: int | None = None,
) -> dict[str, Any]:
    """Write a network for other runtimes, with all they must know about it; returns that, see `export_metadata`.

    Args:
        source: What `load` returned, of a classifier or a detector.
        path: The file, .onnx or .pt2; it appears when it is complete.
        image_size: Side, or height and width, of all pictures, or of the example if `max_size` is given. None: what
            the network is made for.
        min_size: With `max_size`: least side of a picture, 17 or more.
        max_size: Largest side; None: pictures of `image_size` only.

    Raises:
        ModuleNotFoundError: The packages that write ONNX files are not installed.
        ValueError: The ending is unknown; the network is of a kind that cannot be exported; or as `export_onnx`.
        OSError: The file cannot be written.
    """
    path = Path(path)
    if path.suffix not in (".onnx", ".pt2"):
        raise ValueError(f"{path}: expected a name that ends in .onnx or .pt2")
    if (arch := source.metadata.get("arch")) not in ("classifier", "detector"):
        raise ValueError(f"expected a classifier of lesa train or a detector, found a network with arch = {arch!r}, "
                         "which has no export")
    sizes: dict[str, Any] = dict(image_size=image_size or _made_for(source), min_size=min_size, max_size=max_size)
    metadata = export_metadata(source, **sizes)
    if path.suffix == ".onnx":
        export_onnx(source.model, path, metadata=metadata, **sizes)
    else:
        program = export_program(source.model, **sizes)
        with atomic_write(path, what="the network") as file, errors_at_the_end(file) as writer:
            torch.export.save(program, writer, extra_files={_BESIDE: json.dumps(metadata)})
    return metadata


def read_export_metadata(path: str | PathLike) -> dict[str, Any]:
    """What an exported file says about itself, see `export_metadata`; the graph is not loaded.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no exported file, or says nothing.
        ModuleNotFoundError: ONNX files are read with the package onnx, which is not installed.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such exported file")
    if path.suffix == ".onnx":
        if find_spec("onnx") is None:
            raise ModuleNotFoundError("reading ONNX files needs onnx: pip install 'lesa_nb[export]'")
        import onnx

        try:
            properties = onnx.load(fspath(path), load_external_data=False).metadata_props
            found = {entry.key: json.loads(entry.value) for entry in properties}
        except Exception as error:  # protobuf's errors have no common type
            raise ValueError(f"{path}: no ONNX file of lesa export ({type(error).__name__})") from None
    else:
        try:
            with zipfile.ZipFile(path) as archive:
                (name,) = (name for name in archive.namelist() if name.endswith(f"extra/{_BESIDE}"))
                found = json.loads(archive.read(name))
        except (zipfile.BadZipFile, ValueError, OSError):
            raise ValueError(f"{path}: no program of lesa export: it has no {_BESIDE} beside its graph") from None
    if found.get("made_by") != "lesa_nb":
        raise ValueError(f"{path}: not written by lesa export: it does not say what it takes")
    return found
