"""Training detectors on COCO folders: samples, starts, steps, runs, scores; a small one learns pictures by heart."""

import json
import math
import shutil
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from coco_folders import PLANTED, edit, plant_faults
from PIL import Image
from processes import run_ranks
from torch.nn.modules.batchnorm import _BatchNorm

from lesa_nb.data.coco import CocoFolder
from lesa_nb.data.drawn_coco import make_coco
from lesa_nb.data.verify_coco import verify_coco
from lesa_nb.engine.loader import loader
from lesa_nb.engine.run import fit
from lesa_nb.models.mask_rcnn import _mask_targets, _paste, sample_rois
from lesa_nb.models.pyramid import prepare
from lesa_nb.models.registry import build_detector
from lesa_nb.models.resnet import ResNet
from lesa_nb.study._onecycle import adamw_onecycle
from lesa_nb.tasks.coco_eval import score_results
from lesa_nb.tasks.coco_results import to_results
from lesa_nb.tasks.detect import DETECT_AUGMENTS, DETECTION_RECIPES, LargeScaleJitter, TrainSamples, detection_task
from lesa_nb.tasks.detect_eval import evaluate_detector, export_testdev
from lesa_nb.weights.files import save_weights
from lesa_nb.weights.load import load
from lesa_nb.weights.published import to_published
from lesa_nb.weights.start import start_backbone

KINDS = ("mask_rcnn", "htc")
CPU = torch.device("cpu")
BRIEF = replace(DETECTION_RECIPES["small"], name="brief", epochs=2, batch_size=2, lr_batch=2, warmup_steps=2)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return make_coco(tmp_path_factory.mktemp("a; ü folder") / "coco", train=12, val=4, test=2, size=96)


@pytest.fixture
def folder(source, tmp_path):
    return Path(shutil.copytree(source, tmp_path / "coco"))


def task_of(folder, model="mask_rcnn", *, recipe=DETECTION_RECIPES["small"], **options):
    return detection_task(
        folder, recipe, model=model, **dict(network="small", image_size=64, say=lambda text: None) | options
    )


def steps(task, number, batch_size=2, lr=2e-3):
    "Train by hand; yields the losses of each step."
    torch.manual_seed(0)
    detector = task.build()
    optimizer, schedule = adamw_onecycle(detector, number, lr=lr)
    order = [(epoch, i) for epoch in range(number * batch_size) for i in torch.randperm(len(task.train)).tolist()]
    for step in range(number):
        batch = task.collate([task.train[key] for key in order[step * batch_size : (step + 1) * batch_size]])
        losses = task.losses(detector.train(), batch)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 10.0)
        optimizer.step(), schedule.step()
        yield detector, {name: loss.item() for name, loss in losses.items()}


# ---- samples


@pytest.mark.parametrize("augment", DETECT_AUGMENTS)
def test_samples_do_not_depend_on_workers_or_on_who_drew_before(source, augment):
    dataset = TrainSamples(
        CocoFolder(source, training=True, semantic=True, transforms=DETECT_AUGMENTS[augment](64)), seed=3
    )
    keys = [[(7, 0), (7, 1)], [(8, 0), (8, 2)]]
    alone = {key: dataset[key] for batch in keys for key in reversed(batch)}
    for workers in 0, 2:
        torch.manual_seed(workers)
        for batch, found in zip(keys, loader(dataset, keys, list, workers=workers), strict=True):
            for key, (image, target) in zip(batch, found, strict=True):
                assert image.equal(alone[key][0])
                assert all(
                    value.equal(alone[key][1][name])
                    for name, value in target.items()
                    if isinstance(value, torch.Tensor)
                )
    state = torch.get_rng_state()
    dataset[0, 0]
    assert state.equal(torch.get_rng_state())


def test_flips_are_fair_and_differ_between_seeds(source):
    plain = CocoFolder(source, training=True)
    sets = [
        TrainSamples(CocoFolder(source, training=True, transforms=DETECT_AUGMENTS["published"](64)), seed)
        for seed in (0, 1)
    ]
    flips = np.array(
        [[not dataset[e, i][0].equal(plain[i][0]) for e in range(12) for i in range(4)] for dataset in sets]
    )
    assert 0.3 < flips.mean() < 0.7 and (flips[0] != flips[1]).any()


def colour(image):
    "How far a pixel is from grey: drawn things have colour, what is behind them has none."
    return image.amax(0) - image.amin(0)


