"""Everything that wants a GPU, in one run: parity first, then memory, then times, then small trainings.

    python benchmarks/gpu.py                       # one GPU: under 8 minutes; writes benchmarks/results/gpu-cuda.json
    python benchmarks/gpu.py --device cpu --quick  # the same parts, tiny, in a minute: does the script run?

The file goes to $OUT instead where that is set. Every row is guarded: one that fails is written down with its error,
and the others go on. Parts are saved as soon as they are there. What would begin after --minutes is left out, and the
file says so. The exit status is 1 if a row failed or missed its limit.
"""

import contextlib
import copy
import itertools
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import detectors
import networks
import torch
import torch.nn.functional as F
from common import arguments, peak_mb, save, seconds, start, timm_attention
from torch import nn
from torchvision.models import resnet18

from lesa_nb.engine._checkpoint import read_checkpoint
from lesa_nb.engine.backends import backends
from lesa_nb.engine.recipe import Recipe
from lesa_nb.engine.run import fit
from lesa_nb.layers import blockwise
from lesa_nb.layers.lesa import LESA, attend_with
from lesa_nb.models.registry import build_classifier, build_detector
from lesa_nb.study.small import train_small, twin_problem
from lesa_nb.tasks.digits import digits_task
from lesa_nb.tasks.side_by_side import train_terms

QUESTION = "What does LESA do on a GPU: the same numbers, linear memory, how fast, and does it learn?"
SLOPE = 1.15  # steepest growth of memory with the number of positions that counts as linear
Rows = Iterator[tuple[str, Callable[[], dict]]]


def off(got, want):
    "The largest difference, relative to the largest number."
    return ((got.double() - want.double()).abs().max() / want.abs().max().clamp_min(1e-30)).item()


# ---- parity


def kernel_inputs(H, W, args, dtype=torch.float64, C=256, P=8):
    K, V, N = C // 16, C // 8, H * W
    shapes = [(P, K, N), (P, K, N), (P, V, N), (P, N, H), (P, N, W)]
    inputs = [0.5 * torch.randn(*s, device=args.device, dtype=torch.float64) for s in shapes]
    inputs[1:3] = [t.bfloat16().double() for t in inputs[1:3]]  # keys and values as autocast gives them
    return [t.to(dtype).requires_grad_() for t in inputs]


def ways(device):
    "name -> (attention of (q, k, v, h, w), how far it may be from float64)."
    budget = blockwise.BUDGET[device]
    return {
        "rows": (lambda *t: blockwise.row_attention(*t, budget), 1e-5),
        "channels": (blockwise.channel_attention, 1e-5),
        "channels, bfloat16": (lambda *t: blockwise.channel_attention(*t, torch.bfloat16), 2e-2),
    }


def kernel_parity(H, W, args):
    "Outputs and all five gradients against the written-out form in float64."
    exact = kernel_inputs(H, W, args, C=32 if args.quick else 256, P=2 if args.quick else 8)
    g = torch.randn(len(exact[0]), H * W, exact[2].shape[1], device=args.device, dtype=torch.float64)
    want = blockwise.explicit_rows(*exact)
    want = [want.detach(), *torch.autograd.grad(want, exact, g)]
    row = dict(size=[H, W], error={}, limit={}, failed={})
    for name, (way, limit) in ways(args.device).items():
        try:
            inputs = [t.detach().float().requires_grad_() for t in exact]
            out = way(*inputs)
            found = [out.detach(), *torch.autograd.grad(out, inputs, g.float())]
            row["error"][name] = max(map(off, found, want))
            row["limit"][name] = limit
        except Exception as error:
            row["failed"][name] = in_a_line(error)
    return row | dict(ok=not row["failed"] and all(row["error"][n] <= row["limit"][n] for n in row["error"]))


