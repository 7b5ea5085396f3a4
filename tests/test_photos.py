"""One reader for every picture: any format, depth and orientation, bounded memory; random numbers of a sample."""

import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, features
from PIL.TiffImagePlugin import ImageFileDirectory_v2
from torchvision import datasets

from lesa_nb.data import photos
from lesa_nb.data.photos import (
    _PHOTO_FAULTS,
    MAX_PIXELS,
    _photo_fault,
    _read_photo,
    fitted,
    open_image,
    photo_tensor,
    sample_photo,
)
from lesa_nb.data.seeding import _mixed_seed, seeded


@pytest.fixture(scope="module")
def photo():
    return sample_photo("flower")


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def with_bits(path, values, bits):
    "A grey 16-bit PNG whose sBIT chunk says how many bits mean something."
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    data = buffer.getvalue()
    chunk = b"sBIT" + bytes([bits])
    path.write_bytes(data[:33] + struct.pack(">I", 1) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[33:])
    return path


def tiff(path, values, **tags):
    "A TIFF with tags by number."
    directory = ImageFileDirectory_v2()
    for number, value in tags.items():
        directory[int(number[1:])] = value
    Image.fromarray(values).save(path, "TIFF", tiffinfo=directory)
    return path


# What a person sees


def test_a_note_turns_the_picture_and_every_mode_becomes_rgb(tmp_path, photo):
    photo.rotate(90, expand=True).save(tmp_path / "turned.png", exif=turned(6))
    assert np.array_equal(np.array(open_image(tmp_path / "turned.png")), np.array(photo))
    for mode in ("L", "P", "CMYK"):
        photo.convert(mode).save(tmp_path / f"{mode}.tif")
        opened = open_image(tmp_path / f"{mode}.tif")
        assert (opened.mode, opened.size) == ("RGB", photo.size)
    glass = photo.copy()
    glass.putalpha(0)
    glass.save(tmp_path / "glass.png")
    assert np.unique(open_image(tmp_path / "glass.png")).tolist() == [255]  # all transparent: all white


@pytest.mark.fault("P5")
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
def test_every_orientation_as_pillow_turns_it(tmp_path, orientation, suffix):
    from PIL import ImageOps

    pixels = np.zeros((24, 32, 3), np.uint8)
    pixels[:8, :8] = 255
    path = tmp_path / f"x.{suffix}"
    options = {"lossless": True} if suffix == "webp" else {}
    Image.fromarray(pixels).save(path, exif=turned(orientation), **options)
    with Image.open(path) as image:
        expected = np.array(ImageOps.exif_transpose(image).convert("RGB"))
    assert np.array_equal(np.array(open_image(path)), expected)
    read = _read_photo(path)
    assert read.full_size == read.image.size
    if suffix != "tif":  # which Pillow turns itself
        assert [kind for kind, _ in read.notes] == ["EXIF rotation"] * (orientation > 1)
        assert np.array_equal(np.array(open_image(path, exif=False)), np.array(datasets.folder.pil_loader(path)))
        assert [kind for kind, _ in _read_photo(path, exif=False).notes] == ["EXIF rotation kept"] * (orientation > 1)


def test_as_stored_is_what_torchvision_reads(tmp_path):
    photo = sample_photo("china").resize((160, 107))
    for name, mode in (("cmyk.jpg", "CMYK"), ("grey.jpg", "L"), ("map.png", "P")):
        photo.convert(mode).save(tmp_path / name)
    photo.save(tmp_path / "png.jpg", "PNG")
    photo.save(tmp_path / "turn.png", exif=turned(6))
    for name in ("cmyk.jpg", "grey.jpg", "map.png", "png.jpg", "turn.png"):
        opened = open_image(tmp_path / name, exif=False)
        assert np.array_equal(np.array(opened), np.array(datasets.folder.pil_loader(tmp_path / name)))
        assert opened.size == photo.size


