"""What does a training step of the published detectors cost, and what does streaming save?

    python benchmarks/detectors.py                       # 2-core CPU: about 12 minutes and 20 GB; or --only mask_rcnn
    python benchmarks/detectors.py --ways streaming      # about 4 minutes; compare.py reads two results

One training step (losses and gradients, no optimizer) on one generated picture: Mask R-CNN on LESA-ResNet-50 at 1024
x 1024 and HTC on LESA-WRN-50 at 1280 x 1280, with the context terms written out and streaming, in turns. And where a
streaming step spends its time: its forward pass by part, all of it by operator. Written out, the N x N tensors of all
layers together are more than most machines hold: where they would need more than --limit-gb, each layer forgets its
own after the forward pass and writes them out again in the backward pass ("explicit, again"; streaming does so by
itself), and the file says so.
"""

import time

import torch
from common import arguments, chosen, peak_mb, save, seconds, start
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

from lesa_nb.layers.context import Context, explicit
from lesa_nb.layers.lesa import attend_with
from lesa_nb.models.htc import htc_lesa_wrn50, mask_rcnn_lesa_resnet50

QUESTION = "What does a training step of the published detectors cost, and what does streaming save?"
DETECTORS = {"mask_rcnn": (mask_rcnn_lesa_resnet50, 1024), "htc": (htc_lesa_wrn50, 1280)}
WAYS = ("streaming", "explicit")
PARTS = ("pyramid.backbone", "pyramid", "rpn", "semantic_head")


def picture(size, device, objects=8):
    "A normalised picture, its boxes, elliptic masks, classes and stuff map."
    corner = torch.rand(objects, 2) * size * 0.6
    boxes = torch.cat([corner, corner + size * (0.1 + 0.3 * torch.rand(objects, 2))], 1)
    y, x = torch.meshgrid(torch.arange(size) + 0.5, torch.arange(size) + 0.5, indexing="ij")
    masks = torch.stack(
        [((2 * x - a - c) / (c - a)) ** 2 + ((2 * y - b - d) / (d - b)) ** 2 <= 1 for a, b, c, d in boxes]
    )
    semantic = torch.randint(183, (size, size))
    target = dict(boxes=boxes, masks=masks, classes=torch.randint(80, (objects,)), semantic=semantic)
    return torch.randn(3, size, size).to(device), {k: t.to(device) for k, t in target.items()}


def quadratic_gb(contexts, maps, heads=8):
    "About what the N x N tensors of all context terms need between forward and backward."
    return contexts * 4 * heads * maps**4 * 4 / 1e9


def explicit_again(*args):
    "`explicit`, whose N x N tensors live once in the forward and once in the backward pass, one layer at a time."
    return checkpoint(explicit, *args, use_reentrant=False)


def in_parts(network, step):
    "Part -> seconds of its forward passes in one step, a pyramid's with its backbone's; operator -> seconds of both."
    spent, started = {}, {}

    def before(name):
        return lambda *_: started.update({name: time.perf_counter()})

    def after(name):
        return lambda *_: spent.update({name: spent.get(name, 0) + time.perf_counter() - started[name]})

    parts = {n: p for n, p in network.named_modules() if n in PARTS} | {
        f"context {i}": c for i, c in enumerate(m for m in network.modules() if isinstance(m, Context))
    }
    hooks = [
        h for n, p in parts.items() for h in (p.register_forward_pre_hook(before(n)), p.register_forward_hook(after(n)))
    ]
    begin = time.perf_counter()
    with profile(activities=[ProfilerActivity.CPU]) as prof:
        step(spent)
    total = time.perf_counter() - begin
    for hook in hooks:
        hook.remove()
    context = sum(spent.pop(n) for n in list(spent) if n.startswith("context "))
    operators = sorted(prof.key_averages(), key=lambda e: -e.self_cpu_time_total)[:8]
    return dict(spent, context_terms=context, step=total), {e.key: e.self_cpu_time_total / 1e6 for e in operators}


def measure(name, size, args):
    make, _ = DETECTORS[name]
    torch.manual_seed(0)
    network = make(image_size=size).to(args.device).train()
    x, target = picture(size, args.device)

    def losses():
        return sum(network.losses([x], [target]).values())

    def step(way):
        attend_with(network, way)
        losses().backward()

    def split(spent):
        attend_with(network, "auto")
        begin = time.perf_counter()
        loss = losses()
        spent["forward"] = time.perf_counter() - begin
        loss.backward()

    warm = args.device != "cpu" or args.quick  # a full step on a CPU takes minutes
    contexts = sum(isinstance(m, Context) for m in network.modules())
    needs = quadratic_gb(contexts, size // 16)
    ways = {"streaming": "auto"} | (
        {"explicit": "explicit"} if needs <= args.limit_gb else {"explicit, again": explicit_again}
    )
    ways = {n: way for n, way in ways.items() if n.split(",")[0] in getattr(args, "ways", WAYS)}
    works = {n: lambda way=way: step(way) for n, way in ways.items()}
    row = dict(
        name=name,
        size=size,
        contexts=contexts,
        explicit_needs_gb=needs,
        seconds=seconds(works, args.device, args.rounds, warm),
        peak_mb={n: peak_mb(w, args.device, warm) for n, w in works.items()},
    )
    row["streaming_step"], row["streaming_operators"] = in_parts(network, split)
    if "explicit, again" in ways:
        row["explicit"] = f"not run: about {needs:.0f} GB of N x N tensors; one layer at a time instead"
    print(
        f"{name} at {size}: "
        + "  ".join(f"{n} {row['seconds'][n]:.1f} s {row['peak_mb'][n] / 1e3:.2f} GB" for n in works)
        + "  | "
        + "  ".join(f"{n} {s:.1f} s" for n, s in row["streaming_step"].items()),
        flush=True,
    )
    print("  most of it: " + ", ".join(f"{n} {s:.1f} s" for n, s in row["streaming_operators"].items()), flush=True)
    return row


if __name__ == "__main__":
    parser = arguments(QUESTION)
    parser.set_defaults(rounds=1)
    parser.add_argument(
        "--limit-gb",
        type=float,
        default=14.0,
        help="where the N x N tensors of all layers would need more, write them out one layer at a time",
    )
    parser.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS)
    args = start(parser)
    names = chosen(DETECTORS, args)
    save("detectors", QUESTION, [measure(n, 128 if args.quick else DETECTORS[n][1], args) for n in names], args)
