"""Folders of pictures as data sets: torchvision's list, samples that depend on their key alone, splits by name."""

import os
import pickle
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from class_folders import look
from PIL import Image
from torch.utils.data import DataLoader, default_collate
from torchvision import datasets

from lesa_nb.data import speed
from lesa_nb.data.folders import ClassFolder, class_folders, class_names, held_out, same_classes
from lesa_nb.data.listing import _VALIDATION_NAMES, _describe_skipped, _list_entries, find_layout, is_litter, list_files
from lesa_nb.data.speed import loader_speed
from lesa_nb.data.transforms import CLASSIFY_AUGMENTS

ROOT = Path(__file__).resolve().parent.parent


# Reading


def test_the_same_list_as_torchvision(folder):
    (folder / "train/red/sub").mkdir()
    shutil.copy(folder / "train/red/00000.png", folder / "train/red/sub/B.PNG")
    (folder / "train/Red").symlink_to(folder / "train/red")
    (folder / "train/note.txt").touch()
    for at in (str(folder / "train"), str(folder / "train") + os.sep, folder / "train"):
        ours, theirs = ClassFolder(at), datasets.ImageFolder(at)
        assert [(os.path.realpath(ours.path(i)), y) for i, y in enumerate(ours.labels.tolist())] == [
            (os.path.realpath(p), y) for p, y in theirs.samples
        ]
        assert ours.classes == theirs.classes == ["Red", "blue", "green", "red"] and len(ours) == len(theirs) == 34
    for index in (0, 33, -1):
        assert (
            np.array_equal(np.array(ours[index][0]), np.array(theirs[index][0])) and ours[index][1] == theirs[index][1]
        )
    with pytest.raises(IndexError):
        ours[34]


@pytest.mark.parametrize("augment", CLASSIFY_AUGMENTS)
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


def test_batches_carry_names(source):
    _, valid = class_folders(source, size=32)
    images, labels, names = default_collate([valid[0], valid[8]])
    assert images.shape == (2, 3, 32, 32) and images.dtype == torch.float32 and labels.dtype == torch.int64
    assert [valid.classes[y] for y in labels] == [Path(name).parent.name for name in names] == ["blue", "red"]
    assert torch.equal(valid[5][0], valid[9, 5][0])


@pytest.mark.fault("C2")
def test_same_classes_lists_what_differs():
    assert same_classes(["a", "b"], ["a", "b"]) == ["a", "b"]
    with pytest.raises(
        ValueError,
        match="classes differ: 10 in train, 3 in val; only in train: 0, 1, 2 and 7 more; only in val: a, b, c; every",
    ):
        same_classes("0123456789", "abc")


def test_loader_speed_counts_and_refuses(source):
    train, _ = class_folders(source, size=32)
    assert (
        loader_speed(train, batch_size=5, seconds=0.1) > 0
        and loader_speed(train, batch_size=50, workers=1, seconds=0.1) > 0
    )
    keys = [next(batches) for batches in [speed._key_batches(6, 4, 1)] for _ in range(6)]
    assert sorted(sum(keys, [])) == [(epoch, index) for epoch in range(4) for index in range(6)]
    for options in (dict(batch_size=0), dict(workers=-1), dict(seconds=0)):
        with pytest.raises(ValueError, match="need batch_size"):
            loader_speed(train, **options)


def test_a_broken_picture_is_named_while_speed_is_measured(source, tmp_path):
    train, _ = class_folders(shutil.copytree(source, tmp_path / "broken"), size=32)
    Path(train.path(0)).write_bytes(b"torn")
    for workers in (0, 1):
        with pytest.raises(ValueError, match="^.*: not a picture .in no format that Pillow reads.$"):
            loader_speed(train, batch_size=len(train), workers=workers, seconds=0.1)
    assert pickle.loads(pickle.dumps(speed._Batches(train, default_collate))).dataset.classes == train.classes  # spawn


def test_importing_draws_and_evaluates_nothing():
    heavy = ("matplotlib", "sklearn", "pycocotools", "torchmetrics")
    code = f"import sys, lesa_nb.data.folders; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


# What is no picture


def litter(folder):
    "What operating systems and tools leave behind; returns how many names are skipped."
    (folder / "train/red/._cat.jpg").write_bytes(b"\0\5\x16\7")
    (folder / "train/red/Thumbs.db").touch()
    for name in ("train/__MACOSX", "train/.ipynb_checkpoints", "train/red/.hidden", "val/.ipynb_checkpoints"):
        (folder / name).mkdir()
        shutil.copy(folder / "train/red/00000.png", folder / name / "x.png")
    return 6


