"""Number formats and switches: float16 with a scaled loss, exact boxes under autocast, the same bits again."""
import copy
from dataclasses import replace
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
import torchvision
from processes import run_ranks
from small_runs import RECIPE, make_task
from torch import nn

from lesa_nb.engine import backends as backends_module
from lesa_nb.engine import loop
from lesa_nb.engine._checkpoint import read_checkpoint
from lesa_nb.engine._scaling import LossScaler
from lesa_nb.engine.backends import backends, check_recipe, not_deterministic
from lesa_nb.engine.loop import NotFinite, build_optimizer, train_step
from lesa_nb.engine.run import fit
from lesa_nb.models import htc, ops
from lesa_nb.models.registry import build_classifier, build_detector

CPU = torch.device("cpu")
HALF = replace(RECIPE, precision="float16", epochs=1)
pytestmark = pytest.mark.usefixtures("one_thread")  # equal to the bit


# ---- float16

def test_a_run_in_float16_learns_and_goes_on_to_the_bit(tmp_path):
    "Its scale is part of the checkpoint; what was skipped is in the log."
    two = replace(HALF, epochs=2)
    straight = list(fit(make_task(two), tmp_path/"straight", device="cpu"))
    for resume in (False, True):
        events = list(fit(make_task(two), tmp_path/"resumed", device="cpu", resume=resume, until=None if resume else 1))
    a, b = (read_checkpoint(tmp_path/name/"last.pt") for name in ("straight", "resumed"))
    assert a["scaler"] == b["scaler"] and a["scaler"]["skipped"] == 0 and a["scaler"]["scale"] == 65536.
    assert all(torch.equal(t, b["model"][name]) for name, t in a["model"].items())
    steps = [e for e in straight if e["kind"] == "step"]
    assert all(e["loss_scale"] == 65536. and e["skipped"] == 0 for e in steps)
    usual = [e["loss"] for e in fit(make_task(replace(HALF, precision="float32")), tmp_path/"usual", device="cpu")
             if e["kind"] == "step"]
    for mine, theirs in zip(steps, usual):
        assert mine["loss"] != theirs and abs(mine["loss"] - theirs) < 2e-2*theirs
    assert events[-1]["kind"] == "end"


def line(weight):
    net = nn.Linear(1, 1, bias=False)
    nn.init.constant_(net.weight, weight)
    return net


def steep(model, batch):
    return dict(loss=model(batch).float().mean())


def test_a_step_that_overflows_is_left_out_and_counted():
    net = line(1.)
    optimizer, scaler = build_optimizer(net, HALF), LossScaler(HALF, CPU)
    for skipped in range(1, 6):  # a slope of 32,000 needs a scale of 2
        train_step(net, [torch.full((1, 1), 32000.)], steep, optimizer, HALF, CPU, .1, scaler)
        assert scaler.skipped == skipped and scaler.get_scale() == 65536/2**skipped and net.weight.item() == 1
    assert not optimizer.state_dict()["state"]
    again = LossScaler(HALF, CPU)
    again.load_state_dict(scaler.state_dict())
    assert again.numbers() == scaler.numbers() == dict(loss_scale=2048., skipped=5)
    while scaler.skipped < 15:
        train_step(net, [torch.full((1, 1), 32000.)], steep, optimizer, HALF, CPU, 1e-5, scaler)
    train_step(net, [torch.full((1, 1), 32000.)], steep, optimizer, HALF, CPU, 1e-5, scaler)
    assert scaler.skipped == 15 and net.weight.item() == pytest.approx(1 - 1.9*.32)  # Nesterov


def test_what_the_scale_is_not_to_blame_for_ends_the_run():
    net = line(1.)
    optimizer, scaler = build_optimizer(net, HALF), LossScaler(HALF, CPU)
    with pytest.raises(NotFinite, match="losses: loss inf"):  # the loss itself
        train_step(net, [torch.full((1, 1), 1e38)], steep, optimizer, HALF, CPU, .1, scaler)
    scaler.update(1.)  # no scale left to take away
    with pytest.raises(NotFinite, match="losses: loss 1"):
        train_step(net, [torch.ones(1, 1)], lambda m, x: dict(loss=m(x).sum() + 0*m.weight.pow(.5).sum().sub(1).sqrt()),
                   optimizer, HALF, CPU, .1, scaler)
    assert scaler.skipped == 0 and net.weight.item() == 1


class _Others(NamedTuple):
    "The processes of a run, of which another one has a loss that is not finite."

    rank: int = 0
    size: int = 2

    def all_reduce_max(self, number):
        return max(number, 1)


