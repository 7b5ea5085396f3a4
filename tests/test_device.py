"""On a device that computes on the CPU and counts: nothing meets the host by mistake, and steps hardly wait for it."""

import warnings
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from device import PLACE, Device, DeviceTensor
from small_runs import RECIPE, make_task

import lesa_nb.engine.run as engine
from lesa_nb.engine.loop import build_optimizer, ema, train_step
from lesa_nb.engine.recipe import Recipe
from lesa_nb.engine.run import fit
from lesa_nb.layers.lesa import LESA, attend_with
from lesa_nb.models.registry import build_classifier, build_detector
from lesa_nb.models.rpn import _grid_anchors, assign
from lesa_nb.tasks.classify import classification_losses

KINDS = ("mask_rcnn", "htc")
PLAIN = Recipe("plain", epochs=1, batch_size=2, lr=0.01, lr_batch=2, momentum=0.9, clip=1.0, ema=0.9)


@pytest.fixture
def device():
    with Device() as opened:
        yield opened


def sent(thing):
    "Tensors on the device, and lists and dictionaries of them."
    if isinstance(thing, torch.Tensor):
        return thing.to(PLACE, non_blocking=True)
    if isinstance(thing, dict):
        return {name: sent(value) for name, value in thing.items()}
    return [sent(value) for value in thing]


def back(thing):
    return {name: value.detach().cpu() for name, value in thing.items()}


def pictures(size=96, counts=(3, 5), semantic=True, has_mask=False):
    "Two pictures with some boxes, the masks that fill them, and stuff."
    draw = torch.Generator().manual_seed(0)
    images, targets = [], []
    for n in counts:
        low, side = torch.rand(n, 2, generator=draw) * size / 2, torch.rand(n, 2, generator=draw) * size * 0.4 + 8
        boxes = torch.cat([low, low + side], 1)
        at = torch.arange(size)
        rows = (at >= boxes[:, 1:2]) & (at < boxes[:, 3:])
        columns = (at >= boxes[:, :1]) & (at < boxes[:, 2:3])
        target = dict(boxes=boxes, labels=torch.randint(1, 4, (n,), generator=draw))
        target["masks"] = (rows[:, :, None] & columns[:, None]).to(torch.uint8)
        if semantic:
            target["semantic"] = torch.randint(0, 20, (size, size), generator=draw)
        if has_mask:
            target["has_mask"] = torch.arange(n) % 2 == 0
        images.append(torch.rand(3, size, size, generator=draw))
        targets.append(target)
    return images, targets


# --- the device itself


def test_every_trip_is_counted(device):
    x, index = sent(torch.arange(6.0)), sent(torch.tensor([0, 2]))
    boxes = sent(torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 8]]))
    for kind, act in dict(
        item=lambda: [x.sum().item(), float(x[0]), bool(x[0] > 0)],
        nonzero=lambda: [x.nonzero(), torch.where(x > 2), torch.argwhere(x)],
        equal=lambda: torch.equal(x, x),
        unique=lambda: [torch.unique(x), torch.unique_consecutive(x)],
        masked_select=lambda: torch.masked_select(x, x > 2),
        repeat_interleave=lambda: x.repeat_interleave(sent(torch.arange(6))),
        nms=lambda: torch.ops.torchvision.nms(boxes, x[:2], 0.5),
    ).items():
        with device.trips() as trips:
            did = act()
        assert [name for name, _ in trips] == [kind] * (len(did) if isinstance(did, list) else 1), trips
    for kind, act in {
        "copy to the host": lambda: [x.tolist(), x.cpu(), x.to("cpu")],
        "copy from the host": lambda: [x.new_tensor([1]), torch.tensor([1, 2], device=PLACE), torch.ones(2).to(PLACE)],
        "index of booleans": lambda: [x[x > 2], x[None, :][:, x > 2]],
        "index from the host": lambda: [x[torch.tensor([0, 1])]],
    }.items():
        with device.trips() as trips:
            did = act()
        assert [name for name, _ in trips] == [kind] * len(did), trips
        assert all(line.startswith("tests/test_device.py:") for _, line in trips)
    with device.trips() as trips:
        x.index_put_((x > 2,), x.new_zeros(()))  # filling where a mask is true asks nothing
        torch.where(x > 2, x, 0.0), x[index], x[1:3], x * torch.tensor(2.0), x.nonzero_static(size=3)
        torch.randperm(5, device=PLACE), torch.full((2,), 3, device=PLACE), x.argsort(), x.topk(2)
        sent(torch.ones(3))
    assert trips == [] and trips.sent == 1 and trips.launches > 5


