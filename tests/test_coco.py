"""COCO folders, whole and broken: what the reader leaves out, what it refuses, and what the check says."""

import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from coco_folders import PLANTED, edit, plant_faults
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from lesa_nb.data import coco
from lesa_nb.data.coco import CocoFolder, collate_detection
from lesa_nb.data.coco_file import ANNOTATION_FAULTS
from lesa_nb.data.drawn_coco import make_coco
from lesa_nb.data.verify_coco import verify_coco
from lesa_nb.tasks.coco_eval import score_results
from lesa_nb.tasks.coco_results import to_results


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return make_coco(tmp_path_factory.mktemp("a; ü folder") / "coco", train=16, val=8, size=96)


@pytest.fixture
def folder(source, tmp_path):
    return Path(shutil.copytree(source, tmp_path / "coco"))


def plain(content):
    "The first annotation of an image that has three annotations or more and no crowd."
    of = {}
    for a in content["annotations"]:
        of.setdefault(a["image_id"], []).append(a)
    return next(found for found in of.values() if len(found) >= 3 and not any(a["iscrowd"] for a in found))


def changed(**values):
    return lambda content: plain(content)[0].update(values)


FAULTS = {
    "no area": changed(bbox=[9, 9, 0, 0]),
    "box outside the image": changed(bbox=[500, 9, 20, 20]),
    "box not finite": changed(bbox=[9, math.nan, 20, 20]),
    "polygon of fewer than 3 points": changed(segmentation=[[9, 9, 20, 20]]),
    "empty segmentation": changed(segmentation=[]),
    "unknown category": changed(category_id=777),
    "crowd": changed(iscrowd=1, segmentation=None),  # the run lengths come below
    "duplicate annotation id": lambda content: plain(content)[1].update(id=plain(content)[0]["id"]),
    "broken segmentation": changed(segmentation=dict(size=[9, 9], counts=[81])),
    "unknown image": lambda content: plain(content)[0].update(image_id=5),
}


def objects(dataset):
    return sum(len(dataset.annotations(i)) for i in dataset.image_ids)


@pytest.mark.parametrize("kind", FAULTS)
def test_a_faulty_annotation_is_counted_and_left_out(folder, kind):
    before = CocoFolder(folder, training=True)

    def change(content):
        first = plain(content)[0]
        image = next(i for i in content["images"] if i["id"] == first["image_id"])
        FAULTS[kind](content)
        if kind == "crowd":
            inside = np.zeros((image["height"], image["width"]), bool)
            inside[9:20, 9:20] = True
            first["segmentation"] = dict(size=list(inside.shape), counts=coco.run_lengths(inside))

    edit(folder, change)
    report = verify_coco(folder, "train2017", progress=False)
    extra = 2 if kind == "crowd" else 0  # there were two crowds before
    assert report.ok and report.counts[kind] == 1 + extra and kind in str(report)
    assert any(f.kind == kind and f.annotation_id for f in report.faults)
    after = CocoFolder(folder, training=True)
    outcome = ANNOTATION_FAULTS[kind]
    assert after.dropped[kind] == (0 if outcome.startswith("kept") else 1 + extra)
    gone = outcome.startswith(
        "dropped"
    )  # what is wrong with a mask costs the mask, what is wrong with an id costs nothing
    assert objects(after) == objects(before) - gone
    empty = sum(int((target["masks"].flatten(1).amax(1) == 0).sum()) for _, target in after)
    assert empty == ("mask" in outcome)
    for image, target in after:
        assert len(target["labels"]) == len(target["masks"]) == len(target["boxes"]) > 0
        assert (target["boxes"][:, 2:] > target["boxes"][:, :2]).all()
    assert len(CocoFolder(folder)) == 16  # for scoring every image stays