def test_what_another_process_has_is_not_the_scales_fault_here():
    "All see the same gradient: if one ended and the others went on, they would wait for it forever."
    alone, scaler = LossScaler(HALF, CPU), LossScaler(HALF, CPU, _Others())
    for each in (alone, scaler):
        each.scale(torch.ones(()))
    assert not scaler.skip(dict(loss=1.)) and scaler.skipped == 0 and scaler.get_scale() == 65536
    assert alone.skip(dict(loss=1.)) and alone.get_scale() == 32768


POISONED = """
import sys
from dataclasses import replace
from lesa_nb.engine.run import fit
from small_runs import RECIPE, make_task
half = replace(RECIPE, precision="float16", epochs=1, sync_norm=False)
try:
    for _ in fit(make_task(half, poisoned=(0, 5)), sys.argv[1], device="cpu"): pass
except FloatingPointError as error: print(error)
"""


def test_a_loss_of_one_process_ends_all(tmp_path):
    said = run_ranks("-c", POISONED, tmp_path, timeout=60)
    assert said.count("the gradient is not finite") == 2 and said.count("samples: ") == 2, said


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float64"])
def test_other_formats_are_not_scaled(precision):
    scaler, loss = LossScaler(replace(RECIPE, precision=precision), CPU), torch.ones(())
    assert scaler.scale(loss) is loss and scaler.state_dict() == scaler.numbers() == {}
    assert not scaler.skip(dict(loss=1.))
    scaler.load_state_dict({})


# ---- what a GPU is offered

def test_optimizers_are_fused_on_a_gpu_only(monkeypatch):
    seen = []
    for name in ("SGD", "AdamW"):
        monkeypatch.setattr(loop, name, lambda groups, **options: seen.append(options["fused"]))
    for is_cuda in (True, False):
        parameter = SimpleNamespace(requires_grad=True, is_cuda=is_cuda, ndim=1)
        for optimizer in ("sgd", "adamw"):
            build_optimizer(SimpleNamespace(parameters=lambda p=parameter: [p]), replace(RECIPE, optimizer=optimizer))
    assert seen == [True, True, None, None]