def test_tensors_of_the_host_are_refused(device):
    x, y = sent(torch.ones(3, requires_grad=True)), torch.ones(3)
    for mixed in (
        lambda: x + y,
        lambda: y.add_(x.detach()),
        lambda: torch.stack([x[0], y[0]]),
        lambda: y[x.detach().long()],
        lambda: F.linear(x, torch.ones(2, 3)),
    ):
        with pytest.raises(RuntimeError, match="expected all tensors on one device, found privateuseone:0 and cpu"):
            mixed()
    with pytest.raises(TypeError, match="call .cpu"):
        x.numpy()
    assert x.device == PLACE and not x.is_cpu and (x * 2).cpu().device.type == "cpu"


def test_gradients_are_those_of_the_cpu(device):
    w = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    on, off = torch.nn.Parameter(sent(w)), torch.nn.Parameter(w.clone())
    for p in (on, off):
        (p[:, 1:].exp().sum() + (p @ p.T).relu().mean()).backward()
    assert isinstance(on.grad, DeviceTensor) and on.grad.cpu().equal(off.grad)


# --- layers and classifiers


@pytest.mark.parametrize("position", ["flat", "factored"])
@pytest.mark.parametrize("training", [False, True])
def test_layers_attend_every_way_without_a_trip(device, position, training):
    x = torch.randn(2, 16, 6, 7, generator=torch.Generator().manual_seed(0))
    for way in ("explicit", "flat") if position == "flat" else ("explicit", "rows", "channels"):
        for options in (dict(), dict(stride=2), dict(deformable=True)):
            torch.manual_seed(0)
            layer = attend_with(LESA(16, 16, 6, heads=2, position=position, **options).train(training), way)
            want = layer(x)
            want.square().sum().backward()
            expected = {name: p.grad for name, p in layer.named_parameters()}
            torch.manual_seed(0)
            layer = LESA(16, 16, 6, heads=2, position=position, **options).train(training).to(PLACE)
            attend_with(layer, way)
            at = sent(x)
            with device.trips() as trips:
                got = layer(at)
                got.square().sum().backward()
            assert trips == [], trips
            torch.testing.assert_close(got.cpu(), want)
            for name, p in layer.named_parameters():
                torch.testing.assert_close(p.grad.cpu(), expected[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("position", ["flat", "factored"])
def test_large_maps_attend_without_a_trip(device, position):
    "Where the streaming ways work in several blocks, and CPUs ask whether logits are far apart."
    torch.manual_seed(0)
    layer = LESA(16, 16, 40, heads=2, position=position).to(PLACE)
    x = sent(torch.randn(1, 16, 40, 41)).requires_grad_()
    for way in ("auto", "flat") if position == "flat" else ("auto", "rows", "channels"):
        attend_with(layer, way)
        for training in (True, False):
            with device.trips() as trips:
                layer.train(training)(x).square().sum().backward()
            assert trips == [], (way, training, trips)


@pytest.mark.parametrize("term", ["lesa", "attention", "conv"])
def test_a_classifier_waits_once_a_step(device, term):
    "Forward, backward, guard, clipping, optimizer, average: one wait, to read the losses and the gradient's length."
    torch.manual_seed(0)
    model = build_classifier("small", num_classes=4, image_size=32, term=term).to(PLACE)
    average, optimizer = ema(model, PLAIN.ema), build_optimizer(model, PLAIN)
    images, labels = torch.rand(2, 3, 32, 32), torch.tensor([1, 3])

    def losses(network, batch):
        return dict(loss=F.cross_entropy(network(batch[0]), batch[1]), second=network.fc.weight.square().mean())

    for _ in range(3):
        with device.trips() as trips:
            found = train_step(model, [(images, labels)], losses, optimizer, PLAIN, PLACE, 0.01)
            average.update_parameters(model)
        assert len(trips) <= 1 and trips.sent == 2, trips
    assert set(found) == {"loss", "second"} and all(isinstance(value, float) for value in found.values())


@pytest.mark.parametrize("recipe", ["mixed", "adamw"])
def test_recipes_of_classifiers_wait_at_most_three_times(device, recipe):
    from lesa_nb.tasks.classify import Batch, _mixer

    options = dict(mixup=0.2, cutmix=1.0, label_smoothing=0.1) if recipe == "mixed" else dict(optimizer="adamw")
    changed = replace(PLAIN, **options, accumulate=2, batch_size=4)
    torch.manual_seed(0)
    model = build_classifier("small", num_classes=4, image_size=32).to(PLACE)
    optimizer = build_optimizer(model, changed)
    losses = partial(classification_losses, recipe=changed, mix=_mixer(changed, 4))
    batches = [Batch(torch.rand(2, 3, 32, 32), torch.tensor([1, 3]), ["", ""])] * 2
    for _ in range(4):
        with device.trips() as trips:
            train_step(model, batches, losses, optimizer, changed, PLACE, 0.01)
        assert len(trips) <= 3, trips


def test_an_average_is_that_of_pytorch():
    "But for whole numbers, which are copied, in one call of PyTorch's `_foreach_copy_`."
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2), torch.nn.BatchNorm1d(2).double())
    ours, theirs = ema(model, 0.7), AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.7), use_buffers=True)
    for step in range(5):
        for value in (*model.parameters(), model[1].running_mean, model[2].running_var):
            torch.nn.init.normal_(value.data)
        for norm in model[1:]:
            norm.num_batches_tracked += 3
        ours.update_parameters(model)
        theirs.update_parameters(model)
        assert ours.state_dict().keys() == theirs.state_dict().keys()
        for name, value in ours.state_dict().items():
            want = 3 * step + 3 if name.endswith("tracked") else theirs.state_dict()[name]
            assert (value == want).all(), name
    assert ours.n_averaged == 5


