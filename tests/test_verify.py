"""Looking at every file once: whole and broken folders, under any name; the check foretells what training would say."""

import io
import os
import shutil
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from class_folders import look
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import datasets

from lesa_nb.data import photos, verify
from lesa_nb.data.drawn import make_image_folder
from lesa_nb.data.folders import ClassFolder, class_folders, class_names
from lesa_nb.data.listing import PICTURE_FORMATS
from lesa_nb.data.photos import open_image
from lesa_nb.data.report import printable
from lesa_nb.data.verify import FOLDER_FAULTS

ROOT = Path(__file__).resolve().parent.parent
BAD_EXIF = b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12\0\x03\0\0\0\x01\0\x06"  # says it has five entries, ends in the first


def rewritten(path, name, **options):
    "The picture at `path` under another name, saved with other options."
    image = Image.open(path).convert(options.pop("mode", "RGB"))
    new = path.with_name(name)
    image.save(new, **options)
    path.unlink()
    return new


def broken(folder):
    "Put the eight faults into a folder; returns kind -> path."
    files = iter(sorted((folder / "train").rglob("*.png")))
    cut = rewritten(next(files), "cut.jpg")
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    empty, gone = next(files), next(files)
    empty.write_bytes(b"")
    gone.unlink()
    gone.symlink_to("nowhere.png")
    for half in ("train", "val"):
        (folder / half / "zebra").mkdir()
    shutil.copy(sorted((folder / "val").rglob("*.png"))[0], folder / "val/zebra")
    return {
        "broken picture": cut,
        "empty file": empty,
        "missing file": gone,
        "empty class": folder / "train/zebra",
        "wrong extension": rewritten(next(files), "png.jpg", format="PNG"),
        "CMYK": rewritten(next(files), "cmyk.jpg", mode="CMYK"),
        "greyscale": rewritten(next(files), "grey.jpg", mode="L"),
        "broken EXIF": rewritten(next(files), "exif.jpg", exif=BAD_EXIF),
    }


FATAL = {"broken picture", "empty file", "missing file", "empty class"}


@pytest.mark.parametrize("workers", [1, 4])
def test_eight_faults_come_back_by_path_and_reason(folder, workers):
    expected = broken(folder)
    report = look(folder, workers=workers)
    assert {fault.kind: fault.path for fault in report.faults} == {
        kind: printable(path) for kind, path in expected.items()
    }
    assert report.counts == dict.fromkeys(expected, 1)
    assert {fault.kind for fault in report.fatal} == FATAL and not report.ok
    text = str(report)
    for kind, path in expected.items():
        assert kind in text and printable(path) in text and (f"{printable(path)}: {kind}" in text) == (kind in FATAL)
    assert "truncated" in text and "a link that leads nowhere" in text and "not ready" in text


def test_a_sound_folder_has_nothing_to_report(source):
    report = look(source)
    assert report.ok and not report.faults and not report.counts
    assert report.splits == {
        "train": dict.fromkeys(["blue", "green", "red"], 8),
        "val": dict.fromkeys(["blue", "green", "red"], 3),
    }
    assert "3 classes, 24 pictures, 8 in a class" in str(report) and "ready to train" in str(report)


def test_training_on_the_faults_names_the_file(folder):
    expected = broken(folder)
    (folder / "train/zebra").rmdir()
    shutil.rmtree(folder / "val/zebra")
    train, _ = class_folders(folder, size=32)
    assert len(train) == 24
    failed, reads = {}, 0
    for index in range(len(train)):
        try:
            image, label, name = train[3, index]
            assert image.shape == (3, 32, 32) and image.isfinite().all() and name == printable(train.path(index))
            assert train.classes[label] == Path(name).parent.name
            reads += 1
        except (ValueError, OSError) as error:
            failed[train.path(index)] = str(error)
            assert "\n" not in str(error)
    assert set(failed) == {str(expected[kind]) for kind in FATAL - {"empty class"}} and reads == 21
    for kind in FATAL - {"empty class"}:
        assert failed[str(expected[kind])].startswith(f"{printable(expected[kind])}: {kind}")
    with pytest.raises((ValueError, OSError), match="two words; größe"):  # from a worker, too
        for _ in DataLoader(train, batch_size=4, num_workers=1):
            pass


def test_a_file_that_goes_after_listing_is_named(folder, monkeypatch):
    train = ClassFolder(folder / "train")
    os.unlink(train.path(5))
    with pytest.raises(FileNotFoundError, match="00005.png: missing file .no such file"):
        train[5]
    listed = verify.list_files

    def lists_one_more(path):
        found = listed(path)
        return found._replace(files=[*found.files, os.path.join(path, "listed.png")])

    monkeypatch.setattr(verify, "list_files", lists_one_more)
    assert Counter(fault.kind for fault in look(folder).fatal) == {"missing file": 6}