@pytest.mark.fault("P1")
def test_litter_is_skipped_and_counted(folder):
    clean = [ClassFolder(folder / split) for split in ("train", "val")]
    count = litter(folder)
    train, val = class_folders(folder)
    assert train.classes == val.classes == ["blue", "green", "red"]
    assert [len(train), len(val)] == [len(part) for part in clean] and train.labels.equal(clean[0].labels)
    assert train.skipped["system file"] + val.skipped["system file"] == count and not clean[0].skipped
    report = look(folder)
    assert report.ok and report.counts == {"system file": count}
    assert f"{count} x system file: skipped; first: " in str(report) and len(str(report).splitlines()) == 5
    assert _describe_skipped(train.skipped + val.skipped) == f"{count} x system file"
    assert not _describe_skipped(Counter())
    assert is_litter("__MACOSX") and is_litter("desktop.ini") and not is_litter("cat.jpg")


@pytest.mark.fault("P1")
@pytest.mark.parametrize(
    "link, to",
    [
        ("train/red/up", "train/red"),
        ("train/red/up", "train"),
        ("train/red/up", "."),
        ("train/red/sub/up", "train/red"),
        ("train/all", "train"),
        ("train/all", "."),
        ("train/red/root", "/"),
    ],
)
def test_a_link_to_a_folder_above_is_noticed(folder, link, to):
    (folder / link).parent.mkdir(exist_ok=True)
    (folder / link).symlink_to(folder / to)
    train, val = class_folders(folder)
    assert train.classes == val.classes and len(train) == 24 and train.skipped == {"link to a folder above": 1}
    report = look(folder)
    assert report.ok and report.counts == {"link to a folder above": 1} and report.splits["train"].total() == 24


def test_links_that_chase_each_other_end(folder):
    for one, other in (("red", "blue"), ("blue", "red")):
        (folder / "train" / one / "other").symlink_to(folder / "train" / other)
    train = ClassFolder(folder / "train")
    assert len(train) == 8 * 5 and train.skipped == {"link to a folder above": 2}  # each class sees the other once
    (folder / "train/green/self").symlink_to("self")
    assert len(ClassFolder(folder / "train")) == 8 * 5


@pytest.mark.fault("C6")
def test_a_link_beside_is_followed(folder, tmp_path):
    shutil.copytree(folder / "val/red", tmp_path / "more")
    (folder / "train/red/more").symlink_to(tmp_path / "more")
    assert len(ClassFolder(folder / "train")) == len(datasets.ImageFolder(folder / "train")) == 27


def test_formats_that_cannot_be_read_are_said(folder):
    (folder / "train/red/x.heic").write_bytes(b"x")
    report = look(folder)
    assert report.ok and report.counts == {"format not read": 1} and "1 x format not read: left out" in str(report)
    for suffix in ("gif", "jfif"):
        Image.open(folder / "train/red/00000.png").convert("RGB").save(
            folder / f"train/red/x.{suffix}", "JPEG" if suffix == "jfif" else None
        )
    assert len(ClassFolder(folder / "train")) == 26


# Turned, deep and large pictures


@pytest.mark.fault("P5")
def test_a_turned_picture_is_turned_unless_asked_not_to(folder):
    path = folder / "train/blue/00001.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.open(path).convert("RGB")
    stored.save(path, exif=exif)
    turned, kept = ClassFolder(folder / "train")[1][0], ClassFolder(folder / "train", exif=False)[1][0]
    assert turned.size == stored.size[::-1] and np.array_equal(np.array(turned), np.rot90(np.array(stored), 3))
    assert np.array_equal(np.array(kept), np.array(stored))
    assert look(folder).counts == {"EXIF rotation": 1} and look(folder, exif=False).counts == {"EXIF rotation kept": 1}
    assert "turned upright" in str(look(folder))
    assert class_folders(folder, exif=False)[0].exif is False


def test_what_the_reader_refuses_is_fatal_before_training(folder):
    values = np.linspace(0, 4095, 64 * 64).astype(np.uint16).reshape(64, 64)
    Image.fromarray(values).save(folder / "train/red/deep.png")
    report = look(folder)
    assert [fault.kind for fault in report.fatal] == ["unclear range"] and "values 0 to 4,095 of 65,535" in str(report)
    with pytest.raises(ValueError, match="deep.png: unclear range"):
        ClassFolder(folder / "train")[-1]


# Splits


@pytest.mark.parametrize("name", _VALIDATION_NAMES)
def test_the_second_half_has_many_names(folder, name):
    (folder / "val").rename(folder / name)
    train, val = class_folders(folder, size=32)
    assert (len(train), len(val)) == (24, 9) and Path(val.folder).name == name and look(folder).ok
    assert str(find_layout(folder)) == f"train/ and {name}/ hold a folder for each class"