@pytest.mark.parametrize("augment", DETECT_AUGMENTS)
def test_masks_and_boxes_stay_on_their_things(source, augment):
    "A flip or a window that moves the picture moves everything drawn on it."
    dataset = TrainSamples(CocoFolder(source, training=True, semantic=True, transforms=DETECT_AUGMENTS[augment](64)))
    for turn in range(30):
        image, target = dataset[turn, turn % len(dataset)]
        for box, mask in zip(target["boxes"].tolist(), target["masks"].bool()):
            rows, columns = mask.any(1).nonzero()[:, 0].tolist(), mask.any(0).nonzero()[:, 0].tolist()
            H, W = mask.shape
            if min(box[:2]) > 0 and box[2] < W and box[3] < H:  # whole: a thing that was cut may have a loose box
                assert np.abs(np.array(box) - [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).max() < 3
            if mask.sum() > 30:
                assert colour(image)[mask].mean() > 0.2
                assert (target["semantic"][mask] < 100).float().mean() > 0.8  # things have values below those of stuff


def test_jitter_keeps_shape_size_and_what_belongs_together(source):
    torch.manual_seed(0)
    plain = CocoFolder(source, training=True, semantic=True)
    dataset = CocoFolder(source, training=True, semantic=True, transforms=LargeScaleJitter(64))
    longest = []
    for turn in range(40):
        image, target = dataset[turn % len(dataset)]
        n, size = len(target["labels"]), tuple(image.shape[1:])
        longest.append(max(size))
        assert max(size) <= 64 and target["masks"].shape == (n, *size) and target["semantic"].shape == size
        assert target["boxes"].shape == (n, 4) and len(target["area"]) == len(target["iscrowd"]) == n
        if n:
            assert (target["boxes"][:, 2:] - target["boxes"][:, :2] >= 1).all() and (target["boxes"] >= 0).all()
            assert target["masks"].flatten(1).bool().any(1).all()
    assert min(longest) < 24 and max(longest) == 64
    whole, at_half = plain[0], CocoFolder(source, training=True, transforms=LargeScaleJitter(48, 1.0, 1.0))[0]
    assert torch.allclose(at_half[1]["boxes"], whole[1]["boxes"] / 2, atol=1e-4)
    H, W = whole[0].shape[1:]
    assert tuple(at_half[0].shape[1:]) == (H // 2, W // 2)


# ---- starts


def test_start_from_a_run_of_our_own_equals_the_start_from_the_network(tmp_path):
    options = dict(stages=("C", "C", "L", "L"), base=16, heads=4, image_size=64, strides=(1, 2, 2, 1), num_classes=7)
    torch.manual_seed(1)
    network = ResNet(**options, position="factored")
    save_weights(network, tmp_path / "best.safetensors", arch="resnet")
    torch.save({"net": {f"module.{k}": v for k, v in to_published(network).items()}}, tmp_path / "theirs.pth")
    detectors = []
    for source in network, tmp_path / "theirs.pth", tmp_path / "best.safetensors":
        torch.manual_seed(2)
        detector = build_detector(network="small", num_classes=3)
        started = start_backbone(detector, source)
        assert {"fc.weight", "fc.bias"} < set(started.dropped) and "fc.weight" in started.format()
        detectors.append(detector.state_dict())
    assert all(tensor.equal(other[name]) for other in detectors[1:] for name, tensor in detectors[0].items())


def test_what_the_backbone_starts_from_is_said(source, tmp_path):
    heard = []
    task_of(source, say=heard.append).build()
    assert (
        len(heard) == 1
        and heard[0].startswith("left out of training: ")
        and "x crowd" in heard[0]
        and "x image without annotations" in heard[0]
    )
    with pytest.raises(FileNotFoundError, match="none.pth: no such file"):
        task_of(source, start=tmp_path / "none.pth")
    with pytest.raises(
        ValueError, match="instances_val2017.json: expected the categories of .*instances_train2017.json"
    ):
        other = Path(shutil.copytree(source, tmp_path / "other"))
        edit(other, lambda content: content["categories"].pop(), "val2017")
        task_of(other)


# ---- what is refused before a run begins, and what trains


@pytest.mark.fault("C8")
def test_htc_without_stuff_maps_is_refused_with_the_way_out(folder):
    gone = sorted((folder / "stuffthingmaps" / "train2017").iterdir())[1]
    gone.unlink()
    with pytest.raises(FileNotFoundError, match=f"{gone.name}: no such file.*--no-semantic"):
        task_of(folder, "htc")
    shutil.rmtree(folder / "stuffthingmaps")
    with pytest.raises(FileNotFoundError, match="stuffthingmaps.*no such folder.*--no-semantic"):
        task_of(folder, "htc")
    assert not task_of(folder, "htc", semantic=False).metadata["net"]["semantic"]
    assert task_of(folder).metadata["net"]["model"] == "mask_rcnn"


def test_a_split_without_objects_does_not_validate(folder):
    "AP would be 0 in every epoch, and the first one's weights the best."
    path = folder / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    for keep in (lambda a: False, lambda a: a["iscrowd"]):
        path.write_text(json.dumps(content | dict(annotations=[a for a in content["annotations"] if keep(a)])))
        with pytest.raises(ValueError, match="instances_val2017.json: nothing to score by: 4 images and no object"):
            task_of(folder)
        assert not verify_coco(folder, progress=False).ok


@pytest.mark.fault("C2")
def test_classes_of_both_splits_are_compared_by_name(source, folder):
    def rename(content):
        content["categories"][0]["name"] = "ball"

    edit(folder, rename, "val2017")
    with pytest.raises(
        ValueError, match="instances_val2017.json: category 2 is 'ball' and in .*train2017.json it is 'disc'"
    ):
        task_of(folder)


@pytest.mark.fault("R9")
def test_a_missing_package_is_said_before_the_run(source, monkeypatch):
    import sys

    for name in ["faster_coco_eval", *(m for m in sys.modules if m.startswith("faster_coco_eval."))]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModuleNotFoundError, match="need faster_coco_eval: pip install"):
        task_of(source)


def test_an_object_without_a_mask_survives_the_jitter(folder):
    """What is wrong with a mask costs the mask: a window that keeps the box keeps the object."""
    edit(
        folder,
        lambda content: [a.update(segmentation=[]) for a in content["annotations"] if not a["iscrowd"] and a["id"] % 2],
    )
    dataset = CocoFolder(folder, training=True, transforms=LargeScaleJitter(96, 1.0, 1.0))
    plain = CocoFolder(folder, training=True)
    assert dataset.dropped["empty segmentation"] > 3
    for (_, target), (_, before) in zip(dataset, plain):
        assert len(target["labels"]) == len(before["labels"])
        assert target["masks"].flatten(1).any(1).equal(before["masks"].flatten(1).any(1))
        assert ("has_mask" in target) == ("has_mask" in before)
        assert "has_mask" not in target or target["has_mask"].equal(target["masks"].flatten(1).any(1))


@pytest.mark.fault("C1")
@pytest.mark.parametrize("model", KINDS)
def test_an_object_without_a_mask_trains_the_box_parts_only(folder, model):
    """Its box counts as before, its mask is not learned as an empty one."""
    torch.manual_seed(0)
    task = task_of(folder, model)
    whole = next(i for i in range(len(task.train)) if len(task.train[0, i][1]["labels"]) > 2)
    image, target = task.train[0, whole]
    detector = task.build().train()
    detector.sampler = lambda candidates, number: candidates[:number]

    def losses(**changes):
        changed = {name: value for name, value in (target | changes).items() if value is not None}
        return {name: value.item() for name, value in task.losses(detector, ([image], [changed])).items()}

    every, none = losses(), losses(masks=None)
    n = len(target["labels"])
    first = torch.arange(n) == 0
    some = losses(masks=target["masks"] * first[:, None, None], has_mask=first)
    empty = losses(masks=target["masks"] * first[:, None, None])
    for name in every:
        if "loss_mask" not in name:
            assert every[name] == none[name] == some[name]
        else:
            assert none[name] == 0 and some[name] not in (0, every[name], empty[name])
    nothing = losses(masks=torch.zeros_like(target["masks"]), has_mask=torch.zeros(n, dtype=torch.bool))
    assert nothing == none


@pytest.mark.parametrize("model", KINDS)
def test_a_folder_of_boxes_alone_trains(folder, model):
    for split in "train2017", "val2017":
        edit(folder, lambda content: [a.pop("segmentation") for a in content["annotations"]], split)
    task = task_of(folder, model)
    assert task.score == "box AP"
    for detector, parts in steps(task, 4):
        assert all(map(math.isfinite, parts.values())) and all(v == 0 for k, v in parts.items() if "loss_mask" in k)
    scores = task.validate(detector, [task.collate([task.valid[i]]) for i in range(4)])
    assert set(scores) == {"box AP", "box AP50", "box AP75"}


# ---- steps


@pytest.mark.parametrize("model", KINDS)
def test_twenty_steps_on_a_faulty_folder_are_finite_and_go_down(folder, model):
    edit(folder, lambda content: plant_faults(content, least=2))
    task = task_of(folder, model, missing="drop", keep_empty=True)
    gone = task.train.folder.file(task.train.folder.image_ids[1])
    gone.unlink()
    task = task_of(folder, model, missing="drop", keep_empty=True)
    assert PLANTED | {"crowd", "missing image"} <= set(task.train.folder.dropped)
    losses = [sum(parts.values()) for _, parts in steps(task, 20)]
    assert np.isfinite(losses).all() and np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])


