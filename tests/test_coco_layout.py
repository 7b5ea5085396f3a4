"""Detection sets as tools leave them: each layout is found, checked, trained, scored, asked; unknown ones refused."""

import json
import shutil
from pathlib import Path

import pytest

from lesa_nb.cli.app import main
from lesa_nb.data.coco import CocoFolder
from lesa_nb.data.coco_layout import find_coco_layout
from lesa_nb.data.drawn_coco import make_coco
from lesa_nb.data.folders import held_out
from lesa_nb.data.verify_coco import verify_coco
from lesa_nb.weights.load import load

SMALL = "--network small --image-size 64 --epochs 1 --batch-size 2 --workers 0 --no-tensorboard --device cpu".split()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return make_coco(tmp_path_factory.mktemp("drawn") / "coco", train=8, val=4, test=0, size=64)


def content_of(source, split):
    return json.loads((source / "annotations" / f"instances_{split}.json").read_text())


def write(path, content, encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding=encoding)


def copy_images(source, split, to):
    shutil.copytree(source / split, to, dirs_exist_ok=True)


def add_litter(folder):
    """What a Mac and an unzipped archive leave beside pictures and annotations."""
    for place in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        (place / "._x.jpg").write_bytes(b"\0\5\26\7")
        (place / ".DS_Store").write_bytes(b"x")
    (folder / "__MACOSX").mkdir()
    (folder / "__MACOSX" / "_annotations.coco.json").write_text("{")
    for path in list(folder.rglob("*.json")):
        if "__MACOSX" not in path.parts:
            (path.parent / f"._{path.name}").write_bytes(b"\0\5\26\7")


def as_coco(source, folder):
    shutil.copytree(source, folder)


def as_roboflow(source, folder, valid="valid", encoding="utf-8"):
    """Annotations beside the pictures, ids from 1, and category 0, which only groups the others."""
    for split, name in ("train2017", "train"), ("val2017", valid):
        copy_images(source, split, folder / name)
        content = content_of(source, split)
        ids = {category["id"]: i for i, category in enumerate(content["categories"], 1)}
        content["categories"] = [dict(id=0, name="shapes", supercategory="none")] + [
            dict(id=ids[c["id"]], name=c["name"], supercategory="shapes") for c in content["categories"]
        ]
        for annotation in content["annotations"]:
            annotation["category_id"] = ids[annotation["category_id"]]
        write(folder / name / "_annotations.coco.json", content, encoding)


def merged(source, prefix=""):
    """Both splits as one set."""
    train, val = content_of(source, "train2017"), content_of(source, "val2017")
    for part in train, val:
        for image in part["images"]:
            image["file_name"] = prefix + image["file_name"]
    return train | {key: train[key] + val[key] for key in ("images", "annotations")}


def as_one_set(source, folder, images="images", file="annotations/instances_default.json", prefix=""):
    for split in "train2017", "val2017":
        copy_images(source, split, folder / images)
    write(folder / file, merged(source, prefix))


def as_cvat_parts(source, folder):
    as_one_set(source, folder, images="images/part one", prefix="part one/")


def as_cvat_subsets(source, folder):
    for split, name in ("train2017", "Train"), ("val2017", "Validation"):
        copy_images(source, split, folder / "images" / name)
        write(folder / "annotations" / f"instances_{name}.json", content_of(source, split))


def as_label_studio(source, folder):
    as_one_set(source, folder, file="result.json", prefix="images/")


def as_label_studio_on_windows(source, folder):
    as_one_set(source, folder, file="result.json", prefix="images\\")


def as_labelme(source, folder):
    as_one_set(source, folder, images="JPEGImages", file="annotations.json", prefix="JPEGImages/")


TWO = dict(coco=as_coco, roboflow=as_roboflow, cvat_subsets=as_cvat_subsets)
ONE = dict(cvat=as_one_set, cvat_parts=as_cvat_parts, label_studio=as_label_studio, labelme=as_labelme,
           windows=as_label_studio_on_windows)


def names(dataset):
    return {dataset.file(i).name for i in dataset.image_ids}


def objects(*datasets):
    return sorted(
        (dataset.file(i).name, dataset.categories.name(dataset.categories.label(a["category_id"])), tuple(a["bbox"]))
        for dataset in datasets
        for i in dataset.image_ids
        for a in dataset.annotations(i)
    )


# ---- what is found


