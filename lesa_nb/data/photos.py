"""The one reader of pictures: for training, validation, COCO folders, predictions and for people.

What it takes: everything that Pillow decodes by itself, whatever the file's name says. What comes out: 8-bit RGB. Grey
stays grey, four inks and palettes become RGB, transparent pixels lie on white, and pictures of more than 8 bits are
scaled by what their file says; where the file does not say which value is white, the picture is refused and the range
named.

Orientation: cameras store a picture sideways and note in the file (EXIF) how to turn it. `exif=True`, the default,
turns it, so that a network sees what a person sees. `exif=False` keeps the pixels as they are stored, as torchvision's
`ImageFolder` does and as the published networks were trained and scored; the boxes of a COCO folder count stored
pixels.
"""
from __future__ import annotations

import io
import math
import os
import struct
import threading
import warnings
from functools import lru_cache
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from lesa_nb.data.report import FATAL, Fault, FaultKinds
from lesa_nb.io.patience import patiently

#: what can be wrong with the file of a picture: kind -> "fatal", or what becomes of it
_PHOTO_FAULTS = FaultKinds({
    "missing file": FATAL, "no permission": FATAL, "a folder": FATAL, "empty file": FATAL, "not a picture": FATAL,
    "broken picture": FATAL, "unreadable file": FATAL, "too many pixels": FATAL, "unclear range": FATAL,
    "CMYK": "read as RGB", "greyscale": "read as RGB", "palette": "read as RGB", "transparent": "put on white",
    "deep colour": "scaled to 8 bits", "large picture": "reduced while it is read",
    "several pictures": "only the first is read", "broken EXIF": "ignored", "EXIF rotation": "turned upright",
    "EXIF rotation kept": "pixels stay as they are stored"})
#: pixels that a picture keeps when it is read for classification or for people; more are reduced while reading
MAX_PIXELS = 2**24

_MODES = {"CMYK": "CMYK", "L": "greyscale", "1": "greyscale", "P": "palette", "LA": "transparent", "PA": "transparent",
          "RGBA": "transparent", "I": "deep colour", "F": "deep colour"}
_OTHER_PROGRAMS = {"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"}  # that Pillow recognises and hands to another program
_ORIENTATION = 0x0112
_TURNS = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
          5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
          8: Image.Transpose.ROTATE_90}  # EXIF's numbers
_LOCK = threading.Lock()  # Python has one list of warnings for all threads


class _EmptyFile(Exception):
    pass


class _UnclearRange(Exception):
    pass


class _TooManyPixels(Exception):
    pass


_OURS = {_EmptyFile: "empty file", _UnclearRange: "unclear range", _TooManyPixels: "too many pixels"}


def _one_line(error: Exception) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split())


@lru_cache(maxsize=1)
def _formats() -> list[str]:
    """Everything that Pillow decodes by itself."""
    Image.init()
    return [name for name in Image.ID if name in Image.OPEN and name not in _OTHER_PROGRAMS]


def _file_bytes(path: str | os.PathLike) -> bytes:
    """All of a file; errors of a network's file system may pass while it is read again."""
    def read() -> bytes:
        with open(path, "rb") as file:
            return file.read()

    data = patiently(read)
    if not data:
        raise _EmptyFile("0 bytes")
    return data


def _open(data: bytes) -> Image.Image:
    """A picture that is open and not yet decoded."""
    try:
        return Image.open(io.BytesIO(data), formats=_formats())
    except Image.DecompressionBombError as error:
        raise _TooManyPixels(" ".join(str(error).split()[:9]).rstrip(",")) from None


def _check_exif(image: Image.Image) -> str:
    """What is wrong with the EXIF note of a picture that was just opened; empty if nothing is."""
    note = image.info.get("exif")
    if not note:
        return ""
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            Image.Exif().load(note)
        except Exception as error:  # a broken note can be broken in many ways
            return _one_line(error) or type(error).__name__
        return " ".join(str(heard[0].message).split()) if heard else ""


