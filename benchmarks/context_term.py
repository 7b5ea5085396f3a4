"""How much faster and leaner is the context term when it streams?

    python benchmarks/context_term.py            # 2-core CPU: about 3 minutes; or in pieces: --only factored-256, ...

The context term alone (projection, norms, attention), fp32, forward + backward in training mode and inference in eval
mode: as published, explicit, streaming; equal numbers are checked first. Beside each time stands the floor: the
matrix products of explicit attention at the speed of one large matrix product measured in the same run. The flat
table's products are many narrow ones (64 image-head pairs by K = C/16 channels by N positions), which no library does
at that speed: at 512 channels on 14 x 14, a quarter of it on one core. "shaped_floor_seconds" are the same products in
these shapes. So the projection, which runs at its floor in every form, and these products leave room for a factor of
about 1.7 to the explicit form there, not for 2.2.
"""

import copy

import torch
from as_published import as_published
from common import arguments, chosen, peak_mb, save, seconds, start

from lesa_nb.layers.blockwise import streaming
from lesa_nb.layers.context import Context, explicit
from lesa_nb.layers.lesa import POSITIONS, attend_with

QUESTION = "How much faster and leaner is the context term when it streams?"
WAYS = dict(published=as_published, explicit=explicit, streaming=streaming)


def products(position, C, heads, side, batch, training):
    "Multiply-adds of the projection and of the attention products: content, position scores, values."
    N, K, V = side * side, C // heads // 2, C // heads
    pairs = batch * heads * N * N
    attention = pairs * (K + V + (2 * K + V if position == "flat" else 0))
    return (3 if training else 1) * (batch * N * C * 2 * C + attention)


def speed(device):
    "Multiply-adds per second of one large matrix product."
    a = torch.randn(2048, 2048, device=device)
    return 2048**3 / seconds({"": lambda: a @ a}, device)[""]


def shaped_floor(C, side, batch, training, device, peak_speed):
    "Seconds of the projection at full speed and of the attention's products as batches of narrow ones."
    N, pairs = side * side, batch * 8
    spent = 0.0
    for width, number in ((C // 16, 3), (C // 8, 2)):  # content and two tables; values and their table
        a, b = torch.randn(N, min(pairs, 64), width, device=device), torch.randn(N, width, N, device=device)
        once = seconds({"": lambda a=a, b=b: torch.bmm(a, b)}, device)[""] * pairs / a.shape[1]
        spent += number * once
    return (3 if training else 1) * (batch * N * C * 2 * C / peak_speed + spent)


def measure(position, C, side, batch, args, peak_speed):
    K, V = C // 16, C // 8
    layer = Context(C, C, POSITIONS[position]((side, side), K, V)).to(args.device)
    layers = {name: copy.deepcopy(layer) for name in WAYS}
    for name, way in WAYS.items():
        attend_with(layers[name], way)
    x = torch.randn(batch, C, side, side, device=args.device)

    def train(name):
        layers[name].train()
        layers[name](x.requires_grad_()).sum().backward()

    @torch.no_grad()
    def infer(name):
        return layers[name].eval()(x.detach())

    want = infer("explicit")
    for name in WAYS:
        error = ((infer(name) - want).abs().max() / want.abs().max()).item()
        assert error < 1e-5, (name, error)
    row = dict(name=f"{position}-{C}", position=position, channels=C, heads=8, side=side, batch=batch)
    for mode, work in dict(train=train, inference=infer).items():
        row[mode] = {
            "seconds": seconds({name: lambda name=name: work(name) for name in WAYS}, args.device, args.rounds),
            "peak_mb": {name: peak_mb(lambda name=name: work(name), args.device) for name in WAYS},
            "floor_seconds": products(position, C, 8, side, batch, mode == "train") / peak_speed,
        }
        if position == "flat":
            shaped = shaped_floor(C, side, batch, mode == "train", args.device, peak_speed)
            row[mode]["shaped_floor_seconds"] = shaped
        s, m, floor = row[mode]["seconds"], row[mode]["peak_mb"], row[mode]["floor_seconds"]
        faster, leaner = s["explicit"] / s["streaming"], m["explicit"] / m["streaming"]
        print(
            f"{position:8} C={C} {side}x{side} N={batch} {mode:9} "
            + "  ".join(f"{n} {s[n] * 1e3:.0f} ms {m[n]:.0f} MB" for n in WAYS)
            + f"  | {faster:.1f}x faster, 1/{leaner:.1f} of the memory; floor {floor * 1e3:.0f} ms",
            flush=True,
        )
    return row


if __name__ == "__main__":
    args = start(arguments(QUESTION))
    work = (
        [("factored", 32, 16, 1), ("flat", 32, 7, 4)]
        if args.quick
        else [("factored", 256, 64, 1), ("flat", 256, 14, 32), ("flat", 512, 14, 32)]
    )
    peak_speed = speed(args.device)
    work = {f"{w[0]}-{w[1]}": w for w in work}
    save(
        "context_term",
        QUESTION,
        [measure(*work[n], args, peak_speed) for n in chosen(work, args)],
        args,
        multiply_adds_per_second=peak_speed,
    )