def layer_parity(position, side, bf16, args):
    "The whole layer, forward and backward: streaming against the written-out form, in float32."
    C = 32 if args.quick else 256
    torch.manual_seed(0)
    one = LESA(C, C, side, position=position, attend="explicit").to(args.device)
    two = attend_with(copy.deepcopy(one), blockwise.streaming)
    x, found = torch.randn(2, C, side, side, device=args.device), []
    for layer, half in ((one, False), (two, bf16)):
        mine = x.clone().requires_grad_()
        with torch.autocast(args.device, torch.bfloat16, enabled=half):
            y = layer(mine)
        y.float().square().mean().backward()
        found.append([y.detach().float(), mine.grad])
    mean = [((b - a).abs().mean() / a.abs().max()).item() for a, b in zip(*found)]
    limit = 2e-2 if bf16 else 1e-4
    error = max(mean) if bf16 else max(map(off, found[1], found[0]))
    return dict(side=side, position=position, bf16=bf16, error=error, limit=limit, ok=error <= limit)


def fused_kernels(args):
    "What PyTorch's own checks say to the operands of the channels way; it has fused kernels on GPUs only."
    from torch.backends.cuda import SDPAParams, can_use_efficient_attention

    seen, real = [], F.scaled_dot_product_attention

    def spy(query, key, value, **options):
        params = SDPAParams(query, key, value, None, 0.0, False, False)
        seen.append(bool(can_use_efficient_attention(params, args.device == "cuda")))
        return real(query, key, value, **options)

    sides = (7, 8) if args.quick else (7, 8, 13, 14, 28, 33, 64)
    F.scaled_dot_product_attention = spy
    try:
        for side, half in itertools.product(sides, (None, torch.bfloat16)):
            blockwise.channel_attention(*kernel_inputs(side, side, args, torch.float32, P=1), half)
    finally:
        F.scaled_dot_product_attention = real
    return dict(asked=len(seen), taken=sum(seen), ok=all(seen) or args.device != "cuda")


def small_step(args):
    "All gradients of one training step of a layer on a map larger than its table."
    torch.manual_seed(0)
    layer = LESA(32, 32, 16, position="factored", attend=blockwise.streaming).to(args.device)
    x = torch.randn(2, 32, 24, 20, device=args.device)
    layer(x).square().mean().backward()
    return [p.grad for p in layer.parameters()]


def same_again(args):
    "With --deterministic, a step that is taken again has the same gradients to the bit."
    recipe = Recipe("again", epochs=1, batch_size=1, lr=1.0, lr_batch=1, deterministic=True)
    with backends(recipe, nn.Identity(), torch.device(args.device)):
        runs = [small_step(args) for _ in range(3)]
    equal = all(torch.equal(a, b) for again in runs[1:] for a, b in zip(runs[0], again))
    return dict(equal=equal, ok=equal)


def parity(args) -> Rows:
    sizes = [(7, 9), (14, 14)] if args.quick else [(7, 9), (14, 14), (33, 20), (64, 43), (64, 64)]
    for H, W in sizes:
        yield f"kernels {H}x{W}", partial(kernel_parity, H, W, args)
    yield "fused kernels", partial(fused_kernels, args)
    for position, bf16 in itertools.product(("factored", "flat"), (False, True)):
        side = 10 if args.quick else 40 if position == "factored" else 20
        name = f"layer {position} {side}x{side} {'bfloat16' if bf16 else 'float32'}"
        yield name, partial(layer_parity, position, side, bf16, args)
    yield "the same step again", partial(same_again, args)


# ---- memory and times


def contenders(C, side, args):
    "name -> layer: both forms of ours, and what a user would pick instead; timm's where it is installed."
    layer = LESA(C, C, side, position="factored")
    found = {"explicit": attend_with(copy.deepcopy(layer), "explicit"), "LESA": layer}
    found |= {way: attend_with(copy.deepcopy(layer), way) for way in ("rows", "channels")}
    found["conv 3x3"] = nn.Sequential(nn.Conv2d(C, C, 3, padding=1, bias=False), nn.BatchNorm2d(C))
    found |= timm_attention(C, side)
    return {name: module.to(args.device).train() for name, module in found.items()}


def quadratic_gb(side, heads=8):
    "About what the N x N tensors of forward and backward need."
    return 8 * heads * side**4 * 4 / 1e9


def backward(module, x, bf16, device):
    with torch.autocast(device, torch.bfloat16, enabled=bf16):
        y = module(x)
    y.float().sum().backward()


