"""LESA's classifiers in timm's registry: the calls that timm's scripts make, and the same tensors as everywhere."""

import copy
import subprocess
import sys

import processes
import pytest
import timm
import timm.optim
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, resolve_data_config
from timm.models.resnet import ResNet as TheirResNet
from torch import nn

import lesa_nb
from lesa_nb.layers.inputs import IMAGENET_MEAN, IMAGENET_STD
from lesa_nb.layers.lesa import LESA
from lesa_nb.models.resnet import ResNet
from lesa_nb.weights.files import save_weights
from lesa_nb.weights.folding import fold_norms
from lesa_nb.weights.published import to_published
from lesa_nb.weights.timm_registry import _register, default_cfgs

NETWORKS = ("lesa_resnet50", "lesa_wrn50")
TINY = dict(base=8, img_size=64)  # an eighth of the channels


def create(name="lesa_resnet50", **options):
    torch.manual_seed(0)
    return timm.create_model(name, **TINY | options).eval()


def images(*size, batch=2):
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("imports", ["timm, lesa_nb", "lesa_nb, timm", "lesa_nb, timm.models", "lesa_nb, timm.layers"])
def test_whichever_is_imported_first(imports):
    code = f"import sys, warnings\nwarnings.simplefilter('error')\nimport {imports}\n"
    code += "print(timm.list_models('lesa*'), sum('When' in str(f) for f in sys.meta_path))"
    done = processes.run("-c", code)
    assert (done.stdout, done.stderr) == ("['lesa_resnet50', 'lesa_wrn50'] 0\n", "")


def test_asking_where_timm_is_changes_nothing():
    "As libraries do that use it if it is there."
    code = (
        "import warnings; warnings.simplefilter('error')\n"
        "import sys, importlib, lesa_nb; from importlib.util import find_spec\n"
        "print(find_spec('timm').name, find_spec('timm').name, 'timm' in sys.modules)\n"
        "import timm; importlib.reload(timm); print(timm.list_models('lesa*'))\n"
        "from lesa_nb.weights.timm_registry import *; print(lesa_wrn50.__name__)"
    )
    done = processes.run("-c", code)
    said = done.stdout.splitlines()
    assert said == ["timm timm False", "['lesa_resnet50', 'lesa_wrn50']", "lesa_wrn50"], done.stderr


def test_importing_lesa_nb_imports_neither_timm_nor_torch():
    code = (
        "import sys, lesa_nb; print([n for n in ('timm', 'torch') if n in sys.modules])\n"
        "sys.modules['timm'] = None\n"
        "try: import timm\nexcept ImportError as error: print(type(error).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200)
    assert done.stdout.splitlines() == ["[]", "ModuleNotFoundError"], done.stderr


def test_registering_twice_changes_nothing():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timm.models, "register_model", lambda entry: pytest.fail(f"{entry} again"))
        _register()
    assert set(NETWORKS) <= set(timm.list_models(module="timm_registry"))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_network_by_another_name(name):
    "Names and shapes of all tensors, their number, and what timm knows of the inputs."
    with torch.device("meta"):
        theirs, ours = timm.create_model(name, pretrained=False), getattr(lesa_nb, name)()
    assert {k: t.shape for k, t in theirs.state_dict().items()} == {k: t.shape for k, t in ours.state_dict().items()}
    assert isinstance(theirs, ResNet) and theirs.default_cfg is theirs.pretrained_cfg
    cfg = theirs.pretrained_cfg
    assert cfg["mean"] == IMAGENET_MEAN == IMAGENET_DEFAULT_MEAN and cfg["std"] == IMAGENET_STD == IMAGENET_DEFAULT_STD
    assert cfg["input_size"] == (3, 224, 224) and cfg["architecture"] == name and set(default_cfgs) == set(NETWORKS)
    assert theirs.num_features == theirs.head_hidden_size == 2048
    assert resolve_data_config({}, model=theirs)["crop_pct"] == 0.875