@pytest.mark.parametrize("model", KINDS)
def test_an_epoch_without_objects_is_finite_and_reaches_every_weight(folder, model):
    edit(folder, lambda content: content.update(annotations=[]))
    edit(folder, lambda content: content.update(annotations=[]), "val2017")
    task = task_of(folder, model, keep_empty=True)
    for detector, parts in steps(task, 6):
        assert all(map(math.isfinite, parts.values()))
        # several processes wait for the gradient of every weight
        assert all(p.grad is not None and p.grad.isfinite().all() for p in detector.parameters() if p.requires_grad)
    scores = task.validate(detector, [task.collate([task.valid[i]]) for i in range(4)])
    assert set(scores.values()) == {0.0}


@pytest.mark.parametrize("model", KINDS)
def test_ten_steps_leave_the_statistics_of_frozen_norms_alone(source, model):
    before, norms = {}, set()
    for detector, _ in steps(task_of(source, model), 10, batch_size=1):
        if not before:  # the first step is behind us: steps may change weights, never statistics
            held = detector.state_dict()
            before = {
                name: value.clone()
                for name, value in held.items()
                if name.rpartition(".")[2] in ("running_mean", "running_var", "num_batches_tracked")
            }
            norms = {type(part).__name__ for part in detector.modules() if isinstance(part, _BatchNorm)}
            weight = detector.pyramid.backbone.layer3[0].conv2.context.norm_scores.weight
            scale = weight.detach().clone()
    assert norms == {"BatchNorm1d", "BatchNorm2d"}  # the 1-d ones are inside LESA
    after = detector.state_dict()
    assert before and all(value.equal(after[name]) for name, value in before.items())
    assert not weight.equal(scale)  # their scales are trained all the same
    fresh = task_of(source, model)
    torch.manual_seed(0)
    built = fresh.build().state_dict()
    assert all(value.equal(built[name]) for name, value in before.items())


