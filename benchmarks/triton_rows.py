"""Softmax attention with a row part and a column part as Triton kernels, eqs. (7.1) to (7.3), for benchmarks/gpu.py.

    softmax(q.k + h + w) v,   q, k: (P, K, N)   v: (P, V, N)   h: (P, N, H)   w: (P, N, W)   ->   (P, N, V)

A block of keys is one row of the map. Then the row part is one number per query and the column part the same tile for
every block, read once; their gradients are a sum over the tile and a sum of tiles. No N x N tensor is written.
Forward: one program per block of queries, running maximum and sum. Backward: one program per block of queries for dq,
dh, dw, and one per block of keys for dk, dv, both from the saved log-sum-exp.

Without a GPU, TRITON_INTERPRET=1 runs the kernels in numpy: slow, for small shapes, to check the numbers.
"""

import os

import torch
import triton
import triton.language as tl

QUERIES = 64  # per block


@triton.jit
def _vectors(ptr, at, width: tl.constexpr, there):
    "The vectors at these positions: (positions, width); zeros where there is no position, so that they add nothing."
    return tl.load(ptr + at[:, None] * width + tl.arange(0, width), mask=there[:, None], other=0.0)


@triton.jit
def _logits(q, k, h, w, live):
    "One tile of (7.1); columns beyond the map's last count for nothing."
    s = tl.dot(q, tl.trans(k), input_precision="ieee") + h[:, None] + w
    return tl.where(live[None, :], s, float("-inf"))


@triton.jit
def _weights_and_gradients(q, k, v, g, h, w, live, lse, delta):
    "One tile of A (7.2) and of D (7.3)."
    p = tl.exp(_logits(q, k, h, w, live) - lse[:, None])
    return p, p * (tl.dot(g, tl.trans(v), input_precision="ieee") - delta[:, None])


