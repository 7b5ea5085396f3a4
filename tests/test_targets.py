"""What a detector is given is checked once, at its door: in torchvision's words, by image, before computing."""

import pytest
import torch
from torchvision.tv_tensors import BoundingBoxes

from lesa_nb.models._targets import image_name
from lesa_nb.models.mask_rcnn import MaskRCNN
from lesa_nb.models.pyramid import Backbone, Pyramid, prepare

IMAGE = torch.rand(3, 40, 40)
GOOD = dict(boxes=torch.tensor([[3., 4, 30, 30]]), labels=torch.tensor([2]), masks=torch.ones(1, 40, 40))


def prepared(target, image=IMAGE, side=32, **options):
    return prepare([image], [target], side=side, **options)


@pytest.mark.fault("C9")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            dict(boxes=torch.zeros(0)),
            r"expected target boxes to be a tensor of shape \[N, 4\], found \[0\]; "
            r"an image without objects has torch.zeros\(0, 4\)",
        ),
        (dict(boxes=torch.zeros(4)), r"of shape \[N, 4\], found \[4\]"),
        (dict(boxes=torch.zeros(1, 5)), r"of shape \[N, 4\], found \[1, 5\]"),
        (dict(boxes=[[3.0, 4, 30, 30]]), "expected target boxes to be of type Tensor, found list"),
        (
            dict(labels=torch.tensor([2], dtype=torch.int32)),
            r"expected target labels of type int64, found torch.int32; convert them with .long\(\)",
        ),
        (dict(labels=torch.tensor([2.0])), "expected target labels of type int64, found torch.float32"),
        (dict(labels=torch.tensor([2, 2])), r"expected labels of shape \(1,\), found \(2,\)"),
        (dict(labels=torch.tensor([0])), "expected labels from 1 to 80, found 0"),
        (dict(masks=torch.ones(2, 40, 40)), r"expected masks of shape \(1, 40, 40\), found \(2, 40, 40\)"),
        (dict(has_mask=torch.ones(3, dtype=torch.bool)), r"expected has_mask of shape \(1,\), found \(3,\)"),
        (dict(boxes=torch.tensor([[3.0, 4, float("inf"), 30]])), "1 boxes have an edge that is no finite number"),
        (dict(boxes=torch.tensor([[-float("inf"), 4, 20, 30]])), "1 boxes have an edge that is no finite number"),
        (dict(boxes=torch.tensor([[3.0, float("nan"), 20, 30]])), "1 boxes have an edge that is no finite number"),
        (
            dict(boxes=torch.tensor([[3.0, 4, 3, 30]])),
            r"1 boxes have no area inside the image of 40 x 40 pixels; the first is \[3.0, 4.0, 3.0, 30.0\]",
        ),
    ],
)
def test_each_fault_is_refused_in_a_sentence(change, message):
    with pytest.raises(ValueError, match=f"^image_id b7: .*{message}"):
        prepared(GOOD | dict(image_id="b7") | change)


@pytest.mark.parametrize("key", ["boxes", "labels"])
def test_what_is_missing_is_named(key):
    with pytest.raises(ValueError, match=f"image 0: its target has no {key}"):
        prepared({name: value for name, value in GOOD.items() if name != key})


@pytest.mark.fault("C9")
@pytest.mark.parametrize(("image", "message"), [
    (torch.zeros(3, 8, 8, dtype=torch.uint8), "image 1: expected a float image, nominally in .* found torch.uint8"),
    (torch.zeros(8, 8), r"image 1: expected an RGB image of shape \(3, H, W\), found \(8, 8\)"),
    (torch.full((3, 8, 8), float("nan")), r"image 1: expected values nominally in \[0, 1\], found nan$"),
    (255*torch.rand(3, 8, 8), "image 1: expected values nominally in .*: divide an image of 0..255 by 255")])
def test_images_that_are_none_are_refused(image, message):
    with pytest.raises(ValueError, match=message):
        prepare([IMAGE, image], side=32)


def test_images_that_overshoot_a_little_are_taken():
    assert prepare([3*IMAGE - 1], side=32)[0][0].shape == (3, 32, 32)
    assert prepare([], side=32) == ([], []) and prepare([], [], side=32) == ([], [])


def test_boxes_that_say_how_they_are_laid_out_are_believed():
    edges = BoundingBoxes([[3, 4, 30, 30]], format="XYXY", canvas_size=(40, 40))
    boxes = prepared(GOOD | dict(boxes=edges))[1][0]["boxes"]
    assert type(boxes) is torch.Tensor and boxes.equal(prepared(GOOD)[1][0]["boxes"])
    for layout in ("XYWH", "CXCYWH"):
        with pytest.raises(ValueError, match=rf"image 0: expected boxes as .*{layout}; .*ConvertBoundingBoxFormat"):
            prepared(GOOD | dict(boxes=BoundingBoxes([[3, 4, 30, 30]], format=layout, canvas_size=(40, 40))))