def test_missing_image_is_fatal_and_named(folder):
    gone = next((folder / "train2017").iterdir())
    gone.unlink()
    report = verify_coco(folder, progress=False)
    assert not report.ok and [f.kind for f in report.fatal] == ["missing image"] and gone.name in str(report)
    with pytest.raises(ValueError, match=f"missing image|{gone.name}"):
        CocoFolder(folder, training=True)
    assert CocoFolder(folder, missing="drop").dropped == {"missing image": 1}
    assert len(CocoFolder(folder, missing="drop")) == 15


def test_images_without_annotations_and_with_crowds_only(folder):
    def change(content):
        for a in plain(content):
            a["iscrowd"] = 1

    edit(folder, change)
    report = verify_coco(folder, "train2017", progress=False)
    assert report.ok and report.counts["crowd only"] == 1 and report.counts["image without annotations"] == 2
    assert len(CocoFolder(folder, training=True)) == 16 - 3 == report.splits["train2017"][1]
    every = CocoFolder(folder, training=True, keep_empty=True)
    assert len(every) == 16
    empty = [t for _, t in every if len(t["labels"]) == 0]
    assert len(empty) == 3 and all(
        t["boxes"].shape == (0, 4) and t["masks"].shape[0] == 0 and t["masks"].ndim == 3 for t in empty
    )


def test_small_images_leave_training_only(folder):
    def change(content):
        image = content["images"][0]
        image.update(height=31, width=200)
        Image.new("RGB", (200, 31)).save(folder / "train2017" / image["file_name"])

    edit(folder, change)
    assert CocoFolder(folder, training=True).dropped["side under 32 pixels"] == 1
    assert CocoFolder(folder, training=True, keep_empty=True).dropped["side under 32 pixels"] == 1
    assert len(CocoFolder(folder)) == 16


@pytest.mark.fault("P4")
@pytest.mark.parametrize("height, width", [(1, 1), (20, 5000), (5000, 20)])
def test_odd_image_sizes_are_read_and_scored(folder, height, width):
    def change(content):
        image = content["images"][0]
        Image.new("L", (width, height), 128).save(folder / "val2017" / image["file_name"])  # grey, too
        image.update(height=height, width=width)
        content["annotations"] = [
            dict(
                id=1,
                image_id=image["id"],
                category_id=2,
                bbox=[0, 0, width, height],
                area=width * height,
                iscrowd=0,
                segmentation=[[0, 0, width, 0, width, height, 0, height]],
            )
        ]
        content["images"] = [image]

    edit(folder, change, "val2017")
    dataset = CocoFolder(folder, "val2017")
    image, target = dataset[0]
    assert image.shape == (3, height, width) and target["masks"].shape == (1, height, width) and target["masks"].all()
    answer = target | dict(scores=torch.ones(1), masks=target["masks"][:, None].half())
    scores = score_results(dataset, {dataset.image_ids[0]: to_results(answer, dataset.image_ids[0], dataset)})
    assert scores.box["AP"] == scores.mask["AP"] == 1


def spoil(path, how):
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:200])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "text":
        path.write_text("not a picture")
    else:
        Image.new("RGB", (33, 44)).save(path)


@pytest.mark.parametrize("how", ["truncated", "empty", "text", "other size"])
def test_a_broken_image_is_named(folder, how):
    dataset = CocoFolder(folder, training=True)
    image_id = dataset.image_ids[3]
    spoil(dataset.file(image_id), how)
    report = verify_coco(folder, progress=False)
    assert [(f.kind, f.image_id) for f in report.fatal] == [
        ("image of another size" if how == "other size" else "unreadable image", image_id)
    ]
    with pytest.raises(ValueError, match=f"{dataset.file(image_id).name}.*image {image_id}"):
        dataset[3]


