"""Folders of pictures: whole and broken, under any name; read as torchvision does; a picture depends on its key alone."""
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
import torch
from PIL import Image
from torch.utils.data import DataLoader, default_collate
from torchvision import datasets, transforms
from torchvision.transforms import v2

from lesa_nb.data import folders
from lesa_nb.layers.inputs import IMAGENET_MEAN, IMAGENET_STD
from lesa_nb.data.folders import (
    AUGMENTS, PICTURE_FAULTS, PICTURE_FORMATS, PICTURE_TASKS, ClassFolder, class_folders, class_names, loader_speed, make_digits,
    make_pictures, open_picture, same_classes, seeded, shown, train_transform, valid_transform, verify_pictures)

ROOT = Path(__file__).resolve().parent.parent
BAD_EXIF = b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12\0\x03\0\0\0\x01\0\x06"  # says it has five entries, ends in the first


def verify(folder, **options):
    return verify_pictures(folder, progress=False, **options)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return make_pictures(tmp_path_factory.mktemp("a; ü folder") / "pictures", train=8, val=3, size=74)


@pytest.fixture
def folder(source, tmp_path):
    return Path(shutil.copytree(source, tmp_path / "two words; größe"))


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
        "broken picture": cut, "empty file": empty, "missing file": gone, "empty class": folder / "train/zebra",
        "wrong extension": rewritten(next(files), "png.jpg", format="PNG"), "CMYK": rewritten(next(files), "cmyk.jpg", mode="CMYK"),
        "greyscale": rewritten(next(files), "grey.jpg", mode="L"), "broken EXIF": rewritten(next(files), "exif.jpg", exif=BAD_EXIF)}


FATAL = {"broken picture", "empty file", "missing file", "empty class"}


@pytest.mark.parametrize("workers", [1, 4])
def test_eight_faults_come_back_by_path_and_reason(folder, workers):
    expected = broken(folder)
    report = verify(folder, workers=workers)
    assert {fault.kind: fault.path for fault in report.faults} == {kind: shown(path) for kind, path in expected.items()}
    assert report.counts == dict.fromkeys(expected, 1)
    assert {fault.kind for fault in report.fatal} == FATAL and not report.ok
    text = str(report)
    for kind, path in expected.items():
        assert kind in text and shown(path) in text and (f"{shown(path)}: {kind}" in text) == (kind in FATAL)
    assert "truncated" in text and "a link that leads nowhere" in text and "not ready" in text


def test_a_sound_folder_has_nothing_to_report(source):
    report = verify(source)
    assert report.ok and not report.faults and not report.counts
    assert report.splits == {"train": dict.fromkeys(["blue", "green", "red"], 8), "val": dict.fromkeys(["blue", "green", "red"], 3)}
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
            assert image.shape == (3, 32, 32) and image.isfinite().all() and name == shown(train.path(index))
            assert train.classes[label] == Path(name).parent.name
            reads += 1
        except (ValueError, OSError) as error:
            failed[train.path(index)] = str(error)
            assert "\n" not in str(error)
    assert set(failed) == {str(expected[kind]) for kind in FATAL - {"empty class"}} and reads == 21
    for kind in FATAL - {"empty class"}:
        assert failed[str(expected[kind])].startswith(f"{shown(expected[kind])}: {kind}")
    with pytest.raises((ValueError, OSError), match="two words; größe"):  # from a worker, too
        for _ in DataLoader(train, batch_size=4, num_workers=1):
            pass


def test_a_file_that_goes_after_listing_is_named(folder, monkeypatch):
    train = ClassFolder(folder / "train")
    os.unlink(train.path(5))
    with pytest.raises(FileNotFoundError, match="00005.png: missing file .no such file"):
        train[5]
    listed = folders._files

    def lists_one_more(path):
        yield from listed(path)
        yield os.path.join(path, "listed.png")

    monkeypatch.setattr(folders, "_files", lists_one_more)
    assert Counter(fault.kind for fault in verify(folder).fatal) == {"missing file": 6}


def test_no_permission_is_named(folder, monkeypatch):
    refused, real = str(folder / "train/blue/00001.png"), open

    def guarded(path, *arguments, **options):
        if os.fspath(path) == refused:
            raise PermissionError(13, "Permission denied", refused)
        return real(path, *arguments, **options)

    monkeypatch.setattr("builtins.open", guarded)
    assert [(f.kind, f.path) for f in verify(folder).fatal] == [("no permission", shown(refused))]
    with pytest.raises(PermissionError, match="00001.png: no permission"):
        open_picture(refused)