# ---- runs


def weights_of(folder):
    return torch.load(folder / "last.pt", weights_only=True)["model"]


@pytest.mark.parametrize("model", ["mask_rcnn", pytest.param("htc", marks=pytest.mark.slow)])
def test_two_epochs_equal_one_and_one(source, tmp_path, model):
    recipe = replace(BRIEF, augment="jitter", ema=0.9)

    def run(folder, **options):
        return list(fit(task_of(source, model, recipe=recipe), tmp_path / folder, seed=5, **options))

    events = run("whole")
    assert [e["kind"] for e in events if e["kind"] != "step"] == ["start", "valid", "valid", "end"]
    run("parts", until=1)
    run("parts", resume=True)
    one, two = weights_of(tmp_path / "whole"), weights_of(tmp_path / "parts")
    assert all(value.equal(two[name]) for name, value in one.items())
    metadata = json.loads((tmp_path / "whole" / "last.json").read_text())
    assert (
        metadata["arch"] == "detector"
        and metadata["net"]["model"] == model
        and metadata["net"]["keep_ratio"]
        and metadata["category_ids"] == [2, 17, 90]
    )
    with pytest.raises(ValueError, match="net: .*there.*now"):
        list(fit(task_of(source, model, recipe=recipe, image_size=96), tmp_path / "whole", seed=5, resume=True))
    scores = evaluate_detector(source, tmp_path / "whole" / "last.safetensors", batch_size=2)
    assert abs(100 * scores.mask["AP"] - metadata["scores"]["mask AP"]) < 1e-3


def test_a_broken_picture_stops_the_run_and_is_named(folder, tmp_path):
    task = task_of(folder, recipe=replace(BRIEF, epochs=1))
    path = task.train.folder.file(task.train.folder.image_ids[2])
    path.write_bytes(path.read_bytes()[:300])
    for workers in 0, 1:
        with pytest.raises(ValueError, match=path.name):
            list(fit(task, tmp_path / f"run {workers}", workers=workers))


