"""Both detectors against numbers recorded from the published code (see golden/README.md), and awkward pictures.

Recorded at 256 x 256 with weights that are functions of their names; labels there run from 0.
"""

import numpy as np
import pytest
import torch
from golden_weights import GOLDEN, error, filled, image

from lesa_nb.models.htc import HTC, _cut_boxes, _mask_features, htc_lesa_wrn50, mask_rcnn_lesa_resnet50
from lesa_nb.models.mask_rcnn import MaskRCNN, _paste, roi_features
from lesa_nb.models.ops import first_sampler
from lesa_nb.models.pyramid import Backbone, Pyramid
from lesa_nb.weights.published import load_published, published_names, to_published
from lesa_nb.weights.start import start_backbone

MEAN, STD = torch.tensor([0.485, 0.456, 0.406])[:, None, None], torch.tensor([0.229, 0.224, 0.225])[:, None, None]
DETECTORS = {"mask_rcnn": mask_rcnn_lesa_resnet50, "htc": htc_lesa_wrn50}
SAMPLES = {"backbone": (8, 4, 2, 1), "fpn": (4, 2, 1, 1, 1)}  # every n-th channel is recorded


def ellipses(boxes, size):
    "The recorded objects: the ellipse inside each box."
    y, x = torch.meshgrid(torch.arange(size) + 0.5, torch.arange(size) + 0.5, indexing="ij")
    return torch.stack(
        [
            ((2 * x - x0 - x1) / (x1 - x0)) ** 2 + ((2 * y - y0 - y1) / (y1 - y0)) ** 2 <= 1
            for x0, y0, x1, y1 in boxes.double()
        ]
    )


class Recorded:
    "A detector with the recorded weights, its one picture, and what was recorded of it."

    def __init__(self, name):
        with np.load(GOLDEN / f"{name}.npz") as archive:
            self.golden = {key: archive[key] for key in archive.files}
        self.htc = name == "htc"
        self.model = DETECTORS[name](image_size=256, sampler=first_sampler)
        empty = {}
        for line in self.golden["keys"]:
            key, rest = str(line).split(" (")
            shape, dtype = rest.split(") ")
            empty[key] = torch.empty(
                [int(n) for n in shape.split(",") if n.strip()], dtype=getattr(torch, dtype)
            ).zero_()
        load_published(self.model, {"state_dict": filled(empty), "meta": {}})
        self.x = image(20210713, (1, 3, 256, 256))
        self.rgb = self.x[0] * STD + MEAN
        boxes = self.tensor("gt_bboxes")
        self.target = dict(boxes=boxes, labels=self.tensor("gt_labels") + 1, masks=ellipses(boxes, 256))
        if self.htc:
            self.target["semantic"] = self.tensor("gt_semantic_seg").repeat_interleave(8, 0).repeat_interleave(8, 1)
        with torch.no_grad():
            self.maps = self.model.pyramid.backbone(self.x)
            (self.features,) = self.model.eval().extract(self.x)

    def tensor(self, key):
        return torch.from_numpy(self.golden[key])

    def error(self, tensor, key):
        return error(tensor, self.golden[key])


@pytest.fixture(scope="module", params=["mask_rcnn", pytest.param("htc", marks=pytest.mark.slow)])
def recorded(request):
    return Recorded(request.param)


def test_features_and_proposals(recorded):
    for name, maps in (("backbone", recorded.maps), ("fpn", recorded.features.maps)):
        for i, (tensor, every) in enumerate(zip(maps, SAMPLES[name], strict=True)):
            assert recorded.error(tensor[:, ::every], f"{name}.{i}") < 1e-5
    for i, (logits, deltas) in enumerate(zip(recorded.features.rpn.logits, recorded.features.rpn.deltas, strict=True)):
        side = 64 >> i
        assert recorded.error(logits.view(side, side, 3).permute(2, 0, 1), f"rpn.cls.{i}") < 1e-5
        assert recorded.error(deltas.view(side, side, 12).permute(2, 0, 1), f"rpn.reg.{i}") < 1e-5
    boxes, scores = recorded.model.eval().rpn.propose(recorded.features.rpn)
    want = recorded.tensor("proposals")
    assert (
        len(boxes) == 1000
        and (boxes[:100] - want[:, :4]).abs().max() < 1e-2
        and (scores[:100] - want[:, 4]).abs().max() < 1e-5
    )


