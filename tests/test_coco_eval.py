"""Scores of detectors: equal to pycocotools on the file as it is; the file for test-dev."""

import json
import math
import os
import shutil
import subprocess
import sys
import textwrap
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from coco_folders import edit
from torch import nn
from torch.utils.data import DataLoader

from lesa_nb.data.coco import Categories, CocoFolder, collate_detection
from lesa_nb.data.drawn_coco import _SHAPES, make_coco
from lesa_nb.data.verify_coco import verify_coco
from lesa_nb.tasks.class_ap import format_class_ap
from lesa_nb.tasks.coco_eval import Scores, score_results
from lesa_nb.tasks.coco_results import _gather_results, _predict_results, to_results, write_testdev
from lesa_nb.tasks.detect import DETECTION_RECIPES, detection_task

edit_val = partial(edit, split="val2017")
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return make_coco(tmp_path_factory.mktemp("a; ü folder") / "coco", train=16, val=8, size=96)


@pytest.fixture
def folder(source, tmp_path):
    return Path(shutil.copytree(source, tmp_path / "coco"))


def answers(dataset, seed, amount=2.0, classes_wrong=0.1):
    "Boxes and masks near the truth, some wrong, with ties in the scores."
    g = torch.Generator().manual_seed(seed)
    results = {}
    for _, t in dataset:
        H, W = t["masks"].shape[-2:]
        pick = torch.randint(max(len(t["labels"]), 1), (len(t["labels"]) * 2,), generator=g)
        boxes = t["boxes"][pick] + amount * torch.randn(len(pick), 4, generator=g)
        boxes[:, 2:] = torch.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        labels = torch.where(
            torch.rand(len(pick), generator=g) < classes_wrong,
            torch.randint(1, len(dataset.categories) + 1, (len(pick),), generator=g),
            t["labels"][pick],
        )
        masks = torch.roll(t["masks"][pick], int(torch.randint(3, (1,), generator=g)), -1)
        results[t["image_id"]] = to_results(
            dict(
                boxes=boxes,
                labels=labels,
                masks=masks[:, None].float() * 0.9,
                scores=torch.randint(1, 9, (len(pick),), generator=g) / 10,
            ),
            t["image_id"],
            dataset,
        )
    return results


def official_run(dataset, results, kind):
    "pycocotools reading both files itself, as the papers do."
    import contextlib
    import io

    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    found = [{k: v for k, v in r.items() if kind == "bbox" or k != "bbox"} for some in results.values() for r in some]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(dataset.path))
        run = COCOeval(truth, truth.loadRes(found), kind)
        run.evaluate(), run.accumulate(), run.summarize()
    return run


def official(dataset, results, kind):
    "Its twelve numbers."
    return official_run(dataset, results, kind).stats


def direct(dataset, results, kind):
    "faster-coco-eval itself, without torchmetrics around it."
    from faster_coco_eval import COCO, COCOeval_faster

    found = [{k: v for k, v in r.items() if kind == "bbox" or k != "bbox"} for some in results.values() for r in some]
    truth = COCO(str(dataset.path))
    run = COCOeval_faster(truth, truth.loadRes(found), kind, print_function=lambda *words: None)
    run.evaluate(), run.accumulate(), run.summarize()
    return run.stats[:12]


def filled(numbers):
    "Nan where there was nothing to find, as the evaluators write it."
    return [-1 if math.isnan(value) else value for value in numbers.values()]


@pytest.mark.parametrize("seed", range(4))
def test_three_evaluators_agree(source, seed):
    "Ours, faster-coco-eval and pycocotools reading the file by themselves."
    dataset = CocoFolder(source)  # with crowds
    results = answers(dataset, seed)
    scores = score_results(dataset, results)
    for kind, numbers in ("bbox", scores.box), ("segm", scores.mask):
        theirs = official(dataset, results, kind)
        np.testing.assert_allclose(direct(dataset, results, kind), theirs, rtol=0, atol=1e-6)
        np.testing.assert_allclose(filled(numbers), theirs, rtol=0, atol=1e-9)
        assert 0.05 < numbers["AP"] < 0.95
    assert abs(np.nanmean(list(scores.class_ap("mask").values())) - scores.mask["AP"]) < 1e-6
    assert set(scores.class_ap()) == {"disc", "square", "triangle"} and "box" in str(scores)