@pytest.mark.parametrize("classes", [["green"], ["blue", "green", "red"]])
def test_classes_that_cannot_be_listed_are_named(folder, monkeypatch, classes):
    refused, real = [str(folder / "train" / name) for name in classes], os.scandir

    def guarded(path="."):
        if os.fspath(path) in refused:
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", guarded)
    report = verify(folder)
    assert [(f.kind, f.path) for f in report.fatal] == [("no permission", shown(path)) for path in refused]
    assert "no permission" in str(report) and verify(folder, splits="val").ok
    with pytest.raises(PermissionError, match=f"{classes[0]}: no permission"):
        ClassFolder(folder / "train")


def test_other_files_are_noted_not_read(folder):
    (folder / "train/red/.DS_Store").write_bytes(b"x")
    (folder / "val/labels.txt").write_text("x")
    report = verify(folder)
    assert report.ok and [(f.kind, f.found) for f in report.faults] == [("other file", ""), ("other file", "outside the class folders")]
    assert len(ClassFolder(folder / "train")) == 24
    (folder / "train/red/text.jpg").write_text("not a picture")
    assert [f.kind for f in verify(folder).fatal] == ["not a picture"]


def test_all_fatal_faults_are_kept_of_others_the_first_twenty(folder):
    for i in range(30):
        (folder / f"train/red/{i}.txt").touch()
        (folder / f"train/red/x{i}.png").touch()
    report = verify(folder)
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
    fault, = verify(folder).fatal
    assert fault.kind == says and reason in fault.found
    with pytest.raises((FileNotFoundError, ValueError), match=reason) as error:
        class_folders(folder)
    assert "\n" not in str(error.value)
    if kind == "missing":
        assert [f.kind for f in verify(folder / "train").fatal] == ["missing folder"] * 2  # one level too deep


def test_every_kind_of_fault_that_the_code_names_is_in_the_table():
    for kind in folders._MODES.values():
        assert kind in PICTURE_FAULTS
    assert all(kind in PICTURE_FAULTS for kind in FATAL)
    assert set(PICTURE_FORMATS) == set(datasets.folder.IMG_EXTENSIONS)


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
    kinds = {Path(f.path).name: f.kind for f in verify(folder).faults if f.kind != "palette" or "map" in f.path}
    assert kinds == {"clear.png": "transparent", "map.png": "palette", "key.png": "transparent", "deep.png": "deep colour",
                     "turned.jpg": "EXIF rotation", "gif.png": "wrong extension"}
    for name in kinds:
        assert open_picture(where / name).mode == "RGB"
    assert np.array(open_picture(where / "clear.png")).min() == 255
    assert open_picture(where / "turned.jpg").size == image.size


def test_broken_exif_is_never_blamed_on_another_file(tmp_path):
    good = Image.Exif()
    good[0x010E] = "a description"
    image = Image.new("RGB", (40, 30), "red")
    for half in ("train", "val"):
        (tmp_path / half / "x").mkdir(parents=True)
        for i in range(100):
            image.save(tmp_path / half / "x" / f"{i}.jpg", exif=BAD_EXIF if i % 5 == 0 else good)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        report = verify(tmp_path, workers=8)
        for i in range(0, 100, 20):
            open_picture(tmp_path / f"train/x/{i}.jpg")
    assert report.ok and report.counts == {"broken EXIF": 40} and not heard
    assert all(int(Path(f.path).stem) % 5 == 0 for f in report.faults)