def split_names(folder, fraction):
    return [{part.path(i) for i in range(len(part))} for part in class_folders(folder, size=32, val_fraction=fraction)]


def test_a_folder_without_a_split_is_split_by_name(folder):
    flat = folder / "train"
    train, val = split_names(flat, 0.25)
    assert train | val == {str(path) for path in flat.rglob("*.png")} and not train & val
    for name in ("red", "green", "blue"):
        assert (
            {Path(path).parent.name for path in train}
            == {Path(path).parent.name for path in val}
            == {"red", "green", "blue"}
        )
    report = look(flat, val_fraction=0.25)
    assert report.ok and report.splits["train"].total() == len(train) and report.splits["val"].total() == len(val)
    assert "a hash of each file's name puts 25 % of the pictures into validation" in str(report)
    (folder / "val").rename(folder / "other")
    assert split_names(folder, 0.25) == [train, val]  # a train/ alone is split, too


def test_adding_pictures_moves_no_other(folder):
    flat = folder / "train"
    for i in range(100):
        shutil.copy(flat / "red/00000.png", flat / f"red/more{i}.png")
    train, val = split_names(flat, 0.2)
    for i in range(100, 150):
        shutil.copy(flat / "red/00000.png", flat / f"red/more{i}.png")
    (flat / "brown").mkdir()
    for i in range(2):
        shutil.copy(flat / "red/00000.png", flat / f"brown/{i}.png")
    more_train, more_val = split_names(flat, 0.2)
    assert train < more_train and val < more_val


def test_small_classes_and_wrong_fractions(folder):
    flat = folder / "train"
    for i in range(1, 8):
        (flat / f"red/0000{i}.png").unlink()
    with pytest.raises(ValueError, match="red/00000.png: the only picture of its class; a split needs at least two"):
        class_folders(flat, val_fraction=0.2)
    (fault,) = look(flat, val_fraction=0.2).fatal
    assert fault.kind == "class too small" and fault.path.endswith("red")
    for fraction in (0, 1, -0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="val_fraction must lie between 0 and 1"):
            class_folders(flat, val_fraction=fraction)
    with pytest.raises(ValueError, match="holds train/ and val/ already; leave val_fraction out"):
        class_folders(folder, val_fraction=0.2)
    with pytest.raises(FileNotFoundError, match="expected train/ and val/ in .*val_fraction=0.2"):
        class_folders(flat)
    assert [sum(held_out([f"a/{i}" for i in range(2)], f)) for f in (1e-9, 0.5, 1 - 1e-9)] == [1, 1, 1]


def test_names_in_any_script_and_of_any_number(folder, tmp_path):
    flat = tmp_path / "many"
    for i in range(300):
        (flat / f"猫{i}").mkdir(parents=True)
        for j in range(2):
            (flat / f"猫{i}/{j}.png").symlink_to(folder / "train/red/00000.png")
    (flat / "Cat").symlink_to(flat / "猫0")
    (flat / "cat").symlink_to(flat / "猫1")
    train, val = class_folders(flat, size=32, val_fraction=0.1)
    assert len(train) == len(val) == 302 and train.classes == val.classes == sorted(os.listdir(flat))


def test_entries_and_files_are_sorted(folder):
    (folder / "train/red/a").mkdir()
    assert _list_entries(folder / "train").folders == ["blue", "green", "red"] == class_names(folder / "train")
    assert list_files(folder / "train/red").files == sorted(str(p) for p in (folder / "train/red").glob("*.png"))


def test_train_and_eval_take_a_folder_without_a_split(folder, tmp_path, capsys):
    from lesa_nb.cli.app import main

    (folder / "train/red/Thumbs.db").touch()
    data, words = str(folder / "train"), ["--val-fraction", "0.25", "--workers", "0", "--device", "cpu"]
    options = ["--network", "small", "--image-size", "64", "--position", "factored"]
    options += ["--epochs", "1", "--batch-size", "4"]
    assert main(["train", "imagenet", "--data", data, "--out", str(tmp_path / "run"), *options, *words]) == 0
    said = capsys.readouterr().out
    _, val = class_folders(data, val_fraction=0.25)
    assert f"{24 - len(val)} pictures to train on, {len(val)} to validate; a hash of each file's name decides" in said
    assert "25 % validate; skipped: 1 x system file" in said
    weights = str(tmp_path / "run/last.safetensors")
    assert main(["eval", "imagenet", "--data", data, "--weights", weights, *words]) == 0
    assert f"{len(val)} pictures: top-1" in capsys.readouterr().out