@pytest.mark.parametrize(
    "kind", ["missing stuff map", "unreadable stuff map", "stuff map of another size", "unknown value in stuff map"]
)
def test_a_broken_stuff_map_is_named(folder, kind):
    dataset = CocoFolder(folder, training=True, semantic=True)
    image_id = dataset.image_ids[2]
    path = folder / "stuffthingmaps" / "train2017" / dataset.file(image_id).with_suffix(".png").name
    values = np.array(Image.open(path))
    path.unlink()
    if kind == "unreadable stuff map":
        path.write_bytes(b"\x89PNG")
    elif kind == "stuff map of another size":
        Image.fromarray(values[:-1]).save(path)
    elif kind == "unknown value in stuff map":
        Image.fromarray(np.full_like(values, 200)).save(path)
    with pytest.raises(ValueError, match=f"image {image_id}: {kind}"):
        dataset[2]
    assert [(f.kind, f.image_id) for f in verify_coco(folder, progress=False).fatal] == [(kind, image_id)]
    assert verify_coco(folder, semantic=False, progress=False).ok
    assert len(CocoFolder(folder, training=True)[2]) == 2  # without stuff maps it does not matter


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "not a complete JSON file"),
        ("[]", "found a list"),
        ('{"images": 3}', "expected a list of objects under 'images'"),
        ('{"images": [], "categories": []}', "no categories"),
        (
            '{"images": [{"id": 1}], "categories": [{"id": 1}]}',
            "entry 0 of images (id 1) must have file_name: expected a text, found no such field",
        ),
        (
            '{"images": [{"id": 1, "file_name": "../x.jpg", "height": 9, "width": 9}], "categories": [{"id": 1}]}',
            "leads out of the folder",
        ),
    ],
)
def test_a_broken_annotation_file_is_named(folder, content, message):
    (folder / "annotations" / "instances_train2017.json").write_text(content)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        CocoFolder(folder)
    assert "instances_train2017.json" in str(error.value)
    report = verify_coco(folder, progress=False)
    assert [f.kind for f in report.fatal] == ["unreadable annotation file"] and message in str(report)


def test_folders_that_are_none(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        verify_coco(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="no COCO folder: looked for"):
        verify_coco(tmp_path)
    with pytest.raises(FileNotFoundError, match="no COCO folder: looked for annotations/instances_SPLIT.json.*found"):
        CocoFolder(tmp_path)
    with pytest.raises(FileNotFoundError, match="no split 'val2014'.*there is train2017, val2017"):
        CocoFolder(folder, "val2014")
    shutil.rmtree(folder / "val2017")
    with pytest.raises(FileNotFoundError, match="the images of val2017 belong there"):
        CocoFolder(folder, "val2017")


def test_duplicate_image_id_is_fatal(folder):
    edit(folder, lambda content: content["images"].append(content["images"][0]))
    assert [f.kind for f in verify_coco(folder, progress=False).fatal] == ["duplicate image id"]
    with pytest.raises(ValueError, match="duplicate image id"):
        CocoFolder(folder)


def test_loader_processes_read_the_same(source):
    dataset = CocoFolder(source, training=True, semantic=True)
    for workers in 0, 2:
        batches = list(DataLoader(dataset, 5, collate_fn=collate_detection, num_workers=workers))
        assert [len(images) for images, _ in batches] == [5, 5, 4]
        flat = [pair for images, targets in batches for pair in zip(images, targets)]
        for (image, target), (wanted, other) in zip(flat, dataset):
            assert torch.equal(image, wanted) and target["image_id"] == other["image_id"]
            assert all(
                torch.equal(target[k], other[k]) for k in ("boxes", "labels", "masks", "area", "iscrowd", "semantic")
            )


def test_transforms_may_turn_to_float(source):
    dataset = CocoFolder(
        source, transforms=v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.RandomHorizontalFlip(1.0)])
    )
    assert torch.allclose(dataset[0][0], CocoFolder(source)[0][0].flip(-1))


# ---- what public bug reports of other libraries taught