def test_what_cannot_be_read_is_named(tmp_path, photo):
    (tmp_path / "text.jpg").write_text("not a picture")
    (tmp_path / "none.jpg").touch()
    photo.save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:9000])
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    for name, error, says in (
        ("text.jpg", ValueError, r"text\.jpg: not a picture \(in no format that Pillow reads\)"),
        ("cut.jpg", ValueError, r"cut\.jpg: broken picture \(.*truncated"),
        ("none.jpg", ValueError, r"none\.jpg: empty file"),
        ("nothing.jpg", FileNotFoundError, r"nothing\.jpg: missing file \(no such file\)"),
        ("gone.png", FileNotFoundError, r"gone\.png: missing file \(a link that leads nowhere\)"),
        ("", ValueError, "a folder, not a picture"),
    ):
        with pytest.raises(error, match=says) as caught:
            open_image(tmp_path / name)
        assert "\n" not in str(caught.value)
    kinds = {
        _photo_fault("x", error).kind
        for error in (
            FileNotFoundError(),
            PermissionError(),
            IsADirectoryError(),
            OSError(5, "broken disk"),
            ValueError("?"),
        )
    }
    assert kinds == {"missing file", "no permission", "a folder", "unreadable file", "broken picture"}


@pytest.mark.fault("P3")
@pytest.mark.parametrize(
    "suffix, options",
    [
        ("gif", {}),
        ("jfif", {"format": "JPEG"}),
        ("avif", {}),
        ("jp2", {}),
        ("tga", {}),
        ("ico", {}),
        ("webp", {}),
        ("pcx", {}),
    ],
)
def test_every_format_that_pillow_decodes(tmp_path, photo, suffix, options):
    if suffix == "avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    small = photo.resize((64, 48))
    small.save(tmp_path / f"x.{suffix}", **options)
    opened = open_image(tmp_path / f"x.{suffix}")
    assert opened.mode == "RGB" and max(opened.size) == (48 if suffix == "ico" else 64)


def test_nothing_is_handed_to_another_program():
    assert not {"EPS", "WMF", "MPEG"} & set(photos._formats()) and {"JPEG", "PNG", "GIF", "TIFF"} <= set(
        photos._formats()
    )


def test_of_several_pictures_the_first_is_read(tmp_path):
    red, blue = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    red.save(tmp_path / "two.gif", save_all=True, append_images=[blue])
    read = _read_photo(tmp_path / "two.gif")
    assert read.image.getpixel((0, 0)) == (255, 0, 0)
    assert ("several pictures", "2 in one GIF file") in read.notes


# More than 8 bits


def grey_of(path):
    return np.array(open_image(path))[..., 0]


@pytest.mark.fault("C3")
def test_sixteen_bits_are_scaled(tmp_path):
    values = np.linspace(0, 65535, 48 * 64).round().astype(np.uint16).reshape(48, 64)
    Image.fromarray(values).save(tmp_path / "x.png")
    Image.fromarray(values).save(tmp_path / "x.tif")
    for name in ("x.png", "x.tif"):
        assert np.abs(grey_of(tmp_path / name).astype(float) - values / 257).max() <= 0.5
        assert [kind for kind, _ in _read_photo(tmp_path / name).notes] == ["deep colour"]


@pytest.mark.fault("P2")
def test_twelve_bits_in_a_sixteen_bit_file(tmp_path):
    values = np.linspace(0, 4095, 48 * 64).round().astype(np.uint16).reshape(48, 64)
    Image.fromarray(values).save(tmp_path / "silent.png")
    with pytest.raises(ValueError, match=r"silent.png: unclear range \(values 0 to 4,095 of 65,535: .*12 bits.*sBIT"):
        open_image(tmp_path / "silent.png")
    for path in (with_bits(tmp_path / "says.png", values, 12), tiff(tmp_path / "says.tif", values, _281=4095)):
        assert np.abs(grey_of(path).astype(float) - values * (255 / 4095)).max() <= 0.51
    black = np.zeros((8, 8), np.uint16)
    Image.fromarray(black).save(tmp_path / "black.png")
    assert not grey_of(tmp_path / "black.png").any()  # black is black on any scale