@pytest.mark.parametrize("left_out", [(), ("square",)])
def test_ap_of_each_class_is_pycocotools(folder, left_out):
    "Class by class, as its users take it from its precision array; a class without objects has none."
    def drop(content):
        ids = {c["id"] for c in content["categories"] if c["name"] in left_out}
        content["annotations"] = [a for a in content["annotations"] if a["category_id"] not in ids]

    edit_val(folder, drop)
    dataset = CocoFolder(folder, "val2017")
    results = answers(dataset, 5)
    scores = score_results(dataset, results)
    for kind, name in ("bbox", "box"), ("segm", "mask"):
        run = official_run(dataset, results, kind)
        found = scores.class_ap(name)
        for k, category_id in enumerate(run.params.catIds):
            precision = run.eval["precision"][:, :, k, 0, -1]
            ap = precision[precision > -1].mean() if (precision > -1).any() else math.nan
            own = found[dataset.categories.name(dataset.categories.label(category_id))]
            assert own == pytest.approx(ap, abs=1e-12, nan_ok=True)
        assert {name for name, ap in found.items() if math.isnan(ap)} == set(left_out)
    said = format_class_ap(scores).splitlines()
    assert said[0].split() == ["class,", "the", "worst", "first", "box", "AP", "mask", "AP"]
    shown = [float(line.split()[1]) for line in said[1:4 - len(left_out)]]
    assert shown == sorted(shown) and len(shown) == 3 - len(left_out)
    assert (said[-1] == "1 class without objects") == bool(left_out)


def test_of_many_classes_the_worst_and_the_best_are_shown():
    names = [f"class {i}" for i in range(80)]
    precision = np.tile(np.arange(80) / 80, (10, 101, 1))
    precision[..., 7] = np.nan
    categories = Categories([dict(id=i + 1, name=name) for i, name in enumerate(names)])
    scores = Scores(1, 1, {}, None, categories, dict(box=precision), Counter())
    lines = format_class_ap(scores).splitlines()
    assert len(lines) == 23 and lines[11] == "... 59 more classes ..." and lines[-1] == "1 class without objects"
    shown = [" ".join(line.split()[:2]) for line in lines[1:11] + lines[12:22]]
    assert shown == [name for name in names[:11] if name != "class 7"] + names[70:]
    assert lines[1].endswith(" 0.00") and lines[-2].endswith(" 98.75")
    assert "box AP" in lines[0] and "mask" not in lines[0]


def test_scores_do_not_go_through_dense_masks(source):
    "torchmetrics fed with dense masks says the same as fed with run lengths."
    from faster_coco_eval.core import mask
    from torchmetrics.detection import MeanAveragePrecision

    dataset = CocoFolder(source, "val2017")
    results = answers(dataset, 9)
    metric = MeanAveragePrecision(
        box_format="xywh",
        iou_type=("bbox", "segm"),
        backend="faster_coco_eval",
        iou_thresholds=np.linspace(0.5, 0.95, 10).tolist(),
        rec_thresholds=np.linspace(0, 1, 101).tolist(),
    )
    for image_id in sorted(results):
        found, (_, t) = results[image_id], dataset[dataset.image_ids.index(image_id)]
        dense = (
            torch.from_numpy(np.stack([mask.decode(r["segmentation"]) for r in found])).bool()
            if found
            else torch.zeros(0, *dataset.size(image_id), dtype=torch.bool)
        )
        truth = torch.tensor([a["bbox"] for a in dataset.annotations(image_id)], dtype=torch.float64).reshape(-1, 4)
        metric.update(
            [
                dict(
                    boxes=torch.tensor([r["bbox"] for r in found], dtype=torch.float64).reshape(-1, 4),
                    masks=dense,
                    scores=torch.tensor([r["score"] for r in found]),
                    labels=torch.tensor([dataset.categories.label(r["category_id"]) for r in found], dtype=torch.int64),
                )
            ],
            [dict(boxes=truth, masks=t["masks"].bool(), labels=t["labels"], iscrowd=t["iscrowd"], area=t["area"])],
        )
    values, scores = metric.compute(), score_results(dataset, results)
    assert (
        abs(values["bbox_map"].item() - scores.box["AP"]) < 1e-6
        and abs(values["segm_map"].item() - scores.mask["AP"]) < 1e-6
    )