@pytest.mark.fault("C4")
@pytest.mark.parametrize(
    "entry, message",
    [
        (dict(iscrowd="0"), r'iscrowd: expected 0 or 1, or none, found "0" \(text\)'),
        (dict(area=[7]), r"area: expected a number, or none, found \[7\] \(a list\)"),
        (dict(area="7"), r'area: expected a number, or none, found "7" \(text\)'),
        (dict(category_id="17"), r'category_id: expected a whole number, found "17" \(text\)'),
        (dict(category_id=17.5), r"category_id: expected a whole number, found 17.5 \(a number with a fraction\)"),
        (dict(category_id=[17]), r"category_id: expected a whole number, found \[17\] \(a list\)"),
        (dict(image_id={"id": 1}), r"image_id: expected a whole number, found .* \(an object\)"),
        (dict(image_id="5"), r'image_id: expected a whole number, found "5" \(text\)'),
        (dict(id=[1]), r"id: expected a whole number, or none, found \[1\] \(a list\)"),
    ],
)
def test_fields_of_the_wrong_type_are_named_when_the_file_is_read(folder, entry, message):
    edit(folder, changed(**entry))
    where = r"instances_train2017.json: entry \d+ of annotations( \(id \d+\))? must have "
    for training in True, False:
        with pytest.raises(ValueError, match=where + message):
            CocoFolder(folder, training=training)
    report = verify_coco(folder, progress=False)
    assert (
        not report.ok
        and [f.kind for f in report.fatal] == ["unreadable annotation file"]
        and "must have" in str(report)
    )


@pytest.mark.fault("C4")
@pytest.mark.parametrize("field", ["iscrowd", "area"])
@pytest.mark.parametrize("how", ["null", "missing"])
def test_a_missing_flag_or_area_is_filled_in(folder, field, how):
    before = CocoFolder(folder, training=True)

    def change(content):
        for annotation in content["annotations"]:
            if annotation["iscrowd"]:
                continue
            annotation[field] = None
            if how == "missing":
                del annotation[field]

    edit(folder, change)
    after = CocoFolder(folder, training=True)
    assert verify_coco(folder, progress=False).ok and objects(after) == objects(before)
    for _, target in after:
        assert (target["area"] > 0).all() and (target["iscrowd"] == 0).all()


def test_many_wrong_fields_are_counted(folder):
    def change(content):
        for annotation in content["annotations"]:
            annotation["iscrowd"] = "0"

    content = edit(folder, change)
    with pytest.raises(ValueError, match=rf"and {len(content['annotations']) - 5} more"):
        CocoFolder(folder)


@pytest.mark.fault("C5")
@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda content: [a.update(iscrowd=1) for a in content["annotations"]], "crowd"),
        (lambda content: content.update(annotations=[]), "image without annotations"),
        (lambda content: [a.update(category_id=999) for a in content["annotations"]], "unknown category"),
        (lambda content: [a.update(image_id=a["image_id"] + 10**6) for a in content["annotations"]], "unknown image"),
    ],
)
def test_nothing_left_to_train_on_is_not_ready(folder, change, reason):
    edit(folder, change)
    report = verify_coco(folder, progress=False)
    assert not report.ok and [f.kind for f in report.fatal] == ["nothing to train on"]
    assert reason in report.fatal[0].found and "not ready" in str(report) and "train2017" in str(report.fatal[0])
    with pytest.raises(ValueError, match="none of 16 images is left; most of all for"):
        CocoFolder(folder, training=True)


@pytest.mark.fault("C6")
@pytest.mark.parametrize("how", ["linked", "dotted", "double"])
def test_one_function_finds_a_picture(folder, tmp_path, how):
    """Folders that are links, and detours in a name: the reader finds what the check finds."""
    images = folder / "train2017"
    if how == "linked":
        (images / "part").mkdir()
        elsewhere = tmp_path / "elsewhere"
        for path in list(images.glob("*.jpg"))[:6]:
            path.rename(images / "part" / path.name)
        (images / "part").rename(elsewhere)
        (images / "part").symlink_to(elsewhere, target_is_directory=True)

    def change(content):
        for image in content["images"]:
            name = image["file_name"]
            if how == "linked":
                image["file_name"] = name if (images / name).exists() else f"part/{name}"
            else:
                image["file_name"] = f"./{name}" if how == "dotted" else f".//{name}"

    edit(folder, change)
    assert verify_coco(folder, semantic=False, progress=False).ok
    dataset = CocoFolder(folder, training=True)
    assert len(dataset) == 14 and all(image.shape[0] == 3 for image, _ in dataset)