@torch.no_grad()
def test_heads_on_fixed_boxes(recorded):
    model, features, rois = recorded.model.eval(), recorded.features, recorded.tensor("fixed_rois")
    if recorded.htc:
        assert (
            recorded.error(features.stuff[0][:, ::4], "semantic.pred") < 1e-5
            and recorded.error(features.stuff[1][:, ::4], "semantic.feat") < 1e-5
        )
        cuts = _cut_boxes(features, rois, 14)
        for i, (head, of_stage) in enumerate(zip(model.mask_head, _mask_features(model.mask_head, cuts), strict=True)):
            assert recorded.error(of_stage[:, ::32], f"mask_head.{i}.res_feat") < 1e-5
            assert recorded.error(head(of_stage)[:, ::16], f"mask_head.{i}.logits") < 1e-5
        found = {f"bbox_head.{i}": head(_cut_boxes(features, rois, 7)) for i, head in enumerate(model.box_head)}
    else:
        cuts = roi_features(features.maps, rois, 14)
        assert recorded.error(roi_features(features.maps, rois, 7)[:, ::8], "bbox_feats") < 1e-5
        assert recorded.error(model.mask_head(model.mask_head.features(cuts))[:, ::8], "mask_head.logits") < 1e-5
        found = {"bbox_head": model.box_head(roi_features(features.maps, rois, 7))}
    assert recorded.error(cuts[:, ::16], "mask_feats") < 1e-5
    for name, (logits, deltas) in found.items():
        assert recorded.error(logits, f"{name}.cls") < 1e-5 and recorded.error(deltas.flatten(1), f"{name}.reg") < 1e-5


def by_class(labels):
    return labels.argsort(stable=True)


@torch.no_grad()
def test_detections(recorded):
    "From fixed proposals with masks, and through the public call."
    model, features = recorded.model.eval(), recorded.features
    boxes, scores, classes = model.predict_boxes(features, recorded.tensor("fixed_proposals")[:105])
    order, want = by_class(classes), recorded.tensor("fp_final.bboxes")
    assert torch.equal(classes[order], recorded.tensor("fp_final.labels").long())
    assert (boxes[order] - want[:, :4]).abs().max() < 1e-2 and (scores[order] - want[:, 4]).abs().max() < 1e-5
    masks = _paste(model.predict_masks(features, boxes, classes), boxes, (256, 256))[order] >= 0.5
    kept = torch.from_numpy(np.unpackbits(recorded.golden["fp_final.masks"], axis=1)).view(20, 256, 256).bool()
    assert (masks[:20] != kept).float().mean() < 1e-4
    assert (masks.sum((1, 2)) - recorded.tensor("fp_final.mask_areas")).abs().max() <= 4
    (found,) = model([recorded.rgb])
    order, want = by_class(found["labels"]), recorded.tensor("final.bboxes")
    assert torch.equal(found["labels"][order], recorded.tensor("final.labels").long() + 1)
    assert (found["boxes"][order] - want[:, :4]).abs().max() < 1e-2 and (
        found["scores"][order] - want[:, 4]
    ).abs().max() < 1e-4
    assert found["masks"].shape == (100, 1, 256, 256) and 0 <= found["masks"].min() and found["masks"].max() < 1 + 1e-5


