"""Networks by name: what exists, what is refused, and small networks whose weights fit each other."""

import pytest
import torch

from lesa_nb.models.registry import DETECTOR_NETWORKS, DETECTORS, build_classifier, build_detector, default_position
from lesa_nb.models.resnet import TERMS

NETWORKS = ("resnet50", "wrn50", "small")  # others can be registered


def count(model):
    return sum(p.numel() for p in model.parameters())


def test_published_networks_have_their_parameters():
    with torch.device("meta"):
        assert [count(build_classifier(name)) for name in ("resnet50", "wrn50")] == [23_777_512, 61_145_896]
        assert [count(build_detector(model)) for model in ("mask_rcnn", "htc")] == [42_953_146, 116_538_143]
        assert count(build_detector("htc", semantic=False)) < 116_538_143
        assert [build_detector(model).image_size for model in DETECTORS] == [1024, 1280]
        backbones = [build_detector(model).pyramid.backbone for model in ("mask_rcnn", "htc")]
        tables = backbones[0].layer3[1].conv2.context.position, backbones[1].layer4[2].conv2.context.position
        assert [table.size for table in tables] == [(64, 64), (40, 40)]


@pytest.mark.parametrize("term", TERMS)
def test_every_network_can_be_had_with_every_term(term):
    with torch.device("meta"):
        for network in NETWORKS:
            assert build_classifier(network, num_classes=7, term=term).fc.out_features == 7
        for model in DETECTORS:
            for network in DETECTOR_NETWORKS:
                detector = build_detector(model, network=network, term=term, num_classes=7)
                assert detector.num_classes == 7 and detector.image_size == (
                    128 if network == "small" else dict(mask_rcnn=1024, htc=1280)[model]
                )


def test_options_arrive():
    small = build_classifier("small", image_size=(64, 96), num_classes=3, position="flat")
    assert (
        small(torch.zeros(1, 3, 64, 96)).shape == (1, 3)
        and type(small.layer3[0].conv2.context.position).__name__ == "FlatTable"
    )
    detector = build_detector(network="small", num_classes=3, image_size=64, keep_ratio=True, resize_in_training=False)
    assert (detector.image_size, detector.keep_ratio, detector.resize_in_training) == (64, True, False)
    assert (
        build_detector("htc", network="small").uses_semantic
        and not build_detector("htc", network="small", semantic=False).uses_semantic
    )


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: build_classifier("small", term="mlp"), "term must be one of conv, attention, lesa, got 'mlp'"),
        (lambda: build_detector("yolo"), "model must be one of mask_rcnn, htc, got 'yolo'"),
        (lambda: build_detector(network="tiny"), "network must be one of published, small, got 'tiny'"),
        (lambda: build_detector(term="mlp"), "term must be one of conv, attention, lesa, got 'mlp'"),
    ],
)
def test_unknown_names_are_refused_with_the_known_ones(build, message):
    with pytest.raises(ValueError) as raised:
        build()
    assert str(raised.value) == message


def test_an_unknown_classifier_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="network must be one of resnet50, wrn50, small.*, got 'vgg'"):
        build_classifier("vgg")  # grafted networks follow, once they are known


@pytest.mark.parametrize("term", TERMS)
def test_weights_of_a_small_classifier_fit_a_small_detector(term):
    "Same names and shapes but for the head, the tables (made for other maps) and the offsets (which start at zero)."
    classifier = build_classifier("small", num_classes=3, term=term).state_dict()
    backbone = build_detector(network="small", term=term).pyramid.backbone.state_dict()
    shapes = [
        {
            name: tuple(t.shape)
            for name, t in state.items()
            if not name.startswith("fc.") and "conv_offset" not in name and ".position." not in name
        }
        for state in (classifier, backbone)
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("model", DETECTORS)
def test_a_small_classifier_starts_a_small_detector(model):
    from lesa_nb.weights.start import start_backbone

    torch.manual_seed(0)
    classifier, detector = build_classifier("small", num_classes=3), build_detector(model, network="small")
    started = start_backbone(detector, classifier)
    assert set(started.dropped) >= {"fc.weight", "fc.bias"} and not started.converted
    assert all("position" in name or "conv_offset" in name for name in started.fresh)
    x = torch.randn(1, 3, 32, 32)  # up to stage 2, before strides differ, both compute alike
    ours, theirs = detector.eval().pyramid.backbone(x), classifier.eval().features(x)
    for a, b in zip(ours[:2], theirs[:2], strict=True):
        torch.testing.assert_close(a, b)


def test_the_default_table_is_the_one_that_is_built():
    with torch.device("meta"):
        for network in NETWORKS:
            kinds = {type(part).__name__ for part in build_classifier(network).modules()}
            assert f"{default_position(network).capitalize()}Table" in kinds