@pytest.mark.fault("C7")
@pytest.mark.parametrize("ids", ["zero", "restart", "missing"])
def test_annotation_ids_are_not_needed(folder, ids):
    before = objects(CocoFolder(folder, training=True))

    def change(content):
        count = {}
        for annotation in content["annotations"]:
            count[annotation["image_id"]] = count.get(annotation["image_id"], 0) + 1
            annotation["id"] = 0 if ids == "zero" else count[annotation["image_id"]]
            if ids == "missing":
                del annotation["id"]

    edit(folder, change)
    assert objects(CocoFolder(folder, training=True)) == before
    report = verify_coco(folder, progress=False)
    assert report.ok and report.splits["train2017"][3] == before
    assert ("kept" in str(report)) == (ids != "missing")


@pytest.mark.fault("C10")
def test_two_categories_of_one_name_stay_apart(folder):
    edit(folder, lambda content: [c.update(name="thing") for c in content["categories"]], "val2017")
    dataset = CocoFolder(folder, "val2017")
    assert dataset.categories.names == ["thing (2)", "thing (17)", "thing (90)"]


@pytest.mark.fault("C2")
def test_labels_of_another_file_follow_names(folder):
    train = CocoFolder(folder, training=True)
    plain = CocoFolder(folder, "val2017")

    def renumber(content):
        ids = {2: 3, 17: 1, 90: 2}
        for category in content["categories"]:
            category["id"] = ids[category["id"]]
        for annotation in content["annotations"]:
            annotation["category_id"] = ids[annotation["category_id"]]

    edit(folder, renumber, "val2017")
    val = CocoFolder(folder, "val2017", categories=train.categories)
    assert val.categories.names == train.categories.names and val.categories.ids == [3, 1, 2]
    for (_, target), (_, before) in zip(val, plain):
        assert target["labels"].equal(before["labels"])
    edit(folder, lambda content: content["categories"][0].update(name="ball"), "val2017")
    with pytest.raises(ValueError, match="expected the categories of .*train2017.json.*disc.*found.*ball"):
        CocoFolder(folder, "val2017", categories=train.categories)


@pytest.mark.fault("C2")
def test_the_same_ids_under_other_names_are_refused(folder):
    train = CocoFolder(folder, training=True)
    edit(folder, lambda content: content["categories"][0].update(name="ball"), "val2017")
    with pytest.raises(ValueError, match="category 2 is 'ball' and in .*train2017.json it is 'disc'"):
        CocoFolder(folder, "val2017", categories=train.categories)


@pytest.mark.fault("C3")
def test_deep_grey_pictures_are_scaled(folder):
    dataset = CocoFolder(folder, "val2017")
    image_id = dataset.image_ids[0]
    height, width = dataset.size(image_id)
    ramp = np.linspace(0, 65535, height * width).reshape(height, width).astype(np.uint16)
    Image.fromarray(ramp).save(dataset.file(image_id).with_suffix(".png"))
    dataset.file(image_id).with_suffix(".png").rename(dataset.file(image_id))
    image, _ = dataset[0]
    assert image.min() == 0 and image.max() == 1 and abs(image.mean() - 0.5) < 0.01
    assert verify_coco(folder, semantic=False, progress=False).ok


@pytest.mark.fault("C11")
def test_a_turned_picture_is_explained(folder):
    dataset = CocoFolder(folder, "val2017")
    image_id = next(i for i in dataset.image_ids if len(set(dataset.size(i))) == 2)
    height, width = dataset.size(image_id)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (height, width)).save(dataset.file(image_id), exif=exif)
    with pytest.raises(ValueError, match=f"image {image_id}: image of another size .*EXIF note turns it"):
        dataset[dataset.image_ids.index(image_id)]
    report = verify_coco(folder, progress=False)
    assert [f.kind for f in report.fatal] == ["image of another size"] and "EXIF" in str(report)