@pytest.mark.fault("P1")
@pytest.mark.parametrize("layout", TWO)
def test_a_set_with_two_splits_is_read_as_cocos_own(source, tmp_path, layout):
    TWO[layout](source, tmp_path / "set")
    add_litter(tmp_path / "set")
    for role, own in ("train", "train2017"), ("val", "val2017"):
        here, there = CocoFolder(tmp_path / "set", role), CocoFolder(source, own)
        assert objects(here) == objects(there) and here.categories.names == there.categories.names
        assert all(image.shape[0] == 3 for image, _ in here)
    report = verify_coco(tmp_path / "set", semantic=False, progress=False)
    assert report.ok, str(report)
    words = dict(coco="COCO's own layout", roboflow="Roboflow's layout")
    word = words.get(layout, "COCO files with a folder of pictures, as CVAT")
    assert f"layout: {word}" in str(report) and "pictures in " in str(report)
    with pytest.raises(ValueError, match="to validate on already; leave val_fraction out"):
        find_coco_layout(tmp_path / "set", val_fraction=0.2)


@pytest.mark.parametrize("layout", ONE)
def test_one_set_is_split_by_the_names_of_its_pictures(source, tmp_path, layout):
    ONE[layout](source, tmp_path / "set")
    add_litter(tmp_path / "set")
    found = find_coco_layout(tmp_path / "set", val_fraction=0.3)
    train, val = CocoFolder(found), CocoFolder(found, "val")
    assert len(train) + len(val) == 12 and len(train) and len(val) and not names(train) & names(val)
    assert objects(train, val) == objects(CocoFolder(source, "train2017"), CocoFolder(source, "val2017"))
    stored = [image["file_name"].replace("\\", "/") for image in json.loads(train.path.read_text())["images"]]
    assert names(val) == {Path(name).name for name, held in zip(stored, held_out(stored, 0.3)) if held}
    report = verify_coco(found, progress=False)
    assert report.ok and "a hash of each file's name puts 30 %" in str(report)
    # without the fraction nothing validates: the check says what training would say
    report = verify_coco(tmp_path / "set", progress=False)
    assert [fault.kind for fault in report.fatal] == ["no split to validate on"] and "--val-fraction 0.2" in str(report)
    with pytest.raises(FileNotFoundError, match="no split 'val'.*--val-fraction 0.2"):
        CocoFolder(tmp_path / "set", "val")


def test_pictures_that_are_added_move_no_others(source, tmp_path):
    as_one_set(source, tmp_path / "set")
    before = CocoFolder(find_coco_layout(tmp_path / "set", val_fraction=0.4), "val")
    path = tmp_path / "set" / "annotations" / "instances_default.json"
    content = json.loads(path.read_text())
    first = content["images"][0]
    for number in range(20):
        name = f"new {number}.jpg"
        shutil.copy(tmp_path / "set" / "images" / first["file_name"], tmp_path / "set" / "images" / name)
        content["images"].append(first | dict(id=900_000 + number, file_name=name))
    path.write_text(json.dumps(content))
    after = CocoFolder(find_coco_layout(tmp_path / "set", val_fraction=0.4), "val")
    assert names(before) == {name for name in names(after) if not name.startswith("new")} and len(after) > len(before)


def test_roboflows_test_folder_validates_where_there_is_no_valid(source, tmp_path):
    as_roboflow(source, tmp_path / "set", valid="test")
    assert find_coco_layout(tmp_path / "set").files("val").split == "test"


def test_the_only_set_of_another_name_trains(source, tmp_path):
    as_coco(source, tmp_path / "set")
    for kind in "annotations/instances_train2017.json", "train2017":
        (tmp_path / "set" / kind).rename(tmp_path / "set" / kind.replace("train2017", "mine"))
    layout = find_coco_layout(tmp_path / "set")
    assert [layout.split_name(role) for role in ("train", "val")] == ["mine", "val2017"]


def test_the_unused_supercategory_is_left_out_with_a_word(source, tmp_path):
    as_roboflow(source, tmp_path / "set")
    dataset = CocoFolder(tmp_path / "set")
    assert dataset.categories.ids == [1, 2, 3] and dataset.dropped["unused supercategory"] == 1
    report = verify_coco(tmp_path / "set", progress=False)
    assert report.ok and "2 x unused supercategory: left out, gets no label" in str(report)
    assert "first: train/_annotations.coco.json (category 0, 'shapes'" in str(report)
    # one that is used, or does not group all the others, is a class like any other
    path = tmp_path / "set" / "train" / "_annotations.coco.json"
    content = json.loads(path.read_text())
    for used in True, False:
        changed = json.loads(json.dumps(content))
        if used:
            changed["annotations"][0]["category_id"] = 0
        else:
            changed["categories"][1]["supercategory"] = "none"
        path.write_text(json.dumps(changed))
        assert CocoFolder(tmp_path / "set").categories.ids == [0, 1, 2, 3]