@pytest.mark.fault("P2")
def test_floats_are_scaled_by_what_they_say_or_refused(tmp_path):
    ramp = np.linspace(0, 1, 48 * 64).astype(np.float32).reshape(48, 64)
    for name, values in (("unit", ramp), ("dim", ramp / 2), ("bytes", 255 * ramp)):
        white = 255 if name == "bytes" else 1
        path = tiff(tmp_path / f"{name}.tif", values)
        assert np.abs(grey_of(path) - 255 * values / white).max() <= 0.51
    path = tiff(tmp_path / "stated.tif", 20 * ramp - 30, _340=-30.0, _341=-10.0)
    assert np.abs(grey_of(path) - 255 * ramp).max() <= 0.51
    holed = ramp.copy()
    holed[3, 4] = np.nan
    for name, values, says in (
        ("holed", holed, "not all are finite"),
        ("negative", ramp - 2, "values -2 to -1, and the file"),
        ("large", ramp * 3000, "values 0 to 3,000"),
        ("endless", np.full_like(ramp, np.inf), "finite"),
    ):
        with pytest.raises(ValueError, match=f"{name}.tif: unclear range .*{says}"):
            open_image(tiff(tmp_path / f"{name}.tif", values))


def test_for_looking_at_it_the_own_range_will_do(tmp_path):
    ramp = np.linspace(0, 1, 48 * 64).astype(np.float32).reshape(48, 64)
    holed = ramp - 2
    holed[3, 4], holed[5, 6] = np.nan, np.inf
    for values in ((250 * ramp).astype(np.uint16), ramp - 2, 3000 * ramp, holed):
        path = tiff(tmp_path / "x.tif", values)
        with pytest.raises(ValueError, match="unclear range"):
            open_image(path)
        grey = np.array(open_image(path, stretch=True))[..., 0]
        inside = np.isfinite(values)
        low, high = values[inside].min(), values[inside].max()
        assert np.abs(grey[inside] - 255.0 * (values[inside] - low) / (high - low)).max() < 0.6
    assert grey[3, 4] == 0 and grey[5, 6] == 255
    for value in (7, np.nan):
        path = tiff(tmp_path / "x.tif", np.full((8, 8), value, np.float32) * 1000)
        assert not np.array(open_image(path, stretch=True)).any()


@pytest.mark.fault("P2")
def test_whole_numbers_of_32_bits_need_a_range(tmp_path):
    values = np.arange(48 * 64, dtype=np.int32).reshape(48, 64)
    with pytest.raises(ValueError, match="unclear range .values 0 to 3,071, and the file does not say"):
        open_image(tiff(tmp_path / "x.tif", values))
    path = tiff(tmp_path / "says.tif", values, _281=3071)
    assert np.abs(grey_of(path) - values * (255 / 3071)).max() <= 0.51


# Large ones


@pytest.mark.fault("P4")
def test_a_large_picture_is_reduced(tmp_path):
    Image.new("RGB", (3000, 2000), "red").save(tmp_path / "x.jpg")
    Image.new("RGB", (3000, 2000), "red").save(tmp_path / "x.png")
    Image.new("P", (3000, 2000), 3).save(tmp_path / "p.png")
    Image.fromarray(np.full((2000, 3000), 65535, np.uint16)).save(tmp_path / "deep.png")
    for name in ("x.jpg", "x.png", "p.png", "deep.png"):
        read = _read_photo(tmp_path / name, max_pixels=10**6)
        assert read.full_size == (3000, 2000) and ("large picture", "3,000 x 2,000 pixels") in read.notes
        assert 10**6 // 4 < read.image.width * read.image.height <= 10**6
        assert open_image(tmp_path / name).size == (3000, 2000)
    assert min(open_image(tmp_path / "x.jpg", max_pixels=10**6).getpixel((9, 9))[0], 250) == 250
    Image.new("L", (1, 20000)).save(tmp_path / "thin.png")
    assert open_image(tmp_path / "thin.png", max_pixels=10**4).size == (1, 10000)


