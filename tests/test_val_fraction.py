"""A network that was trained on a part of a folder is not scored on all of it by accident."""
import shutil

import pytest

from lesa_nb.cli import main
from lesa_nb.data.drawn import make_image_folder
from lesa_nb.weights.load import load


def test_what_was_held_out_is_what_is_scored(tmp_path, capsys):
    drawn = make_image_folder(tmp_path/"drawn", train=12, val=1, size=48)
    shutil.move(drawn/"train", tmp_path/"mine")
    run, mine = tmp_path/"run", str(tmp_path/"mine")
    words = ["train", "imagenet", "--data", mine, "--out", str(run), "--network", "small", "--image-size", "48"]
    words += ["--epochs", "1", "--batch-size", "4", "--workers", "0", "--no-tensorboard", "--val-fraction", "0.25"]
    assert main(words) == 0
    metadata = load(run/"last.safetensors").metadata
    assert (metadata["val_fraction"], metadata["position"]) == (.25, "factored")  # as detectors need it
    said = capsys.readouterr().out
    assert "factored tables" in said

    ask = ["eval", "imagenet", "--data", mine, "--weights", str(run/"last.safetensors"), "--workers", "0"]
    assert main(ask) == 2
    refusal = capsys.readouterr().err
    assert "trained on a part of such a folder" in refusal and "val_fraction=0.25" in refusal
    assert main([*ask, "--val-fraction", "0.25"]) == 0
    assert f"top-1 {metadata['scores']['top1']:.2f} %" in capsys.readouterr().out
    (tmp_path/"new").mkdir()
    shutil.move(tmp_path/"drawn"/"val", tmp_path/"new"/"test")
    assert main(["eval", "imagenet", "--data", str(tmp_path/"new"), *ask[4:]]) == 0


@pytest.mark.parametrize("network, position", [("small", "factored"), ("resnet50", "flat")])
def test_the_kind_of_table_follows_the_network(tmp_path, network, position):
    from lesa_nb.tasks.classify import classification_task, find_recipe

    task = classification_task(make_image_folder(tmp_path/"drawn", train=1, val=1, size=32),
                               find_recipe("published"), network=network)
    assert task.metadata["position"] == position and "val_fraction" not in task.metadata
