"""Everything that wants a GPU, in one run: parity, ways to the context sums, whole networks, one small training.

    python benchmarks/gpu.py                       # one GPU: about 10 minutes; writes benchmarks/results/gpu-cuda.json
    python benchmarks/gpu.py --device cpu --quick  # does the script run?

The results go to $OUT instead where that is set. Each part is saved as soon as it is there.
"""

import copy
from importlib.util import find_spec

import torch
from common import arguments, peak_mb, save, seconds, start, timm_attention

from lesa_nb.layers import blockwise as st
from lesa_nb.layers.context import explicit
from lesa_nb.layers.lesa import LESA, attend_with

QUESTION = "What does streaming attention do on a GPU?"


def flex_attention_way():
    "(7.1) and (7.2) through torch's FlexAttention; the row and column parts are read inside its kernel."
    from torch.nn.attention.flex_attention import flex_attention

    compiled = torch.compile(flex_attention)

    def attend(q, k, v, h, w):
        W = w.shape[-1]

        def score_mod(score, b, pair, i, j):
            return score + h[pair, i, j // W] + w[pair, i, j % W]

        return compiled(*(t.mT.contiguous()[None] for t in (q, k, v)), score_mod=score_mod, scale=1.0)[0]

    return attend


def ways(device):
    "name -> attention of (q, k, v, h, w), all with equal numbers."
    budget = st.BUDGET.get(device, st.BUDGET["cpu"])
    found = {
        "explicit": st.explicit_rows,
        "rows": lambda *t: st.row_attention(*(x.float() for x in t), budget),
        "channels": st.channel_attention,
    }
    if device == "cuda":
        found["flex"] = flex_attention_way()
        if find_spec("triton"):
            from triton_rows import triton_rows

            found["triton"] = triton_rows
    return found


def kernels(side, C, dtype, args):
    "Parity, time and peak memory of each way to softmax(q.k + h + w) v, forward + backward."
    G, K, V, N = 8, C // 16, C // 8, side * side
    shapes = [(G, K, N), (G, K, N), (G, V, N), (G, N, side), (G, N, side)]
    inputs = [(0.5 * torch.randn(*s, device=args.device)).to(dtype).requires_grad_() for s in shapes]
    want = st.row_attention(*(t.float() for t in inputs), st.BUDGET[args.device])
    row = dict(
        side=side,
        channels=C,
        dtype=str(dtype),
        error={},
        train_seconds={},
        inference_seconds={},
        train_peak_mb={},
        failed={},
    )
    for name, way in ways(args.device).items():

        def train():
            way(*inputs).float().sum().backward()

        @torch.no_grad()
        def infer():
            return way(*inputs)

        try:
            row["error"][name] = ((infer().float() - want).abs().max() / want.abs().max()).item()
            row["train_seconds"] |= seconds({name: train}, args.device, args.rounds)
            row["inference_seconds"] |= seconds({name: infer}, args.device, args.rounds)
            row["train_peak_mb"][name] = peak_mb(train, args.device)
        except Exception as error:  # one way may lack a kernel, a compiler or memory: the others go on
            row["failed"][name] = f"{type(error).__name__}: {error}".splitlines()[0]
            if args.device == "cuda":
                torch.cuda.empty_cache()
    floor = 7 * G * N * N * (K + V)  # multiply-adds of forward (2 products) and backward (5 products), about
    row["floor_multiply_adds"] = floor
    print({k: v for k, v in row.items() if k != "floor_multiply_adds"}, flush=True)
    return row


def layers(side, C, args, bf16):
    "The whole layer, forward + backward: explicit, streaming, and timm's attention of equal width."
    x = torch.randn(1, C, side, side, device=args.device)
    layer = LESA(C, C, side, position="factored").to(args.device)
    modules = {"explicit": attend_with(copy.deepcopy(layer), explicit), "streaming": attend_with(layer, st.streaming)}
    modules |= {name: m.to(args.device) for name, m in timm_attention(C, side).items()}

    def train(m):
        with torch.autocast(args.device, torch.bfloat16, enabled=bf16):
            y = m(x.requires_grad_())
        y.float().sum().backward()

    works = {n: lambda m=m: train(m) for n, m in modules.items()}
    row = dict(
        side=side,
        channels=C,
        bf16=bf16,
        seconds=seconds(works, args.device, args.rounds),
        peak_mb={n: peak_mb(w, args.device) for n, w in works.items()},
    )
    with torch.autocast(args.device, torch.bfloat16, enabled=bf16), torch.no_grad():
        a, b = (modules[n].eval()(x).float() for n in ("explicit", "streaming"))
    row["error"] = ((a - b).abs().max() / a.abs().max()).item()
    print(row, flush=True)
    return row


def training(steps):
    "The study's small networks, three seeds each, on the generated task that needs both terms."
    from lesa_nb.study.small import train_small, twin_problem
    from lesa_nb.tasks.side_by_side import train_terms

    rows = []
    for seed in range(1 if steps < 10 else 3):
        for _, run in train_terms(train_small, twin_problem(), steps=steps, seed=seed):
            rows.append(run.metadata)
            print({k: run.metadata[k] for k in ("net", "seed", "accuracy", "seconds")}, flush=True)
    return rows


if __name__ == "__main__":
    args = start(arguments(QUESTION))
    import networks

    results = {}
    sides, widths = ([8], [32]) if args.quick else ([64, 80], [256, 512])
    dtypes = [torch.float32] if args.device == "cpu" else [torch.float32, torch.bfloat16]
    parts = {
        "kernels": lambda: [kernels(s, C, d, args) for s in sides for C in widths for d in dtypes],
        "layers": lambda: [layers(s, C, args, b) for s in sides for C in widths for b in (False, True)],
        "training": lambda: training(3 if args.quick else 500),
    }
    if not args.quick:
        args.bf16 = True
        parts["networks"] = lambda: [networks.measure(family, 64, 224, args) for family in networks.FAMILIES]
    for name, part in parts.items():
        results[name] = part()
        save("gpu", QUESTION, results, args)
