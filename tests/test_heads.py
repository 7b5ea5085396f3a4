"""What looks into boxes: cuts, heads, samples, pasting, and a detector whose pictures have no objects or no masks."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import roi_align

from lesa_nb.models.htc import _STAGES_OF_HTC, HTC, SemanticHead, _cut_boxes
from lesa_nb.models.mask_rcnn import (
    BoxHead,
    MaskHead,
    MaskRCNN,
    Sampled,
    _paste,
    _roi_levels,
    box_losses,
    mask_loss,
    mask_samples,
    roi_features,
    sample_rois,
)
from lesa_nb.models.ops import best_boxes, first_sampler, roi_cuts
from lesa_nb.models.pyramid import Backbone, Pyramid, prepare
from lesa_nb.models.rpn import BoxCoder
from lesa_nb.weights.published import load_published, published_names, to_published


def objects(size=(64, 96)):
    "Two ellipses on one image, with boxes, labels, masks and a map of stuff."
    y, x = torch.meshgrid(torch.arange(size[0]) + 0.5, torch.arange(size[1]) + 0.5, indexing="ij")
    masks = torch.stack(
        [((y - 26) / 16) ** 2 + ((x - 24) / 16) ** 2 < 1, ((y - 32) / 27) ** 2 + ((x - 70) / 20) ** 2 < 1]
    )
    boxes = torch.tensor([[8.0, 10, 40, 42], [50.0, 5, 90, 59]])
    return dict(boxes=boxes, labels=torch.tensor([3, 1]), masks=masks, semantic=torch.where(masks.any(0), 7, 120))


def tiny(kind=MaskRCNN, **options):
    torch.manual_seed(0)
    backbone = Backbone(stages=("C", "C", "L", "L"), base=8, heads=4, image_size=96)
    return kind(Pyramid(backbone, channels=16), num_classes=3, width=64, **dict(image_size=96) | options)


IMAGE = torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(0))


def test_boxes_that_reach_out_or_have_no_area_are_cut_too():
    maps = [torch.randn(1, 2, 64 >> level, 64 >> level) for level in range(5)]
    boxes = torch.tensor([[200.0, 200, 290, 260], [7.0, 7, 7, 7], [10.0, 20, 50, 40], [0.0, 0, 500, 500]])
    cuts = roi_features(maps, boxes, 7)
    for n, level in enumerate(_roi_levels(boxes).tolist()):
        alone = roi_align(maps[level], [boxes[n, None]], 7, 1 / (4 << level), aligned=True)
        torch.testing.assert_close(cuts[n, None], alone)
    flat = roi_features([torch.ones_like(m) for m in maps], boxes[2:3], 14)
    torch.testing.assert_close(flat, torch.ones(1, 2, 14, 14))
    assert roi_features(maps, boxes[:0], 7).shape == (0, 2, 7, 7)


@pytest.mark.parametrize(
    ("dtype", "autocast"),
    [
        (torch.bfloat16, True),
        (torch.float32, True),
        (torch.bfloat16, False),
        (torch.float16, False),
        (torch.float32, False),
        (torch.float64, False),
    ],
)
def test_boxes_keep_their_precision(dtype, autocast):
    "On a ramp, where a cut says where it was taken: rounded to bfloat16 this box would be moved by two pixels."
    ramp = torch.arange(256.0).expand(1, 1, 256, 256).div(256).to(dtype)
    boxes = torch.tensor([[901.3, 457.7, 980.9, 530.1]])
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        cuts = roi_cuts(ramp, boxes, 7, 1 / 4)
        level = roi_features([ramp] * 4, boxes, 7)
    assert cuts.dtype == dtype and level.equal(cuts)
    want = roi_align(ramp.double(), [boxes.double()], 7, 1 / 4, aligned=True)
    assert (cuts.double() - want).abs().max() < 2 * torch.finfo(dtype).eps + 1e-6


def test_published_names_of_the_heads():
    names = {f"{n}.{p}" for n in ("shared_fcs.0", "shared_fcs.1", "fc_cls", "fc_reg") for p in ("weight", "bias")}
    assert set(published_names(BoxHead(3, channels=2, width=16))) == names
    theirs = {
        "roi_head.bbox_head.fc_cls",
        "neck.fpn_convs.3.conv",
        "rpn_head.rpn_reg",
        "roi_head.mask_head.convs.0.conv",
        "roi_head.mask_head.conv_logits",
    }
    assert theirs <= {key.rpartition(".")[0] for key in published_names(tiny())}
    assert BoxHead(3, 2, width=16, agnostic=True)(torch.zeros(5, 2, 7, 7))[1].shape == (5, 1, 4)


def test_a_flow_of_zero_is_none():
    head, cuts = MaskHead(3, channels=4), torch.randn(2, 4, 14, 14)
    flow = MaskHead(3, channels=4, flow=True)
    flow.load_state_dict(head.state_dict(), strict=False)
    nn.init.zeros_(flow.flow.weight)
    torch.testing.assert_close(flow.features(cuts, torch.randn(2, 4, 14, 14)), head.features(cuts))


def test_samples_without_objects_are_background():
    proposals = torch.tensor([[12.0, 9, 41, 42], [0.0, 0, 9, 9]])
    (sampled,) = sample_rois([proposals], [torch.zeros(0, 4)], 0.5)
    assert len(sampled.objects) == 0 and len(sampled.boxes) == 2


def test_more_background_makes_the_box_loss_smaller():
    truth = dict(boxes=torch.tensor([[10.0, 10, 40, 40]]), classes=torch.tensor([2]))
    sampled = Sampled(torch.tensor([[12.0, 9, 41, 42]]), torch.tensor([0]), torch.tensor([False]))
    losses = []
    for more in (0, 96):
        extra = sampled._replace(boxes=F.pad(sampled.boxes, (0, 0, 0, more), value=1.0))
        losses.append(
            box_losses(torch.zeros(1 + more, 4), torch.zeros(1 + more, 3, 4), [extra], [truth], BoxCoder())["loss_bbox"]
        )
    torch.testing.assert_close(losses[0], 97 * losses[1])


def test_best_boxes():
    boxes = torch.tensor([[[0.0, 0, 10, 10]], [[1.0, 0, 11, 10]], [[20.0, 0, 30, 10]]])
    probabilities = torch.tensor([[0.8, 0.1], [0.7, 0.6], [0.04, 0.3]])
    _, scores, classes = best_boxes(boxes, probabilities, 0.05)
    assert scores.equal(probabilities[[0, 1, 2], [0, 1, 1]]) and classes.tolist() == [
        0,
        1,
        1,
    ]  # two names for nearly one box
    assert [len(best_boxes(boxes, probabilities, t)[0]) for t in (0.0, 0.65, 1.0)] == [4, 1, 0]
    assert len(best_boxes(boxes, probabilities, 0.6)[0]) == 1  # strictly above: .6 itself goes, .7 is suppressed by .8


def test_paste_reads_a_grid():
    masks, boxes = (
        torch.rand(3, 28, 28),
        torch.tensor([[3.3, 5.1, 30.7, 33.0], [-4.0, 10, 50.5, 15], [20.0, 20, 20, 30]]),
    )
    pasted = _paste(masks, boxes, (40, 48))
    for n in range(2):
        x0, y0, x1, y1 = boxes[n].tolist()
        y, x = (torch.arange(40) + 0.5 - y0) / (y1 - y0) * 2 - 1, (torch.arange(48) + 0.5 - x0) / (x1 - x0) * 2 - 1
        grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], -1)
        want = F.grid_sample(masks[None, None, n], grid[None], align_corners=False)[0, 0]
        torch.testing.assert_close(pasted[n], want, rtol=1e-4, atol=1e-5)
    assert pasted[2].max() == 0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert _paste(masks, boxes, (40, 48)).dtype == torch.float32


def test_the_outside_of_a_detector():
    "Shapes of the contract, mixed sizes, no objects, errors, and weights that go out and come back."
    model, target = tiny(), objects()
    empty = dict(boxes=torch.zeros(0, 4), labels=torch.zeros(0).long(), masks=torch.zeros(0, 30, 40))
    losses = model.train()([IMAGE, torch.rand(3, 30, 40)], [target, empty])
    assert set(losses) == {"loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_bbox", "loss_mask"}
    assert all(v.isfinite() for v in losses.values())
    assert [
        v.item() for k, v in model([torch.rand(3, 30, 40)], [empty]).items() if k not in ("loss_rpn_cls", "loss_cls")
    ] == [0, 0, 0]
    with pytest.raises(ValueError, match="needs targets"):
        model([IMAGE])
    twin = load_published(tiny(), {f"module.{k}": v for k, v in to_published(model).items()})
    with torch.no_grad():
        for a, b in zip(model.eval()([IMAGE])[0].values(), twin.eval()([IMAGE])[0].values(), strict=True):
            assert torch.equal(a, b)
        found = tiny(keep_ratio=True).eval().extract_mixed(
            [torch.randn(3, 96, 64), torch.randn(3, 64, 96)]
        ) + model.extract(torch.randn(1, 3, 64, 96))
    assert [f.rpn.size for f in found] == [(96, 64), (64, 96), (64, 96)]


def test_losses_are_those_of_the_parts():
    "With objects as proposals every sampled box is positive, and the truth is no step away."
    model, target = tiny(sampler=first_sampler).train(), objects()
    inputs, (fit,) = prepare([IMAGE], [target], side=96, classes=3)
    fit |= dict(classes=fit["labels"] - 1)
    (features,) = model.extract_mixed(inputs)
    found = model.roi_losses([features], [fit["boxes"]], [fit])
    logits, deltas = model.box_head(roi_features(features.maps, fit["boxes"].repeat(2, 1), 7))
    torch.testing.assert_close(found["loss_cls"], F.cross_entropy(logits, fit["classes"].repeat(2)))
    torch.testing.assert_close(found["loss_bbox"], deltas[torch.arange(4), fit["classes"].repeat(2)].abs().sum() / 4)
    drawn = model.mask_head(model.mask_head.features(roi_features(features.maps, fit["boxes"], 14)))
    wanted = torch.stack(
        [
            roi_align(m[None, None].float(), [b[None]], 28, aligned=True)[0, 0] >= 0.5
            for m, b in zip(fit["masks"], fit["boxes"], strict=True)
        ]
    )
    torch.testing.assert_close(
        found["loss_mask"], F.binary_cross_entropy_with_logits(drawn[torch.arange(2), fit["classes"]], wanted.float())
    )


@pytest.mark.parametrize("kind", [MaskRCNN, HTC])
def test_without_masks_an_image_teaches_boxes_only(kind):
    "The mask losses are those of the other images, and zero where there is none; boxes learn as before."
    target = objects()
    bare = {name: value for name, value in target.items() if name != "masks"}
    other = torch.rand(3, 64, 96)
    losses = {}
    for name, images, targets in (
        ("masks", [IMAGE], [target]),
        ("bare", [IMAGE], [bare]),
        ("mixed", [IMAGE, other], [target, bare]),
        ("both", [IMAGE, other], [target, target]),
    ):
        losses[name] = tiny(kind, sampler=first_sampler).train()(images, targets)
    for key, loss in losses["bare"].items():
        assert loss.item() == (0 if "loss_mask" in key else losses["masks"][key].item())
        assert losses["mixed"][key].equal(losses["both"][key]) or "loss_mask" in key
        assert "loss_mask" not in key or losses["mixed"][key].equal(losses["masks"][key])
    model = tiny(kind).train()
    sum(
        model([IMAGE], [bare]).values()
    ).backward()  # every trained weight is part of the graph, as processes that share gradients need
    assert all(
        p.grad is not None and p.grad.isfinite().all()
        for name, p in model.named_parameters()
        if p.requires_grad and "mask_head" in name
    )


def test_a_sample_of_masks_is_the_positives():
    sampled = Sampled(torch.rand(5, 4), torch.tensor([0, 1]), torch.tensor([True, False]))
    with_masks, without = mask_samples([sampled] * 2, [dict(masks=torch.zeros(2, 4, 4)), {}])
    assert with_masks.boxes.equal(sampled.boxes[:2]) and with_masks.objects.equal(sampled.objects)
    assert [len(part) for part in without] == [0, 0, 0]
    assert mask_loss(torch.zeros(0, 3, 28, 28), [without], [{}]).item() == 0


def test_the_losses_of_a_cascade_by_hand():
    model, target = tiny(HTC, sampler=first_sampler).train(), objects()
    losses = model([IMAGE], [target])
    heads = ("cls", "bbox", "mask")
    assert set(losses) == {"loss_rpn_cls", "loss_rpn_bbox", "loss_semantic_seg"} | {
        f"s{i}.loss_{k}" for i in range(3) for k in heads
    }
    inputs, (fit,) = prepare([IMAGE], [target], side=96)
    fit |= dict(classes=fit["labels"] - 1)
    (features,) = model.extract_mixed(inputs)
    boxes, want = model.rpn.propose(features.rpn)[0], {}
    for i, (stage, coder) in enumerate(zip(_STAGES_OF_HTC, model.coders, strict=True)):
        (s,) = sample_rois([boxes], [fit["boxes"]], stage.threshold, first_sampler)
        logits, deltas = model.box_head[i](_cut_boxes(features, s.boxes, 7))
        parts = box_losses(logits, deltas, [s], [fit], coder, beta=1.0)
        want |= {f"s{i}.{name}": stage.weight * loss for name, loss in parts.items()}
        kept = [n for n in range(len(s.boxes)) if not (n < len(s.own) and s.own[n])]
        boxes = torch.stack([coder.decode(s.boxes[n], deltas[n, 0], (96, 96)) for n in kept]).detach()
        (s,) = sample_rois([boxes], [fit["boxes"]], stage.threshold, first_sampler)
        heard, cuts = None, _cut_boxes(features, s.boxes[: len(s.objects)], 14)
        for head in model.mask_head[: i + 1]:
            heard = head.features(cuts, heard)
        want[f"s{i}.loss_mask"] = stage.weight * mask_loss(model.mask_head[i](heard), mask_samples([s], [fit]), [fit])
    for name, value in want.items():
        torch.testing.assert_close(losses[name], value, rtol=1e-4, atol=1e-6)


def test_masks_of_a_cascade_are_the_mean_of_its_heads():
    model = tiny(HTC).eval()
    with torch.no_grad():
        (features,) = model.extract_mixed(prepare([IMAGE], side=96)[0])
        boxes, (m0, m1, m2) = torch.tensor([[3.0, 4, 50, 60], [20.0, 10, 90, 95]]), model.mask_head
        cuts = _cut_boxes(features, boxes, 14)
        h0 = m0.features(cuts)
        h1 = m1.features(cuts + m1.flow(h0).relu())
        h2 = m2.features(cuts + m2.flow(h1).relu())
        want = sum(m(h)[:, 1].sigmoid() for m, h in zip((m0, m1, m2), (h0, h1, h2), strict=True)) / 3
        torch.testing.assert_close(model.predict_masks(features, boxes, torch.ones(2).long()), want)


def test_one_stage_without_stuff_has_the_losses_of_mask_rcnn():
    plain = {name: value for name, value in objects().items() if name != "semantic"}
    one = tiny(HTC, semantic=False, stages=_STAGES_OF_HTC[:1]).train()
    assert {name.removeprefix("s0.") for name in one([IMAGE], [plain])} == set(tiny().train()([IMAGE], [plain]))
    with pytest.raises(ValueError, match="image 0: its target has no semantic map.*semantic=False"):
        tiny(HTC).train()([IMAGE], [plain])


def test_a_cascade_without_objects_and_with_its_published_names():
    model, target = tiny(HTC).train(), objects()
    empty = dict(
        boxes=torch.zeros(0, 4),
        labels=torch.zeros(0).long(),
        masks=torch.zeros(0, 64, 96),
        semantic=torch.full((64, 96), 255),
    )
    small = empty | dict(masks=torch.zeros(0, 40, 96), semantic=torch.full((40, 96), 255))
    assert all(v.isfinite() for v in model([IMAGE, IMAGE[:, :40]], [target, small]).values())
    assert sum(v.item() for k, v in model([IMAGE], [empty]).items() if "cls" not in k) == 0
    names = set(published_names(load_published(tiny(HTC), to_published(model))))
    assert {
        "roi_head.mask_head.2.conv_res.conv.weight",
        "roi_head.bbox_head.1.fc_reg.bias",
        "roi_head.semantic_head.conv_embedding.conv.weight",
    } <= names
    theirs = set(key.rpartition(".")[0] for key in published_names(SemanticHead(6, classes=5)))
    assert {"conv_logits", "conv_embedding.conv", "lateral_convs.4.conv"} <= theirs


def test_the_mask_loss_of_a_stage_reaches_all_mask_heads_before_it():
    model = tiny(HTC, sampler=first_sampler).train()
    losses, weights = model([IMAGE], [objects()]), [head.convs[0].weight for head in model.mask_head]
    for i in range(3):
        grads = torch.autograd.grad(losses[f"s{i}.loss_mask"], weights, retain_graph=True, allow_unused=True)
        assert [g is not None and g.norm() > 0 for g in grads] == [j <= i for j in range(3)]
