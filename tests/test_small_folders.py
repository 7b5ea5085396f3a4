"""Folders that do not fill one batch: the batch becomes as large as they allow, is said, and stays the run's own."""

import json
import os

import pytest
from processes import run_ranks

from lesa_nb.cli.app import main
from lesa_nb.data.drawn import make_image_folder
from lesa_nb.data.drawn_coco import make_coco
from lesa_nb.engine._checkpoint import read_checkpoint

COMMON = "--network small --workers 0 --device cpu --no-tensorboard".split()


def recipe_of(run):
    return read_checkpoint(run / "last.pt")["recipe"]


@pytest.fixture
def pictures(tmp_path):
    "Three classes of three pictures each, nine in all."
    folder = make_image_folder(tmp_path / "pictures", train=3, val=1, size=32)
    return ["train", "imagenet", "--data", str(folder), *COMMON, "--image-size", "24", "--out", str(tmp_path / "run")]


@pytest.mark.parametrize("asked, batch", [([], 128), (["--batch-size", "32"], 32)])
def test_a_small_folder_of_classes(pictures, tmp_path, capsys, asked, batch):
    assert main([*pictures, *asked, "--epochs", "1"]) == 0
    said = capsys.readouterr().out
    assert f"batch: 9 samples to train on do not fill one of {batch}, so a step takes 9, and the learning rate" in said
    assert "learning rate: 0.05 for 128 samples, so 0.00351563 for 9 (1 process(es) x 1 micro-batch(es) x 9" in said
    recipe = json.loads((tmp_path / "run" / "last.json").read_text())["recipe"]
    assert recipe["batch_size"] == recipe_of(tmp_path / "run")["batch_size"] == 9


def test_the_batch_is_part_of_the_run(pictures, tmp_path, capsys):
    run = tmp_path / "run"
    assert main([*pictures, "--epochs", "3", "--stop-after", "1"]) == 0
    again = [*pictures, "--epochs", "3", "--resume", "auto"]
    assert main([*again, "--stop-after", "2"]) == 0  # the same folder, so the same batch
    assert recipe_of(run)["batch_size"] == 9 and "resumed in epoch 2 after step 0 of 1" in capsys.readouterr().out
    red = tmp_path / "pictures" / "train" / "red"
    (red / "new.png").write_bytes((red / "00000.png").read_bytes())
    assert main([*again, "--accept-changed-data"]) == 2  # another batch would be another run: never silently
    assert "recipe batch_size: 9 there, 10 now" in capsys.readouterr().err
    assert main([*again, "--accept-changed-data", "--batch-size", "9"]) == 0
    assert recipe_of(run)["batch_size"] == 9


def test_a_batch_that_fits_says_nothing(pictures, capsys):
    assert main([*pictures, "--epochs", "1", "--batch-size", "4"]) == 0
    said = capsys.readouterr().out
    assert "do not fill" not in said and "2 steps in an epoch" in said


@pytest.mark.parametrize("words, size", [([], 3), (["--batch-size", "16", "--accumulate", "8"], 2)])
def test_a_small_set_of_objects(tmp_path, capsys, words, size):
    data = make_coco(tmp_path / "coco", train=3, val=2, test=1, size=64)
    found = ["train", "coco", "--data", str(data), "--out", str(tmp_path / "run"), *COMMON, "--image-size", "40"]
    assert main([*found, *words, "--epochs", "1"]) == 0
    said, recipe = capsys.readouterr().out, recipe_of(tmp_path / "run")
    assert f"do not fill one of {words[1] if words else 4}, so a step takes {recipe['batch_size']}" in said
    assert recipe["batch_size"] == size and recipe["accumulate"] == (2 if words else 1)


def test_two_processes_share_a_small_batch(pictures, tmp_path):
    words = [*pictures, "--epochs", "1", "--batch-size", "16", "--accumulate", "2"]
    said = run_ranks("-m", "lesa_nb.cli", *words, timeout=400)
    assert said.count("batch: 9 samples to train on do not fill one of 16, so a step takes 8") == 1
    assert "2 process(es) x 2 micro-batch(es) x 2 samples" in said
    recipe = recipe_of(tmp_path / "run")
    assert (recipe["batch_size"], recipe["accumulate"]) == (8, 2)


@pytest.mark.parametrize("command", ["train imagenet --data", "train coco --data", "verify-data imagenet",
                                     "verify-data coco"])
def test_what_is_no_folder_is_called_what_it_is(command, tmp_path, capsys, monkeypatch):
    "An archive, an annotation file, a link to a disk that is not there, a folder of somebody else."
    (tmp_path / "data.zip").write_bytes(b"PK")
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "theirs").mkdir()
    stat = os.stat

    def closed(path, *words, **options):
        if str(path).endswith("theirs"):
            raise PermissionError(13, "Permission denied", path)
        return stat(path, *words, **options)

    monkeypatch.setattr(os, "stat", closed)
    for name, says in (("data.zip", "expected a folder, found a file"), ("link", "a link that leads nowhere"),
                       ("gone", "no such folder"), ("theirs", "cannot be looked into (Permission denied)")):
        assert main([*command.split(), str(tmp_path / name)]) == 2
        assert f"{tmp_path / name}: {says}" in capsys.readouterr().err