def test_nothing_found_is_zero_and_nothing_to_find_is_nan(source):
    dataset = CocoFolder(source, "val2017")
    none = {i: [] for i in dataset.image_ids}
    scores = score_results(dataset, none)
    assert scores.box["AP"] == scores.mask["AP"] == 0
    empty = next(i for i in dataset.image_ids if not dataset.annotations(i))
    assert math.isnan(score_results(dataset, {empty: []}).box["AP"])
    spurious = to_results(
        dict(boxes=torch.tensor([[1.0, 1, 9, 9]]), labels=torch.tensor([1]), scores=torch.tensor([0.9])), empty, dataset
    )
    assert math.isnan(score_results(dataset, {empty: spurious}).box["AP"])
    with pytest.raises(ValueError, match="no images"):
        score_results(dataset, {})
    with pytest.raises(ValueError, match="training filter"):
        score_results(CocoFolder(source, training=True), none)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.bool, torch.uint8])
def test_truth_fed_back_is_perfect_in_every_type(source, dtype):
    dataset, results = CocoFolder(source, "val2017"), {}
    for _, t in dataset:
        own = t["iscrowd"] == 0
        masks = t["masks"][own]
        masks = masks.to(dtype) * 0.75 if dtype.is_floating_point else masks.to(dtype)
        results[t["image_id"]] = to_results(
            dict(boxes=t["boxes"][own], labels=t["labels"][own], masks=masks, scores=torch.ones(int(own.sum()))),
            t["image_id"],
            dataset,
        )
    scores = score_results(dataset, results)
    assert scores.box["AP"] == scores.mask["AP"] == 1


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(scores=torch.tensor([math.nan])), "not finite; has training diverged"),
        (dict(boxes=torch.tensor([[0, 0, math.inf, 1]])), "not finite"),
        (dict(scores=torch.tensor([1.2])), r"0\.\.1, found 1.2"),
        (dict(labels=torch.tensor([0])), r"1\.\.3, found 0"),
        (dict(labels=torch.tensor([1, 2])), "do not go together"),
        (dict(masks=torch.zeros(1, 1, 28, 28)), "pasted at the image's size"),
    ],
)
def test_a_wrong_answer_names_its_image(source, change, message):
    dataset = CocoFolder(source, "val2017")
    answer = dict(boxes=torch.tensor([[0.0, 0, 5, 5]]), labels=torch.tensor([1]), scores=torch.tensor([0.5])) | change
    with pytest.raises(ValueError, match=f"image {dataset.image_ids[0]}: .*{message}"):
        to_results(answer, dataset.image_ids[0], dataset)


class Middle(nn.Module):
    "Finds something in the middle, 130 times; notes the mode it ran in."

    def __init__(self):
        super().__init__()
        self.w, self.modes = nn.Parameter(torch.zeros(1)), []

    def forward(self, images):
        self.modes.append(self.training)
        sizes = [image.shape[-2:] for image in images]
        return [
            dict(
                boxes=torch.tensor([[1.0, 1, w / 2, h / 2]]).expand(130, 4),
                labels=torch.full((130,), 3),
                scores=torch.linspace(0, 1, 130),
                masks=torch.full((130, 1, h, w), 0.7),
            )
            for h, w in sizes
        ]


