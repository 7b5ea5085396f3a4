"""Arguments by the names that they have in torchvision and timm: taken where they ask for nothing, else answered."""

import inspect

import pytest
import torch

import lesa_nb
from lesa_nb.models.foreign import settle
from lesa_nb.models.registry import build_classifier, build_detector

CLASSIFIERS = (lesa_nb.lesa_resnet50, lesa_nb.lesa_wrn50)
DETECTORS = (lesa_nb.mask_rcnn_lesa_resnet50, lesa_nb.htc_lesa_wrn50)


@pytest.fixture(autouse=True)
def without_memory():
    "No weights are asked for: the networks have shapes alone."
    with torch.device("meta"):
        yield


@pytest.mark.parametrize("build", CLASSIFIERS + DETECTORS, ids=lambda build: build.__name__)
@pytest.mark.parametrize(
    "asked", [dict(pretrained=False), dict(weights=None), dict(weights=None, progress=True, pretrained=None)], ids=str
)
def test_what_asks_for_nothing_is_taken(build, asked):
    "Silently, and the network is the one without the argument."
    network = build(num_classes=3, **asked)
    plain = build(num_classes=3)
    assert {key: t.shape for key, t in network.state_dict().items()} == {
        key: t.shape for key, t in plain.state_dict().items()
    }


@pytest.mark.parametrize("build", CLASSIFIERS + DETECTORS, ids=lambda build: build.__name__)
@pytest.mark.parametrize(
    "asked", [dict(pretrained=True), dict(weights="DEFAULT"), dict(weights="IMAGENET1K_V2")], ids=str
)
def test_weights_are_answered_with_the_call_that_loads_them(build, asked):
    (name,) = asked
    cures = r"hosted.*lesa_nb\.load\(FILE\).*load_published.*lesa_nb\.graft"
    with pytest.raises(ValueError, match=f"{name}=.*{cures}") as error:
        build(num_classes=3, **asked)
    assert "\n" not in str(error.value)


def test_channels():
    assert lesa_nb.lesa_resnet50(in_chans=3, in_channels=3).conv1.in_channels == 3
    with pytest.raises(ValueError, match=r"in_chans=1: images are RGB.*expand"):
        lesa_nb.lesa_resnet50(in_chans=1)


@pytest.mark.parametrize(
    ("build", "asked", "message"),
    [
        (lesa_nb.lesa_resnet50, dict(n_classes=5), "n_classes is called num_classes here: num_classes=5"),
        (lesa_nb.lesa_wrn50, dict(img_size=96), "img_size is called image_size here: image_size=96"),
        (lesa_nb.lesa_resnet50, dict(num_heads=4), "num_heads is called heads here: heads=4"),
        (lesa_nb.lesa_resnet50, dict(norm_layer=None), "no norm_layer here: .*convert_sync_batchnorm"),
        (lesa_nb.lesa_resnet50, dict(colour=3), "no option colour here; .* takes attend, gate, .*heads"),
        (lesa_nb.lesa_resnet50, dict(term="conv", colour=3), "no option colour here"),
        (lesa_nb.mask_rcnn_lesa_resnet50, dict(min_size=800), "min_size is called image_size here: image_size=800"),
        (lesa_nb.htc_lesa_wrn50, dict(n_classes=3), "n_classes is called num_classes here"),
        (lesa_nb.htc_lesa_wrn50, dict(trainable_backbone_layers=3), r"no trainable_backbone_layers here: .*frozen="),
        (lesa_nb.mask_rcnn_lesa_resnet50, dict(colour=3), "no option colour here"),
        (lesa_nb.mask_rcnn_lesa_resnet50, dict(box_score_thresh=.3), r"no box_score_thresh here: .*threshold = 0.5"),
        (lesa_nb.htc_lesa_wrn50, dict(rpn_post_nms_top_n_test=9), r"_test here: post_nms_top_n=dict\("),
        (lesa_nb.lesa_resnet50, dict(num_clases=3), r"no option num_clases here: did you mean num_classes\?"),
        (lesa_nb.lesa_wrn50, dict(gate_kernel=(1, 1)), r"did you mean gate_kernels\?"),
        (lesa_nb.htc_lesa_wrn50, dict(num_clases=3), r"did you mean num_classes\?"),
    ],
)
def test_other_names_are_answered_with_ours(build, asked, message):
    with pytest.raises(TypeError, match=message) as error:
        build(**asked)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("build", DETECTORS, ids=lambda build: build.__name__)
def test_weights_of_a_backbone(build):
    assert build(num_classes=3, weights_backbone=None, pretrained_backbone=False).num_classes == 3
    with pytest.raises(ValueError, match="weights_backbone='DEFAULT': .*hosted; lesa_nb.weights.start.start_detector"):
        build(weights_backbone="DEFAULT")


def test_the_options_of_a_network_stay_known():
    for options in (dict(heads=4), dict(attend="explicit", gate_shrink=(4,)), dict(local_groups=1)):
        for term in ("lesa", "attention", "conv"):
            lesa_nb.lesa_resnet50(term=term, **options)
    layer = set(inspect.signature(lesa_nb.LESA).parameters) - {"in_channels", "out_channels", "fmap", "stride"}
    with pytest.raises(TypeError) as error:
        lesa_nb.lesa_resnet50(colour=1)
    assert layer - {"deformable"} == set(str(error.value).partition("takes ")[2].split(", "))


def test_small_networks_by_name():
    "`build_classifier` and `build_detector` name all their arguments, and Python says so."
    with pytest.raises(TypeError, match="pretrained"):
        build_classifier("small", pretrained=True)
    with pytest.raises(TypeError, match="pretrained"):
        build_detector(network="small", pretrained=True)


def test_settle_keeps_what_is_known():
    assert settle(dict(heads=2, weights=None, progress=False, size=3), known={"heads", "size"}) == dict(heads=2, size=3)