def test_damaged_bytes_are_a_fault_or_a_picture(tmp_path):
    rng, good = np.random.default_rng(0), io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (24, 24, 3), np.uint8)).save(good, "JPEG", exif=BAD_EXIF)
    path, outcomes = tmp_path / "damaged.jpg", Counter()
    for _ in range(100):
        data = bytearray(good.getvalue()[: rng.integers(1, len(good.getvalue()))] if rng.random() < .5 else good.getvalue())
        for at in rng.integers(0, len(data), 4):
            data[at] = rng.integers(256)
        path.write_bytes(data)
        faults = [fault for fault in folders._inspect(str(path)) if fault.outcome == "fatal"]
        try:
            assert open_picture(path).mode == "RGB" and not faults
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
    report = verify(odd)
    assert {f.kind for f in report.faults} >= {"other file"} and len(report.fatal) == 1
    text = str(report)
    text.encode("utf-8")  # raises where a name was left as it is
    assert "\\xff\\n/train/red/\\x80cut.png" in text
    train = ClassFolder(os.path.join(odd, "train"))
    names = [item[2] if not isinstance(item, Exception) else str(item) for item in map(lambda i: attempt(train, i), range(len(train)))]
    "\n".join(names).encode("utf-8")
    assert sum("\\xe9t\\xe9.png" in name for name in names) == 1 and all("\n" not in name for name in names)
    for call in (lambda: class_folders(os.path.join(odd, "val")), lambda: class_names(os.path.join(odd, "gone")), lambda: make_pictures(odd),
                 lambda: verify(os.path.join(odd, "gone"))):
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
    code = "import sys; from lesa_nb.data.folders import verify_pictures; print(verify_pictures(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, timeout=120,
                          env={**os.environ, "PYTHONPATH": str(ROOT), "LC_ALL": "C", "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert b"not ready" in done.stdout and b"24/24" not in done.stdout  # the bar goes to the other stream
    assert b"train: 100%" in done.stderr and b"Traceback" not in done.stderr


# Reading


def test_the_same_list_as_torchvision(folder):
    (folder / "train/red/sub").mkdir()
    shutil.copy(folder / "train/red/00000.png", folder / "train/red/sub/B.PNG")
    (folder / "train/Red").symlink_to(folder / "train/red")
    (folder / "train/note.txt").touch()
    for at in (str(folder / "train"), str(folder / "train") + os.sep, folder / "train"):
        ours, theirs = ClassFolder(at), datasets.ImageFolder(at)
        assert [(os.path.realpath(ours.path(i)), y) for i, y in enumerate(ours.labels.tolist())] == [(os.path.realpath(p), y) for p, y in theirs.samples]
        assert ours.classes == theirs.classes == ["Red", "blue", "green", "red"] and len(ours) == len(theirs) == 34
    for index in (0, 33, -1):
        assert np.array_equal(np.array(ours[index][0]), np.array(theirs[index][0])) and ours[index][1] == theirs[index][1]
    with pytest.raises(IndexError):
        ours[34]


def test_the_validation_transform_is_the_published_one():
    theirs = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)])
    rng = np.random.default_rng(0)
    for shape in ((300, 400), (500, 333), (40, 60), (224, 224)):
        image = Image.fromarray(rng.integers(0, 255, (*shape, 3), np.uint8))
        torch.testing.assert_close(valid_transform()(image), theirs(image))


@pytest.mark.parametrize("name, extra", [("published", []), ("jitter", [transforms.ColorJitter(.4, .4, .4, .1)])])
def test_the_training_transform_is_the_published_one(name, extra):
    theirs = transforms.Compose([transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), *extra, transforms.ToTensor(),
                                 transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)])
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 400, 3), np.uint8))
    same = 0
    for epoch in range(6):
        results = []
        for transform in (theirs, train_transform(224, name)):
            with seeded(0, epoch, 5):
                results.append(transform(image))
        same += torch.allclose(*results, atol=1e-5)
    assert same >= (6 if name == "published" else 3)  # the same luck; jitter may round its colours differently


@pytest.mark.parametrize("augment", AUGMENTS)
def test_a_picture_depends_on_seed_epoch_and_index_alone(source, augment):
    train, _ = class_folders(source, size=32, augment=augment, seed=4)
    keys = [(epoch, index) for epoch in (0, 7) for index in range(0, 24, 2)]
    torch.manual_seed(1)
    alone = [train[key][0] for key in keys]
    torch.manual_seed(2)
    for workers in (0, 2):
        loader = DataLoader(train, sampler=keys[::-1], batch_size=5, num_workers=workers)
        together = torch.cat([images for images, _, _ in loader]).flip(0)
        assert torch.equal(together, torch.stack(alone))
    other, _ = class_folders(source, size=32, augment=augment, seed=5)
    assert not torch.equal(other[0, 0][0], train[0, 0][0]) and not torch.equal(train[1, 0][0], train[0, 0][0])


def test_luck_is_independent_and_disturbs_nobody():
    def drawn(*key):
        with seeded(*key):
            return torch.rand(1).item()

    before = torch.get_rng_state()
    values = {drawn(seed, epoch, index) for seed in range(5) for epoch in range(5) for index in range(40)}
    assert len(values) > 990  # keys that add up to the same number have other luck
    assert abs(sum(values) / len(values) - .5) < .05
    with pytest.raises(RuntimeError), seeded(0, 0, 0):
        torch.rand(1)
        raise RuntimeError
    assert torch.equal(torch.get_rng_state(), before)


def test_batches_carry_names(source):
    _, valid = class_folders(source, size=32)
    images, labels, names = default_collate([valid[0], valid[8]])
    assert images.shape == (2, 3, 32, 32) and images.dtype == torch.float32 and labels.dtype == torch.int64
    assert [valid.classes[y] for y in labels] == [Path(name).parent.name for name in names] == ["blue", "red"]
    assert torch.equal(valid[5][0], valid[9, 5][0])