def test_no_permission_is_named(folder, monkeypatch):
    refused, real = str(folder / "train/blue/00001.png"), open

    def guarded(path, *arguments, **options):
        if os.fspath(path) == refused:
            raise PermissionError(13, "Permission denied", refused)
        return real(path, *arguments, **options)

    monkeypatch.setattr("builtins.open", guarded)
    assert [(f.kind, f.path) for f in look(folder).fatal] == [("no permission", printable(refused))]
    with pytest.raises(PermissionError, match="00001.png: no permission"):
        open_image(refused)


@pytest.mark.parametrize("classes", [["green"], ["blue", "green", "red"]])
def test_classes_that_cannot_be_listed_are_named(folder, monkeypatch, classes):
    refused, real = [str(folder / "train" / name) for name in classes], os.scandir

    def guarded(path="."):
        if os.fspath(path) in refused:
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", guarded)
    report = look(folder)
    assert [(f.kind, f.path) for f in report.fatal] == [("no permission", printable(path)) for path in refused]
    assert "no permission" in str(report) and look(folder, splits="val").ok
    with pytest.raises(PermissionError, match=f"{classes[0]}: no permission"):
        ClassFolder(folder / "train")


def test_other_files_are_noted_not_read(folder):
    (folder / "train/red/.DS_Store").write_bytes(b"x")
    (folder / "val/labels.txt").write_text("x")
    report = look(folder)
    assert report.ok and [(f.kind, f.found) for f in report.faults] == [
        ("system file", ""),
        ("other file", "outside the class folders"),
    ]
    assert len(ClassFolder(folder / "train")) == 24
    (folder / "train/red/text.jpg").write_text("not a picture")
    assert [f.kind for f in look(folder).fatal] == ["not a picture"]


def test_all_fatal_faults_are_kept_of_others_the_first_twenty(folder):
    for i in range(30):
        (folder / f"train/red/{i}.txt").touch()
        (folder / f"train/red/x{i}.png").touch()
    report = look(folder)
    assert report.counts == {"other file": 30, "empty file": 30}
    assert Counter(f.kind for f in report.faults) == {"other file": 20, "empty file": 30}
    assert "and 10 more fatal ones" in str(report) and "30 x other file" in str(report)


@pytest.mark.parametrize("kind", ["missing", "flat", "none", "differ"])
def test_a_wrong_layout_is_named_before_training(folder, kind):
    if kind == "missing":
        shutil.rmtree(folder / "val")
        says, reason = "missing folder", "expected train/ and val/"
    elif kind == "flat":  # as ImageNet's validation pictures are unpacked
        for path in sorted((folder / "val").rglob("*.png")):
            path.rename(folder / f"val/{path.parent.name}{path.name}")
        for name in ("red", "green", "blue"):
            (folder / "val" / name).rmdir()
        says, reason = "no classes", "found none, and 9 pictures; sort them into folders"
    elif kind == "none":
        shutil.rmtree(folder / "val")
        (folder / "val").mkdir()
        says, reason = "no classes", "found none, and 0 pictures"
    else:
        shutil.rmtree(folder / "val/blue")
        says, reason = "classes differ", "only in train: blue; every class needs a folder in both"
    (fault,) = look(folder).fatal
    assert fault.kind == says and reason in fault.found
    with pytest.raises((FileNotFoundError, ValueError), match=reason) as error:
        class_folders(folder)
    assert "\n" not in str(error.value)
    if kind == "missing":
        assert [f.kind for f in look(folder / "train").fatal] == ["missing folder"] * 2  # one level too deep


def test_every_kind_of_fault_that_the_code_names_is_in_the_table():
    for kind in photos._MODES.values():
        assert kind in FOLDER_FAULTS
    assert all(kind in FOLDER_FAULTS for kind in FATAL)
    assert set(PICTURE_FORMATS) >= set(datasets.folder.IMG_EXTENSIONS)


def test_modes_are_noted_and_read_as_rgb(folder):
    image = Image.open(folder / "train/red/00000.png")
    where = folder / "train/red"
    clear = image.copy()
    clear.putalpha(0)
    clear.save(where / "clear.png")
    image.convert("P").save(where / "map.png")
    image.convert("L").save(where / "key.png", transparency=0)
    Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64) * 16).save(where / "deep.png")
    sideways = Image.Exif()
    sideways[0x0112] = 6
    image.save(where / "turned.jpg", exif=sideways)
    image.save(where / "gif.png", "GIF")
    kinds = {Path(f.path).name: f.kind for f in look(folder).faults if f.kind != "palette" or "map" in f.path}
    assert kinds == {
        "clear.png": "transparent",
        "map.png": "palette",
        "key.png": "transparent",
        "deep.png": "deep colour",
        "turned.jpg": "EXIF rotation",
        "gif.png": "wrong extension",
    }
    for name in kinds:
        assert open_image(where / name).mode == "RGB"
    assert np.array(open_image(where / "clear.png")).min() == 255
    assert open_image(where / "turned.jpg").size == image.size