def test_testdev_file(source, tmp_path):
    from faster_coco_eval.core import mask

    dataset = CocoFolder(source, "test-dev2017")
    model = Middle().train()
    path = write_testdev(
        tmp_path / "ü; 1.json",
        dataset,
        _predict_results(model, DataLoader(dataset, 2, collate_fn=collate_detection), dataset),
    )
    assert model.training and set(model.modes) == {False}
    sent = json.loads(path.read_text())
    assert (
        len(sent) == 100 * len(dataset)
        and {r["category_id"] for r in sent} == {90}
        and {r["image_id"] for r in sent} == set(dataset.image_ids)
    )
    for r in sent[::50]:
        assert mask.decode(r["segmentation"]).shape == dataset.size(r["image_id"]) and 0 <= r["score"] <= 1
    assert write_testdev(tmp_path / "none.json", dataset, {}, partial=True).read_text() == "[]\n"


def test_testdev_file_is_replaced_whole_or_not_at_all(source, tmp_path):
    dataset = CocoFolder(source, "test-dev2017")
    path = tmp_path / "sent.json"
    write_testdev(path, dataset, {i: [] for i in dataset.image_ids})

    def breaks():
        yield dataset.image_ids[0], []
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_testdev(path, dataset, breaks())
    with pytest.raises(ValueError, match="3 of 4 images of test-dev2017 are missing"):
        write_testdev(path, dataset, {dataset.image_ids[0]: []})
    with pytest.raises(ValueError, match="comes twice"):
        write_testdev(path, dataset, [(dataset.image_ids[0], [])] * 2)
    with pytest.raises(ValueError, match="no image 12"):
        write_testdev(path, dataset, {12: []})
    assert path.read_text() == "[]\n" and [p.name for p in tmp_path.iterdir()] == ["sent.json"]


@pytest.mark.fault("R9")
def test_a_missing_package_is_named(source, monkeypatch):
    dataset = CocoFolder(source, "val2017")
    for name in ["faster_coco_eval", *(m for m in sys.modules if m.startswith("faster_coco_eval."))]:
        monkeypatch.setitem(sys.modules, name, None)
    for use in lambda: score_results(dataset, {i: [] for i in dataset.image_ids}), lambda: dataset[0]:
        with pytest.raises(ModuleNotFoundError, match="need faster_coco_eval: pip install"):
            use()


# ---- what is wrong with a mask costs the mask


def perfect(dataset):
    "The truth as detections, each object once."
    results = {}
    for _, t in dataset:
        own = t["iscrowd"] == 0
        results[t["image_id"]] = to_results(
            dict(
                boxes=t["boxes"][own],
                labels=t["labels"][own],
                scores=torch.ones(int(own.sum())),
                masks=t["masks"][own, None].float(),
            ),
            t["image_id"],
            dataset,
        )
    return results


@pytest.mark.fault("C1")
def test_objects_without_outlines_stay_in_the_truth_of_boxes(source, folder):
    "Half of the objects lose their outline: the box score is that of pycocotools on the same file."
    results = answers(CocoFolder(source, "val2017"), 3)

    def change(content):
        for a in content["annotations"][::2]:
            a["segmentation"] = []

    edit_val(folder, change)
    dataset = CocoFolder(folder, "val2017")
    scores = score_results(dataset, results)
    np.testing.assert_allclose(filled(scores.box), official(dataset, results, "bbox"), rtol=0, atol=1e-12)
    lost = dataset.dropped["empty segmentation"]
    assert lost and scores.left_out == {"empty segmentation": lost}
    assert f"left out of the truth: {lost} x empty segmentation: box kept, mask left out" in str(scores)

    def drawn(content):
        content["annotations"] = [a for a in content["annotations"] if a["segmentation"]]

    edit_val(folder, drawn)  # masks are scored against those that have one
    rest = CocoFolder(folder, "val2017")
    np.testing.assert_allclose(filled(scores.mask), official(rest, results, "segm"), rtol=0, atol=1e-12)