@pytest.mark.parametrize("options", [{}, dict(position="factored"), dict(term="attention"), dict(term="conv")], ids=str)
def test_the_same_logits_from_the_same_tensors(options):
    model = create(num_classes=7, **options)
    ours = lesa_nb.lesa_resnet50(num_classes=7, base=8, image_size=64, **options).eval()
    ours.load_state_dict(model.state_dict())
    for size in ((64, 64), (96, 70)):
        with torch.no_grad():
            x = images(*size)
            assert model(x).equal(ours(x))
            assert model.forward_features(x).equal(ours.features(x)[-1])
            assert model.forward_head(model.forward_features(x)).equal(ours(x))
    model, x = model.double(), x.double()
    with torch.no_grad():
        assert torch.allclose(fold_norms(model)(x), model(x), rtol=1e-5)


def test_heads():
    model, x = create(num_classes=7), images(64, 64)
    features = model.forward_features(x)
    pooled = model.forward_head(features, pre_logits=True)
    assert features.shape == (2, 256, 4, 4) and pooled.equal(features.mean((2, 3))) or pooled.shape == (2, 256)
    assert model.get_classifier() is model.fc and model.get_classifier(name_only=True) == "fc"
    model.reset_classifier(3)
    assert model(x).shape == (2, 3) and model.num_classes == 3 and not model.fc.training
    model.reset_classifier(5, global_pool="catavgmax")
    assert model(x).shape == (2, 5) and model.head_hidden_size == 512 and model.global_pool.pool_type == "catavgmax"
    model.reset_classifier(0)
    assert model(x).shape == (2, 512) and isinstance(model.get_classifier(), nn.Identity)
    model.reset_classifier(0, "")
    assert model(x).equal(features)
    assert create(num_classes=0)(x).shape == (2, 256)
    half = create(num_classes=2).double()
    half.reset_classifier(4)
    assert half(x.double()).dtype == torch.float64


@pytest.mark.parametrize("cls", [None, "hook", "fx", "getter", "dict"])
@pytest.mark.parametrize("taken", [None, (1, 3), (2, 3, 4)])
def test_features_only(cls, taken):
    "Channels and reductions as promised, the maps of the network itself, at two sizes."
    more = {} if cls is None else dict(feature_cls=cls)
    whole = create()
    model = create(features_only=True, **more | ({} if taken is None else dict(out_indices=taken)))
    taken = taken or (0, 1, 2, 3, 4)
    model.load_state_dict(
        {(f"model.{k}" if cls == "getter" else k): t for k, t in whole.state_dict().items() if not k.startswith("fc.")},
        strict=False,
    )
    assert model.feature_info.channels() == [[8, 32, 64, 128, 256][i] for i in taken]
    assert model.feature_info.reduction() == [[2, 4, 8, 16, 16][i] for i in taken]
    for size in ((64, 64), (96, 160)):
        with torch.no_grad():
            found, (_, expected) = model(images(*size)), whole.forward_intermediates(images(*size))
        found = list(found.values()) if isinstance(found, dict) else found
        for i, map_ in zip(taken, found, strict=True):
            assert map_.equal(expected[i])
            reduction = [2, 4, 8, 16, 16][i]
            assert map_.shape[1:] == ([8, 32, 64, 128, 256][i], size[0] // reduction, size[1] // reduction)


def test_intermediates():
    model, x = create(), images(64, 64)
    last, maps = model.forward_intermediates(x)
    assert len(maps) == 5 and last is maps[-1]
    last_two = model.forward_intermediates(x, 2, intermediates_only=True)
    assert [m.equal(expected) for m, expected in zip(last_two, maps[3:])] == [True, True]
    early = model.forward_intermediates(x, [0, -4], stop_early=True)
    assert early[0].equal(maps[1]) and len(early[1]) == 2
    with pytest.raises(ValueError, match="there are 5 maps.*got 9"):
        model.forward_intermediates(x, 9)
    with pytest.raises(ValueError, match="output_fmt must be 'NCHW'"):
        model.forward_intermediates(x, output_fmt="NLC")


def test_training_with_and_without_checkpoints_and_dropout():
    a, x = create(num_classes=3, drop_rate=0.5).train(), images(64, 64, batch=4)
    torch.manual_seed(0)
    assert not a(x).equal(a(x)) and a.eval()(x).equal(a(x))
    a, b = create(num_classes=3).train(), create(num_classes=3).train()
    b.set_grad_checkpointing()
    for model in (a, b):
        model(x).sum().backward()
    assert all(p.grad.equal(q.grad) for p, q in zip(a.parameters(), b.parameters()))
    groups = timm.optim.param_groups_layer_decay(a, layer_decay=0.7)
    assert len(groups) > 10
    assert sum(p.numel() for g in groups for p in g["params"]) == sum(p.numel() for p in a.parameters())


def test_weights(tmp_path):
    "From a file, by timm's two ways, ours and the authors'; without one the sentence says how."
    ours, x = lesa_nb.lesa_resnet50(num_classes=5, image_size=64).eval(), images(64, 64)
    save_weights(ours, tmp_path / "ours.safetensors")
    torch.save(to_published(ours), tmp_path / "theirs.pth")
    options = dict(num_classes=5, img_size=64)
    model = timm.create_model("lesa_resnet50", checkpoint_path=tmp_path / "ours.safetensors", **options).eval()
    assert model(x).equal(ours(x))
    for name in ("ours.safetensors", "theirs.pth"):
        overlay = dict(file=str(tmp_path / name), num_classes=5)
        model = timm.create_model("lesa_resnet50", pretrained=True, pretrained_cfg_overlay=overlay, **options).eval()
        assert model(x).equal(ours(x))
        other = timm.create_model(
            "lesa_resnet50", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=2, img_size=64
        )
        assert other.conv1.weight.equal(ours.conv1.weight) and other.fc.out_features == 2
    for asked in ({}, dict(pretrained_cfg_overlay=dict(num_classes=3)), dict(features_only=True)):
        with pytest.raises(ValueError, match=r"pretrained=True: no weights .* hosted; lesa_nb.load.*dict\(file=FILE\)"):
            timm.create_model("lesa_resnet50", pretrained=True, **asked)


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        (dict(in_chans=1), ValueError, "in_chans=1: images are RGB"),
        (dict(drop_path_rate=0.1), TypeError, "no drop_path_rate here"),
        (dict(output_stride=8), TypeError, "no output_stride here: .*strides="),
        (dict(colour=1), TypeError, "no option colour here"),
        (dict(n_classes=1), TypeError, "n_classes is called num_classes here"),
    ],
    ids=str,
)
def test_what_there_is_not(asked, error, message):
    with pytest.raises(error, match=message):
        timm.create_model("lesa_wrn50", **asked)