def _orientation(image: Image.Image) -> int:
    """How the EXIF note says to turn a decoded picture, 1 for upright; a broken note says nothing."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:
        return 1


def _frames(image: Image.Image) -> int:
    """Pictures in a file that was just opened; a camera's MPO file counts as one."""
    if image.format == "MPO":
        return 1
    try:
        return getattr(image, "n_frames", 1)
    except Exception:  # what is wrong will be seen when it is decoded
        return 1


def _png_bits(data: bytes) -> int:
    """Bits of a grey PNG that mean something: its sBIT chunk, or 16."""
    place = 8
    while place + 8 <= len(data):
        length, name = struct.unpack(">I4s", data[place:place + 8])
        if name == b"sBIT" and length:
            return data[place + 8]
        if name == b"IDAT":
            break
        place += 12 + length
    return 16


def _stated_range(image: Image.Image, data: bytes) -> tuple[float, float] | None:
    """Values of black and white in a picture of more than 8 bits, as far as its file says them."""
    tags = getattr(image, "tag_v2", {})

    def tag(*numbers: int) -> float | None:
        for number in numbers:
            value = tags.get(number)
            if value is not None:
                return float(value[0] if isinstance(value, tuple) else value)
        return None

    low, high = tag(340, 280), tag(341, 281)  # SMinSampleValue, MinSampleValue; SMaxSampleValue, MaxSampleValue
    if high is not None and math.isfinite(high) and high > (low or 0):
        return low or 0.0, high
    if image.mode == "F":
        return None
    if image.format == "PNG":
        return 0.0, 2.0**_png_bits(data) - 1
    sixteen = image.format == "PPM" or image.mode.startswith("I;16")
    bits = tag(258) if tags else (16 if sixteen else None)  # BitsPerSample
    return None if bits is None or bits > 16 else (0.0, 2.0**bits - 1)


def _black_and_white(image: Image.Image, data: bytes, low: float, high: float) -> tuple[float, float]:
    """Which values are black and white in a picture whose values go from `low` to `high`; refused where nothing says
    so."""
    found = f"values {low:,.6g} to {high:,.6g}"
    stated = _stated_range(image, data)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise _UnclearRange(f"{found}: not all are finite numbers; replace them, or save the picture with 8 bits")
    if stated:
        black, white = stated
        if low < black or high > white:
            raise _UnclearRange(f"{found}, outside {black:,.6g} to {white:,.6g}, which its file names")
        if 0 < (high - black)*16 < white - black and image.mode != "F":
            bits = int(high).bit_length()
            raise _UnclearRange(f"{found} of {white:,.6g}: all but black; if these are {bits} bits in a wider file, "
                                "let the file say so (PNG: sBIT, TIFF: MaxSampleValue), or save it with 8 bits")
        return stated
    if image.mode == "F" and low >= 0 and high <= 255:
        return 0.0, 1.0 if high <= 1 else 255.0
    says = "0 to 1, or 0 to 255" if image.mode == "F" else "8 or 16 bits"
    raise _UnclearRange(f"{found}, and the file does not say which is white; "
                        f"expected {says}, or TIFF's SMinSampleValue and SMaxSampleValue")


def _own_range(values: np.ndarray) -> tuple[float, float]:
    """The smallest and the largest finite value; at least 1 apart where all are the same."""
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    return low, high if high > low else low + 1


def _eight_bits(image: Image.Image, data: bytes, stretch: bool) -> tuple[Image.Image, str]:
    """A picture of more than 8 bits as grey of 8 bits, and its range in words."""
    values = np.asarray(image)
    try:
        black, white = _black_and_white(image, data, values.min().item(), values.max().item())
    except _UnclearRange:
        if not stretch:
            raise
        black, white = _own_range(values)
    grey = np.empty(values.shape, np.uint8)
    for row in range(0, len(values), 256):  # a few rows at a time, so that a large picture stays small
        scaled = (values[row:row + 256].astype(np.float64) - black)*(255/(white - black))
        grey[row:row + 256] = np.nan_to_num(scaled, posinf=255, neginf=0).clip(0, 255).round()
    return Image.fromarray(grey), f"mode {image.mode}, {black:,.6g} to {white:,.6g}"


