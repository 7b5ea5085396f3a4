"""The context sums as the published network is described to compute them: what `explicit` must not lose to.

Written from the description (gathered vectors for the offsets, one concatenation, one batch norm), not from its code.
"""

import torch
from torch import einsum

from lesa_nb.layers.position import FactoredTable


def as_published(q, k, v, position, norm, size):
    "The signature and numbers of `lesa_nb.layers.context.explicit`."
    H, W = size
    content = einsum("bgci,bgcj->bgij", q, k)
    if isinstance(position, FactoredTable):
        y, x = (torch.arange(n, device=q.device) for n in size)
        rows, cols = position.height[y[None] - y[:, None] + H - 1], position.width[x[None] - x[:, None] + W - 1]
        grid = q.unflatten(-1, (H, W))
        places = (
            einsum("bgcyx,yzc->bgyxz", grid, rows)[..., None] + einsum("bgcyx,xzc->bgyxz", grid, cols)[..., None, :]
        )
        scores = torch.cat([content, places.reshape(content.shape)], 1)
    else:
        i = torch.arange(H * W, device=q.device)
        e_q, e_k, e_v = position.table[:, i[:, None] - i[None] + H * W - 1].split(position.widths)
        scores = torch.cat([content, einsum("bgci,cij->bgij", q, e_q), einsum("bgcj,cji->bgij", k, e_k)], 1)
    kinds = norm(scores).view(len(q), -1, q.shape[1], H * W, H * W)
    weights = kinds.sum(1).softmax(-1)
    sums = [einsum("bgij,bgcj->bgci", weights, v)]
    if not isinstance(position, FactoredTable):
        sums.append(einsum("bgij,cij->bgci", weights, e_v))
    return torch.stack(sums, 3).flatten(1, 3)