@pytest.mark.fault("C1")
@pytest.mark.parametrize(
    "segmentation", [[], None, [[9, 9, 20, 20]], dict(size=[9, 9], counts=[81]), dict(size=[96, 96], counts="a1"), "x"]
)
def test_box_scores_do_not_depend_on_outlines(source, folder, segmentation):
    before = CocoFolder(source, "val2017")
    results = answers(before, 5)
    edit_val(folder, lambda content: [a.update(segmentation=segmentation) for a in content["annotations"][1::3]])
    scores = score_results(CocoFolder(folder, "val2017"), results)
    assert scores.box == score_results(before, results).box


def test_boxes_alone_are_scored_as_boxes(source, folder):
    results = answers(CocoFolder(source, "val2017"), 3)
    edit_val(folder, lambda content: [a.pop("segmentation") for a in content["annotations"]])
    scores = score_results(CocoFolder(folder, "val2017"), results)
    assert scores.mask is None and scores.box == score_results(CocoFolder(source, "val2017"), results).box


@pytest.mark.fault("C7")
@pytest.mark.parametrize("ids", ["zero", "restart"])
def test_scores_do_not_depend_on_annotation_ids(source, folder, ids):
    results = answers(CocoFolder(source, "val2017"), 4)

    def change(content):
        for number, a in enumerate(content["annotations"]):
            a["id"] = 0 if ids == "zero" else number % 3

    edit_val(folder, change)
    for kind in "box", "mask":
        assert getattr(score_results(CocoFolder(folder, "val2017"), results), kind) == getattr(
            score_results(CocoFolder(source, "val2017"), results), kind
        )


@pytest.mark.fault("C4")
def test_missing_areas_and_flags_are_filled_in(source, folder):
    results = answers(CocoFolder(source, "val2017"), 4)

    def change(content):
        for a in content["annotations"]:
            if not a["iscrowd"]:
                a["iscrowd"] = None
            a["area"] = None

    edit_val(folder, change)
    scores = score_results(CocoFolder(folder, "val2017"), results)
    assert abs(scores.box["AP"] - score_results(CocoFolder(source, "val2017"), results).box["AP"]) < 1e-12


@pytest.mark.fault("C10")
def test_two_classes_of_one_name_are_two_rows(folder):
    edit_val(folder, lambda content: [c.update(name="thing") for c in content["categories"]])
    dataset = CocoFolder(folder, "val2017")
    scores = score_results(dataset, perfect(dataset))
    assert list(scores.class_ap()) == ["thing (2)", "thing (17)", "thing (90)"]
    assert scores.curve("box", "thing (17)")[1].max() == 1


@pytest.mark.fault("C2")
def test_scores_follow_labels_of_another_file(source, folder):
    "The same names under other ids: table and results go by name."
    train = CocoFolder(source, training=True)
    ids = {2: 3, 17: 1, 90: 2}

    def renumber(content):
        for c in content["categories"]:
            c["id"] = ids[c["id"]]
        for a in content["annotations"]:
            a["category_id"] = ids[a["category_id"]]

    plain = CocoFolder(source, "val2017")
    before = answers(plain, 2)
    edit_val(folder, renumber)
    dataset = CocoFolder(folder, "val2017", categories=train.categories)
    after = answers(dataset, 2)
    assert {r["category_id"] for some in after.values() for r in some} <= {1, 2, 3}
    one, two = score_results(plain, before), score_results(dataset, after)
    np.testing.assert_allclose(filled(one.box), filled(two.box), rtol=0, atol=1e-12)
    assert list(one.class_ap("mask")) == list(two.class_ap("mask"))
    np.testing.assert_allclose(
        list(one.class_ap("mask").values()), list(two.class_ap("mask").values()), rtol=0, atol=1e-12
    )


