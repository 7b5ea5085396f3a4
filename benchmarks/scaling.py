"""How do time and memory grow with the map?

    python benchmarks/scaling.py      # 2-core CPU: about 4 minutes; or in pieces: --only 32 48, ...

One layer of 256 channels, one image, forward + backward in training mode, on maps from 32x32 to 128x128: LESA
explicit and streaming, and what a user would pick instead: timm's BottleneckAttn (plain attention with relative
positions, of equal width) and a plain 3x3 convolution with its norm. Written-out N x N tensors are stopped where they
would need more than --limit-gb.
"""

import math

import torch
from common import arguments, chosen, peak_mb, save, seconds, start, timm_attention
from torch import nn

from lesa_nb.layers.blockwise import streaming
from lesa_nb.layers.context import explicit
from lesa_nb.layers.lesa import LESA, attend_with

QUESTION = "How do time and memory of one layer grow with the map?"


def contenders(C, side):
    "name -> module; the last one only where timm is installed."
    modules = {
        "LESA, explicit": attend_with(LESA(C, C, side, position="factored"), explicit),
        "LESA": attend_with(LESA(C, C, side, position="factored"), streaming),
        "context, streaming": attend_with(LESA(C, C, side, position="factored").context, streaming),
        "conv 3x3": nn.Sequential(nn.Conv2d(C, C, 3, padding=1, bias=False), nn.BatchNorm2d(C)),
    }
    return modules | timm_attention(C, side)


def quadratic_gb(name, side, heads=8):
    "About what the N x N tensors of forward + backward need, if there are any."
    return {"LESA, explicit": 8, "timm BottleneckAttn": 6}.get(name, 0) * heads * side**4 * 4 / 1e9


def measure(C, side, args):
    x = torch.randn(1, C, side, side, device=args.device)
    modules = {
        n: m.to(args.device).train() for n, m in contenders(C, side).items() if quadratic_gb(n, side) <= args.limit_gb
    }
    works = {n: lambda m=m: m(x.requires_grad_()).sum().backward() for n, m in modules.items()}
    row = dict(
        name=str(side),
        side=side,
        positions=side * side,
        channels=C,
        seconds=seconds(works, args.device, args.rounds),
        peak_mb={n: peak_mb(w, args.device) for n, w in works.items()},
    )
    print(
        f"{side}x{side}: "
        + "  ".join(f"{n} {row['seconds'][n] * 1e3:.0f} ms {row['peak_mb'][n]:.0f} MB" for n in works),
        flush=True,
    )
    return row


def summary(rows):
    "Exponents between the first and the last map."
    rows = sorted(rows, key=lambda row: row["side"])
    if len(rows) < 2:
        return {}
    slopes = {
        name: dict(memory=exponent(rows, name, "peak_mb"), time=exponent(rows, name, "seconds"))
        for name in ("LESA", "context, streaming", "conv 3x3")
    }
    print(
        "exponents between the first and the last map:",
        {n: {k: round(v, 2) for k, v in s.items()} for n, s in slopes.items()},
    )
    return dict(exponents=slopes)


def exponent(rows, name, key):
    "The slope on log-log axes between the first and the last map."
    first, last = (r for r in (rows[0], rows[-1]) if name in r[key])
    return math.log(last[key][name] / first[key][name]) / math.log(last["positions"] / first["positions"])


if __name__ == "__main__":
    parser = arguments(QUESTION)
    parser.add_argument(
        "--limit-gb", type=float, default=6.0, help="leave out work whose N x N tensors would need more"
    )
    args = start(parser)
    sides = chosen([str(side) for side in ([8, 16] if args.quick else [32, 48, 64, 96, 128])], args)
    save(
        "scaling",
        QUESTION,
        [measure(32 if args.quick else 256, int(side), args) for side in sides],
        args,
        summary=summary,
    )