def test_a_byte_order_mark_is_read(source, tmp_path):
    as_roboflow(source, tmp_path / "set", encoding="utf-8-sig")
    as_label_studio(source, tmp_path / "other")
    path = tmp_path / "other" / "result.json"
    path.write_text(path.read_text(), encoding="utf-8-sig")
    assert len(CocoFolder(tmp_path / "set")) == 8 and len(CocoFolder(tmp_path / "other")) == 12


def test_other_classes_in_the_two_splits_are_not_ready(source, tmp_path):
    as_roboflow(source, tmp_path / "set")
    path = tmp_path / "set" / "valid" / "_annotations.coco.json"
    content = json.loads(path.read_text())
    content["categories"][1]["name"] = "ball"
    path.write_text(json.dumps(content))
    report = verify_coco(tmp_path / "set", progress=False)
    assert [fault.kind for fault in report.fatal] == ["other categories"]
    assert "'ball'" in str(report) and "'disc'" in str(report)
    # the same names under other ids are mapped
    as_coco(source, tmp_path / "other")
    path = tmp_path / "other" / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    for category in content["categories"]:
        category["id"] += 100
    for annotation in content["annotations"]:
        annotation["category_id"] += 100
    path.write_text(json.dumps(content))
    assert verify_coco(tmp_path / "other", semantic=False, progress=False).ok


def test_paths_by_hand(source, tmp_path):
    given = dict(
        train_images=source / "train2017",
        train_annotations=source / "annotations" / "instances_train2017.json",
        val_images=source / "val2017",
        val_annotations=source / "annotations" / "instances_val2017.json",
    )
    layout = find_coco_layout(**given)
    assert objects(CocoFolder(layout, "val")) == objects(CocoFolder(source, "val2017"))
    assert verify_coco(layout, progress=False).ok and "paths given by hand" in str(layout)
    one = find_coco_layout(val_fraction=0.5, **{name: given[name] for name in ("train_images", "train_annotations")})
    assert len(CocoFolder(one)) + len(CocoFolder(one, "val")) == 8
    with pytest.raises(ValueError, match="val_annotations is missing"):
        find_coco_layout(val_images=source / "val2017")
    with pytest.raises(ValueError, match="give one of the two"):
        find_coco_layout(source, **given)
    with pytest.raises(FileNotFoundError, match="no such file; the annotations of val"):
        find_coco_layout(**given | dict(val_annotations=source / "none.json"))
    with pytest.raises(FileNotFoundError, match="no such folder; the pictures of train"):
        find_coco_layout(**given | dict(train_images=source / "none"))


# ---- refusals