@pytest.mark.fault("C11")
@pytest.mark.parametrize(
    "image, message",
    [
        (dict(id="000123"), r'must have id: expected a whole number, found "000123" \(text\)'),
        (dict(file_name="C:\\part\\x.jpg"), "leads out of the folder; write where the file lies below the folder"),
        (dict(file_name="..\\upload\\1\\x.jpg"), "leads out of the folder"),
    ],
)
def test_messages_name_the_true_cause(folder, image, message):
    edit(folder, lambda content: content["images"][0].update(image))
    with pytest.raises(ValueError, match=message):
        CocoFolder(folder)


@pytest.mark.fault("C12")
def test_a_sliver_at_the_edge_is_left_out_before_training(folder):
    def change(content):
        first = plain(content)[0]
        image = next(i for i in content["images"] if i["id"] == first["image_id"])
        first.update(bbox=[image["width"] - 1e-7, 9, 20, 20])

    edit(folder, change)
    dataset = CocoFolder(folder, training=True)
    assert dataset.dropped["box outside the image"] == 1
    for _, target in dataset:
        assert (target["boxes"][:, 2:] > target["boxes"][:, :2]).all()


def test_boxes_alone_give_targets_without_masks(folder):
    edit(folder, lambda content: [a.pop("segmentation") for a in content["annotations"]])
    dataset = CocoFolder(folder, training=True)
    assert not dataset.has_masks and "masks" not in dataset[0][1] and len(dataset) == 14
    assert verify_coco(folder, progress=False).ok


@pytest.mark.parametrize("counts", ["a1", "", "\x00\x7f", "o" * 30, "\u00fc", 3, None, [247.5], [-3, 250], {}])
def test_broken_run_lengths_are_found(counts):
    from lesa_nb.data.coco_file import segmentation_fault

    assert segmentation_fault(dict(size=[13, 19], counts=counts), 13, 19) == ["broken segmentation"]
    assert segmentation_fault(dict(counts=[247]), 13, 19) == ["broken segmentation"]
    assert segmentation_fault(dict(size=[13, 19], counts=[247]), 13, 19) == []


def test_all_eleven_faults_train_on(folder):
    "Twenty steps of a small detector of torchvision's on what is left of a folder with every fault."
    from torchvision.models.detection import MaskRCNN
    from torchvision.models.detection.rpn import AnchorGenerator
    from torchvision.ops import MultiScaleRoIAlign

    def change(content):
        groups = plant_faults(content)
        for a in next(groups):
            a["iscrowd"] = 1
        gone = next(groups)[0]["image_id"]
        (folder / "train2017" / next(i["file_name"] for i in content["images"] if i["id"] == gone)).unlink()

    edit(folder, change)
    dataset = CocoFolder(folder, training=True, keep_empty=True, missing="drop", transforms=v2.RandomHorizontalFlip())
    assert PLANTED | {"crowd", "missing image"} <= set(dataset.dropped)
    assert {"crowd only", "image without annotations"} <= set(CocoFolder(folder, training=True, missing="drop").dropped)
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(3, 16, 7, 4, 3), nn.ReLU(), nn.Conv2d(16, 16, 3, 2, 1), nn.ReLU())
    backbone.out_channels = 16
    pool = {f"{name}_roi_pool": MultiScaleRoIAlign(["0"], size, 2) for name, size in (("box", 7), ("mask", 14))}
    model = MaskRCNN(
        backbone,
        4,
        rpn_anchor_generator=AnchorGenerator(((16, 32),), ((1.0,),)),
        min_size=96,
        max_size=96,
        rpn_pre_nms_top_n_train=100,
        rpn_post_nms_top_n_train=50,
        box_batch_size_per_image=32,
        **pool,
    )
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    loader = DataLoader(dataset, 2, shuffle=True, collate_fn=collate_detection)
    steps = 0
    while steps < 20:
        for images, targets in loader:
            loss = sum(model(images, targets).values())
            assert loss.isfinite()
            optimizer.zero_grad(), loss.backward(), optimizer.step()
            steps += 1
