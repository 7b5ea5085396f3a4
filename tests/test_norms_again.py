"""Second derivatives through batch norms over processes: those of one batch."""

import processes
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.autograd import gradgradcheck

from lesa_nb.layers.norms import _Normalize, convert_sync_batchnorm

SHARES = {"uneven": (slice(0, 2), slice(2, 5)), "one is empty": (slice(0, 0), slice(0, 5))}


def net(affine):
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4, affine=affine)
    return nn.Sequential(nn.Conv2d(3, 4, 2), norm, nn.Tanh(), nn.Conv2d(4, 2, 1)).double()


def penalty(model, x, weights):
    "The squared length of the gradient for the pictures, summed: what WGAN-GP and sharpness-aware training ask for."
    (grad,) = torch.autograd.grad((model(x).square().sum((1, 2, 3)) * weights).sum(), x, create_graph=True)
    return grad.square().sum()


def pictures():
    draw = torch.Generator().manual_seed(1)
    return torch.randn(5, 3, 5, 4, generator=draw).double(), torch.rand(5, generator=draw).double()


def _rank(rank, store, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    found = {}
    for affine in (True, False):
        for name, shares in SHARES.items():
            model = convert_sync_batchnorm(net(affine))
            x, weights = (t[shares[rank]] for t in pictures())
            penalty(model, x.requires_grad_(), weights).backward()
            for p in model.parameters():
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad  # where a share is empty
                dist.all_reduce(p.grad)
            found[f"{name}, {affine}"] = dict(x=x.grad, grads=[p.grad for p in model.parameters()])
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("again")
    processes.spawn(_rank, (folder / "store", folder), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("share", SHARES)
def test_two_processes_find_the_second_derivatives_of_one_batch(two, share, affine):
    model, (x, weights) = net(affine), pictures()
    penalty(model, x.requires_grad_(), weights).backward()
    halves = [found[f"{share}, {affine}"] for found in two]
    torch.testing.assert_close(torch.cat([half["x"] for half in halves]), x.grad, rtol=1e-9, atol=1e-10)
    for half in halves:
        for mine, p in zip(half["grads"], model.parameters(), strict=True):
            torch.testing.assert_close(mine, p.grad, rtol=1e-9, atol=1e-10)


def test_the_second_derivative_is_that_of_the_first(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        draw = torch.Generator().manual_seed(0)
        x, weight, bias = (torch.randn(*shape, generator=draw).double() for shape in ((3, 2, 4), (2,), (2,)))

        def norm(x, *affine):
            return _Normalize.apply(x, *(affine or (None, None)), 1e-5, dist.group.WORLD)[0]

        for inputs in ((x, weight, bias), (x,)):
            assert gradgradcheck(norm, [t.clone().requires_grad_() for t in inputs])
    finally:
        dist.destroy_process_group()