def test_timms_scripts_hand_over_what_they_do_not_know_to_be_asked_for():
    "The arguments of its train.py at their defaults."
    model = create(
        pretrained=False, in_chans=3, num_classes=4, drop_rate=0.0, drop_path_rate=None, drop_block_rate=None,
        global_pool=None, bn_momentum=None, bn_eps=None, scriptable=False, checkpoint_path="",
    )  # fmt: skip
    assert model(images(64, 64)).shape == (2, 4)


# ---- graft of timm's networks

GRAFTED = (
    "resnet18 resnet26 resnet34 resnet50 wide_resnet50_2 resnet18d resnet26t resnet50d seresnet18 resnetblur18"
).split()


@pytest.mark.parametrize("name", GRAFTED)
def test_graft_computes_the_same_to_the_bit(name):
    torch.manual_seed(0)
    plain = timm.create_model(name, num_classes=5)
    assert isinstance(plain, TheirResNet)
    with torch.no_grad():
        plain.train()(images(64, 64))
        for norm in plain.modules():
            if isinstance(norm, nn.BatchNorm2d):
                nn.init.normal_(norm.weight, 1, 0.2)
                nn.init.normal_(norm.bias, 0, 0.2)
    grafted = lesa_nb.graft(plain, image_size=64)
    assert any(isinstance(part, LESA) for part in grafted.modules()) and type(grafted) is type(plain)
    plain = copy.deepcopy(plain)
    for training in (False, True):
        with torch.no_grad():
            difference = plain.train(training)(images(96, 64)) - grafted.train(training)(images(96, 64))
        assert difference.abs().max().item() == 0.0
    grafted.reset_classifier(2)
    assert grafted.eval()(images(64, 64)).shape == (2, 2)


def test_a_network_of_strided_blocks_has_no_place_for_a_graft():
    with pytest.raises(ValueError, match="found no block to graft in this ResNet"):
        lesa_nb.graft(timm.create_model("resnet10t"))