@pytest.mark.fault("P4")
def test_108_megapixels_in_bounded_memory(tmp_path):
    Image.new("RGB", (12000, 9000), "blue").save(tmp_path / "x.jpg", quality=30)
    code = (
        "import sys; from lesa_nb.data.photos import open_image, MAX_PIXELS; "
        "from peak_memory import peak_mib; start = peak_mib(); "
        "image = open_image(sys.argv[1], max_pixels=MAX_PIXELS); print(image.size[0], peak_mib() - start)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "x.jpg")],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).parent,  # where peak_memory lies
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
    )
    assert done.returncode == 0, done.stderr
    width, mebibytes = map(int, done.stdout.split())
    assert 12000 / 4 <= width <= 6000 and mebibytes < 250  # 432 MB at full size
    assert MAX_PIXELS == 2**24


@pytest.mark.fault("P4")
def test_explain_in_bounded_memory(tmp_path):
    Image.new("RGB", (12000, 9000), "blue").save(tmp_path / "x.jpg", quality=30)
    code = (
        "from lesa_nb.cli.app import main; from peak_memory import peak_mib; "
        "status = main(['explain', 'x.jpg', '--size', '64', '--pixel', '11999,8999']); "
        "print(status, peak_mib())"
    )
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": f"{here.parent}{os.pathsep}{here}", "LESA_DEBUG": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert "picture  x.jpg: 12000x9000, the network sees it at 64x48" in done.stdout
    assert "pixel    11999,8999" in done.stdout
    status, mebibytes = map(int, done.stdout.splitlines()[-1].split())
    assert status == 0 and mebibytes < 2000  # 9,500 when the whole picture was drawn


def test_a_bomb_is_named(tmp_path, monkeypatch):
    Image.new("1", (300, 300)).save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match="x.png: too many pixels .Image size .90000 pixels. exceeds limit"):
        open_image(tmp_path / "x.png")


# Tensors and samples


def test_fitted_sizes_and_tensors(photo):
    assert [fitted((640, 427), n) for n in (None, 1280, 64, 1)] == [(640, 427), (1280, 854), (64, 43), (1, 1)]
    assert [fitted((640, 427), n, 16) for n in (None, 448, 16)] == [
        (640, 432),
        (448, 304),
        (16, 16),
    ]  # whole patches of 16
    with pytest.raises(ValueError, match="at least 16 pixels, got 15"):
        fitted((640, 427), 15, 16)
    assert photo_tensor(photo).shape == (3, 427, 640) and photo_tensor(photo, 160).shape == (3, 107, 160)
    assert np.array_equal(photo_tensor(photo).mul(255).byte().permute(1, 2, 0).numpy(), np.array(photo))


def test_samples_come_with_scikit_learn(monkeypatch):
    with pytest.raises(ValueError, match="no photograph 'cat'; there are china, flower"):
        sample_photo("cat")
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lesa_nb\[demo\]'"):
        sample_photo()


def test_every_kind_that_the_code_names_is_in_the_table():
    assert set(photos._MODES.values()) <= set(_PHOTO_FAULTS)
    assert all(
        _PHOTO_FAULTS[kind] == "fatal" for kind in ("broken picture", "empty file", "missing file", "unclear range")
    )


# Random numbers of a sample


def test_randomness_is_independent_and_disturbs_nobody():
    def drawn(*key):
        with seeded(*key):
            return torch.rand(1).item()

    before = torch.get_rng_state()
    values = {drawn(seed, epoch, index) for seed in range(5) for epoch in range(5) for index in range(40)}
    assert len(values) > 990  # keys that add up to the same number have other random numbers
    assert abs(sum(values) / len(values) - 0.5) < 0.05
    with pytest.raises(RuntimeError), seeded(0, 0, 0):
        torch.rand(1)
        raise RuntimeError
    assert torch.equal(torch.get_rng_state(), before)
    assert _mixed_seed(1, 0) != _mixed_seed(0, 1) and _mixed_seed(3) == _mixed_seed(3)