def test_losses_and_gradients(recorded):
    "On fixed proposals, and a whole training step that samples the first boxes."
    model = recorded.model.train()
    target = recorded.target | dict(classes=recorded.target["labels"] - 1)
    with torch.no_grad():
        found = model.roi_losses([recorded.features], [recorded.tensor("fixed_proposals")], [target])
    for name, value in zip(
        recorded.golden["fixedprops.losses"].tolist(), recorded.golden["fixedprops.values"], strict=True
    ):
        assert abs(found[name].item() - value) <= 1e-5 * abs(value), name
    before = {
        name: tensor.clone()
        for name, tensor in model.state_dict().items()
        if "running_" in name or "num_batches" in name
    }
    found = model([recorded.rgb], [recorded.target])
    assert set(found) == set(recorded.golden["train_firstk.losses"].tolist())
    for name, value in zip(
        recorded.golden["train_firstk.losses"].tolist(), recorded.golden["train_firstk.values"], strict=True
    ):
        assert abs(found[name].item() - value) <= 1e-4 * abs(value), name
    sum(found.values()).backward()
    ours, weights = published_names(model), dict(model.named_parameters())
    assert {k for k, name in ours.items() if name in weights} == set(recorded.golden["gradients"].tolist())
    for name, norm in zip(recorded.golden["gradients"].tolist(), recorded.golden["gradient_norms"], strict=True):
        weight = weights[ours[name]]
        assert weight.requires_grad != np.isnan(norm), name
        if not np.isnan(norm) and not name.endswith("bn_similarity.bias"):  # a gradient whose true value is zero
            found_norm = 0.0 if weight.grad is None else weight.grad.double().norm().item()
            assert abs(found_norm - norm) <= 2e-3 * norm, name  # their norms were summed in float32
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    model.zero_grad()


def test_parameters_at_full_size():
    with torch.device("meta"):
        counts = [sum(p.numel() for p in build().parameters()) for build in DETECTORS.values()]
    assert counts == [42_953_146, 116_538_143]


def small(kind=MaskRCNN, **options):
    torch.manual_seed(0)
    backbone = Backbone(stages=("C", "C", "L", "L"), base=8, heads=4, image_size=64)
    return kind(Pyramid(backbone, channels=16), **dict(num_classes=3, image_size=64, width=32) | options)


def test_refused_weights_change_nothing():
    model = small()
    good = {key: tensor.clone() for key, tensor in to_published(model).items()}
    twin = small()
    torch.nn.init.ones_(twin.box_head.classify.weight)
    before = {key: tensor.clone() for key, tensor in twin.state_dict().items()}
    key = "roi_head.bbox_head.fc_cls.weight"
    for bad in (
        {k: v for k, v in good.items() if k != key},
        good | {"neck.extra": torch.zeros(1)},
        good | {key: torch.zeros(91, 32)},
    ):
        with pytest.raises(ValueError, match="neck.extra|fc_cls.weight"):
            load_published(twin, bad)
    assert all(torch.equal(tensor, before[k]) for k, tensor in twin.state_dict().items())
    load_published(twin, {f"module.{k}": v for k, v in good.items()})
    assert torch.equal(twin.box_head.classify.weight, model.box_head.classify.weight)
    with pytest.raises(ValueError, match="found no Backbone"):
        start_backbone(torch.nn.Linear(1, 1), good)


@pytest.mark.parametrize("keep_ratio", [False, True])
@pytest.mark.parametrize("kind", [MaskRCNN, HTC])
def test_awkward_pictures(kind, keep_ratio):
    "Pixels, strips, no objects, float16 masks: finite losses and results in the picture's own pixels."
    model = small(kind, keep_ratio=keep_ratio)
    sizes = [(1, 1), (20, 500), (33, 65)]
    images = [torch.rand(3, *size) for size in sizes]
    targets = [
        dict(
            boxes=torch.zeros(0, 4),
            labels=torch.zeros(0, dtype=torch.long),
            masks=torch.zeros(0, *size, dtype=torch.float16),
            semantic=torch.full(size, 255),
        )
        for size in sizes
    ]
    targets[2] |= dict(
        boxes=torch.tensor([[3.0, 4, 30, 60]]),
        labels=torch.tensor([2]),
        masks=torch.ones(1, 33, 65, dtype=torch.float16),
    )
    losses = model.train()(images, targets)
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    with torch.no_grad():
        found = model.eval()(images)
    for result, (H, W) in zip(found, sizes, strict=True):
        assert result["masks"].shape == (len(result["boxes"]), 1, H, W)
        assert (result["boxes"] >= 0).all() and (result["boxes"] <= torch.tensor([W, H, W, H]) + 1e-3).all()
        assert ((result["labels"] >= 1) & (result["labels"] <= 3)).all()