def test_an_average_launches_little(device):
    model = build_classifier("small", num_classes=4, image_size=32).to(PLACE)
    average = ema(model, 0.9)
    average.update_parameters(model)
    with device.trips() as trips:
        average.update_parameters(model)
    assert trips == [] and trips.launches == 2  # floats, and whole numbers
    assert average.n_averaged.device.type == "cpu"


# --- detectors


def on_both(kind, act, **options):
    "What `act` finds with one small detector on the CPU and with its twin on the device, and the trips of the latter."
    torch.manual_seed(0)
    detector = build_detector(kind, network="small", num_classes=3, image_size=96, **options)
    torch.manual_seed(1)
    here = act(detector, lambda thing: thing)
    torch.manual_seed(0)
    detector = build_detector(kind, network="small", num_classes=3, image_size=96, **options).to(PLACE)
    return here, act(detector, sent)


@pytest.mark.parametrize(("kind", "has_mask", "most"), [
    ("mask_rcnn", False, 6), ("mask_rcnn", True, 7), ("htc", False, 14), ("htc", True, 17)])
def test_a_detector_waits_a_few_times_a_step(device, kind, has_mask, most):
    """Mask R-CNN waited 62 times, HTC 141; and the losses and gradients are those of the CPU.

    Each waits for: what was given, the anchors to learn from, a suppression for each picture, the losses. Besides, Mask
    R-CNN for the boxes to learn from, and each stage of HTC for those, for the others' new places and for the boxes
    whose masks are learned. Masks that some objects lack are one more each time.
    """
    counted = []
    recipe = replace(PLAIN, ema=0.0)

    def act(detector, put):
        optimizer, place = build_optimizer(detector, recipe), next(detector.parameters()).device
        images, targets = put(pictures(semantic=kind == "htc", has_mask=has_mask))
        average, found = ema(detector, 0.9), None
        for _ in range(2):
            torch.manual_seed(1)
            with device.trips() as trips:
                found = train_step(
                    detector, [(images, targets)], lambda model, batch: model(*batch), optimizer, recipe, place, 0.01
                )
                average.update_parameters(detector)
        counted.append(trips)
        return found, {name: p.detach().cpu() for name, p in detector.named_parameters()}

    (here, weights), (there, moved) = on_both(kind, act)
    assert counted[0] == [] and 0 < len(counted[1]) <= most, counted[1]
    assert here.keys() == there.keys()
    for name, value in here.items():
        assert there[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    for name, value in weights.items():
        torch.testing.assert_close(moved[name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_detections_are_those_of_the_cpu(device, kind):
    counted = []

    def act(detector, put):
        images, _ = put(pictures())
        with torch.inference_mode():
            detector.eval()(images)  # from now on it keeps its constants
        with torch.no_grad(), device.trips() as trips:
            found = detector(images)
        counted.append(trips)
        return [back(of_image) for of_image in found]

    here, there = on_both(kind, act)
    assert len(counted[1]) <= 7, counted[1]  # what was given; for each picture, two suppressions and what to name
    for ours, theirs in zip(there, here, strict=True):
        assert ours["labels"].equal(theirs["labels"]) and len(ours["labels"]) > 0
        for name in ("boxes", "scores", "masks"):
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-4)


def test_faults_of_targets_are_named_from_a_device(device):
    detector = build_detector("htc", network="small", num_classes=3, image_size=96).to(PLACE).train()
    images, targets = pictures()
    for key, value, words in (
        ("labels", torch.tensor([1, 2, 9]), "expected labels from 1 to 3, found 9"),
        ("boxes", torch.zeros(3, 4), "3 boxes have no area"),
        ("boxes", torch.full((3, 4), torch.inf), "3 boxes have an edge that is no finite number"),
        ("semantic", torch.full((96, 96), 200), "semantic values from 0 to 182, or 255 for unknown, found 200"),
    ):
        with pytest.raises(ValueError, match=f"image 0: .*{words}"):
            detector(sent(images), sent([targets[0] | {key: value}, targets[1]]))
    with pytest.raises(ValueError, match="image 1: expected values nominally in .*255"):
        detector(sent([images[0], 255 * images[1]]), sent(targets))


def test_matching_launches_do_not_grow_with_the_objects(device):
    anchors = sent(torch.cat(_grid_anchors([(128 >> level, 128 >> level) for level in range(5)])))
    launches = {}
    for objects in (8, 100, 200, 400):
        low = torch.rand(objects, 2, generator=torch.Generator().manual_seed(0)) * 400
        truth = sent(torch.cat([low, low + 60], 1))
        with device.trips() as trips:
            assign(truth, anchors, 0.7, 0.3, 0.3)
        launches[objects] = trips.launches
        assert trips == [], trips
    assert launches[400] == launches[200] <= 300 and launches[8] <= launches[100] <= launches[200]


def test_pictures_of_new_sizes_send_nothing_more(device):
    "Each new size has its own anchors; what they are made of was sent with the first."
    detector = build_detector("mask_rcnn", network="small", num_classes=3, image_size=96, keep_ratio=True).to(PLACE)
    counts = []
    for sides in ((96, 96), (96, 64), (40, 90), (70, 33)):
        images = sent([torch.rand(3, *sides), torch.rand(3, *sides[::-1])])
        with device.trips() as trips, torch.inference_mode():
            detector.eval()(images)
        counts.append(len(trips))
    assert max(counts[1:]) <= 7, trips


# --- whole runs


def run(task, folder, **options):
    return [event for event in fit(task, folder, device="cpu", **options)]


def test_a_run_with_evaluation_and_resume(device, tmp_path, monkeypatch):
    "The log of a run on the device is that of the CPU, also when it is stopped and resumed there."
    recipe = replace(RECIPE, epochs=2)
    want = run(make_task(recipe, train=64, valid=20), tmp_path / "cpu")
    monkeypatch.setattr(engine, "pick_device", lambda name: PLACE)
    with device.trips() as trips:
        got = run(make_task(recipe, train=64, valid=20), tmp_path / "there")
    run(make_task(recipe, train=64, valid=20), tmp_path / "again", until=1)
    resumed = run(make_task(recipe, train=64, valid=20), tmp_path / "again", resume=True)
    for a, b in ((want, got), (got[-len(resumed) + 1:], resumed[1:])):
        for mine, yours in zip(a, b, strict=True):
            assert mine["kind"] == yours["kind"] and mine["step"] == yours["step"]
            for name in ("loss", "scores"):
                if name in mine:
                    assert yours[name] == pytest.approx(mine[name], rel=1e-3)
    assert got[-1]["scores"] == resumed[-1]["scores"]
    steps = sum(event["kind"] == "step" for event in got)
    assert steps == 4 and len(trips.during("_update")) == steps, trips  # one each: the losses and the guard


def test_a_detectors_run_with_evaluation_and_resume(device, tmp_path, monkeypatch):
    "Evaluated, stopped after an epoch, gone on with: the same scores and losses as in one go, and as on the CPU."
    from lesa_nb.data.drawn_coco import make_coco
    from lesa_nb.tasks.detect import DETECTION_RECIPES, detection_task

    folder = make_coco(tmp_path / "coco", train=4, val=2, test=1, size=64)
    recipe = replace(DETECTION_RECIPES["small"], epochs=2, batch_size=2, lr_batch=2, warmup_steps=2, ema=0.9)

    def task():
        return detection_task(folder, recipe, network="small", image_size=64, say=lambda text: None)

    want = run(task(), tmp_path / "cpu")
    monkeypatch.setattr(engine, "pick_device", lambda name: PLACE)
    run(task(), tmp_path / "there", until=1)
    with device.trips() as trips:
        got = run(task(), tmp_path / "there", resume=True)
    steps = [event for event in got if event["kind"] == "step"]
    assert len(steps) == 2 and len(trips.during("_update")) <= 5 * len(steps), trips  # the data set judged
    first = next(event for event in want if event["kind"] == "step" and event["epoch"] == 1)
    assert steps[0]["loss"] == pytest.approx(first["loss"], rel=1e-2)
    assert got[-1]["scores"].keys() == want[-1]["scores"].keys()


@pytest.mark.gpu
@pytest.mark.parametrize(("kind", "most"), [("classifier", 3), ("mask_rcnn", 10), ("htc", 20)])
def test_a_gpu_waits_as_rarely(kind, most):
    "PyTorch counts its own waits; those of torchvision's suppression are not among them."
    here = torch.device("cuda", 0)
    torch.manual_seed(0)
    if kind == "classifier":
        model = build_classifier("small", num_classes=4, image_size=32).to(here)
        batch = torch.rand(2, 3, 32, 32).pin_memory(), torch.tensor([1, 3]).pin_memory()
    else:
        model = build_detector(kind, network="small", num_classes=3, image_size=96).to(here)
        images, targets = pictures(semantic=kind == "htc")
        batch = ([image.pin_memory() for image in images],
                 [{name: value.pin_memory() for name, value in target.items()} for target in targets])

    def losses(network, batch):
        if kind == "classifier":
            return dict(loss=F.cross_entropy(network(batch[0]), batch[1]))
        return network(*batch)

    average, optimizer = ema(model, PLAIN.ema), build_optimizer(model, PLAIN)
    for counted in (False, False, True):
        torch.cuda.synchronize()
        try:
            torch.cuda.set_sync_debug_mode("warn" if counted else "default")
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                train_step(model, [batch], losses, optimizer, PLAIN, here, 0.01)
                average.update_parameters(model)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = [str(w.message) for w in caught if "synchroniz" in str(w.message)]
    assert len(waits) <= most - (0 if kind == "classifier" else 2), waits