def _to_rgb(image: Image.Image) -> Image.Image:
    """A picture of 8 bits as RGB, transparent pixels over white."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _factor(size: tuple[int, int], max_pixels: int | None) -> int:
    """The smallest whole number that both sides can be divided by so that `max_pixels` are not exceeded."""
    if max_pixels is None:
        return 1
    factor = 1
    while max(1, size[0]//factor)*max(1, size[1]//factor) > max_pixels:
        factor += 1
    return factor


def _reduced(image: Image.Image, max_pixels: int | None) -> Image.Image:
    """A decoded RGB picture with no more than `max_pixels`."""
    factor = _factor(image.size, max_pixels)
    return image if factor == 1 else image.reduce((min(factor, image.width), min(factor, image.height)))


class Photo(NamedTuple):
    """A picture that was read, and what was found on the way."""

    image: Image.Image  # RGB
    format: str  # Pillow's name for the format of its file
    full_size: tuple[int, int]  # width and height before it was reduced, turned like the image
    notes: list[tuple[str, str]]  # kind of `_PHOTO_FAULTS` that is not fatal, and what was found


def _read_photo(path: str | os.PathLike, *, exif: bool = True, max_pixels: int | None = None,
               stretch: bool = False) -> Photo:
    """Read and decode a picture to the last pixel; raises the raw error of whatever fails, see `_photo_fault`.

    Parameters as in `open_image`.
    """
    data = _file_bytes(path)
    with _LOCK:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd data is no reason to talk to the user
            image = _open(data)
        broken_note = _check_exif(image)
    notes = [("broken EXIF", broken_note)] if broken_note else []
    with image, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        full = image.size
        frames = _frames(image)
        if frames > 1:
            notes.append(("several pictures", f"{frames} in one {image.format} file"))
        factor = _factor(full, max_pixels)
        if factor > 1:
            notes.append(("large picture", f"{full[0]:,} x {full[1]:,} pixels"))
            image.draft(None, (max(1, full[0]//factor), max(1, full[1]//factor)))
        image.load()
        orientation, transparent = _orientation(image), image.has_transparency_data
        kind = "transparent" if transparent else _MODES.get(image.mode.partition(";")[0])
        if kind == "deep colour":
            rgb, found = _eight_bits(image, data, stretch)
        else:
            rgb, found = image, f"mode {image.mode}"
        if kind:
            notes.append((kind, found))
        if rgb.mode != "RGB" or transparent or _factor(rgb.size, max_pixels) == 1:  # otherwise reducing makes the copy
            rgb = _to_rgb(rgb)
        rgb = _reduced(rgb, max_pixels)
        if orientation in _TURNS and exif:
            notes.append(("EXIF rotation", f"orientation {orientation}"))
            rgb = rgb.transpose(_TURNS[orientation])
            full = full[::-1] if orientation >= 5 else full
        elif orientation in _TURNS:
            notes.append(("EXIF rotation kept", f"orientation {orientation}"))
        return Photo(rgb, image.format or "", full, notes)


def _photo_fault(path: str | os.PathLike, error: Exception) -> Fault:
    """Which of `_PHOTO_FAULTS` an error of `_read_photo`, or of listing a folder, stands for."""
    text = _one_line(error)
    if isinstance(error, FileNotFoundError):
        found = "a link that leads nowhere" if os.path.islink(path) else "no such file"
        return _PHOTO_FAULTS.fault("missing file", path, found)
    if isinstance(error, IsADirectoryError):
        return _PHOTO_FAULTS.fault("a folder", path, "a folder, not a picture")
    if isinstance(error, PermissionError):
        return _PHOTO_FAULTS.fault("no permission", path, error.strerror or text)
    for raised, kind in _OURS.items():
        if isinstance(error, raised):
            return _PHOTO_FAULTS.fault(kind, path, text)
    if isinstance(error, UnidentifiedImageError):
        found = "in no format that Pillow reads"
        if os.fspath(path).lower().endswith((".heic", ".heif")):
            found += "; save it as JPEG: telephones call that the most compatible format"
        return _PHOTO_FAULTS.fault("not a picture", path, found)
    if isinstance(error, OSError) and error.errno:
        return _PHOTO_FAULTS.fault("unreadable file", path, error.strerror or text)
    return _PHOTO_FAULTS.fault("broken picture", path, text or type(error).__name__)


_RAISED: dict[str, type[Exception]] = {
    "missing file": FileNotFoundError, "no permission": PermissionError, "unreadable file": OSError}


def open_photo(path: str | os.PathLike, *, exif: bool = True, max_pixels: int | None = None,
               stretch: bool = False) -> Photo:
    """Read a picture with what was found on the way, or say which file cannot be read and why; otherwise
    `open_image`."""
    try:
        return _read_photo(path, exif=exif, max_pixels=max_pixels, stretch=stretch)
    except Exception as error:  # Pillow's decoders fail in many ways
        fault = _photo_fault(path, error)
        raise _RAISED.get(fault.kind, ValueError)(str(fault)) from None


def open_image(path: str | os.PathLike, *, exif: bool = True, max_pixels: int | None = None,
               stretch: bool = False) -> Image.Image:
    """Read a picture as RGB of 8 bits, or say which file cannot be read and why.

    exif: turn it by its EXIF note, as a person sees it; False keeps the pixels as they are stored (Pillow turns TIFF
    files in both cases). max_pixels: larger pictures are reduced by a whole factor, JPEG files while they are decoded,
    so that their full size never lies in memory; None keeps every pixel. stretch: for looking at one picture, scale it
    by its own smallest and largest value where its file does not say which is white; without, it is refused.

    Raises FileNotFoundError, PermissionError, OSError or ValueError with a sentence: path, kind of fault, what was
    found.
    """
    return open_photo(path, exif=exif, max_pixels=max_pixels, stretch=stretch).image


def picture_rgb(picture: Image.Image, name: str = "the picture") -> Image.Image:
    """A picture that is open already as RGB of 8 bits, by the rules of `open_image`: transparent pixels on white, more
    than 8 bits scaled. Its pixels stay as they are stored; `name` is for the sentence.

    Raises ValueError where it cannot be decoded, or nothing says which value is white.
    """
    try:
        if _MODES.get(picture.mode.partition(";")[0]) == "deep colour":
            picture, _ = _eight_bits(picture, b"", stretch=False)
        return picture if picture.mode == "RGB" else _to_rgb(picture)
    except Exception as error:  # Pillow's decoders fail in many ways
        raise ValueError(str(_photo_fault(name, error))) from None


def _sklearn_datasets() -> ModuleType:
    """scikit-learn's data sets, or one sentence on how to get them."""
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ModuleNotFoundError("the real pictures come with scikit-learn: pip install 'lesa_nb[demo]'") from error
    return datasets