def test_bad_targets_are_named():
    model = small().train()
    good = dict(
        image_id=42, boxes=torch.tensor([[3.0, 4, 30, 30]]), labels=torch.tensor([2]), masks=torch.ones(1, 40, 40)
    )
    for key, bad in dict(
        boxes=torch.tensor([[30.0, 4, 3, 30]]), labels=torch.tensor([4]), masks=torch.ones(1, 20, 20)
    ).items():
        with pytest.raises(ValueError, match="image_id 42"):
            model([torch.rand(3, 40, 40)], [good | {key: bad}])
    with pytest.raises(ValueError, match="image_id 42"):
        model([torch.rand(3, 40, 40)], [good | dict(boxes=torch.tensor([[3.0, 4, float("nan"), 30]]))])


def test_same_result_alone_and_in_a_batch():
    model = small().eval()
    images = [torch.rand(3, 50, 60), torch.rand(3, 64, 64)]
    with torch.no_grad():
        together, alone = model(images), [model([image])[0] for image in images]
    for a, b in zip(together, alone, strict=True):
        assert torch.equal(a["labels"], b["labels"])
        torch.testing.assert_close(a["boxes"], b["boxes"], atol=1e-3, rtol=1e-4)


@pytest.mark.fault("P4")
@pytest.mark.parametrize("kind", [MaskRCNN, HTC])
@pytest.mark.parametrize("size", [(5000, 20), (20, 5000), (1, 1)])
def test_extreme_shapes(kind, size):
    "A strip of 250 : 1 is squeezed or stays a strip; either way everything is finite and inside."
    H, W = size
    target = dict(
        boxes=torch.tensor([[0.0, 0, W, H]]),
        labels=torch.tensor([1]),
        masks=torch.ones(1, H, W, dtype=torch.float16),
        semantic=torch.full(size, 7),
    )
    for keep_ratio in (False, True):
        model = small(kind, keep_ratio=keep_ratio)
        losses = model.train()([torch.rand(3, *size)], [target])
        assert all(loss.isfinite() for loss in losses.values())
        with torch.no_grad():
            (found,) = model.eval()([torch.rand(3, *size)])
        assert found["masks"].shape[1:] == (1, H, W) and (found["boxes"] <= torch.tensor([W, H, W, H]) + 1e-2).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.bool, torch.uint8])
def test_masks_of_any_type_mean_the_same(dtype):
    "What is at least one half is inside."
    images, masks = [torch.rand(3, 64, 64)], torch.zeros(1, 64, 64)
    masks[:, 10:40, 10:40] = 1
    target = dict(boxes=torch.tensor([[10.0, 10, 40, 40]]), labels=torch.tensor([2]))
    losses = []
    for kind in (torch.float32, dtype):
        torch.manual_seed(3)
        losses.append(small().train()(images, [target | dict(masks=masks.to(kind))]))
    assert all(losses[0][name].equal(losses[1][name]) for name in losses[0])


def test_boxes_outside_are_refused_and_boxes_that_reach_out_are_cut():
    image, target = torch.rand(3, 40, 60), dict(labels=torch.tensor([1]), masks=torch.ones(1, 40, 60))
    for box in ([70.0, 5, 90, 20], [-30.0, 5, -1, 20], [5.0, 5, 5, 20], [5.0, 41, 30, 90]):
        for name, who in ((dict(image_id=7), "image_id 7"), ({}, "image 0")):
            with pytest.raises(ValueError, match=f"{who}: 1 boxes have no area inside the image of 60 x 40 pixels"):
                small().train()([image], [target | dict(boxes=torch.tensor([box])) | name])
    losses = []
    for box in ([-9.0, 5, 20, 99], [0.0, 5, 20, 40]):
        torch.manual_seed(3)
        losses.append(small().train()([image], [target | dict(boxes=torch.tensor([box]))]))
    assert all(losses[0][name].equal(losses[1][name]) for name in losses[0])