def peaks(C, sides, args):
    "Peak memory of forward and backward for growing maps, and the slope on log-log axes over the last half of them."
    row = dict(channels=C, positions=[side * side for side in sides], peak_mb={"streaming": [], "explicit": []})
    for side in sides:
        layer = LESA(C, C, side, position="factored").to(args.device)
        x = torch.randn(1, C, side, side, device=args.device, requires_grad=True)
        for name, way in (("streaming", blockwise.streaming), ("explicit", "explicit")):
            held = None
            if name == "streaming" or quadratic_gb(side) < args.limit_gb:
                attend_with(layer, way)
                held = peak_mb(lambda: backward(layer, x, False, args.device), args.device)
            row["peak_mb"][name].append(held)
    first, last = len(sides) // 2 - 1, len(sides) - 1
    mb = row["peak_mb"]["streaming"]
    slope = math.log(mb[last] / mb[first]) / math.log(row["positions"][last] / row["positions"][first])
    return row | dict(slope=slope, limit=SLOPE, ok=slope <= SLOPE)


def memory(args) -> Rows:
    C, sides = (32, [24, 32, 40, 48]) if args.quick else (256, [32, 48, 64, 96, 128])
    yield f"one layer of {C} channels", partial(peaks, C, sides, args)


def layer_times(C, side, bf16, args):
    "Seconds and peak memory of one layer, one picture, forward and backward, each contender in turn."
    x = torch.randn(1, C, side, side, device=args.device, requires_grad=True)
    modules = contenders(C, side, args)
    row = dict(side=side, channels=C, bf16=bf16, failed={}, seconds={}, peak_mb={})
    works = {name: partial(backward, module, x, bf16, args.device) for name, module in modules.items()}
    for name, work in list(works.items()):
        try:
            row["peak_mb"][name] = peak_mb(work, args.device)
        except Exception as error:  # memory, a kernel: the others go on
            row["failed"][name] = in_a_line(error)
            del works[name]
    row["seconds"] = seconds(works, args.device, args.rounds)
    return row


def times(args) -> Rows:
    for side, C, bf16 in [(8, 32, False)] if args.quick else [
        (64, 256, False), (64, 256, True), (64, 512, True), (80, 512, True)
    ]:
        name = f"{side}x{side} C={C} {'bfloat16' if bf16 else 'float32'}"
        yield name, partial(layer_times, C, side, bf16, args)


def whole_networks(args) -> Rows:
    args.bf16 = args.device == "cuda"
    batch, size, families = 64, 224, list(networks.FAMILIES)
    if args.quick:
        networks.FAMILIES["small"] = (partial(build_classifier, "small"), resnet18)
        batch, size, families = 2, 32, ["small"]
    for family in families:
        yield family, partial(networks.measure, family, ["train", "inference"], batch, size, args)


def whole_detectors(args) -> Rows:
    if args.quick:
        for name in detectors.DETECTORS:
            detectors.DETECTORS[name] = (partial(build_detector, name, network="small"), 64)
    for name, (_, size) in detectors.DETECTORS.items():
        yield name, partial(detectors.measure, name, size, args)


# ---- training


def three_terms(seed, args):
    "The study's small networks, on the generated task that needs both terms."
    steps = 3 if args.quick else 300
    runs = {term: run.metadata for term, run in train_terms(train_small, twin_problem(), steps=steps, seed=seed)}
    return dict(steps=steps, seed=seed, accuracy={term: found["accuracy"] for term, found in runs.items()})


def digit_network():
    lesa = LESA(16, 16, 8, heads=2, position="factored", attend=blockwise.streaming)
    return nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), lesa, nn.Flatten(), nn.Linear(16 * 64, 10))


def digit_run(folder, args, **changes):
    recipe = Recipe(
        "digits", epochs=2, batch_size=64, lr=3e-3, lr_batch=64, optimizer="adamw", warmup_steps=5, ema=0.9
    ).changed(**changes)
    return partial(fit, digits_task(recipe)._replace(build=digit_network), folder, device=args.device)


def digits_in(precision, args):
    "Two epochs of digits by the library's own loop."
    with tempfile.TemporaryDirectory() as folder:
        events = list(digit_run(folder, args, precision=precision)())
    top1 = events[-1]["scores"]["top1"]
    steps = [e for e in events if e["kind"] == "step"]
    skipped = steps[-1].get("skipped", 0)
    return dict(precision=precision, top1=top1, limit=80.0, ok=top1 >= 80, losses=[e["loss"] for e in steps],
                skipped=skipped)


