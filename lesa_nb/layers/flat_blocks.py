"""Attention with a flat offset table, block by block: the machinery behind section "The flat table" of notebook 07.

Axes here: P image-head pairs, K channels of queries and keys, V of values, N = H*W positions, R columns of a table.
Keys and values come from last to first, so that pair (i, j) finds its step in column
(y_i + y_j)*pitch + x_i + x_j, eq. (7.5).
"""
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, einsum, nn

from ._blocks import Scratch, block_shape, blocks, register_gradients, unweigh_, weigh_
from .moments import content_moments, flat_moments, needs_moments, score_scale
from .position import FlatTable

#: Pairs in a block if they fit: they are multiplied with a window together.
_PAIRS = 64

#: A piece of a map: first row, first column, rows, columns. Whole rows, or a piece of one.
_Run = tuple[int, int, int, int]


class Slant(NamedTuple):
    """How pairs of positions on an H x W map read a table with `pitch` columns per row step, eq. (7.5)."""

    H: int
    W: int
    pitch: int

    def positions(self, rows: slice) -> slice:
        """The positions in these map rows."""
        return slice(rows.start*self.W, rows.stop*self.W)

    def runs(self, rows: slice, most: int) -> list[_Run]:
        """Cut map rows into runs of at most `most` positions."""
        if most < self.W:
            starts = [(y, x) for y in range(rows.start, rows.stop) for x in range(0, self.W, most)]
            return [(y, x, 1, min(most, self.W - x)) for y, x in starts]
        m = most//self.W
        return [(y, 0, min(m, rows.stop - y), self.W) for y in range(rows.start, rows.stop, m)]

    def columns(self, run: _Run, others: slice) -> slice:
        """The columns that a run of positions needs for all positions in rows `others`."""
        y, x, m, n = run
        start = (y + others.start)*self.pitch + x
        return slice(start, start + (m + others.stop - others.start - 2)*self.pitch + n + self.W - 1)

    def pairs(self, u: Tensor, run: _Run, others: slice) -> Tensor:
        """Those columns, ([positions of the run,] K, columns), as (rows, columns, K, other rows, W): a view."""
        (_, _, m, n), own = run, u.stride(0) if u.ndim == 3 else 0
        return u.as_strided((m, n, u.shape[-2], others.stop - others.start, self.W),
                            (n*own + self.pitch, own + 1, u.stride(-2), self.pitch, 1))

    def windows(self, table: Tensor, run: _Run, others: slice) -> Tensor:
        """What each position of a run reads for each other: (positions, K, others). Copies only if pitch > W."""
        return self.pairs(table[:, self.columns(run, others)], run, others).reshape(run[2]*run[3], len(table), -1)