def test_a_stuff_map_of_another_size_or_with_unknown_values_is_named():
    image, target = (
        torch.rand(3, 64, 64),
        dict(image_id=9, boxes=torch.tensor([[3.0, 4, 30, 30]]), labels=torch.tensor([2]), masks=torch.ones(1, 64, 64)),
    )
    model = small(HTC).train()
    with pytest.raises(
        ValueError, match=r"image_id 9: expected a semantic map of the image's size \(64, 64\), found \(8, 8\)"
    ):
        model([image], [target | dict(semantic=torch.zeros(8, 8))])
    with pytest.raises(ValueError, match="image_id 9: its target has no semantic map"):
        model([image], [target])
    with pytest.raises(
        ValueError, match="image_id 9: expected semantic values from 0 to 182, or 255 for unknown, found 200"
    ):
        model([image], [target | dict(semantic=torch.full((64, 64), 200))])
    assert small(HTC, semantic=False).train()([image], [target])["s0.loss_cls"].isfinite()


@pytest.mark.parametrize("kind", [MaskRCNN, HTC])
def test_pictures_of_many_sizes_feel_nothing_of_each_other(kind):
    "With the ratio kept the pictures of a batch differ in size: each has its own maps and logits, but for rounding."
    model = small(kind, keep_ratio=True).eval()
    inputs = [torch.randn(3, *size) for size in ((64, 48), (48, 64), (64, 48), (64, 20))]
    with torch.no_grad():
        together = model.extract_mixed(inputs)
        for x, features in zip(inputs, together, strict=True):
            (alone,) = model.extract_mixed([x])
            for a, b in zip(
                [*features.maps, *features.rpn.logits, *features.rpn.deltas],
                [*alone.maps, *alone.rpn.logits, *alone.rpn.deltas],
                strict=True,
            ):
                torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_no_padded_position_can_be_looked_at():
    "Every key of the context term is a position of the picture itself. Padded, it would look at the padding."
    from lesa_nb.layers.lesa import LESA

    model = small(keep_ratio=True).eval()
    layer = next(part for part in model.modules() if isinstance(part, LESA))
    seen = []
    layer.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    x = torch.randn(3, 64, 20)
    with torch.no_grad():
        (features, _), apart = model.extract_mixed([x, torch.randn(3, 64, 64)]), list(seen)
        narrow = min(apart, key=lambda a: a.shape[3])
        weights = layer.context.weights(narrow)
        assert weights.shape[-1] == narrow.shape[2] * narrow.shape[3]
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
        (padded,) = model.extract_mixed([torch.nn.functional.pad(x, (0, 44))])
    h, w = features.maps[2].shape[2:]
    assert (
        padded.maps[2][..., :h, : w - 1] - features.maps[2][..., : w - 1]
    ).abs().max() > 1e-3  # so padding would not have been harmless


def test_training_takes_pictures_as_they_are_if_told_so():
    sizes = []
    for resize in (True, False):
        model = small(keep_ratio=True, resize_in_training=resize).train()
        model.pyramid.register_forward_pre_hook(lambda module, args: sizes.append(tuple(args[0].shape[2:])))
        target = dict(boxes=torch.tensor([[3.0, 4, 20, 20]]), labels=torch.tensor([2]), masks=torch.ones(1, 24, 32))
        model([torch.rand(3, 24, 32)], [target])
    with torch.no_grad():
        model.eval()([torch.rand(3, 24, 32)])
    assert sizes == [(48, 64), (24, 32), (48, 64)]
