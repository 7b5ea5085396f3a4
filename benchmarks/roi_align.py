"""How much faster is RoIAlign's gradient on a CPU than torchvision's kernel for it?

    python benchmarks/roi_align.py --threads 1      # 2-core CPU: under a minute; another machine's load is in the file

Forward and backward of one cut, torchvision's and ours in turns; the forward pass is torchvision's kernel in both. And
a training step of the small HTC on two generated pictures, with either. "cpu_seconds" count this process's work, which
a busy machine does not change.
"""

import os
import time

import torch
from common import arguments, chosen, save, start
from torchvision.ops import roi_align

from lesa_nb.models import ops
from lesa_nb.models.registry import build_detector

QUESTION = "How much faster is RoIAlign's gradient on a CPU than torchvision's kernel for it?"
# channels, side of the map, boxes, size of the cuts, longest side of a box in the map's pixels
CUTS = {
    "boxes, small": (32, 32, 67, 7, 10),
    "stuff, small": (32, 16, 67, 14, 6),
    "boxes, level 3 of 1024 px": (256, 64, 100, 7, 28),
    "masks, level 2 of 1024 px": (256, 128, 100, 14, 28),
    "boxes, level 1 of 1024 px": (256, 256, 300, 7, 28),
}
STEP = "training step of the small HTC"


def in_turns(works, rounds):
    "Name -> seconds and seconds of this process's work, of the fastest of `rounds` rounds; all take turns."
    best = {name: [float("inf")] * 2 for name in works}
    for round_ in range(rounds + 1):
        for name, work in works.items():
            begin = time.perf_counter(), time.process_time()
            work()
            spent = time.perf_counter() - begin[0], time.process_time() - begin[1]
            if round_:  # the first one warms up
                best[name] = [min(pair) for pair in zip(best[name], spent)]
    return dict(
        seconds={n: wall for n, (wall, _) in best.items()}, cpu_seconds={n: cpu for n, (_, cpu) in best.items()}
    )


def cut_works(channels, side, boxes, size, longest):
    x = torch.randn(1, channels, side, side, requires_grad=True)
    low = torch.rand(boxes, 2) * (side - longest)
    rois = torch.cat([torch.zeros(boxes, 1), low, low + (0.3 + 0.7 * torch.rand(boxes, 2)) * longest], 1)
    grad = torch.randn(boxes, channels, size, size)

    def work(cut):
        x.grad = None
        cut().backward(grad)
        return x.grad

    theirs = lambda: work(lambda: roi_align(x, rois, size, aligned=True))  # noqa: E731
    ours = lambda: work(lambda: ops.roi_align(x, rois, size))  # noqa: E731
    want = theirs()
    assert ((ours() - want).abs().max() / want.abs().max()).item() < 1e-5
    return dict(torchvision=theirs, ours=ours)


def step_works(size=128):
    detector = build_detector("htc", network="small", num_classes=3, image_size=size).train()
    targets, images = [], [torch.rand(3, size, size) for _ in range(2)]
    for objects in (3, 5):
        low = torch.rand(objects, 2) * size / 2
        boxes = torch.cat([low, low + 8 + torch.rand(objects, 2) * size * 0.4], 1)
        masks = torch.ones(objects, size, size, dtype=torch.uint8)
        stuff = torch.randint(0, 20, (size, size))
        targets.append(dict(boxes=boxes, labels=torch.randint(1, 4, (objects,)), masks=masks, semantic=stuff))
    ours = ops.roi_align

    def theirs(maps, boxes, size, scale=1.0):
        return roi_align(maps, boxes, size, scale, aligned=True)

    def step(cut):
        torch.manual_seed(0)
        ops.roi_align = cut
        sum(detector(images, targets).values()).backward()
        ops.roi_align = ours

    return dict(torchvision=lambda: step(theirs), ours=lambda: step(ours))


def measure(name, args):
    torch.manual_seed(0)
    works = step_works() if name == STEP else cut_works(*CUTS[name])
    row = dict(name=name, load=os.getloadavg()[0], **in_turns(works, 1 if args.quick else args.rounds))
    spent = {n: (row["seconds"][n] * 1e3, row["cpu_seconds"][n] * 1e3) for n in works}
    parts = "  ".join(f"{n} {wall:.1f} ms ({cpu:.1f} of CPU)" for n, (wall, cpu) in spent.items())
    print(f"{name:32} {parts}", flush=True)
    return row


if __name__ == "__main__":
    parser = arguments(QUESTION)
    parser.set_defaults(device="cpu", rounds=10)
    args = start(parser)
    save("roi_align", QUESTION, [measure(n, args) for n in chosen([*CUTS, STEP], args)], args)