@triton.jit
def _forward(
    q_ptr,
    k_ptr,
    v_ptr,
    h_ptr,
    w_ptr,
    out_ptr,
    lse_ptr,
    H,
    W,
    K: tl.constexpr,
    V: tl.constexpr,
    BQ: tl.constexpr,
    BW: tl.constexpr,
):
    N, pair = H * W, tl.program_id(1).to(tl.int64)
    i = tl.program_id(0) * BQ + tl.arange(0, BQ)
    x, vv = tl.arange(0, BW), tl.arange(0, V)
    own, live = i < N, x < W
    row = pair * N + i
    q = _vectors(q_ptr, row, K, own)
    w = tl.load(w_ptr + row[:, None] * W + x, mask=own[:, None] & live, other=0.0).to(tl.float32)
    top, total = tl.full((BQ,), float("-inf"), tl.float32), tl.zeros((BQ,), tl.float32)
    out = tl.zeros((BQ, V), tl.float32)
    for y in range(H):
        at = pair * N + y * W + x
        k = _vectors(k_ptr, at, K, live)
        v = _vectors(v_ptr, at, V, live)
        h = tl.load(h_ptr + row * H + y, mask=own, other=0.0).to(tl.float32)
        s = _logits(q, k, h, w, live)
        new = tl.maximum(top, tl.max(s, 1))
        p, keep = tl.exp(s - new[:, None]), tl.exp(top - new)
        total = total * keep + tl.sum(p, 1)
        out = out * keep[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
        top = new
    tl.store(out_ptr + row[:, None] * V + vv, out / total[:, None], mask=own[:, None])
    tl.store(lse_ptr + row, top + tl.log(total), mask=own)


@triton.jit
def _backward_queries(
    q_ptr,
    k_ptr,
    v_ptr,
    h_ptr,
    w_ptr,
    g_ptr,
    lse_ptr,
    delta_ptr,
    dq_ptr,
    dh_ptr,
    dw_ptr,
    H,
    W,
    K: tl.constexpr,
    V: tl.constexpr,
    BQ: tl.constexpr,
    BW: tl.constexpr,
):
    N, pair = H * W, tl.program_id(1).to(tl.int64)
    i = tl.program_id(0) * BQ + tl.arange(0, BQ)
    x, kk = tl.arange(0, BW), tl.arange(0, K)
    own, live = i < N, x < W
    row = pair * N + i
    q = _vectors(q_ptr, row, K, own)
    g = _vectors(g_ptr, row, V, own)
    w = tl.load(w_ptr + row[:, None] * W + x, mask=own[:, None] & live, other=0.0).to(tl.float32)
    lse, delta = tl.load(lse_ptr + row, mask=own, other=0.0), tl.load(delta_ptr + row, mask=own, other=0.0)
    dq, dw = tl.zeros((BQ, K), tl.float32), tl.zeros((BQ, BW), tl.float32)
    for y in range(H):
        at = pair * N + y * W + x
        k = _vectors(k_ptr, at, K, live)
        v = _vectors(v_ptr, at, V, live)
        h = tl.load(h_ptr + row * H + y, mask=own, other=0.0).to(tl.float32)
        _, d = _weights_and_gradients(q, k, v, g, h, w, live, lse, delta)
        dq += tl.dot(d.to(k.dtype), k, input_precision="ieee")
        tl.store(dh_ptr + row * H + y, tl.sum(d, 1), mask=own)
        dw += d
    tl.store(dq_ptr + row[:, None] * K + kk, dq, mask=own[:, None])
    tl.store(dw_ptr + row[:, None] * W + x, dw, mask=own[:, None] & live)


@triton.jit
def _backward_keys(
    q_ptr,
    k_ptr,
    v_ptr,
    h_ptr,
    w_ptr,
    g_ptr,
    lse_ptr,
    delta_ptr,
    dk_ptr,
    dv_ptr,
    H,
    W,
    K: tl.constexpr,
    V: tl.constexpr,
    BQ: tl.constexpr,
    BW: tl.constexpr,
):
    N, y, pair = H * W, tl.program_id(0), tl.program_id(1).to(tl.int64)
    x, kk, vv = tl.arange(0, BW), tl.arange(0, K), tl.arange(0, V)
    live = x < W
    at = pair * N + y * W + x
    k = _vectors(k_ptr, at, K, live)
    v = _vectors(v_ptr, at, V, live)
    dk, dv = tl.zeros((BW, K), tl.float32), tl.zeros((BW, V), tl.float32)
    for start in range(0, N, BQ):
        i = start + tl.arange(0, BQ)
        own, row = i < N, pair * N + i
        q = _vectors(q_ptr, row, K, own)
        g = _vectors(g_ptr, row, V, own)
        h = tl.load(h_ptr + row * H + y, mask=own, other=0.0).to(tl.float32)
        w = tl.load(w_ptr + row[:, None] * W + x, mask=own[:, None] & live, other=0.0).to(tl.float32)
        lse, delta = tl.load(lse_ptr + row, mask=own, other=0.0), tl.load(delta_ptr + row, mask=own, other=0.0)
        p, d = _weights_and_gradients(q, k, v, g, h, w, live, lse, delta)
        dv += tl.dot(tl.trans(p).to(g.dtype), g, input_precision="ieee")
        dk += tl.dot(tl.trans(d).to(q.dtype), q, input_precision="ieee")
    tl.store(dk_ptr + at[:, None] * K + kk, dk, mask=live[:, None])
    tl.store(dv_ptr + at[:, None] * V + vv, dv, mask=live[:, None])


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q_PKN, k_PKN, v_PVN, h_PNH, w_PNW):
        q, k, v = (t.mT.contiguous() for t in (q_PKN, k_PKN, v_PVN))
        h, w = h_PNH.contiguous(), w_PNW.contiguous()
        (P, N, K), V, H, W = q.shape, v.shape[-1], h.shape[-1], w.shape[-1]
        ctx.blocks = dict(
            K=K, V=V, BQ=QUERIES, BW=max(16, triton.next_power_of_2(W)), num_stages=3 if q.element_size() == 2 else 2
        )  # tiles of float32 on their way fill the shared memory
        out, lse = torch.empty_like(v), q.new_empty(P, N, dtype=torch.float32)
        _forward[triton.cdiv(N, QUERIES), P](q, k, v, h, w, out, lse, H, W, **ctx.blocks)
        ctx.save_for_backward(q, k, v, h, w, out, lse)
        return out

    @staticmethod
    def backward(ctx, g):
        q, k, v, h, w, out, lse = ctx.saved_tensors
        (P, N), H, W = lse.shape, h.shape[-1], w.shape[-1]
        g, delta = g.contiguous(), (g.float() * out.float()).sum(-1)
        dq, dk, dv, dh, dw = (torch.empty_like(t) for t in (q, k, v, h, w))
        _backward_queries[triton.cdiv(N, QUERIES), P](q, k, v, h, w, g, lse, delta, dq, dh, dw, H, W, **ctx.blocks)
        _backward_keys[H, P](q, k, v, h, w, g, lse, delta, dk, dv, H, W, **ctx.blocks)
        return dq.mT, dk.mT, dv.mT, dh, dw


def triton_rows(q, k, v, h, w):
    "softmax(q.k + h + w) v, (P, N, V). K and V must be powers of two from 16 on."
    for name, width in (("K", q.shape[1]), ("V", v.shape[1])):
        if width < 16 or width & (width - 1):
            raise ValueError(f"the kernels take {name} = 16, 32, 64, ...; this is {name} = {width}")
    N, H, W = q.shape[2], h.shape[2], w.shape[2]
    if N != H * W:
        raise ValueError(
            f"row part and column part are those of a map of H, W = {(H, W)} with {H * W} positions, "
            f"the queries have {N}"
        )
    if not q.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(
            f"the kernels run on a GPU, the queries are on {q.device}; to check numbers without one, "
            "set TRITON_INTERPRET=1 before Triton is imported"
        )
    return _Rows.apply(q, k, v, h, w)