class _Table:
    """One offset table at work: products between positions, its columns, and pairs of positions (own, P, others)."""

    def __init__(self, table: Tensor, slant: Slant, budget: int, scratch: Scratch) -> None:
        self.table, self.slant, self.scratch = table, slant, scratch
        self.zeros: dict[tuple, Tensor] = {}
        self.most = max(1, budget//(2*len(table)*slant.H*slant.W))  # positions whose windows fit into half the budget

    def _runs(self, own: slice, most: int) -> Iterator[tuple[_Run, slice]]:
        start = own.start*self.slant.W
        for run in self.slant.runs(own, most):
            y, x, m, n = run
            first = y*self.slant.W + x - start
            yield run, slice(first, first + m*n)

    def scores(self, x: Tensor, own: slice, others: slice) -> Tensor:
        """The scores x . e of positions in rows `own`, (4.8) and (4.9): (own, P, others); x is (own, P, K).

        The next call takes the same memory.
        """
        s = self.scratch("part", *x.shape[:2], (others.stop - others.start)*self.slant.W)
        for run, part in self._runs(own, self.most):
            torch.bmm(x[part], self.slant.windows(self.table, run, others), out=s[part])
        return s

    def sums(self, pairs: Tensor, own: slice, others: slice) -> Tensor:
        """The table's columns, summed with the pairs as weights, (4.10): (own, P, K)."""
        return torch.cat([torch.bmm(pairs[part], self.slant.windows(self.table, run, others).mT)
                          for run, part in self._runs(own, self.most)])

    def add_gradient(self, dtable: Tensor, x: Tensor, pairs: Tensor, own: slice, others: slice) -> None:
        """The gradient of the columns in `scores`, or with weights for pairs and their gradient for x, in `sums`."""
        for run, part in self._runs(own, max(1, self.most//8)):  # few at a time, so that the spread stays in the cache
            columns = self.slant.columns(run, others)
            shape = (part.stop - part.start, len(dtable), columns.stop - columns.start)
            # Every write of this shape hits the same places, so what lies between them stays zero.
            if shape not in self.zeros:
                self.zeros[shape] = dtable.new_zeros(shape)
            spread = self.slant.pairs(self.zeros[shape], run, others)
            product = torch.bmm(x[part].mT, pairs[part], out=self.scratch("part", *shape[:2], pairs.shape[2]))
            spread.copy_(product.view(spread.shape))
            dtable[:, columns] += self.zeros[shape].sum(0)


def _cut(P: int, slant: Slant, budget: int) -> list[tuple[slice, slice]]:
    """Slices of pairs and of whole map rows, for content and place at once."""
    cut = blocks(P, slant.H*slant.W, slant.W, budget//2, _PAIRS)
    return [(p, slice(i.start//slant.W, i.stop//slant.W)) for p, i in cut]


def _weights(q: Tensor, k: Tensor, qp: Tensor, kp: Tensor, query_table: _Table, key_table: _Table, slant: Slant,
             p: slice, rows: slice, scratch: Scratch) -> Tensor:
    """The weights of one block: (P, queries, N)."""
    every, i = slice(0, slant.H), slant.positions(rows)
    n, b, N = block_shape(p, i, q.shape[2])
    turned = torch.bmm(k[p].mT, q[p, :, i], out=scratch("turned", n, N, b))      # content, key by query
    turned.transpose(0, 1).add_(key_table.scores(kp[:, p], every, rows))         # (4.9)
    asked = query_table.scores(qp[i, p], rows, every)                            # (4.8)
    return weigh_(torch.add(asked.transpose(0, 1), turned.mT, out=scratch("a", n, b, N)), not q.is_cuda)  # (7.2)


@torch.library.custom_op("lesa_nb::flat_attention", mutates_args=())
def flat_attention(q: Tensor, k: Tensor, v: Tensor, qp: Tensor, kp: Tensor, tq: Tensor, tk: Tensor, tv: Tensor,
                   H: int, W: int, pitch: int, budget: int) -> Tensor:
    """Softmax attention with a flat table, block by block, eqs. (4.8) to (4.10) through (7.5).

    q, k: (P, K, N) queries, and keys from last to first, scaled for content
    v: (P, V, N) values, from last to first
    qp, kp: (N, P, K) the same queries and keys, scaled for their tables
    tq, tk, tv: (K or V, R) tables asked by queries, by keys (from last to first), and on the value side
    H, W, pitch: size of the map, and columns of the tables for each row step
    budget: how many scores may exist at once
    Returns (P, V, 2, N): the sum over values and the sum over places.
    """
    slant, every, (P, _, N), scratch = Slant(H, W, pitch), slice(0, H), q.shape, Scratch(q)
    table_q, table_k, table_v = (_Table(t, slant, budget, scratch) for t in (tq, tk, tv))
    out = q.new_empty(P, v.shape[1], 2, N)
    for p, rows in _cut(P, slant, budget):
        i = slant.positions(rows)
        a = _weights(q, k, qp, kp, table_q, table_k, slant, p, rows, scratch)
        out[p, :, 0, i] = v[p]@a.mT                                              # (5.4)
        out[p, :, 1, i] = table_v.sums(a.transpose(0, 1), rows, every).permute(1, 2, 0)  # (4.10)
    return out


@torch.library.custom_op("lesa_nb::flat_attention_backward", mutates_args=())
def _flat_attention_backward(g: Tensor, q: Tensor, k: Tensor, v: Tensor, qp: Tensor, kp: Tensor, tq: Tensor, tk: Tensor,
                            tv: Tensor, H: int, W: int, pitch: int, budget: int,
                            ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of `flat_attention` for its eight tensors: (7.3), and those of the tables' products."""
    slant, every, (P, _, N), scratch = Slant(H, W, pitch), slice(0, H), q.shape, Scratch(q)
    table_q, table_k, table_v = (_Table(t, slant, budget, scratch) for t in (tq, tk, tv))
    dq, dqp = q.new_empty(q.shape), qp.new_empty(qp.shape)
    dk, dv, dkp, dtq, dtk, dtv = (t.new_zeros(t.shape) for t in (k, v, kp, tq, tk, tv))
    for p, rows in _cut(P, slant, budget):
        i = slant.positions(rows)
        a = _weights(q, k, qp, kp, table_q, table_k, slant, p, rows, scratch)
        g0 = g[p, :, 0, i]
        d = torch.bmm(g0.mT, v[p], out=scratch("d", *a.shape))
        pairs_a, pairs_d = a.transpose(0, 1), d.transpose(0, 1)
        g1 = scratch("g1", d.shape[1], len(d), len(tv)).copy_(g[p, :, 1, i].permute(2, 0, 1))
        pairs_d.add_(table_v.scores(g1, rows, every))
        table_v.add_gradient(dtv, g1, pairs_a, rows, every)
        dv[p].baddbmm_(g0, a)
        unweigh_(d, a)
        dq[p, :, i] = k[p]@d.mT
        dk[p].baddbmm_(q[p, :, i], d)
        dqp[i, p] = table_q.sums(pairs_d, rows, every)
        table_q.add_gradient(dtq, qp[i, p], pairs_d, rows, every)
        turned = scratch("turned", len(d), N, d.shape[1]).copy_(d.mT).transpose(0, 1)
        dkp[:, p] += table_k.sums(turned, every, rows)
        table_k.add_gradient(dtk, kp[:, p], turned, every, rows)
    return dq, dk, dv, dqp, dkp, dtq, dtk, dtv


def explicit_flat(q: Tensor, k: Tensor, v: Tensor, qp: Tensor, kp: Tensor, tq: Tensor, tk: Tensor, tv: Tensor,
                  H: int, W: int, pitch: int) -> Tensor:
    """`flat_attention` with every tensor written out: its oracle, and what second derivatives go through."""
    y, x = torch.arange(H, device=q.device).repeat_interleave(W), torch.arange(W, device=q.device).repeat(H)
    c_NN = (y[:, None] + y)*pitch + x[:, None] + x                               # (7.5)
    logits = q.mT@k + einsum("ipk,kij->pij", qp, tq[:, c_NN]) + einsum("jpk,kji->pij", kp, tk[:, c_NN])
    a = logits.softmax(-1)
    return torch.stack([v@a.mT, einsum("pij,vij->pvi", a, tv[:, c_NN])], 2)


@flat_attention.register_fake
def _(q, k, v, qp, kp, tq, tk, tv, H, W, pitch, budget):
    return q.new_empty(q.shape[0], v.shape[1], 2, q.shape[2])


register_gradients(flat_attention, _flat_attention_backward, explicit_flat, tensors=8)


def flat_sums(budget: int, q: Tensor, k: Tensor, v: Tensor, position: FlatTable, norm: nn.Module,
              size: tuple[int, int]) -> Tensor:
    """All value sums of a flat table, (6.1) to (6.5), (7.5): (B, GVS, N). Takes a budget, and what `explicit` takes."""
    (B, G, _, N), (H, W) = q.shape, size
    q, k, v = q.contiguous(), k.flip(-1), v.flip(-1)  # (7.5) from last to first; copies: what they came from can go
    qp, kp = (t.permute(3, 0, 1, 2).flatten(1, 2).contiguous() for t in (q, k))  # laid out anew: sliced often
    steps = position.unfolded(size).to(q.dtype).split(position.widths)
    moments = []
    if needs_moments(norm):
        moments = [content_moments(q, k), flat_moments(qp, steps[0], G), flat_moments(kp, steps[1].flip(1, 2), G)]
    a = score_scale(norm, moments, B*N*N).to(q.dtype).view(3, G, 1)
    # An exported graph must hold for every size, so it may not ask whether this one is the table's own.
    if not torch.compiler.is_exporting() and tuple(size) == position.size:
        (tq, tk, tv), pitch = position.table.to(q.dtype).split(position.widths), W
    else:
        (tq, tk, tv), pitch = [step.flatten(1) for step in steps], 2*W - 1
    out = flat_attention((a[0, ..., None]*q).flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), a[1].repeat(B, 1)*qp,
                         a[2].repeat(B, 1)*kp, tq, tk.flip(-1), tv, H, W, pitch, budget)
    return out.unflatten(0, (B, G)).flatten(1, 3)                                # (5.5)