def test_a_batch_in_one_tensor_is_a_sequence_of_images():
    "As torchvision's detectors take it."
    images = torch.rand(2, 3, 40, 40)
    assert [x.shape for x in prepare(images, [GOOD, GOOD], side=32)[0]] == 2*[(3, 32, 32)]
    assert [found["masks"].shape[2:] for found in small().eval()(images)] == 2*[(40, 40)]


@pytest.mark.parametrize("numbers", [500, dict(training=500), dict(train=9, test=9)])
def test_numbers_of_proposals_are_asked_for_both_modes(numbers):
    for name in ("pre_nms_top_n", "post_nms_top_n"):
        with pytest.raises(ValueError, match=rf"expected {name} as dict\(training=..., testing=...\), found .*"):
            small(**{name: numbers})


def test_training_on_nothing_is_refused():
    assert small().eval()([]) == []
    with pytest.raises(ValueError, match="needs an image at least"):
        small()([], [])


def test_stages_that_there_are_not():
    for options, message in ((dict(frozen=5), "frozen counts stages, from -1 to 4, got 5"), (dict(frozen=-2), "got -2"),
                             (dict(deformable=(0, 1)), r"deformable stages count from 1, got \(0, 1\)")):
        with pytest.raises(ValueError, match=message):
            Backbone(stages=("C", "C", "L", "L"), base=8, heads=4, image_size=64, **options)


def test_a_backbone_with_other_strides_is_refused():
    "Its maps would not lie where the anchors do."
    with pytest.raises(ValueError, match=r"strides=\(1, 2, 2, 2\), found strides=\(1, 2, 2, 1\)"):
        Pyramid(Backbone(stages=("C", "C", "L", "L"), strides=[1, 2, 2, 1], base=8, heads=4, image_size=64))


@pytest.mark.fault("C9")
def test_names_of_images():
    names = [
        image_name(t, 3)
        for t in (None, {}, dict(image_id=7), dict(image_id="a/b.jpg"), dict(image_id=torch.tensor([9])))
    ]
    assert names == ["image 3", "image 3", "image_id 7", "image_id a/b.jpg", "image_id 9"]


@pytest.mark.fault("C12")
def test_sides_are_judged_as_they_are_used():
    "A box that has an area in double, but none in float32, cut at the edge and scaled, would make the loss infinite."
    left = 40 - 1e-7                                                      # rounds to 40, which is the edge
    with pytest.raises(ValueError, match="1 boxes have no area inside"):
        prepared(GOOD | dict(boxes=torch.tensor([[left, 4, 45, 30]], dtype=torch.float64)))
    sides = torch.linspace(900, 1000, 4001)
    thin = torch.stack([sides, 0*sides, sides.nextafter(sides + 1), 0*sides + 9], 1)
    image, target = torch.rand(3, 10, 1001), dict(labels=torch.ones(len(thin), dtype=torch.long))
    with pytest.raises(ValueError, match="boxes have no area inside"):    # an area before scaling, none after it
        prepare([image], [target | dict(boxes=thin)], side=700, keep_ratio=True)
    assert (thin[:, 2] > thin[:, 0]).all() and prepare([image], [target | dict(boxes=thin)], side=None)[1][0][
        "boxes"
    ].equal(thin)


def small(**options):
    torch.manual_seed(0)
    backbone = Backbone(stages=("C", "C", "L", "L"), base=8, heads=4, image_size=64)
    return MaskRCNN(Pyramid(backbone, channels=16), num_classes=3, image_size=64, width=32, **options).train()


@pytest.mark.fault("C9")
def test_string_ids_train():
    assert all(loss.isfinite() for loss in small()([IMAGE], [GOOD | dict(image_id="000042")]).values())


def test_what_a_data_set_has_judged_is_not_judged_again():
    "A detector that is told so takes the numbers as they are; what is no tensor of the right shape is still refused."
    images, targets = [255 * IMAGE], [GOOD | dict(labels=torch.tensor([3]))]
    with pytest.raises(ValueError, match="divide an image of 0..255"):
        small()(images, targets)
    assert all(loss.isfinite() for loss in small()(images, targets, checked=True).values())
    with pytest.raises(ValueError, match="expected labels of shape"):
        small()(images, [targets[0] | dict(labels=torch.tensor([2, 2]))], checked=True)
