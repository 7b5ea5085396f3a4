"""The same numbers without a question about sizes: what a compiler or an exporter that follows unknown sizes gets.

A graph for all sizes may not ask whether a map is larger than its table, nor take views that are cut for one size.
Eager PyTorch takes the shorter ways beside the calls of these functions.
"""
import torch
from torch import Tensor


def fit_any(table: Tensor, m: int, n: int) -> Tensor:
    """`fit_offsets` of notebook 04, both cases of (4.3) in one: steps of one column, or shorter ones where n > m.

    table: (..., 2m-1), the offsets of m positions; returns (..., 2n-1), those of n positions.
    """
    offset = torch.arange(1 - n, n, device=table.device).double()
    step = ((m - 1)/offset[-1].clamp_min(1)).clamp_max(1)  # offset[-1] is n - 1
    place = m - 1 + offset*step
    left = place.long().clamp(0, max(2*m - 3, 0))
    right = (left + 1).clamp_max(2*m - 2)
    return torch.lerp(table[..., left], table[..., right], (place - left).to(table.dtype))


def windows(x: Tensor, n: int) -> Tensor:
    """All windows of n neighbours on the last axis, (..., R) to (..., R - n + 1, n): a view where sizes are known."""
    if not torch.compiler.is_compiling():
        return x.unfold(-1, n, 1)
    first = torch.arange(x.shape[-1] - n + 1, device=x.device)
    return x[..., first[:, None] + torch.arange(n, device=x.device)]


def row_and_column_parts(q_BGKN: Tensor, axes: tuple[Tensor, ...], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Row part (B, G, N, H) and column part (B, G, N, W) of the scores, eq. (7.1): q . h by row, q . w by column.

    q_BGKN: queries; axes: height (K, 2H-1) and width (K, 2W-1), see `FactoredTable.axes`; size: (H, W)
    """
    if torch.compiler.is_exporting():
        return _gathered_parts(q_BGKN, axes, size)
    at_y, at_x = (torch.arange(n, device=q_BGKN.device) - torch.arange(n, device=q_BGKN.device)[:, None] + n - 1
                  for n in size)
    q_BGKHW = q_BGKN.unflatten(-1, tuple(size))
    return (torch.einsum("bgkyx,kyz->bgyxz", q_BGKHW, axes[0][:, at_y]).flatten(2, 3),  # (7.1) h
            torch.einsum("bgkyx,kxz->bgyxz", q_BGKHW, axes[1][:, at_x]).flatten(2, 3))  # (7.1) w


def _gathered_parts(q: Tensor, axes: tuple[Tensor, ...], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The same by gathering: einsum merges axes in a way that torch.export cannot prove right for every size."""
    (B, G, _, N), W = q.shape, size[1]
    pos_N = torch.arange(N, device=q.device)
    parts = []
    for axis_KR, n, own_N in zip(axes, size, (pos_N//W, pos_N % W)):
        at_Nn = torch.arange(n, device=q.device) - own_N[:, None] + n - 1
        all_PNR = q.flatten(0, 1).mT@axis_KR.expand(B*G, -1, -1)
        parts.append(all_PNR.gather(-1, at_Nn.expand(B*G, -1, -1)).unflatten(0, (B, G)))  # (7.1)
    return parts[0], parts[1]