BAD_BOXES = [[9, math.nan, 20, 20], [9, 9, math.inf, 20], None, [1, 2, 3], ["1", "2", "3", "4"]]


@pytest.mark.fault("C1")
@pytest.mark.parametrize("bbox", BAD_BOXES, ids=str)
def test_a_truth_with_a_box_that_is_none_is_refused(folder, bbox):
    "COCO's own tools raise on it, and take a NaN for a hit: nobody is measured by it, and the check says so."
    entry = {}

    def change(content):
        entry.update(content["annotations"][3])
        content["annotations"][3]["bbox"] = bbox

    edit_val(folder, change)
    dataset = CocoFolder(folder, "val2017")
    where = f"image {entry['image_id']}, annotation {entry['id']}: box not finite .*four finite numbers in every bbox"
    with pytest.raises(ValueError, match=where):
        score_results(dataset, {i: [] for i in dataset.image_ids})
    with pytest.raises(ValueError, match=where):  # before the run, not at its first validation
        detection_task(folder, DETECTION_RECIPES["small"], network="small")
    report = verify_coco(folder, progress=False)
    assert not report.ok and "nothing to score by" in str(report) and str(entry["id"]) in str(report)


@pytest.mark.fault("C1")
@pytest.mark.parametrize("outline, kept", [
    ([[1, 1, 30, 1, 30, 30, 7]], True), ([["1", "1", "30", "1", "30", "30"]], True),
    ([[1, 1, 30, 1, 30, 30], [5, 5]], True), ([[5, 5, 20, 20], [1, 1, 30, 1, 30, 30]], False),
    (dict(size=[96, 97], counts=[96 * 97]), True), (dict(size=[9.0, 9.0], counts=[81]), False),
    ([[1, 1, 30, 1, 30, None]], False), ([[1, 1, 30, 1, 30, 1e9]], False),
], ids=str)
def test_an_outline_means_what_it_means_to_cocos_own_tools(folder, outline, kept):
    "What those draw is scored, even where training leaves it out; what stops them is left out and said."
    edit_val(folder, lambda content: [a.update(segmentation=outline) for a in content["annotations"][:1]])
    dataset = CocoFolder(folder, "val2017")
    scores = score_results(dataset, answers(CocoFolder(folder, "val2017"), 1))
    assert ("broken segmentation" in scores.left_out) != kept
    assert ("nothing can match" in str(scores)) == isinstance(outline, dict) * kept
    if not kept:
        edit_val(folder, lambda content: content["annotations"].pop(0))
    results = answers(CocoFolder(folder, "val2017"), 1)
    ours = score_results(CocoFolder(folder, "val2017"), results)
    np.testing.assert_allclose(filled(ours.mask), official(dataset, results, "segm"), rtol=0, atol=1e-9)


# ---- results


class Truth(nn.Module):
    "Answers with the truth, softened: what no detector can beat."

    def __init__(self, dataset):
        super().__init__()
        self.dataset, self.next, self.w = dataset, 0, nn.Parameter(torch.zeros(1))

    def forward(self, images):
        targets = [self.dataset[self.next + i][1] for i in range(len(images))]
        self.next += len(images)
        return [
            dict(
                boxes=t["boxes"],
                labels=t["labels"],
                scores=0.5 + t["labels"] / 10,
                masks=0.2 + 0.6 * t["masks"][:, None].half(),
            )
            for t in targets
        ]


def test_answers_become_results(source):
    from pycocotools import mask as mask_tools

    val = CocoFolder(source, "val2017")
    found = dict(_predict_results(Truth(val), DataLoader(val, 3, collate_fn=collate_detection), val))
    assert list(found) == val.image_ids
    first = found[val.image_ids[0]]
    assert {r["category_id"] for r in first} <= set(_SHAPES.values())
    for r, mask in zip(
        sorted(first, key=lambda r: r["bbox"]), val.masks(val.image_ids[0])[val[0][1]["boxes"][:, 0].argsort()]
    ):
        assert (mask_tools.decode(r["segmentation"]) == mask.numpy()).all()  # half precision and back: not a pixel lost