def digits_resumed(args):
    "One epoch, and one more after a new start, against two in one go, with deterministic operators: equal to the bit?"
    with tempfile.TemporaryDirectory() as home:
        ends = []
        for folder, parts in ((Path(home, "straight"), [None]), (Path(home, "resumed"), [1, None])):
            for until in parts:
                for _ in digit_run(folder, args, deterministic=True)(until=until, resume=True):
                    pass
            ends.append(read_checkpoint(folder / "last.pt")["model"])
    equal = all(torch.equal(a, b) for a, b in zip(ends[0].values(), ends[1].values()))
    return dict(equal=equal, ok=equal)


def training(args) -> Rows:
    for precision in ("float32", "float16") if args.quick else ("float32", "bfloat16", "float16"):
        yield f"digits {precision}", partial(digits_in, precision, args)
    yield "digits, stopped and resumed", partial(digits_resumed, args)
    for seed in range(1 if args.quick else 3):
        yield f"three terms, seed {seed}", partial(three_terms, seed, args)


def flex(side, C, args):
    "(7.1) and (7.2) through torch's FlexAttention, which reads row and column parts in its kernel; ours beside it."
    from torch.nn.attention.flex_attention import flex_attention

    attention = torch.compile(flex_attention)
    q, k, v, h, w = kernel_inputs(side, side, args, torch.float32, C)

    def score_mod(score, b, pair, i, j):
        return score + h[pair, i, j // side] + w[pair, i, j % side]

    def theirs():
        q_k_v = (t.mT.contiguous()[None] for t in (q, k, v))
        attention(*q_k_v, score_mod=score_mod, scale=1.0)[0].sum().backward()

    works = {name: lambda way=way: way(q, k, v, h, w).sum().backward() for name, (way, _) in ways(args.device).items()}
    return dict(side=side, channels=C, seconds=seconds({"flex": theirs} | works, args.device, args.rounds))


def others(args) -> Rows:
    if args.device == "cuda":
        yield "FlexAttention 64x64 C=256", partial(flex, 64, 256, args)


# ---- all of it

PARTS = {
    "parity": parity,
    "memory": memory,
    "times": times,
    "networks": whole_networks,
    "training": training,
    "detectors": whole_detectors,
    "others": others,
}


def in_a_line(error):
    return f"{type(error).__name__}: {error}".splitlines()[0]


def guarded(work, device):
    "The row that `work()` returns; if it fails, a row that says why."
    began = time.perf_counter()
    try:
        row = work()
    except Exception as error:  # memory, a kernel, a compiler, a package: whatever it is, the other rows are wanted
        row = dict(failed=in_a_line(error))
    if device == "cuda":
        with contextlib.suppress(RuntimeError):
            torch.cuda.empty_cache()
    return row | dict(took=round(time.perf_counter() - began, 2))


def run(args):
    "Part -> its rows; saved after each part. Also the names of rows that failed or missed a limit."
    results, faults, began = {}, [], time.perf_counter()
    for part, rows in PARTS.items():
        results[part] = []
        for name, work in rows(args):
            if time.perf_counter() - began > 60 * args.minutes:
                row = dict(left_out=f"{args.minutes:g} minutes were over")
            else:
                row = guarded(work, args.device)
            if row.get("failed") or not row.get("ok", True):
                faults.append(f"{part}: {name}")
            results[part].append(dict(name=name) | row)
            print(f"{part}: {name}: {row}", flush=True)
        save("gpu", QUESTION, results, args, seconds=round(time.perf_counter() - began, 1), faults=faults)
    return results, faults


if __name__ == "__main__":
    parser = arguments(QUESTION)
    parser.set_defaults(rounds=3)
    parser.add_argument("--minutes", type=float, default=7.0, help="nothing begins after so many")
    parser.add_argument("--limit-gb", type=float, default=14.0, help="leave out N x N tensors that would need more")
    args = start(parser)
    if args.quick:
        args.rounds, args.limit_gb = 1, 0.2
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    _, faults = run(args)
    print("all rows are there, within their limits" if not faults else f"failed or beyond a limit: {'; '.join(faults)}")
    sys.exit(bool(faults))