@pytest.mark.fault("C2")
def test_files_of_other_classes_are_refused(source, folder, tmp_path):
    task = task_of(source)
    torch.manual_seed(0)
    path = tmp_path / "small.safetensors"
    save_weights(task.build(), path, **task.metadata)
    detector, classes, _, metadata, _ = load(path)
    assert metadata == task.metadata and not detector.training and classes == ["disc", "square", "triangle"]
    sent = json.loads(export_testdev(source, path, tmp_path / "sent.json").read_text())
    assert {r["category_id"] for r in sent} <= {2, 17, 90}

    def renumber(content):
        content["categories"][0]["id"] = 3
        for a in content["annotations"]:
            a["category_id"] = 3 if a["category_id"] == 2 else a["category_id"]

    before = evaluate_detector(source, path)
    edit(folder, renumber, "val2017")
    after = evaluate_detector(folder, path)  # the same names under other ids: matched by name
    assert after.categories.ids == [3, 17, 90] and after.class_ap() == before.class_ap()
    edit(folder, lambda content: content["categories"][0].update(name="ball"), "val2017")
    with pytest.raises(
        ValueError, match="instances_val2017.json: expected the categories of .*small.safetensors.*disc.*ball"
    ):
        evaluate_detector(folder, path)
    with pytest.raises(FileNotFoundError, match="its folder does not exist"):
        export_testdev(source, path, tmp_path / "none" / "sent.json")


@pytest.mark.slow
@pytest.mark.parametrize("model", KINDS)
def test_an_authors_file_is_recognised(tmp_path, model):
    torch.manual_seed(0)
    detector = build_detector(model, num_classes=5, image_size=64, semantic=False)
    torch.save({"state_dict": to_published(detector), "meta": {}}, tmp_path / "theirs.pth")
    loaded, _, _, metadata, kind = load(tmp_path / "theirs.pth")
    expected = dict(model=model, num_classes=5, image_size=64, semantic=False)
    assert kind == "detector" and metadata["net"] | expected == metadata["net"]
    assert all(value.equal(loaded.state_dict()[name]) for name, value in detector.state_dict().items())


# ---- resize and paste


@pytest.mark.parametrize("keep_ratio", [False, True])
def test_truth_through_resize_and_paste_is_found(source, keep_ratio):
    "What a perfect detector could reach: boxes 1, masks at least .95, although they pass through 28 x 28 points."
    dataset, results = CocoFolder(source), {}
    for image, target in dataset:
        own = target["iscrowd"] == 0
        target = target | {name: target[name][own] for name in ("boxes", "labels", "masks")}
        (x,), (fitted,) = prepare([image], [target], side=256, keep_ratio=keep_ratio, classes=3)
        n, (H, W), (h, w) = len(fitted["boxes"]), image.shape[1:], x.shape[1:]
        (sampled,) = sample_rois([torch.zeros(0, 4)], [fitted["boxes"]], 0.5)  # the objects' own boxes
        masks = _mask_targets(fitted["masks"], sampled).float() if n else torch.zeros(0, 28, 28)
        boxes = fitted["boxes"] * torch.tensor([W / w, H / h] * 2)
        answer = dict(
            boxes=boxes, labels=fitted["labels"], scores=torch.ones(n), masks=_paste(masks, boxes, (H, W))[:, None]
        )
        results[target["image_id"]] = to_results(answer, target["image_id"], dataset)
    scores = score_results(dataset, results)
    assert scores.box["AP"] > 1 - 1e-6 and scores.mask["AP"] >= 0.95


# ---- several processes


@pytest.mark.slow
def test_two_processes_score_what_one_scores_and_train(source, tmp_path):
    code = textwrap.dedent("""
        import json, os, sys
        from dataclasses import replace
        from pathlib import Path
        import torch
        from lesa_nb.engine.run import fit
        from lesa_nb.tasks.detect import DETECTION_RECIPES, detection_task
        data, out = sys.argv[1:]
        # nothing is learned: both score the same weights
        recipe = replace(DETECTION_RECIPES["small"], epochs=1, batch_size=4, lr=1e-12, warmup_steps=0)
        task = detection_task(data, recipe, model="htc", network="small", image_size=64, valid="train2017",
                              say=lambda text: None)
        events = list(fit(task, out))
        if os.environ.get("RANK", "0") == "0": Path(out, "scores.json").write_text(json.dumps(events[-1]["scores"]))
    """)
    (tmp_path / "run.py").write_text(code)
    scores = []
    for number in 1, 2:
        out = tmp_path / f"by {number}"
        run_ranks(tmp_path / "run.py", source, out, ranks=number, timeout=400)
        scores.append(json.loads((out / "scores.json").read_text()))
    assert scores[0].keys() == scores[1].keys() and all(
        abs(value - scores[1][name]) < 1e-6 for name, value in scores[0].items()
    )


