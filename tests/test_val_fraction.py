"""A network that was trained on a part of a folder is not scored on all of it by accident."""
import shutil

import pytest

from lesa_nb.cli import main
from lesa_nb.data.coco_layout import find_coco_layout
from lesa_nb.data.drawn import make_image_folder
from lesa_nb.data.drawn_coco import make_coco
from lesa_nb.tasks.detect import DETECTION_RECIPES, detection_task
from lesa_nb.weights.files import save_weights
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
    assert main([*ask, "--val-fraction", "0.5"]) == 2  # a half of that was trained on
    refusal = capsys.readouterr().err
    assert "trained on all but val_fraction=0.25" in refusal and "score 0.25 or less" in refusal
    assert main([*ask, "--val-fraction", "0.1"]) == 0
    (tmp_path/"new").mkdir()
    shutil.move(tmp_path/"drawn"/"val", tmp_path/"new"/"test")
    assert main(["eval", "imagenet", "--data", str(tmp_path/"new"), *ask[4:]]) == 0


def test_a_detector_is_not_scored_on_what_it_was_trained_on_either(tmp_path, capsys):
    drawn = make_coco(tmp_path/"drawn", train=12, val=1, test=1, size=64)
    one = ["--train-images", str(drawn/"train2017"), "--train-annotations",
           str(drawn/"annotations"/"instances_train2017.json")]
    layout = find_coco_layout(None, val_fraction=.5, train_images=one[1], train_annotations=one[3])
    quiet = dict(network="small", image_size=64, say=lambda line: None)
    task = detection_task(layout, DETECTION_RECIPES["small"], **quiet)
    assert task.metadata["val_fraction"] == .5
    assert "val_fraction" not in detection_task(drawn, DETECTION_RECIPES["small"], **quiet).metadata
    save_weights(task.build(), tmp_path/"w.safetensors", **task.metadata)
    ask = ["eval", "coco", *one, "--weights", str(tmp_path/"w.safetensors"), "--workers", "0", "--val-fraction"]
    assert main([*ask, "0.9"]) == 2
    assert "trained on all but val_fraction=0.5" in capsys.readouterr().err
    assert main([*ask, "0.5"]) == 0


@pytest.mark.parametrize("network, position", [("small", "factored"), ("resnet50", "flat")])
def test_the_kind_of_table_follows_the_network(tmp_path, network, position):
    from lesa_nb.tasks.classify import classification_task, find_recipe

    task = classification_task(make_image_folder(tmp_path/"drawn", train=1, val=1, size=32),
                               find_recipe("published"), network=network)
    assert task.metadata["position"] == position and "val_fraction" not in task.metadata