def test_a_gpu_without_bfloat16(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100")
    gpu = torch.device("cuda", 0)
    with pytest.raises(ValueError, match="Tesla V100 does not compute in bfloat16: choose --precision float16"):
        check_recipe(replace(RECIPE, precision="bfloat16"), gpu, 1)
    for recipe, device in ((RECIPE, gpu), (HALF, gpu), (replace(RECIPE, precision="bfloat16"), CPU)):
        check_recipe(recipe, device, 1)
    with pytest.raises(ValueError, match="choose a batch size that 3 divides"):
        check_recipe(RECIPE, CPU, 3)


def switches():
    cudnn = torch.backends.cudnn
    return (cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32,
            torch.get_deterministic_debug_mode())


@pytest.mark.parametrize(("changes", "fixed", "inside"), [
    (dict(), True, (True, False, False, False, 0)),
    (dict(tf32=True), False, (False, False, True, True, 0)),
    (dict(deterministic=True), True, (False, True, False, False, 2)),
])
def test_switches_are_set_and_set_back(changes, fixed, inside):
    before, net = switches(), nn.Linear(2, 2)
    with backends(replace(RECIPE, **changes), net, torch.device("cuda"), fixed_size=fixed):
        assert switches() == inside
    with pytest.raises(KeyError), backends(replace(RECIPE, **changes), net, CPU):
        raise KeyError
    assert switches() == before


@pytest.mark.parametrize(("device", "compiled", "fixed", "layouts"), [
    ("cpu", True, False, False), ("cpu", True, True, True), ("cuda", True, False, True), ("cpu", False, False, True)])
def test_a_compiled_network_meets_many_sizes_on_a_cpu(device, compiled, fixed, layouts):
    "See `test_inductor_without_its_layout_optimization`."
    from torch._inductor import config

    with backends(replace(RECIPE, compile=compiled), nn.Linear(1, 1), torch.device(device), fixed_size=fixed):
        assert config.layout_optimization == layouts
    assert config.layout_optimization


def test_operators_without_a_deterministic_form_are_named():
    assert not_deterministic(build_classifier("small")) == []
    assert not_deterministic(build_detector("htc", network="small")) == [
        "deform_conv2d", "roi_align", "scaled_dot_product_attention"]
    recipe = replace(RECIPE, deterministic=True)
    with backends(recipe, build_detector(network="small"), CPU):
        assert torch.get_deterministic_debug_mode() == 1  # warns
    words = ("adaptive_max_pool2d_backward_cuda does not have a deterministic implementation, but you set "
             "'torch.use_deterministic_algorithms(True)'. You can turn off determinism just for this operation.")
    with pytest.raises(ValueError, match="^adaptive_max_pool2d_backward_cuda does not .* Leave out --deterministic$"):
        with backends(recipe, nn.Linear(1, 1), CPU):
            raise RuntimeError(words)
    assert set(backends_module._OPERATORS) == {"DeformableConv2d", "MaskRCNN"}


def test_a_deterministic_run_says_so_and_is_the_same_again(tmp_path):
    recipe, ends, before = replace(RECIPE, epochs=1, deterministic=True), [], switches()
    for name in ("one", "two"):
        events = list(fit(make_task(recipe), tmp_path/name, device="cpu"))
        ends.append(read_checkpoint(tmp_path/name/"last.pt"))
    assert events[0]["not_deterministic"] == [] and switches() == before
    assert all(torch.equal(t, ends[1]["model"][name]) for name, t in ends[0]["model"].items())
    assert ends[0]["recipe"]["deterministic"] is True


def test_roi_align_is_the_kernel_with_deterministic_operators_too(monkeypatch):
    "torchvision would take a form in Python on a GPU, whose memory grows with boxes times map."
    maps, boxes = torch.randn(1, 3, 12, 16), torch.tensor([[1., 2., 9., 8.], [0., 0., 5., 5.]])
    want = torchvision.ops.roi_align(maps, [boxes], 7, .5, aligned=True)
    rois = torch.cat([torch.zeros(2, 1), boxes], 1)
    assert torch.equal(ops.roi_align(maps, [boxes], 7, .5), want)
    monkeypatch.setattr(torchvision.ops, "roi_align", None)
    with backends(replace(RECIPE, deterministic=True), nn.Linear(1, 1), CPU):
        assert torch.equal(ops.roi_align(maps, [boxes], 7, .5), want)
        assert torch.equal(ops.roi_align(maps, rois, 7, .5), want)


def test_the_loss_of_stuff_is_a_cross_entropy():
    "Gathered, in place of PyTorch's, which has no deterministic form on a GPU for maps."
    torch.manual_seed(0)
    logits = [torch.randn(1, 5, 3, 4, requires_grad=True) for _ in range(2)]
    maps = [torch.randint(0, 5, (24, 32), dtype=torch.uint8) for _ in range(2)]
    maps[0][:16], maps[1][:, 8:] = 255, 255
    y = torch.stack([m[::8, ::8].long() for m in maps])
    want = .2*torch.nn.functional.cross_entropy(torch.cat(logits), y, ignore_index=255)
    got = htc._stuff_loss(logits, maps)
    torch.testing.assert_close(got, want)
    for a, b in zip(torch.autograd.grad(got, logits), torch.autograd.grad(want, logits)):
        torch.testing.assert_close(a, b)
    unknown = [torch.full_like(m, 255) for m in maps]
    for some in (logits, [t.detach()*torch.inf for t in logits]):
        assert htc._stuff_loss(some, unknown) == 0


# ---- boxes keep float32

def picture(size=96):
    torch.manual_seed(0)
    box = torch.tensor([[10.3, 12.7, 61.9, 70.1], [33.33, 5.21, 90.77, 44.4]])
    masks = torch.zeros(2, size, size, dtype=torch.uint8)
    for mask, (x, y, u, v) in zip(masks, box.round().int().tolist()):
        mask[y:v, x:u] = 1
    return torch.rand(3, size, size), dict(boxes=box, labels=torch.tensor([1, 2]), masks=masks,
                                           semantic=torch.zeros(size, size, dtype=torch.uint8))


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("model", ["mask_rcnn", "htc"])
def test_boxes_reach_roi_align_in_float32(monkeypatch, model, half):
    "Under autocast, in training and evaluation; bfloat16 would move their edges by up to two pixels."
    seen, real = [], ops.roi_align

    def spy(maps, boxes, *words, **options):
        for part in boxes if isinstance(boxes, (list, tuple)) else [boxes]:
            seen.append(part.detach().clone())
        return real(maps, boxes, *words, **options)

    monkeypatch.setattr(ops, "roi_align", spy)
    torch.manual_seed(0)
    detector = build_detector(model, network="small", num_classes=3, image_size=96)
    image, target = picture()
    with torch.autocast("cpu", half):
        losses = detector.train()([image], [copy.deepcopy(target)])
        with torch.no_grad():
            detector.eval()([image])
    assert torch.stack(list(losses.values())).isfinite().all()
    assert len(seen) > 4 and all(boxes.dtype == torch.float32 for boxes in seen)
    everything = torch.cat([boxes[:, -4:] for boxes in seen])
    assert (everything != everything.to(half).float()).any(1).float().mean() > .9  # they never were half
    truth = torch.cat([boxes[:, -4:] for boxes in seen[:4]])
    for box in target["boxes"]:
        assert (truth - box).abs().amax(1).min() < 1e-3