@pytest.mark.parametrize("words", [["verify-data", "coco"], ["train", "coco", "--out", "run", *SMALL, "--data"]])
def test_an_unknown_layout_is_one_sentence(tmp_path, capsys, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "set" / "labels").mkdir(parents=True)
    (tmp_path / "set" / "data.yaml").write_text("nc: 3")
    (tmp_path / "set" / "notes.json").write_text('{"images": 3}')
    assert main([*words, "set"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "Traceback" not in error
    for word in "looked for annotations/instances_SPLIT.json", "found labels/, data.yaml, notes.json", "--train-images":
        assert word in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "words, status, message",
    [
        ([], 2, "name a folder, or --train-images"),
        (["--data", "set", "--val-images", "x"], 2, "not both"),
        (["--data", "set", "--val-fraction", "1.5"], 2, "between 0 and 1"),
        (["--data", "set"], 2, "--val-fraction 0.2"),
        (["--val-images", "set/images"], 2, "val_annotations is missing"),
    ],
)
def test_refusals_before_anything_is_written(source, tmp_path, capsys, monkeypatch, words, status, message):
    monkeypatch.chdir(tmp_path)
    as_one_set(source, tmp_path / "set")
    assert main(["train", "coco", "--out", "run", *SMALL, *words]) == status
    assert message in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_pictures_that_are_nowhere(source, tmp_path):
    as_one_set(source, tmp_path / "set")
    shutil.rmtree(tmp_path / "set" / "images")
    with pytest.raises(FileNotFoundError, match="the images of default belong there, or in .*images"):
        CocoFolder(tmp_path / "set")
    assert not verify_coco(find_coco_layout(tmp_path / "set", val_fraction=0.3), progress=False).ok


def test_one_picture_cannot_be_split(source, tmp_path):
    as_one_set(source, tmp_path / "set")
    path = tmp_path / "set" / "annotations" / "instances_default.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | dict(images=content["images"][:1])))
    with pytest.raises(ValueError, match="a split needs at least two"):
        CocoFolder(find_coco_layout(tmp_path / "set", val_fraction=0.3))


# ---- from an export to predictions, as commands


@pytest.fixture
def lesa(capsys):
    """Run a command; what it says."""

    def run(*words):
        status = main(list(map(str, words)))
        said = capsys.readouterr()
        assert status == 0, said.out + said.err
        return said.out

    return run


def test_from_an_export_to_predictions(source, tmp_path, lesa):
    "Of CVAT's, split by names; the README's journey with Roboflow's is in test_journey.py."
    folder, run, options = tmp_path / "set", tmp_path / "run", ["--val-fraction", "0.3"]
    as_one_set(source, folder)
    add_litter(folder)
    assert "ready to train" in lesa("verify-data", "coco", folder, *options)
    assert "layout: " in lesa("train", "coco", "--data", folder, "--out", run, *SMALL, *options)
    file = run / "last.safetensors"
    said = lesa("eval", "coco", "--data", folder, "--weights", file, "--out", tmp_path / "scores.json", *options)
    scores = json.loads((tmp_path / "scores.json").read_text())
    seen = load(file).metadata["scores"]
    assert "mask" in said and abs(100 * scores["box"]["AP"] - seen["box AP"]) < 1e-3
    assert set(scores["classes"]["box"]) == {"disc", "square", "triangle"}
    picture = next(folder.rglob("[!.]*.jpg"))
    asked = "--out", tmp_path / "drawn", "--json", tmp_path / "found.json", "--threshold", "0"
    lesa("predict", picture, "--weights", file, *asked)
    (answer,) = json.loads((tmp_path / "found.json").read_text())
    assert {thing["name"] for thing in answer["objects"]} <= {"disc", "square", "triangle"}
    assert all("mask" in thing for thing in answer["objects"])


# ---- boxes only


@pytest.fixture
def boxes(source, tmp_path):
    """A folder without any mask."""
    folder = Path(shutil.copytree(source, tmp_path / "boxes"))
    for split in "train2017", "val2017":
        content = content_of(source, split)
        for annotation in content["annotations"]:
            annotation["segmentation"] = []
        write(folder / "annotations" / f"instances_{split}.json", content)
    return folder


@pytest.mark.parametrize("model", ["mask_rcnn", "htc"])
def test_boxes_only_from_end_to_end(boxes, tmp_path, lesa, model):
    run, found = tmp_path / "run", tmp_path / "found.json"
    assert "boxes only" in lesa("verify-data", "coco", boxes)
    said = lesa("train", "coco", "--data", boxes, "--out", run, "--model", model, *SMALL)
    assert "boxes only: no object to train on has a mask" in said and "best box AP" in said
    file = run / "last.safetensors"
    loaded = load(file)
    assert not any("mask_head" in name for name, _ in loaded.model.named_parameters())
    assert loaded.metadata["net"]["masks"] is False
    said = lesa("eval", "coco", "--data", boxes, "--weights", file, "--out", tmp_path / "scores.json")
    assert f"boxes only: {file} was trained without masks" in said
    assert json.loads((tmp_path / "scores.json").read_text())["mask"] is None
    picture = next((boxes / "val2017").glob("*.jpg"))
    said = lesa("predict", picture, "--weights", file, "--out", tmp_path / "drawn", "--json", found, "--threshold", "0")
    (answer,) = json.loads(found.read_text())
    assert "boxes only" in said and not any("mask" in thing for thing in answer["objects"])


def test_a_detector_with_masks_is_scored_on_boxes_alone(source, boxes, tmp_path, lesa):
    run = tmp_path / "run"
    lesa("train", "coco", "--data", source, "--out", run, *SMALL)
    said = lesa("eval", "coco", "--data", boxes, "--weights", run / "last.safetensors")
    assert "boxes only: no object in " in said


def test_some_masks_are_counted_by_the_check(source, tmp_path):
    folder = Path(shutil.copytree(source, tmp_path / "some"))
    content = content_of(source, "train2017")
    for annotation in content["annotations"][::2]:
        annotation["segmentation"] = []
    write(folder / "annotations" / "instances_train2017.json", content)
    assert "masks are learned from these, boxes from all" in str(verify_coco(folder, progress=False))