SHARED = """
import json, sys
from lesa_nb.cli.app import main
from lesa_nb.tasks.detect_eval import evaluate_detector
data, weights, out = sys.argv[1:]
seen = []
def watch(found):
    for image_id, results in found:
        seen.append(image_id)
        yield image_id, results
scores = evaluate_detector(data, weights, batch_size=2, watch=watch)
print(json.dumps(dict(seen=seen, box=scores.box, detections=scores.detections)))
words = [data, "--weights", weights, "--workers", "0", "--split", "test-dev2017", "--out", out]
sys.exit(main(["export-testdev", "--data", *words]))
"""


@pytest.mark.slow
def test_two_processes_share_the_images_that_are_scored_and_sent(source, tmp_path):
    "They did all of them, each of them, before."
    torch.manual_seed(0)
    net = dict(model="mask_rcnn", network="small", num_classes=3, image_size=64)
    plain = CocoFolder(source, "val")
    save_weights(build_detector(**net), tmp_path / "w.safetensors", arch="detector", net=net,
                 classes=plain.categories.names, category_ids=plain.categories.ids)
    found = {}
    for ranks in 1, 2:
        out = tmp_path / f"by {ranks}.json"
        said = run_ranks("-c", SHARED, source, tmp_path / "w.safetensors", out, ranks=ranks).splitlines()
        of_ranks = [json.loads(line) for line in said if line.startswith("{")]
        assert len(of_ranks) == ranks and sum("test-dev2017" in line or "MB, in the original" in line
                                              for line in said) == 1
        assert sorted(sum((one["seen"] for one in of_ranks), [])) == sorted(plain.image_ids)
        sent = sorted(json.loads(out.read_text()), key=lambda r: (r["image_id"], -r["score"], r["bbox"]))
        found[ranks] = [{k: v for k, v in one.items() if k != "seen"} for one in of_ranks], sent
    (alone,), sent = found[1]
    assert found[2][0] == [alone, alone] and alone["detections"] and found[2][1] == sent


# ---- by heart


def eight(folder):
    "Keep eight pictures with objects and without crowds."

    def change(content):
        have, crowd = ({a["image_id"] for a in content["annotations"] if a["iscrowd"] >= least} for least in (0, 1))
        content["images"] = [image for image in content["images"] if image["id"] in have - crowd][:8]
        ids = {image["id"] for image in content["images"]}
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] in ids]

    edit(folder, change)


@pytest.mark.slow
@pytest.mark.parametrize("model", KINDS)
def test_eight_pictures_are_learned_by_heart(tmp_path, model):
    "Box and mask AP above .9 on the pictures that it was trained on: everything from anchors to masks pulls one way."
    folder = make_coco(tmp_path / "coco", train=12, val=1, test=0, size=128)
    eight(folder)
    task = detection_task(
        folder,
        DETECTION_RECIPES["small"].changed(epochs=3),
        model=model,
        network="small",
        valid="train2017",
        repeat=50,
        say=lambda text: None,
    )
    assert len(task.train) / 50 == len(task.valid) == 8
    events = list(fit(task, tmp_path / "run"))
    assert all(math.isfinite(loss) for e in events if e["kind"] == "step" for loss in e["losses"].values())
    scores = events[-1]["scores"]
    assert scores["box AP"] > 90 and scores["mask AP"] > 90, scores


def test_odd_pictures_and_types(tmp_path, folder):
    "Grey pictures and numbers with gaps arrive as they should."
    dataset = CocoFolder(folder, training=True)
    image_id = dataset.image_ids[0]
    H, W = dataset.size(image_id)
    Image.new("L", (W, H), 99).save(dataset.file(image_id))
    image, target = TrainSamples(dataset)[0, 0]
    assert (
        image.shape == (3, H, W)
        and set(target["labels"].tolist()) <= {1, 2, 3}
        and target["file"] == str(dataset.file(image_id))
    )