def test_broken_exif_is_never_blamed_on_another_file(tmp_path):
    good = Image.Exif()
    good[0x010E] = "a description"
    image = Image.new("RGB", (40, 30), "red")
    for half in ("train", "val"):
        (tmp_path / half / "x").mkdir(parents=True)
        (tmp_path / half / "y").mkdir()
        image.save(tmp_path / half / "y" / "sound.jpg", exif=good)
        for i in range(100):
            image.save(tmp_path / half / "x" / f"{i}.jpg", exif=BAD_EXIF if i % 5 == 0 else good)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        report = look(tmp_path, workers=8)
        for i in range(0, 100, 20):
            open_image(tmp_path / f"train/x/{i}.jpg")
    assert report.ok and report.counts == {"broken EXIF": 40} and not heard
    assert all(int(Path(f.path).stem) % 5 == 0 for f in report.faults)


def test_damaged_bytes_are_a_fault_or_a_picture(tmp_path):
    rng, good = np.random.default_rng(0), io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (24, 24, 3), np.uint8)).save(good, "JPEG", exif=BAD_EXIF)
    path, outcomes = tmp_path / "damaged.jpg", Counter()
    for _ in range(100):
        data = bytearray(
            good.getvalue()[: rng.integers(1, len(good.getvalue()))] if rng.random() < 0.5 else good.getvalue()
        )
        for at in rng.integers(0, len(data), 4):
            data[at] = rng.integers(256)
        path.write_bytes(data)
        faults = [fault for fault in verify._inspect(str(path), True) if fault.outcome == "fatal"]
        try:
            assert open_image(path).mode == "RGB" and not faults
            outcomes["read"] += 1
        except ValueError as error:
            assert str(error) == str(faults[0])  # the check foretells what training would say
            outcomes["refused"] += 1
    assert min(outcomes["read"], outcomes["refused"]) > 10


def test_undecodable_names_can_be_read_and_printed(source, tmp_path):
    raw = os.fsencode(tmp_path / "p") + b"\xff\n"
    shutil.copytree(os.fsencode(source), raw)
    odd = os.fsdecode(raw)
    os.rename(raw + b"/train/red/00000.png", raw + b"/train/red/\xe9t\xe9.png")
    with open(raw + b"/train/red/\x80cut.png", "wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
    with open(raw + b"/train/blue/\x80.txt", "wb") as file:
        file.write(b"x")
    report = look(odd)
    assert {f.kind for f in report.faults} >= {"other file"} and len(report.fatal) == 1
    text = str(report)
    text.encode("utf-8")  # raises where a name was left as it is
    assert "\\xff\\n/train/red/\\x80cut.png" in text
    train = ClassFolder(os.path.join(odd, "train"))
    names = [
        item[2] if not isinstance(item, Exception) else str(item)
        for item in map(lambda i: attempt(train, i), range(len(train)))
    ]
    "\n".join(names).encode("utf-8")
    assert sum("\\xe9t\\xe9.png" in name for name in names) == 1 and all("\n" not in name for name in names)
    for call in (
        lambda: class_folders(os.path.join(odd, "val")),
        lambda: class_names(os.path.join(odd, "gone")),
        lambda: make_image_folder(odd),
        lambda: look(os.path.join(odd, "gone")),
    ):
        with pytest.raises(OSError) as error:
            call()
        str(error.value).encode("utf-8")


def attempt(dataset, index):
    try:
        return dataset[index]
    except ValueError as error:
        return error


def test_printing_in_a_plain_terminal(folder):
    broken(folder)
    code = "import sys; from lesa_nb.data.verify import verify_image_folder; print(verify_image_folder(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        capture_output=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT), "LC_ALL": "C", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert b"not ready" in done.stdout and b"24/24" not in done.stdout  # the bar goes to the other stream
    assert b"train: 100%" in done.stderr and b"Traceback" not in done.stderr


def test_the_command_checks_a_folder_without_a_split(folder, capsys):
    from lesa_nb.cli.app import main

    assert main(["verify-data", "imagenet", str(folder / "train"), "--val-fraction", "0.25"]) == 0
    said = capsys.readouterr().out
    assert "a hash of each file's name puts 25 % of the pictures into validation" in said and "ready to train" in said
    assert main(["verify-data", "imagenet", str(folder / "train"), "--val-fraction", "2"]) == 2
    assert "val_fraction must lie between 0 and 1, got 2.0" in capsys.readouterr().err
    assert main(["verify-data", "imagenet", str(folder / "train")]) == 1
    assert "say which part validates: val_fraction=0.2, or --val-fraction 0.2" in capsys.readouterr().out