# Writing


@pytest.mark.parametrize("task", PICTURE_TASKS)
def test_generated_folders_are_balanced_sound_and_repeatable(tmp_path, task):
    first, second = (make_pictures(tmp_path / name, task=task, train=3, val=2, size=224, seed=3, aligned=False, clutter=8) for name in "ab")
    other = make_pictures(tmp_path / "c", task=task, train=3, val=2, size=224, seed=4)
    report = verify(first)
    assert report.ok and not report.counts
    assert report.splits == {"train": dict.fromkeys(sorted(PICTURE_TASKS[task][0]), 3), "val": dict.fromkeys(sorted(PICTURE_TASKS[task][0]), 2)}
    files = sorted(path.relative_to(first) for path in first.rglob("*.png"))
    contents = [[(where / path).read_bytes() for path in files] for where in (first, second, other)]
    assert contents[0] == contents[1] and not set(contents[0]) & set(contents[2]) and len(set(contents[0])) == len(files)
    sizes = {Image.open(first / path).size for path in files}
    assert len(sizes) == 3 and {min(size) for size in sizes} == {224}


def test_writing_is_all_or_nothing(tmp_path, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").touch()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("full", "file", "link"):
        with pytest.raises(FileExistsError, match=f"{name}: exists already"):
            make_pictures(tmp_path / name)
    (tmp_path / "new.part").mkdir()
    (tmp_path / "new.part/left-over").touch()
    save, calls = folders._save, []

    def full_disk(*arguments):
        calls.append(arguments)
        if len(calls) == 5:
            raise OSError(28, "No space left on device")
        save(*arguments)

    monkeypatch.setattr(folders, "_save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        make_pictures(tmp_path / "new", train=3, val=1, size=32)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "full", "link"]
    monkeypatch.undo()
    (tmp_path / "new").mkdir()
    make_pictures(tmp_path / "new", train=1, val=1, size=32)  # an empty folder will do
    assert not list(tmp_path.rglob("left-over")) and not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("options, says", [
    (dict(task="cats"), "no task 'cats'; there are twin, corner, both"), (dict(val=0), "at least one picture"), (dict(size=31), "at least 32 pixels"),
    (dict(seed=-1), "seed")])
def test_wrong_wishes_are_refused(tmp_path, options, says):
    with pytest.raises(ValueError, match=says):
        make_pictures(tmp_path / "new", **options)
    assert not list(tmp_path.iterdir())


def test_digits_are_real_pictures(tmp_path):
    report = verify(make_digits(tmp_path / "digits", size=16))
    assert report.ok and len(report.splits["train"]) == 10
    assert (report.splits["train"].total(), report.splits["val"].total()) == (1438, 359)


def test_same_classes_lists_what_differs():
    assert same_classes(["a", "b"], ["a", "b"]) == ["a", "b"]
    with pytest.raises(ValueError, match="classes differ: 10 in train, 3 in val; only in train: 0, 1, 2 and 7 more; only in val: a, b, c; every"):
        same_classes("0123456789", "abc")


def test_loader_speed_counts_and_refuses(source):
    train, _ = class_folders(source, size=32)
    assert loader_speed(train, batch_size=5, seconds=.1) > 0 and loader_speed(train, batch_size=50, workers=1, seconds=.1) > 0
    keys = [next(batches) for batches in [folders._key_batches(6, 4, 1)] for _ in range(6)]
    assert sorted(sum(keys, [])) == [(epoch, index) for epoch in range(4) for index in range(6)]
    for options in (dict(batch_size=0), dict(workers=-1), dict(seconds=0)):
        with pytest.raises(ValueError, match="need batch_size"):
            loader_speed(train, **options)


def test_importing_draws_and_evaluates_nothing():
    code = "import sys, lesa_nb.data.folders; print([m for m in ('matplotlib', 'sklearn', 'pycocotools', 'torchmetrics') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_transforms_take_any_picture():
    for augment in AUGMENTS:
        for size in ((1, 1), (1, 90), (90, 1), (7, 5)):
            for transform in (train_transform(32, augment), valid_transform(32)):
                result = transform(Image.new("RGB", size, "red"))
                assert result.shape == (3, 32, 32) and result.dtype == torch.float32 and result.isfinite().all()
    assert isinstance(valid_transform(32).transforms[0], v2.Resize) and valid_transform(32).transforms[0].size == [37]