def sample_photo(name: str = "china") -> Image.Image:
    """A photograph that comes with scikit-learn, as RGB: "china" or "flower"."""
    names = {"china": "china.jpg", "flower": "flower.jpg"}
    if name not in names:
        raise ValueError(f"no photograph {name!r}; there are {', '.join(names)}")
    return Image.fromarray(_sklearn_datasets().load_sample_image(names[name]))


def fitted(size: tuple[int, int], longest: int | None, multiple: int = 1) -> tuple[int, int]:
    """A size with the same aspect ratio, as near as whole patches allow.

    size: width and height; longest: pixels of the longer side, None keeps the size; multiple: both sides become
    multiples of this, so that patches of this size tile the picture. Returns width and height.
    """
    longest = max(size) if longest is None else longest
    if longest < multiple:
        raise ValueError(f"the longer side must have at least {multiple} pixels, got {longest}")
    width, height = (max(1, round(side*longest/max(size)/multiple))*multiple for side in size)
    return width, height


def photo_tensor(photo: Image.Image, longest: int | None = None, multiple: int = 1) -> Tensor:
    """An RGB photograph as a float tensor (3, H, W) in [0, 1], its size as in `fitted`."""
    size = fitted(photo.size, longest, multiple)
    if size != photo.size:
        photo = photo.resize(size, Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(photo)).permute(2, 0, 1)/255