class Squares(nn.Module):
    "Finds a square in the middle of everything, 120 times."

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))

    def forward(self, images):
        found = []
        for image in images:
            H, W = image.shape[-2:]
            soft = torch.zeros(120, 1, H, W)
            soft[..., H // 4 : 3 * H // 4, W // 4 : 3 * W // 4] = 0.9
            found.append(
                dict(
                    boxes=torch.tensor([[W / 4, H / 4, 3 * W / 4, 3 * H / 4]]).expand(120, 4),
                    labels=torch.full((120,), 2),
                    scores=torch.linspace(0, 1, 120),
                    masks=soft,
                )
            )
        return found


def test_what_is_sent_and_what_is_not(source, tmp_path):
    unseen = CocoFolder(source, "test-dev2017")
    path = write_testdev(
        tmp_path / "detections_test-dev2017_squares_results.json",
        unseen,
        _predict_results(Squares(), DataLoader(unseen, 2, collate_fn=collate_detection), unseen),
    )
    sent = json.loads(path.read_text())
    assert sorted(r["image_id"] for r in sent) == sorted(unseen.image_ids * 100)  # the best 100 of 120
    assert {r["category_id"] for r in sent} == {17}  # a square, in COCO's ids
    assert all(tuple(r["segmentation"]["size"]) == unseen.size(r["image_id"]) for r in sent)
    assert min(r["score"] for r in sent) > 0.16 and not list(tmp_path.glob("*.part"))
    before, one = path.read_bytes(), sent[0]
    for change, message in (
        (dict(category_id=2000), "category_id must be an id of"),
        (dict(score=1.01), "score must lie in 0..1, found 1.01"),
        (dict(bbox=[1, 2, 3, math.nan]), "bbox must be"),
        (dict(segmentation=dict(size=[9, 9], counts="a1")), r"must fill the image.*says \[9, 9\]"),
        (dict(segmentation=dict(size=list(unseen.size(one["image_id"])), counts="a1")), "must fill the image"),
        (dict(image_id=1), "it says image_id 1"),
    ):
        with pytest.raises(ValueError, match=message):
            write_testdev(path, unseen, {one["image_id"]: [one | change]})
    with pytest.raises(ValueError, match="has 101 detections, at most 100"):
        write_testdev(path, unseen, {one["image_id"]: [one] * 101})
    with pytest.raises(ValueError, match="3 of 4 images of test-dev2017 are missing"):
        write_testdev(path, unseen, {one["image_id"]: [one]})
    assert path.read_bytes() == before


@pytest.mark.slow
def test_two_processes_gather_every_image_once(source, tmp_path):
    code = textwrap.dedent("""
        import os, sys, torch.distributed as dist
        from lesa_nb.data.coco import CocoFolder
        from lesa_nb.tasks.coco_eval import score_results
        from lesa_nb.tasks.coco_results import _gather_results
        rank = int(sys.argv[1])
        dist.init_process_group("gloo", init_method="file://" + sys.argv[3], rank=rank, world_size=2)
        dataset = CocoFolder(sys.argv[2], "val2017")
        mine = {i: [] for i in (dataset.image_ids + dataset.image_ids[:1])[rank::2]}  # padded: one comes twice
        every = _gather_results(mine)
        assert sorted(every) == dataset.image_ids, every
        if rank == 0: print(score_results(dataset, every).box["AP"])
        dist.destroy_process_group()
    """)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(rank), str(source), str(tmp_path / "meet")],
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for rank in (0, 1)
    ]
    done = [run.communicate(timeout=120) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], done
    assert done[0][0].strip() == "0.0"


def test_alone_nothing_is_gathered():
    results = {1: []}
    assert _gather_results(results) == results
